"""Leiden and Louvain: one resolution or several, and what the clusters are called."""

import sys
from types import SimpleNamespace

import igraph
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

from scripts.leiden import leiden
from scripts.louvain import louvain
from scripts.neighbors import neighbors
from scrna.data import step_files
from scrna.data.graph import open_graph
from scrna.errors import UserError
from scrna.methods import clustering
from scrna.methods.cluster_names import by_size
from tests.unit.steps import SEEDED, blobs, settings, write_pca

pytest_plugins = ["tests.unit.fixtures"]
both = pytest.mark.parametrize("step", [leiden, louvain], ids=lambda step: step.__name__)


@pytest.fixture
def do(demo, tmp_path):
    """Cluster the demo, or another graph; give the slots found."""

    def do(step, resolution=0.6, graph=None, **own):
        out = tmp_path / "out.h5"
        given = settings(step.__name__, **SEEDED | own, resolution=resolution)
        step(graph or demo["harmony/neighbors"], out, **given)
        return step_files.read_all(out)

    return do


@both
def test_the_clusters_are_the_types(demo, do, step):
    found = do(step)
    assert list(found) == [f"obs/{step.__name__}", f"uns/{step.__name__}"]
    labels = found[f"obs/{step.__name__}"]
    truth = demo.obs()["cell_type"]
    known = truth.notna().to_numpy()
    assert adjusted_rand_score(truth[known], labels[known]) > 0.9
    assert found[f"uns/{step.__name__}"]["params"]["resolution"] == 0.6


@both
def test_categories_by_falling_size(do, step):
    labels = do(step)[f"obs/{step.__name__}"]
    sizes = pd.Series(labels).value_counts(sort=False)
    assert list(sizes.index) == [str(i) for i in range(len(sizes))]
    assert sizes.is_monotonic_decreasing
    assert not labels.isna().any()


@both
def test_several_resolutions(do, step):
    name = step.__name__
    found = do(step, [0.1, 0.6, 3])
    assert list(found) == [
        *(f"obs/{name}_{value}" for value in ("0.1", "0.6", "3")),
        f"obs/{name}",
        f"uns/{name}",
    ]
    assert list(found[f"obs/{name}"]) == list(found[f"obs/{name}_0.1"])
    counts = [len(found[f"obs/{name}_{value}"].categories) for value in ("0.1", "0.6", "3")]
    assert counts[0] < counts[1] < counts[2]
    assert list(found[f"uns/{name}"]["params"]["resolution"]) == [0.1, 0.6, 3]
    assert list(do(step, 3)[f"obs/{name}"]) == list(found[f"obs/{name}_3"])


@both
def test_a_cluster_that_is_named_and_not_there_is_refused(demo, tmp_path, do, step):
    method = step.__name__
    n = len(do(step, [0.6, 0.01])[f"obs/{method}"].categories)

    def named(clustering, *clusters):
        asked = {"annotations.x": {"clustering": clustering, "clusters": list(clusters)}}
        how = settings(method, **SEEDED, resolution=[0.6, 0.01])
        own = {"dataset": "demo", "rep": "harmony", "clusters": asked}
        step(demo["harmony/neighbors"], tmp_path / "named.h5", **how, named=own)

    for name in (method, f"{method}_0.6"):
        named(name, "0", str(n - 1))
        (tmp_path / "named.h5").unlink()
        expected = (
            f"demo: annotations.x names {n}, 99, but {name} of harmony has {n} clusters, 0 to "
            f"{n - 1}. "
        )
        with pytest.raises(UserError, match=expected):
            named(name, "0", str(n), "99")
        assert not (tmp_path / "named.h5").exists()


@both
def test_names_for_clusters_are_no_parameter_of_the_clusters(demo, tmp_path, step):
    files = [tmp_path / name for name in ("a.h5", "b.h5")]
    asked = {"annotations.x": {"clustering": step.__name__, "clusters": ["0"]}}
    how = settings(step.__name__, **SEEDED)
    step(demo["harmony/neighbors"], files[0], **how)
    named = {"dataset": "demo", "rep": "harmony", "clusters": asked}
    step(demo["harmony/neighbors"], files[1], **how, named=named)
    a, b = (step_files.provenance_of(file)["parameters"] for file in files)
    assert a == b
    assert step_files.digest_of(files[0]) == step_files.digest_of(files[1])


@both
def test_a_list_of_one(do, step):
    name = step.__name__
    found = do(step, [0.6])
    assert list(found[f"obs/{name}"]) == list(found[f"obs/{name}_0.6"])


@both
def test_the_seed_decides(do, step):
    first, again = (do(step, 1.5)[f"obs/{step.__name__}"] for _ in range(2))
    assert list(first) == list(again)


