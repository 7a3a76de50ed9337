"""UMAP: what is near in the graph is near in the picture."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from scripts.neighbors import neighbors
from scripts.umap import umap
from scrna.data import step_files
from scrna.data.graph import representation
from tests.unit.steps import SEEDED, blobs, settings, write_pca

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture
def do(tmp_path):
    def do(array, n_pcs=40, **own):
        path, graph, out = write_pca(tmp_path, array), tmp_path / "nn.h5", tmp_path / "umap.h5"
        neighbors(path, graph, **settings("neighbors", **SEEDED, n_pcs=n_pcs))
        umap(graph, path, out, **settings("umap", **SEEDED | own))
        return step_files.read(out, "obsm/X_umap")

    return do


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_neighbors_stay_neighbors(demo, rep):
    embedding = step_files.read(demo[f"{rep}/umap"], "obsm/X_umap")
    _, array = representation(demo[f"{rep}/{rep}"], 40)
    assert embedding.shape == (len(demo.obs()), 2)
    assert embedding.dtype == np.float32
    assert np.isfinite(embedding).all()
    shuffled = np.random.default_rng(0).permutation(embedding)
    assert trustworthiness(array, shuffled, n_neighbors=15) < 0.6
    assert trustworthiness(array, embedding, n_neighbors=15) > 0.8


def test_the_parameters_are_told(demo):
    params = step_files.read(demo["pca/umap"], "uns/umap")["params"]
    assert params["a"] == pytest.approx(0.583, abs=1e-3)  # what umap-learn fits to min_dist 0.5
    assert params["b"] == pytest.approx(1.334, abs=1e-3)
    known = step_files.provenance_of(demo["pca/umap"])
    assert known["step"] == "umap"
    assert known["parameters"]["min_dist"] == 0.5
    assert set(known["inputs"]) == {"neighbors", "representation_of"}


def test_the_seed_decides(do):
    array, _ = blobs(120)
    first, again, other = do(array), do(array), do(array, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_blobs_stay_apart(do):
    array, blob = blobs(200)
    embedding = do(array)
    centres = np.array([embedding[blob == i].mean(axis=0) for i in range(4)])
    nearest = np.linalg.norm(embedding[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == blob).all()


def test_spread_and_min_dist(do):
    array, _ = blobs(200, n_blobs=1)
    tight, loose = do(array, min_dist=0.01), do(array, min_dist=0.9, spread=2)
    assert np.ptp(loose, axis=0).max() > 1.5 * np.ptp(tight, axis=0).max()


def test_three_dimensions_from_random_places(do):
    embedding = do(blobs(120)[0], n_components=3, init="random", max_iter=50)
    assert embedding.shape == (120, 3)
    assert np.isfinite(embedding).all()


def test_only_the_components_of_the_graph_count(do):
    array, _ = blobs(120)
    noise = np.random.default_rng(0).normal(0, 1e3, (120, 5)).astype(np.float32)
    np.testing.assert_array_equal(do(np.hstack([array, noise]), n_pcs=10), do(array))


def test_few_cells(do):
    assert np.isfinite(do(blobs(10)[0])).all()
