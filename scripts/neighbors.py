"""Build the neighbor graph of the cells in one representation, ``pca`` or ``harmony``.

Purpose
    The graph that UMAP, clusters and trajectory are computed from.

Method
    ``pp.neighbors`` of scanpy or rapids-singlecell, with the weights of UMAP (McInnes et al. 2018).
    An approximate search is compared with an exact one on a sample of cells. The share of the true
    neighbors that it found, its recall, is logged and kept in the provenance.

Settings
    Section ``neighbors``.

Inputs
    pca or harmony.

Outputs
    A step file: obsp ``distances`` (to the nearest neighbors) and ``connectivities`` (symmetric
    weights), uns ``neighbors``, as in scanpy.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import load
from scrna.data import step_files
from scrna.data.graph import representation
from scrna.data.unnamed import anndata_without_names
from scrna.errors import UserError
from scrna.log import log
from scrna.methods import umap_compiled
from scrna.methods.nearest import nearest_exactly
from scrna.provenance import note
from scrna.resources.admission import decide
from scrna.resources.plan import check_graph
from scrna.step import step
from scrna.workflow.rule import run

#: Approximate searches of the GPU with their settings, fastest first: `auto` tries one after the
#: other. At 900,000 cells 50 of 2,048 lists take 0.9 s and find 93 to 98 % of the neighbors, 200
#: all; nn_descent takes as long as the exact search, 5.8 s.
APPROXIMATE = [
    ("ivfflat", {"n_probes": 100}),
    ("ivfflat", {"n_probes": 400}),
    ("nn_descent", {}),
]
#: Cells whose neighbors are searched exactly, to measure the recall.
SAMPLE = 1000
#: Cells up to which scanpy's own search is exact.
EXACT_ON_CPU = 8192


@step
def neighbors(
    representation_of: Path,
    out: Path,
    *,
    n_neighbors: int,
    n_pcs: int,
    metric: str,
    algorithm: str,
    exact_up_to: int,
    min_recall: float,
    backend: str,
    seed: int,
) -> None:
    """Find the nearest neighbors of each cell and compute the weights of the graph.

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
    algorithm
        On the GPU rapids-singlecell's search: ``brute`` is exact, the others approximate; ``auto``
        is exact up to ``exact_up_to`` cells and then takes the first of `APPROXIMATE` that finds
        ``min_recall`` of the neighbors. On the CPU scanpy's own, ``auto``.
    exact_up_to
        Cells.
    min_recall
        Share of the true neighbors that an approximate search has to find.
    backend, seed
        Where, and from which seed.

    Raises
    ------
    UserError
        If the search that was asked for finds fewer, or the graph would be too large for the GPU.
    """
    key, array = representation(representation_of, n_pcs)
    if n_neighbors >= len(array):
        most = len(array) - 1
        log.warning(
            "n_neighbors is %d, but there are %d cells: %d are taken", n_neighbors, len(array), most
        )
        n_neighbors = most
    check_graph(len(array), n_neighbors, backend)
    searches = to_try(algorithm, len(array), exact_up_to, backend)
    for search, how in searches:
        own = {"n_pcs": array.shape[1], "n_neighbors": n_neighbors, "algorithm": search}
        decide("neighbors", backend=backend, n_obs=len(array), **own)
        adata = _search(array, key, n_neighbors, metric, search, how, backend, seed)
        if search == "brute":
            break
        found = recall(array, adata.obsp["distances"], n_neighbors, metric, backend, seed)
        note("recall", {"algorithm": search or "pynndescent", **how, "recall": round(found, 4)})
        log.info(
            "%s found %.1f %% of the true neighbors of %s cells",
            search or "pynndescent",
            100 * found,
            f"{min(SAMPLE, len(array)):,}",
        )
        if found >= min_recall:
            break
        if (search, how) == searches[-1]:
            msg = (
                f"neighbors.algorithm {algorithm} finds {found:.3f} of the true neighbors, fewer "
                f"than neighbors.min_recall ({min_recall}). Take brute, which is exact, or lower it"
            )
            raise UserError(msg)
    adata.uns["neighbors"]["params"]["n_pcs"] = array.shape[1]
    graph = adata.obsp["connectivities"].tocsr()
    step_files.write(
        out,
        {
            "obsp/distances": adata.obsp["distances"].tocsr(),
            "obsp/connectivities": graph,
            "uns/neighbors": dict(adata.uns["neighbors"]),
        },
    )
    log.info(
        "%s cells in a neighbor graph from %d components of %s: %s edges, %.1f per cell",
        f"{len(array):,}",
        array.shape[1],
        key,
        f"{graph.nnz // 2:,}",
        np.diff(graph.indptr).mean(),
    )


def to_try(
    algorithm: str, n_cells: int, exact_up_to: int, backend: str
) -> list[tuple[str | None, dict]]:
    """List the searches to try, one after the other, with their settings; None is scanpy's own."""
    if backend == "cpu":
        return [("brute" if n_cells <= EXACT_ON_CPU else None, {})]
    if algorithm == "auto":
        return [("brute", {})] if n_cells <= exact_up_to else [*APPROXIMATE, ("brute", {})]
    return [known for known in APPROXIMATE if known[0] == algorithm] or [(algorithm, {})]


def _search(
    array, key: str, n_neighbors: int, metric: str, search, how: dict, backend: str, seed: int
):
    """Build the graph with the library of the backend."""
    adata = anndata_without_names(len(array), obsm={key: array})
    own = {"algorithm": search, "algorithm_kwds": how} if backend == "gpu" else {}
    if backend == "cpu":
        umap_compiled.import_umap()
    load(backend).pp.neighbors(
        adata, n_neighbors=n_neighbors, use_rep=key, metric=metric, random_state=seed, **own
    )
    return adata


def recall(array, distances, n_neighbors: int, metric: str, backend: str, seed: int) -> float:
    """Measure the share of the true neighbors that a graph has, on a sample of its cells.

    Parameters
    ----------
    array
        The cells' representation, cells × components.
    distances
        The graph: CSR, cells × cells; a cell's own place in it does not count.
    n_neighbors
        Neighbors of a cell, itself among them.
    metric
        ``euclidean`` or ``cosine``.
    backend, seed
        Where the exact search is done, and the sample's seed.
    """
    n = len(array)
    sample = np.sort(np.random.default_rng(seed).choice(n, min(SAMPLE, n), replace=False))
    true = nearest_exactly(array, sample, n_neighbors, metric=metric, backend=backend)
    rows = distances.tocsr()[sample]
    shares = []
    for cell, row, wanted in zip(sample, range(len(sample)), true, strict=True):
        others = wanted[wanted != cell][: n_neighbors - 1]
        found = rows.indices[rows.indptr[row] : rows.indptr[row + 1]]
        shares.append(np.isin(others, found).mean())
    return float(np.mean(shares))


if __name__ == "__main__":
    run(neighbors, snakemake)