@both
def test_one_cluster(do, step):
    labels = do(step, 0.001, graph=None)[f"obs/{step.__name__}"]
    # the demo's graph is in three pieces, which no resolution joins
    assert len(labels.categories) == 3


def test_leiden_is_scanpys(demo, do):
    adata = open_graph(demo["harmony/neighbors"])
    sc.tl.leiden(
        adata, resolution=0.6, flavor="igraph", n_iterations=-1, directed=False, random_state=0
    )
    assert adjusted_rand_score(adata.obs["leiden"], do(leiden)["obs/leiden"]) == 1


def test_more_iterations_are_taken(demo, tmp_path, do):
    path = write_pca(tmp_path, np.random.default_rng(0).normal(size=(500, 10)))
    graph = tmp_path / "nn.h5"
    neighbors(path, graph, **settings("neighbors", **SEEDED))
    few, many = (do(leiden, 1, graph, n_iterations=n)["obs/leiden"].codes for n in (1, 20))
    edges = open_graph(graph).obsp["connectivities"]
    assert clustering.modularity(edges, many, 1) > clustering.modularity(edges, few, 1)


@both
def test_blobs(tmp_path, do, step):
    array, blob = blobs(200, n_blobs=5)
    path, graph = write_pca(tmp_path, array), tmp_path / "nn.h5"
    neighbors(path, graph, **settings("neighbors", **SEEDED))
    labels = do(step, 0.5, graph)[f"obs/{step.__name__}"]
    assert adjusted_rand_score(blob, labels) == 1


def test_the_log_tells_sizes(do, caplog):
    caplog.set_level("INFO", "scrna")
    labels = pd.Series(do(leiden)["obs/leiden"]).value_counts()
    said = f"resolution 0.6: {len(labels)} clusters of {labels.min()} to {labels.max()} cells"
    assert said in caplog.text


@pytest.mark.parametrize("resolution", [0.3, 1.0, 2.0])
def test_the_modularity_is_igraphs(demo, resolution):
    graph = open_graph(demo["harmony/neighbors"]).obsp["connectivities"]
    edges = igraph.Graph.Weighted_Adjacency(graph, mode="undirected")
    for n_clusters in (1, 5, 40):
        clusters = np.arange(graph.shape[0]) * n_clusters // graph.shape[0]
        expected = edges.modularity(clusters.tolist(), "weight", resolution)
        assert clustering.modularity(graph, clusters, resolution) == pytest.approx(
            expected, abs=1e-6
        )


@pytest.mark.parametrize("is_large", [False, True])
def test_on_the_gpu_the_best_of_several_tries_is_taken_of_few_cells(demo, monkeypatch, is_large):
    graph = open_graph(demo["harmony/neighbors"]).obsp["connectivities"]
    good = clustering.leiden(graph, 0.6, n_iterations=-1, backend="cpu", seed=0)
    poor = np.arange(len(good)) % 3
    seeds = []

    def found(*, resource_handle, graph, max_level, resolution, theta, random_state, **_):
        assert (max_level, resolution) == (100, 0.6)
        seeds.append(random_state)
        order = np.random.default_rng(random_state).permutation(len(good))  # as vertices come
        return order, (good if len(seeds) == 3 else poor)[order], 0.9  # which may be wrong

    made = dict.fromkeys(["ResourceHandle", "GraphProperties", "SGGraph"], lambda *_, **__: None)
    cugraph = SimpleNamespace(leiden=found, **made)  # the library that is not here
    monkeypatch.setitem(sys.modules, "pylibcugraph", cugraph)
    monkeypatch.setitem(sys.modules, "cupy", np)
    if is_large:
        monkeypatch.setattr(clustering, "TRIES_UP_TO", len(good) - 1)
    taken = clustering.leiden(graph, 0.6, n_iterations=100, backend="gpu", seed=7)
    assert seeds[0] == 7
    assert len(set(seeds)) == len(seeds) == (1 if is_large else clustering.TRIES)
    assert (taken == (poor if is_large else good)).all()


def test_by_size():
    labels, sizes = by_size(np.array([1, 2, 2, 0, 2, 0]))
    assert labels.codes.tolist() == [2, 0, 0, 1, 0, 1]
    assert labels.names == ["0", "1", "2"]
    assert sizes.tolist() == [3, 2, 1]


def test_numbers_that_no_cell_has():
    labels, sizes = by_size(np.array([7, 3, 3]))
    assert labels.codes.tolist() == [1, 0, 0]
    assert labels.names == ["0", "1"]
    assert sizes.tolist() == [2, 1]


def test_by_size_of_more_than_ten():
    clusters = np.repeat(np.arange(12), np.arange(12, 0, -1))
    labels, _ = by_size(clusters)
    assert labels.names == [str(i) for i in range(12)]
    assert labels.codes.tolist() == clusters.tolist()
