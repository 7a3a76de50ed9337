"""Leiden and Louvain: one resolution or several, and what the clusters are called."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

from scripts.leiden import leiden
from scripts.louvain import louvain
from scripts.neighbors import neighbors
from scrna import slots
from scrna.clusters import by_size
from scrna.graphs import open_graph
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
        return slots.read_all(out)

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
    few, many = (do(leiden, 1, graph, n_iterations=n)["obs/leiden"] for n in (1, 20))
    adata = open_graph(graph)
    modularity = []
    for labels in (few, many):
        adata.obs["x"] = labels
        modularity.append(_modularity(adata))
    assert modularity[1] > modularity[0]


def _modularity(adata):
    import igraph

    edges = adata.obsp["connectivities"].tocoo()
    graph = igraph.Graph(adata.n_obs, np.column_stack([edges.row, edges.col]))
    return graph.modularity(adata.obs["x"].cat.codes.tolist(), weights=edges.data.tolist())


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
