"""Compute the UMAP embedding of the cells.

Purpose
    Two coordinates per cell, for figures and the map in the report.

Method
    UMAP (McInnes et al. 2018) of the neighbor graph, ``tl.umap`` of scanpy or rapids-singlecell.

Settings
    Section ``umap``.

Inputs
    neighbors, and the representation it was made from (pca or harmony).

Outputs
    A step file: obsm ``X_umap``, uns ``umap``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import load, to_host
from scrna.data import step_files
from scrna.data.graph import open_graph, representation
from scrna.log import log
from scrna.methods import umap_compiled
from scrna.resources.admission import decide
from scrna.step import step
from scrna.workflow.rule import run


@step
def umap(
    neighbors: Path,
    representation_of: Path,
    out: Path,
    *,
    min_dist: float,
    spread: float,
    n_components: int,
    max_iter: int | None,
    alpha: float,
    negative_sample_rate: int,
    init: str,
    backend: str,
    seed: int,
) -> None:
    """Compute the UMAP embedding.

    Parameters
    ----------
    neighbors, representation_of
        The step files of ``neighbors`` and of ``pca`` or ``harmony``.
    out
        The step file: obsm X_umap (kept cells × n_components, float32), uns umap.
    min_dist, spread, n_components, alpha, negative_sample_rate, init
        UMAP's own, as scanpy names them.
    max_iter
        Epochs; None is 500 up to 10,000 cells, else 200.
    backend, seed
        Where, and from which seed.

    Raises
    ------
    ArithmeticError
        If a coordinate is not finite.
    """
    adata = open_graph(neighbors)
    n_pcs = adata.uns["neighbors"]["params"]["n_pcs"]
    key, array = representation(representation_of, int(n_pcs))
    adata.obsm[key] = array
    decide("umap", backend=backend, n_obs=adata.n_obs, n_pcs=array.shape[1])
    if backend == "cpu":
        umap_compiled.import_umap()
    load(backend).tl.umap(
        adata,
        min_dist=min_dist,
        spread=spread,
        n_components=n_components,
        maxiter=max_iter,
        alpha=alpha,
        negative_sample_rate=negative_sample_rate,
        init_pos=init,
        random_state=seed,
    )
    embedding = np.asarray(to_host(adata.obsm["X_umap"]), dtype=np.float32)
    if not np.isfinite(embedding).all():
        msg = "UMAP returned coordinates that are not finite; try umap.init: random"
        raise ArithmeticError(msg)
    step_files.write(out, {"obsm/X_umap": embedding, "uns/umap": dict(adata.uns["umap"])})
    log.info(
        "UMAP of %s cells, %.1f units across",
        f"{len(embedding):,}",
        np.ptp(embedding, axis=0).max(),
    )


if __name__ == "__main__":
    run(umap, snakemake)
