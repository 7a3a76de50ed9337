"""GPU and CPU: the one module in which they differ.

A step asks `load` for its tools and writes its code once. Where rapids-singlecell and scanpy offer
the same call, the step makes that call; where they do not, the function is here, under one name
for both.
"""

import ctypes
import importlib
from contextlib import suppress
from functools import cache, partial
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np

from scrna.numbered import nameless

#: Cells up to which the neighbors that t-SNE starts from are searched exactly on the GPU.
EXACT_UP_TO = 200_000
#: Lists of cells looked through for a cell's neighbors beyond that, of some 1,000 to 4,000.
N_PROBES = 100


@cache
def load(backend: str) -> SimpleNamespace:
    """Import the tools of a backend.

    Parameters
    ----------
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    ``pp`` and ``tl`` (rapids-singlecell's or scanpy's), ``on_gpu``.
    """
    library = importlib.import_module({"gpu": "rapids_singlecell", "cpu": "scanpy"}[backend])
    return SimpleNamespace(pp=library.pp, tl=library.tl, on_gpu=backend == "gpu")


def arrays(backend: str):
    """Return the array module of a backend: cupy or numpy."""
    if backend == "gpu":
        import cupy

        return cupy
    return np


def csr_matrix(parts: tuple, shape: tuple[int, int], backend: str):
    """Make a CSR matrix of a backend from (data, indices, indptr) that are already canonical."""
    if backend == "gpu":
        from cupyx.scipy.sparse import csr_matrix as make
    else:
        from scipy.sparse import csr_matrix as make
    matrix = make(parts, shape=shape)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def to_host(array) -> np.ndarray:
    """Bring an array or sparse matrix into the CPU's memory; one that is there stays as it is."""
    return array.get() if hasattr(array, "get") and not isinstance(array, dict) else array


def computed(array):
    """Compute an array in blocks; one in memory stays as it is."""
    return array.compute() if hasattr(array, "dask") else array


# ------------------------------------------------------------------------------------------- GPU


def start_gpu(*, memory: str, pool_gb: float, limit_gb: float | None = None) -> None:
    """Set up the GPU's memory, before the first array is made.

    Every library here (CuPy, cuML, cuGraph, cuVS) then allocates through RMM, which counts.

    Parameters
    ----------
    memory
        ``pool``: one growing pool, the fastest; ``async``: CUDA's own pool, which gives memory
        back; ``managed``: CUDA's managed memory, which may exceed the device's at a price in
        speed; ``cuda``: plain allocations; ``auto``: see `memory_kind`.
    pool_gb
        First size of the pool, GiB. It grows as needed: a share of the memory, RMM's own default,
        would take half of a machine whose GPU and CPU share it.
    limit_gb
        Most GiB that this process allocates; None: what there is.
    """
    context = Thread(target=_make_context)
    context.start()
    import cupy
    import rmm.statistics
    from rmm import mr
    from rmm.allocators.cupy import rmm_cupy_allocator

    context.join()
    limit = None if limit_gb is None else int(limit_gb * 2**30)
    memory = memory_kind(memory)
    if memory == "pool":
        first = int(min(pool_gb, limit_gb or pool_gb) * 2**30)
        resource = mr.PoolMemoryResource(mr.CudaMemoryResource(), first, limit)
    else:
        kinds = {
            "async": partial(mr.CudaAsyncMemoryResource, release_threshold=0),
            "managed": mr.ManagedMemoryResource,
            "cuda": mr.CudaMemoryResource,
        }
        resource = kinds[memory]()
        if limit is not None:
            resource = mr.LimitingResourceAdaptor(resource, limit)
    mr.set_current_device_resource(resource)
    rmm.statistics.enable_statistics()
    cupy.cuda.set_allocator(rmm_cupy_allocator)


