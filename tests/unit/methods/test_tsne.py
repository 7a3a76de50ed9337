"""t-SNE: what is near is near in the picture; the perplexity fits the number of cells."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

import scripts.tsne as step
from scripts.tsne import tsne
from scrna.data import step_files
from scrna.data.graph import representation
from scrna.errors import UserError
from tests.unit.steps import SEEDED, blobs, settings, write_pca

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture
def do(tmp_path):
    def do(array, **own):
        path, out = write_pca(tmp_path, array), tmp_path / "tsne.h5"
        tsne(path, out, **settings("tsne", **SEEDED | own))
        return step_files.read(out, "obsm/X_tsne"), step_files.read(out, "uns/tsne")["params"]

    return do


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_neighbors_stay_neighbors(demo, rep):
    embedding = step_files.read(demo[f"{rep}/tsne"], "obsm/X_tsne")
    _, array = representation(demo[f"{rep}/{rep}"], 40)
    assert embedding.shape == (len(demo.obs()), 2)
    assert embedding.dtype == np.float32
    assert np.isfinite(embedding).all()
    shuffled = np.random.default_rng(0).permutation(embedding)
    assert trustworthiness(array, shuffled, n_neighbors=15) < 0.6
    assert trustworthiness(array, embedding, n_neighbors=15) > 0.85
    params = step_files.read(demo[f"{rep}/tsne"], "uns/tsne")["params"]
    assert params["perplexity"] == 30
    assert params["use_rep"] == ("X_pca" if rep == "pca" else "X_pca_harmony")


def test_the_same_seed_gives_the_same(do):
    array, _ = blobs(100)
    np.testing.assert_array_equal(do(array)[0], do(array)[0])


def test_blobs_stay_apart(do):
    array, blob = blobs(200)
    embedding, _ = do(array)
    centres = np.array([embedding[blob == i].mean(axis=0) for i in range(4)])
    nearest = np.linalg.norm(embedding[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == blob).all()


def test_the_perplexity_of_fifty_cells(do, caplog):
    embedding, params = do(blobs(50)[0])
    assert "perplexity is 30, but 50 cells allow at most 16.3, which is used" in caplog.text
    assert params["perplexity"] == pytest.approx(49 / 3)
    assert embedding.shape == (50, 2)


def test_a_perplexity_that_fits_stays(do, caplog):
    _, params = do(blobs(91)[0])
    assert "perplexity" not in caplog.text
    assert params["perplexity"] == 30


def test_parameters_reach_the_library(do):
    array, _ = blobs(100)
    usual, _ = do(array)
    for own in ({"learning_rate": 20}, {"early_exaggeration": 2}, {"perplexity": 5}):
        assert not np.allclose(do(array, **own)[0], usual, rtol=1e-2)


def test_a_single_component_is_refused(do):
    with pytest.raises(UserError, match=r"t-SNE needs two components, and there is one"):
        do(blobs(60)[0], n_pcs=1)


@pytest.mark.parametrize(("cells", "expected"), [(60, 200), (9_600, 200), (48_000, 1_000)])
def test_the_learning_rate_grows_with_the_cells(tmp_path, monkeypatch, cells, expected):
    asked = {}

    def embed(array, **settings):
        asked.update(settings)
        return np.zeros((len(array), 2), dtype=np.float32)

    monkeypatch.setattr(step, "run_tsne", embed)
    path = write_pca(tmp_path, np.zeros((cells, 3), dtype=np.float32))
    tsne(
        path,
        tmp_path / "tsne.h5",
        max_cells=None,
        n_pcs=3,
        perplexity=5,
        early_exaggeration=12,
        learning_rate="auto",
        method="auto",
        backend="cpu",
        seed=0,
    )
    assert asked["learning_rate"] == expected


@pytest.mark.parametrize(
    ("max_cells", "cells", "computed"),
    [
        (50, 51, False),
        (50, 50, True),
        ("auto", 100_001, False),
        ("auto", 60, True),
        (None, 51, True),
    ],
)
def test_many_cells_are_left_out_and_that_is_said(
    tmp_path, monkeypatch, caplog, max_cells, cells, computed
):
    monkeypatch.setattr(
        step, "run_tsne", lambda array, **_: np.zeros((len(array), 2), dtype=np.float32)
    )
    path = write_pca(tmp_path, np.zeros((cells, 3), dtype=np.float32))
    asked = settings("tsne", **SEEDED, max_cells=max_cells, n_pcs=3, perplexity=5)
    tsne(path, tmp_path / "tsne.h5", **asked)
    assert ("obsm/X_tsne" in step_files.names(tmp_path / "tsne.h5")) == computed
    assert ("t-SNE is left out" in caplog.text) != computed


@pytest.mark.parametrize(
    ("backend", "cells", "asked", "expected"),
    [
        ("gpu", 99_999, "auto", "barnes_hut"),
        ("gpu", 100_000, "auto", "fft"),
        ("gpu", 100, "fft", "fft"),
        ("cpu", 600_000, "auto", "barnes_hut"),
    ],
)
def test_how_it_is_computed(backend, cells, asked, expected):
    assert step.method_of(asked, cells, backend) == expected
