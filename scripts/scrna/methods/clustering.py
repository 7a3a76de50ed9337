"""Cluster a neighbor graph with Leiden or Louvain: cuGraph on the GPU, igraph on the CPU."""

import numpy as np

from scrna.backend import load, to_host
from scrna.data.unnamed import anndata_without_names

#: Number of runs of cuGraph of which the best is used, and the most cells for that.
TRIES = 8
TRIES_UP_TO = 50_000


def leiden(graph, resolution: float, *, n_iterations: int, backend: str, seed: int) -> np.ndarray:
    """Cluster a neighbor graph with Leiden (Traag et al. 2019).

    cuGraph's on the GPU, called itself: rapids-singlecell's wrapper looks up the weight of every
    edge on the CPU, which at a million cells takes longer than the clustering. Of few cells its
    clusters differ from seed to seed by more than igraph's do, some of them poor: of `TRIES`
    those with the highest modularity are taken. igraph's on the CPU, scanpy's own recommendation.

    Parameters
    ----------
    graph
        scipy's CSR, cells × cells, symmetric.
    resolution
        Higher ones give more clusters.
    n_iterations
        Most iterations (levels, on the GPU); -1 on the CPU goes on until nothing improves.
    backend, seed
        Where, and from which seed.

    Returns
    -------
    The cluster of each cell, numbered from 0.
    """
    if backend == "gpu":
        tries = TRIES if graph.shape[0] <= TRIES_UP_TO else 1
        seeds = [seed, *np.random.SeedSequence(seed).generate_state(tries - 1)]
        found = [
            _by_cugraph(
                graph,
                "leiden",
                random_state=int(one),
                max_level=n_iterations,
                resolution=resolution,
                theta=1.0,
            )
            for one in seeds
        ]
        if tries == 1:
            return found[0]
        return max(found, key=lambda clusters: modularity(graph, clusters, resolution))
    adata = anndata_without_names(graph.shape[0], obsp={"connectivities": graph})
    load("cpu").tl.leiden(
        adata,
        resolution,
        adjacency=graph,
        n_iterations=n_iterations,
        random_state=seed,
        flavor="igraph",
        directed=False,
    )
    return adata.obs["leiden"].astype(int).to_numpy()


def modularity(graph, clusters: np.ndarray, resolution: float) -> float:
    """Compute the modularity of clusters.

    Reichardt & Bornholdt 2006, whose maximum Leiden and Louvain look for. What cuGraph returns with
    its clusters was too high by 0.1 in four of 48 runs; igraph would make a graph of its own first.

    Parameters
    ----------
    graph
        scipy's CSR, cells × cells, symmetric.
    clusters
        The cluster of each cell, int, numbered from 0.
    resolution
        What the weight that is due to chance is multiplied by.

    Returns
    -------
    Between -1 and 1.
    """
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    total = graph.data.sum(dtype=np.float64)
    within = graph.data[clusters[rows] == clusters[graph.indices]].sum(dtype=np.float64)
    shares = np.bincount(clusters[rows], weights=graph.data) / total
    return float(within / total - resolution * (shares**2).sum())


def louvain(graph, resolution: float, *, backend: str, seed: int) -> np.ndarray:
    """Cluster a neighbor graph with Louvain (Blondel et al. 2008).

    cuGraph's on the GPU, as in `leiden`. On the CPU igraph's `community_multilevel`, called itself:
    scanpy's wrapper of it has no resolution, and the package behind its other flavor has no wheels
    for aarch64.

    Parameters
    ----------
    graph, resolution, backend, seed
        As in `leiden`; cuGraph's Louvain draws nothing.

    Returns
    -------
    The cluster of each cell, numbered from 0.
    """
    if backend == "gpu":
        # 100 levels, and what an improvement is, as rapids-singlecell has them
        settings = {"max_level": 100, "threshold": 1e-7, "resolution": resolution}
        return _by_cugraph(graph, "louvain", **settings)
    import random

    import igraph
    from scipy.sparse import triu

    edges = triu(graph, k=1, format="coo")
    undirected = igraph.Graph(
        n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]), directed=False
    )
    igraph.set_random_number_generator(random.Random(seed))
    found = undirected.community_multilevel(weights=edges.data.tolist(), resolution=resolution)
    return np.asarray(found.membership)


def _by_cugraph(graph, function: str, **settings) -> np.ndarray:
    """Cluster a symmetric graph by a function of pylibcugraph; in the order of the cells.

    Settings go by name: where another version names them otherwise, the call fails.
    """
    import cupy
    import pylibcugraph as cugraph

    handle = cugraph.ResourceHandle()
    joined = cugraph.SGGraph(
        handle,
        cugraph.GraphProperties(is_symmetric=True, is_multigraph=False),
        cupy.asarray(graph.indptr, dtype=cupy.int32),
        cupy.asarray(graph.indices, dtype=cupy.int32),
        weight_array=cupy.asarray(graph.data, dtype=cupy.float32),
        store_transposed=False,
        renumber=True,  # by degree, for which its kernels are made
        do_expensive_check=False,
        input_array_format="CSR",
    )
    found = getattr(cugraph, function)(
        resource_handle=handle, graph=joined, do_expensive_check=False, **settings
    )
    vertices, clusters = map(cupy.asarray, found[:2])
    ordered = cupy.empty_like(clusters)
    ordered[vertices] = clusters
    return to_host(ordered)
