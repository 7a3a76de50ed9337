"""The neighbor graph of the cells, in one representation: ``pca`` or ``harmony``.

``obsp/distances`` (to the nearest neighbors), ``obsp/connectivities`` (UMAP's fuzzy weights,
symmetric) and ``uns/neighbors``, as scanpy's ``pp.neighbors`` writes them.

Settings: section ``neighbors``. Input: pca or harmony. Output: a step file.
"""

from pathlib import Path

import numpy as np

from scrna import slots
from scrna.backend import load
from scrna.graphs import representation
from scrna.log import log
from scrna.step import run, step


@step
def neighbors(
    representation_of: Path,
    out: Path,
    *,
    n_neighbors: int,
    n_pcs: int,
    metric: str,
    backend: str,
    seed: int,
) -> None:
    """Find the nearest neighbors of each cell and weigh them.

    Parameters
    ----------
    representation_of
        The step file of ``pca`` or ``harmony``.
    out
        The step file: obsp distances and connectivities (kept cells × kept cells, CSR), uns.
    n_neighbors
        Neighbors of a cell, itself among them; fewer where there are not as many cells.
    n_pcs
        Components used.
    metric
        ``euclidean`` or ``cosine``.
    backend, seed
        Where, and from which seed.
    """
    from anndata import AnnData

    key, array = representation(representation_of, n_pcs)
    if n_neighbors >= len(array):
        most = len(array) - 1
        log.warning(
            "n_neighbors is %d, but there are %d cells: %d are taken", n_neighbors, len(array), most
        )
        n_neighbors = most
    adata = AnnData(obsm={key: array})
    load(backend).pp.neighbors(
        adata, n_neighbors=n_neighbors, use_rep=key, metric=metric, random_state=seed
    )
    adata.uns["neighbors"]["params"]["n_pcs"] = array.shape[1]
    graph = adata.obsp["connectivities"].tocsr()
    slots.write(
        out,
        {
            "obsp/distances": adata.obsp["distances"].tocsr(),
            "obsp/connectivities": graph,
            "uns/neighbors": dict(adata.uns["neighbors"]),
        },
    )
    log.info(
        "%d cells in %d components of %s: %d edges, %.1f a cell",
        len(array),
        array.shape[1],
        key,
        graph.nnz // 2,
        np.diff(graph.indptr).mean(),
    )


if __name__ == "__main__":
    run(neighbors, snakemake)