def _make_context() -> None:
    """Make CUDA's context on the first GPU, for all libraries; CuPy is imported meanwhile.

    What goes wrong is left to the first call that needs the context: it says so.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def memory_kind(asked: str) -> str:
    """Choose how the GPU's memory is allocated: what was asked for, or under ``auto`` by the GPU.

    A pool on memory of the GPU's own. Where the GPU shares the host's, CUDA's ``async``: a pool
    there grows by doubling, to twice what a step needs, and keeps it from all else.
    """
    if asked != "auto":
        return asked
    from scrna import machine

    return "async" if any(gpu.unified for gpu in machine.gpus()) else "pool"


def gpu_record() -> dict[str, Any]:
    """Tell which GPU this process uses and the most memory that it held there.

    Returns
    -------
    ``device`` (the GPU's name) and ``gpu_peak_bytes`` (allocated through RMM so far; None where
    `start_gpu` was not called).
    """
    import cupy
    import rmm.statistics

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    statistics = rmm.statistics.get_statistics()
    return {"device": name, "gpu_peak_bytes": statistics.peak_bytes if statistics else None}


# ----------------------------------------------------------------- what the libraries do not share


def harmony(
    representation: np.ndarray,
    batches,
    *,
    theta: list[float],
    sigma: float,
    lamb: float | None,
    max_iter: int,
    flavor: str,
    backend: str,
    seed: int,
    threads: int,
) -> np.ndarray:
    """Correct a representation for batches with Harmony.

    rapids-singlecell's `harmony_integrate` on the GPU, harmonypy on the CPU; both implement
    Harmony 2 (Patikas et al. 2026), the GPU also Harmony 1 (Korsunsky et al. 2019).

    Parameters
    ----------
    representation
        Cells × components, float32.
    batches
        DataFrame, a categorical column for each batch variable.
    theta
        Diversity penalty for each batch variable.
    sigma
        Width of the soft clusters.
    lamb
        Ridge penalty, for ``harmony1``; Harmony 2 estimates it.
    max_iter
        Most rounds of clustering and correction.
    flavor
        ``harmony2`` or ``harmony1``.
    backend, seed
        Where, and from which seed.
    threads
        CPU threads.

    Returns
    -------
    The corrected representation, cells × components, float32.
    """
    if backend == "gpu":
        adata = nameless(len(batches), obs=batches, obsm={"X_pca": representation})
        load("gpu").pp.harmony_integrate(
            adata,
            list(batches.columns),
            theta=theta,
            sigma=sigma,
            max_iter_harmony=max_iter,
            flavor=flavor,
            dtype=np.float32,
            rng=seed,
            **({"ridge_lambda": lamb} if lamb is not None else {}),
        )
        return adata.obsm["X_pca_harmony"]
    import harmonypy

    if flavor != "harmony2":
        msg = f"harmonypy has no flavor {flavor!r}"
        raise NotImplementedError(msg)
    result = harmonypy.run_harmony(
        representation.T.astype(np.float64),  # components × cells, were there as many of both
        batches,
        list(batches.columns),
        theta=theta,
        sigma=sigma,
        max_iter_harmony=max_iter,
        random_state=seed,
        ncores=threads,
        verbose=False,
    )
    return np.asarray(result.Z_corr, dtype=np.float32)


def nearest(
    representation: np.ndarray, cells: np.ndarray, n_neighbors: int, *, metric: str, backend: str
) -> np.ndarray:
    """Find the nearest neighbors of some cells among all, exactly.

    cuML's brute-force search on the GPU, scikit-learn's on the CPU.

    Parameters
    ----------
    representation
        Cells × components, float32.
    cells
        Row numbers of the cells asked for.
    n_neighbors
        Neighbors of each, itself among them.
    metric
        ``euclidean`` or ``cosine``.
    backend
        Where.

    Returns
    -------
    Row numbers, cells asked for × n_neighbors, nearest first.
    """
    if backend == "gpu":
        from cuml.neighbors import NearestNeighbors
    else:
        from sklearn.neighbors import NearestNeighbors
    model = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute", metric=metric)
    _, found = model.fit(representation).kneighbors(representation[cells])
    return np.asarray(to_host(found))


def tsne(
    representation: np.ndarray,
    *,
    perplexity: float,
    early_exaggeration: float,
    learning_rate: float,
    method: str,
    backend: str,
    seed: int,
    threads: int,
) -> np.ndarray:
    """Embed cells with t-SNE (van der Maaten & Hinton 2008).

    cuML's t-SNE on the GPU, called itself: rapids-singlecell's wrapper leaves cuML's adaptive mode
    on, which puts its own learning rate, early exaggeration and number of neighbors (30 from 60,000
    cells up) in place of those asked for. scikit-learn's on the CPU, which is what scanpy calls.

    Parameters
    ----------
    representation
        Cells × components, float32.
    perplexity
        Effective number of neighbors of a cell; 3 × perplexity neighbors are used.
    early_exaggeration, learning_rate
        As scikit-learn has them.
    method
        ``barnes_hut``, or ``fft`` (Linderman et al. 2019), which the GPU has.
    backend, seed
        Where, and from which seed.
    threads
        CPU threads.

    Returns
    -------
    Cells × 2, float32.
    """
    if backend == "gpu":
        from cuml.manifold import TSNE

        n_neighbors = max(int(np.ceil(3 * perplexity)), 1)
        graph = None
        if len(representation) > EXACT_UP_TO:
            graph = _near(representation, n_neighbors)
        model = TSNE(
            perplexity=perplexity,
            n_neighbors=n_neighbors,
            early_exaggeration=early_exaggeration,
            learning_rate=learning_rate,
            learning_rate_method="none",
            method=method,
            init="pca",
            random_state=seed,
            output_type="numpy",
        )
        embedding = model.fit_transform(representation, knn_graph=graph)
        return np.asarray(embedding, dtype=np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    model = TSNE(
        perplexity=perplexity,
        early_exaggeration=early_exaggeration,
        learning_rate=learning_rate,
        init="pca",
        random_state=seed,
        n_jobs=threads,
    )
    with threadpool_limits(threads):  # n_jobs is for the neighbor search alone
        return np.asarray(model.fit_transform(representation), dtype=np.float32)


def _near(representation: np.ndarray, n_neighbors: int) -> tuple:
    """Find the nearest neighbors of all cells, itself among a cell's, 99 % of them rightly.

    cuML's t-SNE would search exactly: at 900,000 cells longer than a picture by FFT takes. As many
    lists as rapids-singlecell makes for its neighbors.

    Returns
    -------
    Row numbers and distances, cells × n_neighbors, on the GPU.
    """
    import cupy
    from cuml.neighbors import NearestNeighbors

    cells = cupy.asarray(representation)
    n_lists = 2 * 2 ** int(np.ceil(np.log2(np.sqrt(len(cells)))))
    model = NearestNeighbors(
        n_neighbors=n_neighbors,
        algorithm="ivfflat",
        algo_params={"nlist": n_lists, "nprobe": N_PROBES},
        output_type="cupy",
    )
    distances, found = model.fit(cells).kneighbors(cells)
    # cuML asks for each cell before its neighbors, also where it has a twin
    strayed = cupy.flatnonzero(found[:, 0] != cupy.arange(len(cells)))
    own = found[strayed] == strayed[:, None]
    place = cupy.where(own.any(axis=1), own.argmax(axis=1), n_neighbors - 1)
    for values, first in ((found, strayed), (distances, 0)):
        values[strayed, place] = values[strayed, 0]
        values[strayed, 0] = first
    return found, distances


def pieces(graph, *, backend: str) -> tuple[int, np.ndarray]:
    """Find the connected pieces of a neighbor graph: how many, and the piece of each cell.

    cuGraph's weakly connected components on the GPU (through CuPy), scipy's on the CPU.

    Parameters
    ----------
    graph
        scipy's CSR, cells × cells, symmetric.
    backend
        Where.
    """
    if backend == "gpu":
        from cupyx.scipy.sparse import csr_matrix
        from cupyx.scipy.sparse.csgraph import connected_components

        graph = csr_matrix(graph)
    else:
        from scipy.sparse.csgraph import connected_components
    number, piece_of = connected_components(graph, directed=False)
    return int(number), to_host(piece_of)


def pearson_residual_genes(adata, *, backend: str, **settings) -> None:
    """Rank genes by Pearson residuals (Lause et al. 2021) of the counts in X, into ``var``."""
    tools = load(backend)
    if backend == "gpu":
        tools.pp.highly_variable_genes(adata, flavor="pearson_residuals", **settings)
    else:
        import scanpy

        scanpy.experimental.pp.highly_variable_genes(adata, **settings)
