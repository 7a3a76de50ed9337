"""Integration of batches: R's Harmony as the reference, and what becomes of odd batches."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_score

from scripts.harmony import harmony
from scrna.data import step_files
from scrna.data.batches import complete_batches
from scrna.errors import UserError
from scrna.methods.harmony import run_harmony
from tests.unit.steps import SEEDED, settings, store, write_pca

pytest_plugins = ["tests.unit.fixtures"]


def shifted(n_obs=300, n_batches=3, n_comps=8, shift=3.0, seed=0):
    """Three kinds of cells in batches that are shifted; the components, kinds and batches."""
    rng = np.random.default_rng(seed)
    kind, batch = np.arange(n_obs) % 3, rng.integers(n_batches, size=n_obs)
    where = 10 * rng.normal(size=(3, n_comps))[kind] + shift * rng.normal(size=(9, n_comps))[batch]
    return (where + rng.normal(size=(n_obs, n_comps))).astype(np.float32), kind, batch


@pytest.fixture
def do(tmp_path):
    """Run the step on components and obs columns; give what it makes of them."""

    def do(array, obs, *, batch_key=("batch",), **own):
        files = store(tmp_path, np.ones((len(array), 1)), pd.DataFrame(obs))
        before, out = write_pca(tmp_path, array), tmp_path / "harmony.h5"
        given = settings("harmony", batch_key=list(batch_key), threads=1, **SEEDED, **own)
        harmony(files.counts, files["filter"], before, out, **given)
        return step_files.read(out, "obsm/X_pca_harmony")

    return do


def names(batch, letters="abcdefghi"):
    return pd.Categorical([letters[i] for i in batch])


# -------------------------------------------------------------------------------- what it computes


@pytest.fixture(scope="module")
def reference(real_data):
    folder = real_data / "reference/harmony"
    tables = [
        pd.read_csv(folder / f"pbmc_3500_{name}.tsv.gz", sep="\t")
        for name in ("pcs", "meta", "pcs_harmonized")
    ]
    return tables[0].to_numpy(np.float32), tables[1]["donor"], tables[2].to_numpy()


def correlations(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def test_the_step_agrees_with_harmony_in_r(do, reference):
    pcs, donor, expected = reference
    found = do(pcs, {"batch": donor.to_numpy()})
    r = correlations(found, expected)
    assert r.min() >= 0.95
    assert np.median(r) >= 0.99
    assert correlations(found, pcs).min() < r.min()  # it is not that nothing was done


def test_batches_mix_and_kinds_of_cells_stay_apart(do):
    array, kind, batch = shifted()
    after = do(array, {"batch": names(batch)})
    assert after.shape == array.shape
    assert after.dtype == np.float32
    one = kind == 0
    assert silhouette_score(array[one], batch[one]) > 0.3
    assert silhouette_score(after[one], batch[one]) < 0.05
    assert silhouette_score(after, kind) > 0.6


def test_the_same_seed_gives_the_same(do):
    array, _, batch = shifted()
    np.testing.assert_array_equal(*(do(array, {"batch": names(batch)}) for _ in range(2)))


def test_threads_change_nothing():
    array, _, batch = shifted()
    one, two = (
        run_harmony(
            array, pd.DataFrame({"batch": names(batch)}), theta=[2.0], sigma=0.1, lamb=None,
            max_iter=10, flavor="harmony2", threads=n, **SEEDED,
        )
        for n in (1, 2)
    )  # fmt: skip
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_as_many_cells_as_components():
    """Nothing in the shape then tells cells from components."""
    array, _, batch = shifted(n_obs=40, n_comps=39)
    given = dict(sigma=0.1, lamb=None, max_iter=10, flavor="harmony2", threads=1, **SEEDED)
    batches = pd.DataFrame({"batch": names(batch)})
    wide = run_harmony(array, batches, theta=[2.0], **given)
    square = np.column_stack([array, np.zeros(40, np.float32)])
    found = run_harmony(square, batches, theta=[2.0], **given)
    np.testing.assert_allclose(found, np.column_stack([wide, np.zeros(40)]), atol=1e-4)


def test_theta_decides_how_much_is_mixed(do):
    array, _, batch = shifted()
    little, much = (do(array, {"batch": names(batch)}, theta=theta) for theta in (0, 4))
    moved = [np.linalg.norm(after - array) for after in (little, much)]
    assert moved[0] != moved[1]


def test_two_batch_columns_are_corrected_both(do):
    array, kind, batch = shifted(n_obs=900)
    rng = np.random.default_rng(1)
    plate = rng.integers(2, size=len(array))
    array += 2 * rng.normal(size=(2, array.shape[1])).astype(np.float32)[plate]
    obs = {"batch": names(batch), "plate": plate}
    one = kind == 0

    def apart(**given):
        after = do(array, obs, **given) if given else array
        return [silhouette_score(after[one], labels[one]) for labels in (batch, plate)]

    assert min(apart()) > 0.1
    assert max(apart(batch_key=("batch", "plate"))) < 0.05
    assert max(apart(batch_key=("batch", "plate"), theta=[2, 1])) < 0.05
    assert apart(batch_key=["batch"])[1] > 0.1  # by batch alone, plates stay apart


def test_the_demo_clusters_by_type_after_and_by_batch_before(demo):
    obs = demo.obs()
    islands = (obs["cell_type"] == "type_5").to_numpy()
    before = step_files.read(demo["pca/pca"], "obsm/X_pca")
    after = step_files.read(demo["harmony/harmony"], "obsm/X_pca_harmony")
    batch = obs["batch"].astype(str)[islands]
    assert after.shape == before.shape == (len(obs), 50)
    assert silhouette_score(after[islands, :10], batch) < 0.05
    assert silhouette_score(before[islands, :10], batch) > 0.1


# --------------------------------------------------------------------------------------- batches


def test_cells_without_a_batch_are_refused(do):
    array, _, batch = shifted()
    labels = pd.Series(names(batch)).where(np.arange(300) >= 7)
    with pytest.raises(
        UserError,
        match=r"batch_key 'batch' has no value in 7 of 300 cells.*harmony.missing_batch to own_ba",
    ):
        do(array, {"batch": labels})


def test_cells_without_a_batch_as_one_batch_more(do, caplog):
    array, _, batch = shifted(n_batches=4)
    labels = pd.Series(names(batch))
    expected = do(array, {"batch": labels})
    found = do(array, {"batch": labels.where(labels != "b")}, missing_batch="own_batch")
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert f"{(batch == 1).sum()} cells have no batch: they form the batch 'missing'" in caplog.text


def test_numbers_may_name_batches(do):
    array, _, batch = shifted()
    expected = do(array, {"batch": names(batch)})
    np.testing.assert_array_equal(do(array, {"batch": batch}), expected)
    np.testing.assert_array_equal(do(array, {"batch": batch.astype(float)}), expected)


def test_missing_numbers(do):
    array, _, batch = shifted()
    with pytest.raises(UserError, match="no value in"):
        do(array, {"batch": np.where(batch == 1, np.nan, batch)})


def test_a_single_batch_is_refused(do):
    array, _, _ = shifted()
    with pytest.raises(
        UserError,
        match=r"batch_key 'batch' has one batch, 'a', in all of the 300 cells\. There is nothing "
        r"to integrate: set the dataset's batch_key to null",
    ):
        do(array, {"batch": ["a"] * len(array)})


def test_a_second_batch_that_is_too_small_leaves_one(do):
    array, _, _ = shifted()
    expected = (
        r"has 2 batches in 300 cells, but 1 of harmony\.min_batch_cells \(3\) cells or more; the "
        r"largest are a \(298\), b \(2\)\. There is nothing to integrate"
    )
    with pytest.raises(UserError, match=expected):
        do(array, {"batch": ["a"] * 298 + ["b"] * 2})


@pytest.mark.parametrize("least", [1, 3])
def test_cells_that_are_each_a_batch_are_refused(do, least):
    array, _, _ = shifted()
    expected = "batch_key 'batch' has another value in each of the 300 cells: they are no batches"
    with pytest.raises(UserError, match=expected):
        do(array, {"batch": [f"cell {i}" for i in range(300)]}, min_batch_cells=least)


def test_a_batch_column_that_is_all_missing_is_refused(do):
    array, _, _ = shifted()
    with pytest.raises(UserError, match="'batch' has no value in any of the 300 cells"):
        do(array, {"batch": np.full(300, np.nan)}, missing_batch="own_batch")


def test_a_column_that_has_one_batch_where_the_other_has_large_ones_is_refused(do):
    array, _, _ = shifted()
    obs = {"batch": ["a"] * 250 + ["b"] * 50, "run": ["x"] * 200 + ["y"] * 50}
    obs["run"] += [f"run {i}" for i in range(50)]
    expected = "'batch' has fewer than two batches among the 250 cells whose other batches .run."
    with pytest.raises(UserError, match=expected):
        do(array, obs, batch_key=("batch", "run"))


def test_a_batch_that_the_filter_removed_does_not_count(do, tmp_path):
    array, _, batch = shifted()
    files = store(tmp_path, np.ones((300, 1)), pd.DataFrame({"batch": names(batch)}))
    keep = batch == 0
    step_files.write(files["filter"], {"obs/keep": keep, "var/keep": np.ones(1, bool)})
    before = write_pca(tmp_path, array[keep])
    given = settings("harmony", batch_key=["batch"], threads=1, **SEEDED)
    with pytest.raises(UserError, match=r"has one batch, 'a'"):
        harmony(files.counts, files["filter"], before, tmp_path / "out.h5", **given)


def test_cells_of_small_batches_keep_their_coordinates(do, caplog):
    array, _, batch = shifted()
    labels = np.array(names(batch), dtype=object)
    labels[:2], labels[2:3] = "tiny", "lone"
    after = do(array, {"batch": labels})
    np.testing.assert_array_equal(after[:3], array[:3])
    assert (after[3:] != array[3:]).any(axis=1).all()
    assert (
        "batch: tiny, lone have under 3 cells; their 3 cells keep their uncorrected coordinates"
        in caplog.text
    )
    np.testing.assert_array_equal(after[3:], do(array[3:], {"batch": labels[3:]}))


def test_no_batch_is_too_small_where_one_cell_suffices(do):
    array, _, batch = shifted()
    labels = np.array(names(batch), dtype=object)
    labels[0] = "lone"
    after = do(array, {"batch": labels}, min_batch_cells=1)
    assert np.isfinite(after).all()


def test_few_cells_are_refused(do):
    array, _, batch = shifted(n_obs=29, n_batches=2)
    with pytest.raises(UserError, match="29 cells to integrate, fewer than 30"):
        do(array, {"batch": names(batch)})
    array, _, batch = shifted(n_obs=30, n_batches=2)
    assert np.isfinite(do(array, {"batch": names(batch)})).all()


def test_batches_are_text_whatever_they_were():
    numbers = pd.Series([10, 2, None, 2], dtype="Int64").astype("category")
    found = complete_batches(pd.DataFrame({"batch": numbers}), "own_batch")["batch"]
    assert found.tolist() == ["10", "2", "missing", "2"]
    assert found.cat.categories.tolist() == ["10", "2", "missing"]
    found = complete_batches(pd.DataFrame({"batch": ["b", "a", "b"]}), "refuse")["batch"]
    assert found.cat.categories.tolist() == ["a", "b"]
