"""First calls of the libraries, made before a step makes them.

On the GPU a library's first call loads and compiles code for seconds. A worker that has nothing to
do makes that call on a few random cells, for the steps that its run will come to.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scrna import backend as backends
from scrna import communities, compiled
from scrna.log import log
from scrna.numbered import nameless

_N_CELLS, _N_GENES, _N_COMPONENTS = 512, 256, 50


def next_call(steps: Sequence[str], backend: str, submit: Callable[..., Any]) -> None:
    """Make the first call for a step, then hand the rest on behind whatever waits by then.

    Parameters
    ----------
    steps
        Those to come, in their order; what nothing is known of is passed over.
    backend
        ``gpu`` or ``cpu``.
    submit
        Calls a function with its arguments later, in the thread of the steps.
    """
    late = {"leiden"} if backend == "gpu" else set()  # its library is imported beside other steps
    known = [step for step in steps if step in _CALLS and step not in late]
    if not known:
        return
    start = time.perf_counter()
    try:
        _CALLS[known[0]](_cells(backend), backend)
        log.info("%s: its first call took %.1f s", known[0], time.perf_counter() - start)
    except Exception as error:  # the step itself will say what is wrong, if it is
        log.warning("%s: no first call: %s: %s", known[0], type(error).__name__, error)
    submit(next_call, known[1:], backend, submit)


def _cells(backend: str):
    """Make an AnnData of random cells with components, groups and neighbors."""
    import pandas as pd
    from scipy.sparse import random

    rng = np.random.default_rng(0)
    counts = random(_N_CELLS, _N_GENES, 0.2, format="csr", dtype=np.float32, random_state=0)
    parts = [backends.arrays(backend).asarray(part) for part in _parts(counts)]
    groups = pd.Categorical.from_codes(np.arange(_N_CELLS) % 2, ["a", "b"])
    components = rng.normal(size=(_N_CELLS, _N_COMPONENTS)).astype(np.float32)
    return nameless(
        _N_CELLS,
        backends.csr_matrix(tuple(parts), counts.shape, backend),
        obs={"group": groups},
        obsm={"X_pca": components},
    )


def _parts(matrix) -> tuple:
    matrix.sort_indices()
    return matrix.data, matrix.indices, matrix.indptr


def _neighbors(adata, backend: str) -> None:
    tools = backends.load(backend)
    if backend == "cpu":
        compiled.import_umap()
    tools.pp.neighbors(adata, n_neighbors=15, use_rep="X_pca", random_state=0)


def _pca(adata, backend: str) -> None:
    backends.load(backend).pp.pca(adata, n_comps=20)


def _harmony(adata, backend: str) -> None:
    backends.harmony(
        adata.obsm["X_pca"],
        adata.obs[["group"]],
        theta=[2.0],
        sigma=0.1,
        lamb=None,
        max_iter=1,
        flavor="harmony2",
        backend=backend,
        seed=0,
        threads=1,
    )


def _umap(adata, backend: str) -> None:
    _neighbors(adata, backend)
    backends.load(backend).tl.umap(adata, maxiter=5, random_state=0)


def _leiden(adata, backend: str) -> None:
    _neighbors(adata, backend)
    graph = backends.to_host(adata.obsp["connectivities"])
    communities.leiden(graph, 1.0, n_iterations=1, backend=backend, seed=0)


def _markers(adata, backend: str) -> None:
    backends.load(backend).tl.rank_genes_groups(adata, "group", method="wilcoxon")


def _trajectory(adata, backend: str) -> None:
    _neighbors(adata, backend)
    backends.load(backend).tl.diffmap(adata)


_CALLS: dict[str, Callable[[Any, str], None]] = {
    "pca": _pca,
    "harmony": _harmony,
    "neighbors": _neighbors,
    "umap": _umap,
    "leiden": _leiden,
    "markers": _markers,
    "trajectory": _trajectory,
}
