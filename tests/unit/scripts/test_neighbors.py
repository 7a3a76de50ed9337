"""The neighbor graph: scanpy's, whatever the number of cells."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from scripts import neighbors as step
from scripts.neighbors import APPROXIMATE, neighbors
from scrna.data import step_files
from scrna.data.graph import open_graph, representation
from scrna.errors import UserError
from tests.unit.steps import SEEDED, UNIT, blobs, settings, write_pca

pytest_plugins = ["tests.unit.fixtures"]


def graph_of(path):
    """Open a graph with its distances."""
    graph = open_graph(path)
    graph.obsp["distances"] = step_files.read(path, "obsp/distances")
    return graph


def find(folder, array, **own):
    path = write_pca(folder, array)
    neighbors(path, folder / "neighbors.h5", **settings("neighbors", **SEEDED, **own))
    return graph_of(folder / "neighbors.h5")


def recall(graph, array, n=14):
    """Share of the n exact nearest neighbors that are in the graph."""
    search = NearestNeighbors(n_neighbors=n + 1).fit(array)
    exact = search.kneighbors(array, return_distance=False)[:, 1:]
    distances = graph.obsp["distances"]
    found = np.asarray(distances[np.arange(len(array))[:, None], exact].todense())
    return (found > 0).mean()


def exact_distances(array, metric):
    """Distances in float64, each row sorted."""
    array = array.astype(np.float64)
    if metric == "cosine":
        array = array / np.linalg.norm(array, axis=1, keepdims=True)
        return np.sort(1 - array @ array.T, axis=1)
    return np.sort(np.linalg.norm(array[:, None] - array, axis=2), axis=1)


def distance_error(metric, n_comps, largest):
    """Bound what float32 adds to a distance, whatever the order in which a processor sums.

    The dot product of two unit vectors is a sum of n products, each of them at most 1 in all: off
    by n roundings at most; so is each of the two lengths, whose root halves it, and 7 more for
    roots, divisions and the last subtraction. Euclidean distances are summed in float64 and
    rounded once, on both sides of the root.
    """
    return UNIT * ((2 * n_comps + 7) if metric == "cosine" else 2 * largest)


def weight_error(distances, k, apart):
    """Bound how far UMAP's weights may be apart where the distances are so far apart.

    A weight is exp(-(d - rho) / sigma), and rho one of the distances: for the same sigma weights
    differ by 2 * apart / sigma. UMAP searches each cell's sigma until the weights sum up to log2(k)
    within a tolerance. Two searches may stop at different ends of it, and where the distances make
    the sum k times as wrong, they make up for that as well: all weights of a cell move the same
    way, so that none moves more than the sum. Then a and b become a + b - a * b: twice as far.
    """
    from umap.umap_ import SMOOTH_K_TOLERANCE, smooth_knn_dist  # warns when it is imported first

    sigmas, _ = smooth_knn_dist(distances.astype(np.float32), float(k))
    moved = k * 2 * apart / sigmas.min()
    return 2 * (2 * SMOOTH_K_TOLERANCE + moved + 8 * UNIT)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_graph_is_scanpys(tmp_path, metric):
    """Up to rounding.

    scikit-learn multiplies an array by itself with another routine of BLAS (syrk) than a strided
    view, which is what scanpy has of the first components, by its copy (gemm). On some processors
    the two add up in different orders.
    """
    k, n_pcs = 12, 20
    array, _ = blobs(200, n_comps=50, spread=1.0, seed=1)
    path = write_pca(tmp_path, array, "harmony")
    own = {"n_neighbors": k, "n_pcs": n_pcs, "metric": metric}
    neighbors(path, tmp_path / "neighbors.h5", **settings("neighbors", **SEEDED, **own))
    found = graph_of(tmp_path / "neighbors.h5")
    expected = ad.AnnData(obsm={"X": array})
    sc.pp.neighbors(expected, use_rep="X", random_state=0, **own)

    exact = exact_distances(array[:, :n_pcs], metric)
    error = distance_error(metric, n_pcs, exact[:, k].max())
    assert (exact[:, k] - exact[:, k - 1]).min() > 2 * error  # which ones are nearest is certain
    graphs = [graph.obsp["distances"].tocsr() for graph in (found, expected)]
    for graph in graphs:
        near = np.sort(graph.data.reshape(len(array), k - 1), axis=1)
        np.testing.assert_allclose(near, exact[:, 1:k], rtol=0, atol=error)
    assert ((graphs[0] > 0) != (graphs[1] > 0)).nnz == 0
    apart = abs(graphs[0] - graphs[1]).max()
    np.testing.assert_allclose(
        found.obsp["connectivities"].toarray(),
        expected.obsp["connectivities"].toarray(),
        rtol=0,
        atol=weight_error(exact[:, :k], k, apart),
    )
    params = found.uns["neighbors"]["params"]
    assert params["n_neighbors"] == k
    assert params["n_pcs"] == n_pcs
    assert params["use_rep"] == "X_pca_harmony"
    assert params["metric"] == metric
    assert found.uns["neighbors"]["connectivities_key"] == "connectivities"


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_the_graph_is_symmetric_and_finite(demo, rep):
    graph = graph_of(demo[f"{rep}/neighbors"])
    weights, distances = graph.obsp["connectivities"], graph.obsp["distances"]
    assert weights.shape == (len(demo.obs()),) * 2
    assert abs(weights - weights.T).max() < 1e-6
    assert weights.diagonal().max() == 0
    assert np.isfinite(weights.data).all()
    assert np.isfinite(distances.data).all()
    assert weights.data.min() > 0
    assert weights.data.max() <= 1
    assert (np.diff(distances.indptr) == 14).all()  # 15 with the cell itself
    assert recall(graph, representation(demo[f"{rep}/{rep}"], 40)[1]) == 1


@pytest.mark.long
def test_neighbors_are_of_the_same_blob(tmp_path):
    array, blob = blobs(300)
    edges = find(tmp_path, array).obsp["connectivities"].tocoo()
    assert (blob[edges.row] == blob[edges.col]).mean() > 0.99


def test_more_neighbors_than_cells(tmp_path, caplog):
    graph = find(tmp_path, blobs(10)[0], n_neighbors=15)
    assert "n_neighbors is 15, but there are 10 cells: 9 are taken" in caplog.text
    assert graph.uns["neighbors"]["params"]["n_neighbors"] == 9
    assert (np.diff(graph.obsp["distances"].indptr) == 8).all()


def test_more_components_than_there_are(tmp_path, caplog):
    graph = find(tmp_path, blobs(60, n_comps=7)[0], n_pcs=40)
    assert "n_pcs is 40, but there are 7 components: all are used" in caplog.text
    assert graph.uns["neighbors"]["params"]["n_pcs"] == 7


def test_fewer_components_than_there_are(tmp_path, caplog):
    array, _ = blobs(60)
    array[:, 5:] *= 100  # would decide everything, were they used
    assert recall(find(tmp_path, array, n_pcs=5), array[:, :5]) == 1
    assert "components: all are used" not in caplog.text


@pytest.fixture(scope="module")
def many():
    """More cells than scanpy searches exactly."""
    return blobs(9000, n_comps=15, n_blobs=6)[0]


@pytest.mark.slow  # pynndescent compiles for half a minute
def test_many_cells_are_searched_approximately_and_well(many, tmp_path):
    graph = find(tmp_path, many)
    assert recall(graph, many) > 0.95
    weights = graph.obsp["connectivities"]
    assert abs(weights - weights.T).max() < 1e-6
    assert np.isfinite(weights.data).all()


@pytest.mark.slow
def test_the_seed_decides_the_approximate_search(many, tmp_path):
    first, second = (find(tmp_path / name, many).obsp["distances"] for name in "ab")
    assert (first != second).nnz == 0


@pytest.mark.parametrize(
    ("asked", "cells", "expected"),
    [
        ("auto", 200_000, [("brute", {})]),
        ("auto", 200_001, [*APPROXIMATE, ("brute", {})]),
        ("cagra", 100, [("cagra", {})]),
        ("ivfflat", 100, [("ivfflat", {"n_probes": 100}), ("ivfflat", {"n_probes": 400})]),
    ],
)
def test_searches_of_the_gpu(asked, cells, expected):
    assert step.to_try(asked, cells, 200_000, "gpu") == expected


def test_a_search_that_finds_too_few_gives_way_to_the_next(tmp_path, monkeypatch, caplog):
    array, _ = blobs(300)
    tried = []

    def search(array, key, n_neighbors, metric, algorithm, how, backend, seed):
        tried.append(algorithm)
        adata = ad.AnnData(obsm={key: array})
        sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep=key)
        if algorithm == "poor":
            adata.obsp["distances"] = sparse.csr_matrix(adata.obsp["distances"].shape)
        return adata

    monkeypatch.setattr(step, "_search", search)
    searches = [("poor", {}), ("good", {"n": 5}), ("brute", {})]
    monkeypatch.setattr(step, "to_try", lambda *_: searches)
    with caplog.at_level("INFO"):
        find(tmp_path, array)
    assert tried == ["poor", "good"]
    assert "poor found 0.0 % of the true neighbors" in caplog.text
    found = step_files.provenance_of(tmp_path / "neighbors.h5")["recall"]
    assert found == {"algorithm": "good", "n": 5, "recall": 1.0}
    monkeypatch.setattr(step, "to_try", lambda *_: [("poor", {})])
    with pytest.raises(UserError, match=r"min_recall \(0.95\). Take brute"):
        find(tmp_path, array, algorithm="cagra")


def test_recall_is_that_of_the_exact_neighbors():
    array, _ = blobs(500)
    exact = NearestNeighbors(n_neighbors=10).fit(array).kneighbors_graph(array, mode="distance")
    assert step.recall(array, exact, 10, "euclidean", "cpu", 0) == 1
    exact.eliminate_zeros()  # a cell's own place may be stored or not
    assert exact.nnz == 9 * 500
    assert step.recall(array, exact, 10, "euclidean", "cpu", 0) == 1
    rows = exact.copy().tolil()
    for row in range(500):
        nearest = np.argsort(exact[row].toarray()[0])[-9:]
        rows[row, nearest[:3]] = 0
    found = rows.tocsr()
    found.eliminate_zeros()
    assert step.recall(array, found, 10, "euclidean", "cpu", 0) == pytest.approx(6 / 9)


@pytest.mark.slow
def test_the_recall_of_scanpys_approximate_search_is_kept(tmp_path):
    array, _ = blobs(9_000, n_comps=20)
    find(tmp_path, array)
    found = step_files.provenance_of(tmp_path / "neighbors.h5")["recall"]
    assert found["algorithm"] == "pynndescent"
    assert 0.9 < found["recall"] <= 1
