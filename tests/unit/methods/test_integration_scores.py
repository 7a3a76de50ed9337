"""How an integration is scored, and what is said of it."""

import math
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from harmonypy import compute_lisi
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

import scripts.integration_scores as script
from scrna.data import step_files
from scrna.errors import UserError
from scrna.methods import integration_scores
from scrna.methods.harmony import run_harmony
from scrna.methods.integration_scores import lisi, score, silhouette, surroundings
from scrna.methods.integration_verdict import agreement, judge
from tests.unit.steps import blobs, integrated, store, write_pca

pytest_plugins = ["tests.unit.fixtures"]

N = 600
BATCH = np.random.default_rng(0).integers(3, size=N)
POINTS, KIND = blobs(N)


def rng():
    return np.random.default_rng(1)


def apart(points=POINTS, batch=BATCH, by=100.0):
    """Points moved far away by their batch."""
    return points + by * np.eye(points.shape[1], dtype=np.float32)[batch]


# ------------------------------------------------------------------------------------- the scores


def test_batches_that_are_dealt_at_random_are_as_by_chance():
    found = score(POINTS, BATCH)
    assert found["same_batch"] == pytest.approx(found["same_batch_expected"], abs=0.02)
    assert found["same_batch_expected"] == pytest.approx(1 / 3, abs=0.02)
    assert found["ilisi_expected"] == pytest.approx(3, abs=0.05)
    assert 2.5 < found["ilisi"] < found["ilisi_expected"]  # of 30 neighbors, as LISI is
    assert abs(found["silhouette_batch"]) < 0.02
    assert math.isnan(found["clisi"])


def test_batches_that_lie_apart_are_at_the_other_end():
    found = score(apart(), BATCH)
    assert found["same_batch"] == 1
    assert found["ilisi"] == pytest.approx(1)
    assert found["silhouette_batch"] > 0.7
    assert found["same_batch_expected"] == pytest.approx(1 / 3, abs=0.02)


def test_labels_likewise():
    found = score(POINTS, BATCH, KIND)
    assert found["same_label"] == 1
    assert found["clisi"] == pytest.approx(1)
    assert found["silhouette_label"] > 0.5
    shuffled = score(POINTS, BATCH, rng().permutation(KIND))
    assert shuffled["same_label"] == pytest.approx(0.25, abs=0.03)
    assert shuffled["clisi"] > 3
    assert abs(shuffled["silhouette_label"]) < 0.06


def test_lisi_is_the_inverse_simpson_index_of_weighted_neighbors():
    """Korsunsky et al. 2019, written out: weights of perplexity 30 over 90 neighbors."""
    points, batch = rng().normal(size=(200, 3)), rng().integers(2, size=200)
    expected = []
    for point in points:
        distance = np.linalg.norm(points - point, axis=1)
        near = np.argsort(distance)[1:91]
        low, high = 1e-3, 1e3
        for _ in range(200):
            beta = math.sqrt(low * high)
            weights = np.exp(-beta * distance[near])
            weights /= weights.sum()
            entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum()
            low, high = (beta, high) if entropy > math.log(30) else (low, beta)
        shares = np.bincount(batch[near], weights, minlength=2)
        expected.append(1 / (shares**2).sum())
    assert score(points, batch)["ilisi"] == pytest.approx(np.mean(expected), rel=0.01)


