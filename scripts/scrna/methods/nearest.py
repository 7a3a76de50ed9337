"""Find exact nearest neighbors of some cells, and the connected pieces of a graph."""

import numpy as np

from scrna.backend import to_host


def nearest_exactly(
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


def connected_pieces(graph, *, backend: str) -> tuple[int, np.ndarray]:
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
