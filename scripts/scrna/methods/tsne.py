"""Compute t-SNE on the GPU or CPU."""

import numpy as np

#: Cells up to which the neighbors that t-SNE starts from are searched exactly on the GPU.
EXACT_UP_TO = 200_000


#: Lists of cells looked through for a cell's neighbors beyond that, of some 1,000 to 4,000.
N_PROBES = 100


def run_tsne(
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

    cuML's t-SNE would search exactly: at 900,000 cells longer than t-SNE by FFT takes. As many
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