def overlapping(n=400, n_comps=8):
    """Cells whose groups overlap, some of them alike, and two groupings of different sizes."""
    points = rng().normal(size=(n, n_comps)).astype(np.float32)
    points[: n // 10] = points[n // 10 : 2 * (n // 10)]  # a second cell at the same place
    groups = [rng().integers(3, size=n), np.sort(rng().integers(9, size=n))]
    points[:, 0] += groups[1]
    return points, groups


@pytest.mark.parametrize("n", [8, 40, 91, 400])
@pytest.mark.parametrize("shift", [0, 1000])
def test_scores_are_those_of_harmonypy_and_scikit_learn(n, shift):
    points, groups = overlapping(n)
    points = points + np.float32(shift)
    around = surroundings(points, [np.unique(g, return_inverse=True)[1] for g in groups])
    for own, sums in zip(groups, around.sums, strict=True):
        codes = np.unique(own, return_inverse=True)[1]
        expected = compute_lisi(
            points, pd.DataFrame({"g": own}), ["g"], perplexity=min(30, (n - 1) // 3)
        )[:, 0]
        np.testing.assert_allclose(lisi(around, codes).mean(), expected.mean(), rtol=1e-6)
        expected = silhouette_score(points.astype(float), own)
        assert silhouette(sums, codes) == pytest.approx(expected, abs=1e-6)
    near = NearestNeighbors(n_neighbors=min(15, n - 1)).fit(points.astype(float))
    distances, _ = near.kneighbors()
    found = around.distances[:, : distances.shape[1]]
    # cells at the same place: of the difference of their squares a rounding error is left
    np.testing.assert_allclose(found, distances, atol=1e-6 * (1 + shift))


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(monkeypatch, threads):
    points, groups = overlapping()
    whole = surroundings(points, groups)
    monkeypatch.setattr(integration_scores, "_BLOCK", 7 * len(points))
    parts = surroundings(points, groups, threads)
    np.testing.assert_array_equal(parts.near, whole.near)
    for one, other in zip(parts.sums, whole.sums, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_a_cell_that_is_alone_in_its_group_has_a_silhouette_of_0():
    points, _ = overlapping(30)
    groups = np.minimum(np.arange(30), 3)
    expected = silhouette_score(points.astype(float), groups)
    around = surroundings(points, [groups])
    assert silhouette(around.sums[0], groups) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(silhouette(np.ones((4, 4)), np.arange(4)))


def test_cells_that_are_all_alike_are_scored():
    points, groups = np.ones((100, 4), np.float32), rng().integers(2, size=100)
    around = surroundings(points, [groups])
    assert silhouette(around.sums[0], groups) == 0
    assert (around.distances == 0).all()
    assert 1 <= lisi(around, groups).mean() <= 2


def test_agreement_is_scikit_learns():
    for n_clusters, n_labels in ((1, 3), (5, 2), (9, 9), (N, N)):
        clusters, labels = rng().integers(n_clusters, size=N), rng().integers(-1, n_labels, size=N)
        clusters = np.where(rng().random(N) < 0.4, labels + 1, clusters)
        has = labels >= 0
        found = agreement(clusters, labels)
        truth = labels[has], clusters[has]
        assert found["ari"] == pytest.approx(adjusted_rand_score(*truth), abs=1e-12)
        assert found["nmi"] == pytest.approx(normalized_mutual_info_score(*truth), abs=1e-12)
    assert agreement(np.arange(9), np.arange(9)[::-1]) == pytest.approx({"ari": 1, "nmi": 1})


def test_a_kind_of_cell_in_one_batch_counts_neither_for_nor_against():
    batch = np.where(KIND == 0, 0, BATCH)
    found, blind = score(POINTS, batch, KIND), score(POINTS, batch)
    assert found["same_batch"] == pytest.approx(found["same_batch_expected"], abs=0.02)
    assert blind["same_batch"] > blind["same_batch_expected"] + 0.05
    assert found["ilisi_expected"] == pytest.approx(0.25 * 1 + 0.75 * 3, abs=0.05)


def test_cells_without_a_label_are_left_out_of_the_scores_of_labels():
    has = rng().random(N) < 0.7
    labels = np.where(has, KIND, -1)
    found, alone = score(POINTS, BATCH, labels), score(POINTS[has], BATCH[has], KIND[has])
    for name in ("same_label", "clisi", "silhouette_label"):
        assert found[name] == alone[name]
    assert found["same_batch"] == score(POINTS, BATCH)["same_batch"]
    clusters = np.where(has, KIND, 99)
    assert agreement(clusters, labels) == {"ari": 1, "nmi": 1}


def test_a_single_batch_or_label_has_no_scores():
    one = np.zeros(N, int)
    found = score(POINTS, one, one)
    assert all(map(math.isnan, found.values()))
    assert all(map(math.isnan, agreement(KIND, one).values()))
    assert all(map(math.isnan, agreement(KIND, np.full(N, -1)).values()))
    assert all(map(math.isnan, score(POINTS, one, np.full(N, -1)).values()))


def test_few_cells_are_scored():
    found = score(POINTS[:6], np.array([0, 1] * 3), np.array([0, 0, 0, 1, 1, -1]))
    assert all(map(math.isfinite, found.values()))


# ------------------------------------------------------------------------------------ the verdict


def row(points, batch=BATCH, labels=KIND, clusters=None):
    known = np.full(len(points), -1) if labels is None else labels
    return score(points, batch, labels) | agreement(KIND if clusters is None else clusters, known)


def test_an_integration_that_mixes_is_better():
    verdict = judge(row(apart(), clusters=3 * KIND + BATCH), row(POINTS), "batch", "kind")
    assert verdict[:3] == ("mixed", "clearer", "better")
    assert verdict.sentence.startswith("Batches (batch) are mixed: of the 15 nearest ")
    assert "(15.0 before; " in verdict.sentence
    assert "expected by chance among cells of the same kind)." in verdict.sentence
    assert "Biology (kind) is clearer: 15.0 of 15 neighbors" in verdict.sentence


def test_the_way_back_is_worse():
    verdict = judge(row(POINTS), row(apart(), clusters=3 * KIND + BATCH), "batch", "kind")
    assert verdict[:3] == ("separate", "blurred", "worse")


def test_mixing_that_costs_the_kinds_of_cells_is_a_trade_off():
    soup = rng().normal(size=POINTS.shape)
    mixed = judge(row(apart()), row(soup, clusters=rng().permutation(KIND)), "batch", "kind")
    assert mixed[:3] == ("mixed", "blurred", "a trade-off")
    assert mixed.sentence.endswith("This is a trade-off: better mixing, less clear labels.")
    back = judge(row(soup, clusters=rng().permutation(KIND)), row(apart()), "batch", "kind")
    assert back.sentence.endswith("This is a trade-off: clearer labels, less mixing.")


def test_batches_between_the_extremes_are_partly_mixed():
    touched = apart(by=1.5)
    verdict = judge(row(apart()), row(touched), "batch", None)
    assert verdict[:3] == ("partly mixed", "unknown", "better")
    assert "it cannot be judged whether cell types are kept." in verdict.sentence


def test_nothing_gets_worse_without_a_batch_effect():
    batches = pd.DataFrame({"batch": pd.Categorical.from_codes(BATCH, list("abc"))})
    after = run_harmony(
        POINTS, batches, theta=[2.0], sigma=0.1, lamb=None, max_iter=10, flavor="harmony2",
        backend="cpu", seed=0, threads=1,
    )  # fmt: skip
    verdict = judge(row(POINTS), row(after), "batch", "kind")
    assert verdict[:3] == ("mixed", "kept", "unchanged")
    assert verdict.sentence.endswith("Overall, little has changed.")


def test_one_batch_and_no_label_cannot_be_judged():
    one = np.zeros(N, int)
    verdict = judge(*[row(POINTS, one, None)] * 2, "batch", None)
    assert verdict[:3] == ("unknown", "unknown", "unknown")
    assert verdict.sentence == (
        "batch has only one batch: there is nothing to mix. Without a label_key it cannot be "
        "judged whether cell types are kept. The integration cannot be judged."
    )


def test_batches_that_are_the_labels_cannot_be_judged():
    verdict = judge(row(POINTS, KIND), row(POINTS, KIND), "donor", "kind")
    assert (verdict.mixing, verdict.biology) == ("unknown", "kept")
    assert "cannot be judged: nearly every value of kind is in one batch" in verdict.sentence


def test_a_batch_that_nearly_all_cells_are_of_cannot_be_judged():
    batch = (np.arange(N) < 5).astype(int)
    verdict = judge(row(POINTS, batch, None), row(POINTS, batch, None), "donor", None)
    assert verdict.mixing == "unknown"
    assert "nearly all cells are in one batch" in verdict.sentence


def test_a_label_of_one_value_tells_nothing():
    verdict = judge(*[row(POINTS, labels=np.zeros(N, int))] * 2, "batch", "kind")
    assert verdict[:3] == ("mixed", "unknown", "unchanged")
    assert "kind has less than two values" in verdict.sentence


def test_signs_that_contradict_each_other_are_unclear():
    before = row(POINTS)
    after = before | {"same_label": before["same_label"] - 0.1}
    assert judge(before | {"ari": 0.5}, after, "batch", "kind")[1:3] == ("unclear", "unchanged")


# --------------------------------------------------------------------------------------- the step


@pytest.fixture
def made(tmp_path):
    """An analysis by hand: batches apart before, mixed after."""

    def make(obs, n_obs=N):
        done = store(tmp_path, np.ones((n_obs, 1)), pd.DataFrame(obs))
        for rep, points in (("pca", apart()), ("harmony", POINTS)):
            write_pca(tmp_path, points, rep)
            clusters = pd.Categorical(KIND.astype(str))
            step_files.write(done[f"{rep}/leiden"], {"obs/leiden": clusters})
        return done

    return make


def test_the_demo_is_better_after_harmony(demo):
    path = integrated(demo, label_key="cell_type")
    found = step_files.read(path, "uns/integration")
    assert (found["batch_key"], found["label_key"]) == ("batch", "cell_type")
    assert found["n_cells"] == len(demo.obs())
    assert found["mixing"] == "mixed"
    assert found["overall"] == "better"
    table = pd.read_csv(path.with_suffix(".csv"), index_col="representation")
    assert list(table.index) == ["pca", "harmony"]
    assert (table["n_cells"] == len(demo.obs())).all()
    for rep in table.index:
        for name, value in found[rep].items():
            assert table.loc[rep, name] == pytest.approx(value, rel=1e-5)
    obs = demo.obs()
    clusters = np.asarray(step_files.read(demo["harmony/leiden"], "obs/leiden"))
    numbers = [pd.factorize(values)[0] for values in (clusters, obs["cell_type"])]
    assert found["harmony"]["ari"] == pytest.approx(agreement(*numbers)["ari"])


def test_the_result_has_it(demo):
    steps = [*demo.steps, integrated(demo, label_key="cell_type")]
    whole = ad.read_zarr(demo.final("scored.zarr", steps, X=False, counts_layer=False))
    found = whole.uns["integration"]
    assert found["verdict"].endswith("Overall, the integration improved the result.")
    assert found["harmony"]["ilisi"] > found["pca"]["ilisi"]
    assert '"step": "integration"' in whole.uns["provenance"]["integration"]


def test_without_a_label(made, caplog):
    caplog.set_level("INFO", "scrna")
    path = integrated(made({"batch": BATCH}), n_cells=20000)
    found = step_files.read(path, "uns/integration")
    assert "label_key" not in found
    assert (found["mixing"], found["biology"], found["overall"]) == ("mixed", "unknown", "better")
    assert pd.read_csv(path.with_suffix(".csv"))["ari"].isna().all()
    assert found["verdict"] in caplog.text
    assert "scored on 600 of 600 cells" in caplog.text


def test_a_sample_is_drawn_and_said(made, caplog):
    caplog.set_level("INFO", "scrna")
    done = made({"batch": BATCH, "kind": KIND})
    first = step_files.read(integrated(done, label_key="kind", n_cells=200), "uns/integration")
    assert first["n_cells"] == 200
    assert "scored on 200 of 600 cells" in caplog.text
    again = step_files.read(integrated(done, label_key="kind", n_cells=200), "uns/integration")
    assert again["harmony"] == first["harmony"]
    chosen = script.sample(N, 200, 0)
    assert len(set(chosen)) == 200
    assert first["harmony"]["silhouette_label"] == pytest.approx(
        score(POINTS[chosen], BATCH[chosen], KIND[chosen])["silhouette_label"]
    )
    assert first["harmony"]["ari"] == 1  # of all cells


def test_missing_labels_and_batches(made, caplog):
    labels = pd.Series(KIND).astype(float).where(np.arange(N) >= 50)
    batch = pd.Series(list("abc"))[BATCH].reset_index(drop=True).where(BATCH != 1)
    found = step_files.read(integrated(made({"batch": batch, "kind": labels}), label_key="kind"),
                       "uns/integration")  # fmt: skip
    expected = score(POINTS, BATCH, np.where(np.arange(N) >= 50, KIND, -1))
    assert found["harmony"]["ilisi"] == pytest.approx(expected["ilisi"])
    assert found["harmony"]["clisi"] == pytest.approx(expected["clisi"])
    assert found["harmony"]["ari"] == 1


def test_labels_that_no_cell_has(made, caplog):
    obs = {"batch": BATCH, "kind": np.full(N, np.nan)}
    found = step_files.read(integrated(made(obs), label_key="kind"), "uns/integration")
    assert "no kept cell has a kind" in caplog.text
    assert (found["mixing"], found["biology"]) == ("mixed", "unknown")


def test_labels_that_mean_none_are_left_out(made):
    """As gaps are; as a label of its own `unknown` would be a type that lies everywhere."""
    unknown = rng().random(N) < 0.3
    given = {"label_key": "kind", "label_missing": ["unknown"]}
    scores = [
        step_files.read(
            integrated(made({"batch": BATCH, "kind": labels}), **own), "uns/integration"
        )
        for labels, own in (
            (np.where(unknown, None, KIND.astype(str)), {"label_key": "kind"}),
            (np.where(unknown, "Unknown", KIND.astype(str)), given),
            (np.where(unknown, "Unknown", KIND.astype(str)), {"label_key": "kind"}),
        )
    ]
    gaps, masked, counted = (found["pca"] for found in scores)
    assert masked == gaps
    assert counted["same_label"] < masked["same_label"]
    assert counted["clisi"] > masked["clisi"]


def test_of_several_batch_columns_the_first_is_scored(made, caplog):
    caplog.set_level("INFO", "scrna")
    done = made({"plate": rng().permutation(BATCH), "batch": BATCH})
    found = step_files.read(integrated(done, batch_key=["batch", "plate"]), "uns/integration")
    assert found["batch_key"] == "batch"
    assert found["pca"]["same_batch"] == 1
    assert "of the batch columns batch, plate the first is scored" in caplog.text


def test_a_single_batch_is_told(made):
    found = step_files.read(integrated(made({"batch": ["a"] * N})), "uns/integration")
    assert found["overall"] == "unknown"
    assert "batch has only one batch" in found["verdict"]


def test_the_first_components_are_used(made):
    done = made({"batch": BATCH})
    found = step_files.read(integrated(done, n_pcs=4), "uns/integration")
    expected = score(POINTS[:, :4], BATCH)
    assert found["harmony"]["silhouette_batch"] == pytest.approx(expected["silhouette_batch"])


def test_a_representation_of_other_cells_is_refused(made):
    done = made({"batch": BATCH})
    write_pca(done.folder, POINTS[:100], "harmony")
    with pytest.raises(UserError, match=r"harmony\.h5 has 100 cells, but the filter keeps 600"):
        integrated(done)


def test_clusters_of_other_cells_than_the_scores_are_refused(made):
    done = made({"batch": BATCH})
    step_files.write(done["pca/leiden"], {"obs/leiden": pd.Categorical(["0"] * 100)})
    with pytest.raises(UserError, match=r"leiden\.h5 has 100 cells, .*integration_scores\.h5 600"):
        integrated(done)


def test_the_verdict_imports_what_it_needs_alone(made):
    """It waits for the clusters, and others for it: imports would take most of its time."""
    done = made({"batch": BATCH, "kind": KIND})
    integrated(done, label_key="kind")
    reps = [str(done[f"{rep}/leiden"]) for rep in ("pca", "harmony")]
    root = Path(script.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'scripts')!r}]\n"
        "from pathlib import Path; from scripts.integration import integration\n"
        f"integration(Path({str(done['integration_scores'])!r}), [*map(Path, {reps})], "
        f"Path({str(done.folder / 'again.h5')!r}), Path({str(done.folder / 'again.csv')!r}))\n"
        "heavy = 'pandas anndata zarr scipy sklearn matplotlib scanpy cupy rapids_singlecell'\n"
        "print({*heavy.split()} & {*sys.modules})"
    )
    done_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done_.stdout.strip() == "set()"
    again, first = (
        step_files.read(done.folder / f, "uns/integration") for f in ("again.h5", "integration.h5")
    )
    assert again == first


def test_the_process_imports_neither_scanpy_nor_rapids():
    scripts = Path(script.__file__).parent
    code = (
        f"import sys; sys.path.append({str(scripts)!r}); import numpy as np; "
        "from scrna.methods.integration_verdict import agreement; "
        "from scrna.methods.integration_scores import score; "
        "import scrna.data.counts, scrna.data.step_files; "
        "x = np.random.default_rng(0).normal(size=(50, 3)); g = np.arange(50) % 2; "
        "score(x, g, g); agreement(g, g); import anndata; "
        "print({'scanpy', 'rapids_singlecell', 'cupy', 'torch', 'jax'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
