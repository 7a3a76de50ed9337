"""Doublets: scanpy's scores in each sample, and which cells count as doublets."""

import csv
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from scripts import doublets as script
from scripts.doublets import doublets
from scrna.data import step_files
from scrna.errors import UserError
from scrna.methods.doublets import HIGHEST_RATE, call, minimum_between_maxima, rate_of
from scrna.resources.plan import Choice


def counts_of(n_obs, seed=0, n_vars=400):
    """Cells of four types, each with 40 genes of its own, and then a tenth as many doublets."""
    rng = np.random.default_rng(seed)
    mean = np.tile(rng.gamma(1, 0.5, n_vars), (4, 1))
    for kind in range(4):
        mean[kind, 40 * kind : 40 * kind + 40] += 4
    X = rng.poisson(mean[np.arange(n_obs) % 4])
    a = rng.integers(0, n_obs // 4, n_obs // 10) * 4
    return np.concatenate([X, X[a] + X[a + 1 + np.arange(n_obs // 10) % 3]])


@pytest.fixture
def run_doublets(tmp_path, write_counts, settings):
    def run(X, obs=None, **changes):
        store = write_counts(tmp_path, sp.csr_matrix(X), obs)
        out, table = tmp_path / "doublets.h5", tmp_path / "doublets.csv"
        given = {"method": "scrublet", "seed": 0, "backend": "cpu"}
        doublets(store, out, table, **settings("doublets", **given | changes))
        step_files.check_table(table)
        with table.open() as file:
            return step_files.read_all(out), list(csv.DictReader(file))

    return run


@pytest.fixture(scope="module")
def lanes():
    """Three samples, their cells mixed up."""
    parts = [counts_of(160, 1), counts_of(240, 2), counts_of(200, 3)]
    lane = np.repeat(["b", "a", "c"], [len(part) for part in parts])
    mixed = np.random.default_rng(0).permutation(len(lane))
    return np.concatenate(parts)[mixed], lane[mixed]


def test_scores_are_scanpys_in_each_sample(run_doublets, lanes):
    X, lane = lanes
    found, table = run_doublets(X, pd.DataFrame({"lane": lane}), by="lane", expected_rate=0.06)
    obs = pd.DataFrame({"lane": lane}, index=[f"cell{i}" for i in range(len(X))])
    adata = ad.AnnData(sp.csr_matrix(X.astype(np.float32)), obs=obs)
    sc.pp.scrublet(
        adata, batch_key="lane", expected_doublet_rate=0.06, threshold=0.0, verbose=False
    )
    score = found["obs/doublet_score"]
    np.testing.assert_allclose(score, adata.obs["doublet_score"], rtol=1e-6)
    assert [row["sample"] for row in table] == ["a", "b", "c"]
    kept = found["uns/doublets"]
    for place, row in enumerate(table):
        own = lane == row["sample"]
        assert int(row["n_cells"]) == own.sum() == kept["n_cells"][place]
        called = score[own] > float(row["threshold"])
        np.testing.assert_array_equal(found["obs/predicted_doublet"][own], called)
        assert int(row["n_doublets"]) == called.sum() == kept["n_doublets"][place]
        simulated = adata.uns["scrublet"]["batches"][row["sample"]]["doublet_scores_sim"]
        assert call(score[own], simulated, 0.06)[1:] == (float(row["threshold"]), row["found_by"])


def test_scores_are_the_same_alone_and_beside_others(run_doublets, lanes):
    X, lane = lanes
    beside, _ = run_doublets(X, pd.DataFrame({"lane": lane}), by="lane")
    for name in "ab":
        own = lane == name
        alone, _ = run_doublets(X[own])
        for slot in ("obs/doublet_score", "obs/predicted_doublet"):
            np.testing.assert_array_equal(alone[slot], beside[slot][own])


def test_doublets_of_unlike_cells_have_the_highest_scores(run_doublets):
    X = counts_of(400)
    is_doublet = np.arange(len(X)) >= 400
    found, _ = run_doublets(X)
    assert roc_auc_score(is_doublet, found["obs/doublet_score"]) > 0.95
    other, _ = run_doublets(X, seed=1)
    assert (other["obs/doublet_score"] != found["obs/doublet_score"]).any()


def test_a_sample_that_is_too_small_is_not_scored_and_it_is_said(run_doublets, caplog):
    X = np.concatenate([counts_of(160), counts_of(40)[:40], counts_of(40)[:1]])
    obs = pd.DataFrame({"lane": ["a"] * 176 + ["few"] * 40 + ["one"]})
    found, table = run_doublets(X, obs, by="lane")
    assert np.isfinite(found["obs/doublet_score"][:176]).all()
    assert np.isnan(found["obs/doublet_score"][176:]).all()
    assert not found["obs/predicted_doublet"][176:].any()
    assert [row["threshold"] for row in table][1:] == ["", ""]
    assert [row["found_by"] for row in table][1:] == ["too few cells"] * 2
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said[0].startswith("2 samples of lane (few, one) are not scored, with under 50 cells")


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
def test_cells_without_variation_are_refused_by_name(run_doublets):
    X = np.ones((80, 60), dtype=int)
    with pytest.raises(UserError, match=r"doublets of sample 'all cells' \(80 cells\): .* none"):
        run_doublets(X)


def test_a_sample_that_does_not_fit_is_refused_before_any_is_scored(run_doublets, monkeypatch):
    asked = {}

    def decide(step, **sizes):
        asked.update(sizes, step=step)
        return Choice(step, "memory", 9 * 2**30, 4 * 2**30, "")

    monkeypatch.setattr(script, "decide", decide)
    monkeypatch.setattr(script, "scores", lambda *_, **__: pytest.fail("it was scored"))
    X = counts_of(100)
    obs = pd.DataFrame({"lane": np.repeat(["small", "large"], [40, 70])})
    with pytest.raises(UserError, match=r"sample 'large' has 70 cells, .* 9\.0 GiB of 4\.0 GiB"):
        run_doublets(X, obs, by="lane")
    assert (asked["n_obs"], asked["nnz"]) == (70, (X[40:] > 0).sum())


# ------------------------------------------------------------------------- which cells are doublets


#: Scores whose histogram has one maximum.
FALLING = np.repeat(np.arange(256), np.arange(256, 0, -1)) / 255


def beta(rng, n, low):
    return rng.beta(2, 20, n) if low else 0.5 + 0.4 * rng.beta(5, 5, n)


def test_two_maxima_are_parted_between_them():
    rng = np.random.default_rng(0)
    simulated = np.concatenate([beta(rng, 900, True), beta(rng, 1100, False)])
    observed = np.concatenate([beta(rng, 950, True), beta(rng, 50, False), [np.nan]])
    called = call(observed, simulated, 0.3)
    assert called.found_by == "minimum"
    assert 0.2 < called.threshold < 0.6
    assert called.flags[950:].tolist() == [True] * 50 + [False]
    assert called.flags.sum() == 50


@pytest.mark.parametrize("rate", [0.02, 0.25])
def test_one_maximum_calls_as_many_as_expected(rate):
    rng = np.random.default_rng(0)
    observed = rng.exponential(0.1, 1000)
    called = call(observed, FALLING, rate)
    assert called.found_by == "expected_rate"
    assert called.flags.sum() == round(1000 * rate)
    assert observed[called.flags].min() > observed[~called.flags].max()


def test_scores_that_are_all_equal_call_none():
    called = call(np.full(100, 0.1), np.full(200, 0.1), 0.05)
    assert called.found_by == "expected_rate"
    assert not called.flags.any()


def test_a_threshold_that_calls_most_of_a_sample_is_none():
    rng = np.random.default_rng(0)
    simulated = np.concatenate([beta(rng, 900, True), beta(rng, 1100, False)])
    called = call(beta(rng, 1000, False), simulated, 0.1)
    assert (called.found_by, called.flags.sum()) == ("expected_rate", 100)


def test_the_minimum_is_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters", reason="the GPU's environment has it")
    rng = np.random.default_rng(0)
    for n_parts in [1, 2, 3, 2] * 20:
        at, wide = rng.uniform(0, 5, n_parts), rng.uniform(0.1, 1, n_parts)
        sizes = rng.integers(10, 3000, n_parts)
        values = np.concatenate(
            [rng.normal(*part) for part in zip(at, wide, sizes, strict=True)]
        ).round(2)
        try:
            expected = filters.threshold_minimum(values)
        except RuntimeError:
            expected = None
        assert minimum_between_maxima(values) == pytest.approx(expected)


def test_the_minimum_of_a_histogram_by_hand():
    place = np.arange(256)  # 256 bins of a width of 255 / 256
    heights = np.maximum(0, 40 - np.abs(place - 60)) + np.maximum(0, 40 - np.abs(place - 190))
    heights[[0, 255]] = 1
    assert 100 < minimum_between_maxima(np.repeat(place, heights)) < 151
    assert minimum_between_maxima(np.full(9, 3.0)) is None
    assert minimum_between_maxima(FALLING) is None


def test_the_expected_rate_is_that_of_10x_for_the_cells_of_a_sample(caplog):
    assert rate_of(1000, None) == pytest.approx(0.008)
    assert rate_of(10_000, None) == pytest.approx(0.08)
    assert rate_of(10_000, 0.03) == 0.03
    assert rate_of(125_000, None) == HIGHEST_RATE
    rows = [script.of_sample("all cells", 125_000, None)]
    script.warn(rows, None, asked=False)
    assert "1 sample (all cells) have so many cells that 25 % doublets" in caplog.text


@pytest.mark.parametrize(
    ("n_cells", "n_doublets", "is_said"),
    [(5000, 40, True), (5000, 50, False), (5000, 800, False), (5000, 900, True), (200, 5, False)],
)
def test_a_number_of_doublets_far_from_the_expected_is_said(caplog, n_cells, n_doublets, is_said):
    row = script.of_sample("a", n_cells, None) | {"n_doublets": n_doublets, "found_by": "minimum"}
    script.warn([row], "lane", asked=False)
    assert ("(a) have far fewer or far more predicted doublets" in caplog.text) == is_said


# -------------------------------------------------------------------------------------- real data


def test_artificial_doublets_of_pbmc3k(run_doublets, real_data):
    adata = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    types = adata.obs["scanpy_louvain"]
    rng = np.random.default_rng(0)
    pairs = rng.choice(np.flatnonzero(types.notna()), (2000, 2))
    unlike = types.to_numpy()[pairs[:, 0]] != types.to_numpy()[pairs[:, 1]]
    a, b = pairs[unlike][:150].T
    X = sp.vstack([adata.X, adata.X[a] + adata.X[b]])
    found, (row,) = run_doublets(X)
    is_made = np.arange(X.shape[0]) >= adata.n_obs
    assert roc_auc_score(is_made, found["obs/doublet_score"]) >= 0.85
    share = found["obs/predicted_doublet"].mean()
    assert 0 < share < 0.25
    assert found["obs/predicted_doublet"][is_made].mean() > 3 * share
    assert row["found_by"] in ("minimum", "expected_rate")
