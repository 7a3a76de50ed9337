import dataclasses
import inspect
import json
import logging

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scripts.simulate import simulate
from scrna.errors import UserError
from scrna.ingest.simulate import BOUNDS, Simulation

# anndata 0.13 sets options that pandas 3 has no use for.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning:anndata")

SMALL = {"n_obs": 2500, "n_vars": 300, "markers_per_type": 10}


@pytest.fixture(scope="module")
def demo():
    return Simulation().to_anndata()


@pytest.fixture(scope="module")
def small():
    return Simulation(**SMALL).to_anndata()


def total(adata, pattern=""):
    return np.asarray(adata.X[:, adata.var_names.str.match(pattern)].sum(axis=1)).ravel()


def mean_by(adata, column):
    """Mean counts of 10,000, gene by group, of living cells."""
    cells = adata[adata.obs["status"] == "cell"]
    X = cells.X.multiply(1e4 / total(cells)[:, None]).tocsr()
    groups = cells.obs[column]
    means = {g: np.asarray(X[(groups == g).values].mean(axis=0)).ravel() for g in groups.unique()}
    return pd.DataFrame(means, index=adata.var_names)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_counts_whatever_the_number_of_threads(small, threads):
    again = Simulation(**SMALL).to_anndata(threads=threads)
    assert (again.X != small.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, small.obs)
    pd.testing.assert_frame_equal(again.var, small.var)


def test_another_seed_makes_other_counts_genes_and_cells(small):
    other = Simulation(**SMALL, seed=1).to_anndata()
    assert (other.X != small.X).nnz > small.X.nnz / 2
    assert (other.obs["cell_type"].astype(str) != small.obs["cell_type"].astype(str)).mean() > 0.7
    assert list(other.var_names) != list(small.var_names)


def test_blocks_make_up_the_whole(small):
    blocks = list(Simulation(**SMALL).blocks(threads=2))
    assert [X.shape for X, _ in blocks] == [(1024, 300), (1024, 300), (452, 300)]
    assert (sparse.vstack([X for X, _ in blocks]) != small.X).nnz == 0
    pd.testing.assert_frame_equal(pd.concat([obs for _, obs in blocks]), small.obs)
    for X, _ in blocks:
        assert X.data.dtype == X.indices.dtype == np.int32
        assert X.has_canonical_format
        assert X.data.min() == 1


def test_no_more_blocks_are_drawn_than_twice_the_threads(monkeypatch):
    drawn = []
    monkeypatch.setattr(Simulation, "_draw", lambda self, block: drawn.append(block))
    blocks = Simulation(n_obs=50_000, n_vars=200, markers_per_type=5).blocks(threads=2)
    for _ in range(3):
        next(blocks)
    assert len(drawn) <= 6
    assert len(list(blocks)) == 49 - 3


@pytest.mark.parametrize("dispersion", [0.1, 0.5, 2])
def test_counts_are_negative_binomial(dispersion):
    one = {"n_types": 1, "n_batches": 1, "depth_spread": 0, "dead_share": 0, "empty_share": 0}
    adata = Simulation(
        n_obs=15_000, n_vars=200, mean_counts=2000, dispersion=dispersion, **one
    ).to_anndata()
    X = adata.X[:, ~adata.var_names.str.startswith("MT-")].toarray()
    mean, variance = X.mean(axis=0), X.var(axis=0)
    high = mean > 1
    assert high.sum() > 50
    assert np.median((variance - mean)[high] / mean[high] ** 2) == pytest.approx(
        dispersion, rel=0.05
    )
    for gene in np.flatnonzero((mean > 0.05) & (mean < 50))[::5]:
        law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean[gene]))
        seen = np.bincount(X[:, gene], minlength=200)[:200] / len(X)
        assert np.abs(np.cumsum(seen) - law.cdf(np.arange(200))).max() < 0.02


@pytest.mark.parametrize(
    ("n_obs", "n_vars", "low", "high"),
    [(3000, 2000, 500, 1000), (400, 20_000, 1700, 2300), (400, 28_000, 1700, 2400)],
)
def test_a_cell_has_as_many_genes_as_in_real_data(n_obs, n_vars, low, high):
    adata = Simulation(n_obs=n_obs, n_vars=n_vars).to_anndata()
    cells = adata[adata.obs["status"] == "cell"]
    assert low < np.diff(cells.X.indptr).mean() < high
    assert total(cells).mean() == pytest.approx(5000, rel=0.06)


def test_gene_families_are_told_by_their_symbols(demo):
    var = demo.var
    assert var.index.is_unique
    assert var["gene_ids"].is_unique
    assert var["gene_ids"].str.fullmatch(r"ENSG\d{11}").all()
    assert {"MT-ND1", "MT-CO3", "MT-CYB", "RPS3", "RPL41", "HBA1", "HBB"} <= set(var.index)
    assert var.index.str.match("(?i)^MT-").sum() == 13
    assert var.index.str.match("(?i)^RP[SL]").sum() == 67
    assert var.index.str.match("(?i)^HB[^P]").sum() == 6
    assert var["marker_of"].value_counts().to_dict() == {f"type_{i}": 40 for i in range(1, 7)}
    markers = var.index[var["marker_of"] == "type_3"]
    assert set(markers) == {f"MARK3-{i}" for i in range(1, 41)}
    living = demo[demo.obs["status"] == "cell"]
    assert 0.08 < (total(living, "^RP[SL]") / total(living)).mean() < 0.2
    assert 0.04 < (total(living, "^MT-") / total(living)).mean() < 0.06


def test_dead_cells_and_empty_droplets(demo):
    status = demo.obs["status"]
    counts = total(demo)
    mt = total(demo, "^MT-") / counts
    assert (status == "dead").mean() == pytest.approx(0.05, abs=0.015)
    assert (status == "empty").mean() == pytest.approx(0.05, abs=0.015)
    assert mt[status == "dead"].min() > 0.2
    assert (mt[status == "cell"] < 0.2).mean() > 0.998
    assert counts[status == "dead"].mean() < 0.35 * counts[status == "cell"].mean()
    assert counts[status == "empty"].max() < counts[status == "cell"].min()
    truth = demo.obs[["cell_type", "pseudotime", "branch"]]
    assert truth[status == "empty"].isna().all(axis=None)
    assert demo.obs.loc[status != "empty", "cell_type"].notna().all()


def test_the_empty_droplets_hold_the_average_of_all_cells():
    adata = Simulation(n_obs=6000, n_vars=500, n_batches=1, empty_share=0.5, markers_per_type=20)
    adata = adata.to_anndata()
    nuclear = adata[:, ~adata.var_names.str.startswith("MT-")]
    empty = nuclear[nuclear.obs["status"] == "empty"].X.sum(axis=0)
    cells = nuclear[nuclear.obs["status"] == "cell"].X.sum(axis=0)
    assert np.corrcoef(empty, cells)[0, 1] > 0.98


def test_the_trajectory_branches(demo):
    obs = demo.obs[demo.obs["status"] != "empty"]
    spans = obs.groupby("cell_type", observed=True)["pseudotime"].agg(["min", "max", "count"])
    assert spans.loc["type_1", ["min", "max"]].between(0, 0.25).all()
    assert spans.loc["type_2", ["min", "max"]].between(0.25, 0.75).all()
    assert spans.loc[["type_3", "type_4"], ["min", "max"]].stack().between(0.75, 1).all()
    assert spans.loc[["type_5", "type_6"], "count"].eq(0).all()
    assert obs["branch"].isna().equals(obs["pseudotime"].isna())
    by_type = obs.groupby("cell_type", observed=True)["branch"]
    assert {name: set(branch.dropna()) for name, branch in by_type} == {
        "type_1": {"trunk"},
        "type_2": {"trunk", "a", "b"},
        "type_3": {"a"},
        "type_4": {"b"},
        "type_5": set(),
        "type_6": set(),
    }
    on_branch = obs["branch"].isin(["a", "b"])
    assert (on_branch == (obs["pseudotime"] > 0.5)).all()


def test_markers_fade_along_the_trajectory(demo):
    trunk = demo[(demo.obs["branch"] == "trunk").values & (demo.obs["status"] == "cell").values]
    for number, sign in ((1, -1), (2, 1), (5, 0)):
        share = total(trunk, f"^MARK{number}-") / total(trunk)
        rank = stats.spearmanr(share, trunk.obs["pseudotime"]).statistic
        assert sign * rank > 0.7 if sign else abs(rank) < 0.15


def test_markers_are_higher_in_their_type(demo):
    means = mean_by(demo, "cell_type")
    for type_, mine in means.groupby(demo.var["marker_of"], observed=True):
        others = mine.drop(columns=type_)
        assert (mine[type_] > others.max(axis=1)).mean() > 0.95
    islands = means[demo.var["marker_of"] == "type_6"]
    assert (islands["type_6"] / islands["type_5"]).median() == pytest.approx(8, rel=0.3)


@pytest.mark.parametrize("strength", [0, 0.25, 0.6])
def test_each_batch_shifts_the_genes(strength):
    adata = Simulation(n_obs=4000, n_vars=500, markers_per_type=20, batch_strength=strength)
    means = mean_by(adata.to_anndata(), "batch")
    means = means[~means.index.str.startswith("MT-") & (means.min(axis=1) > 5)]
    shifts = np.log(means["batch_1"] / means["batch_2"])
    assert shifts.std() / np.sqrt(2) == pytest.approx(strength, abs=0.06)


@pytest.mark.parametrize(
    ("n_types", "trajectory", "branches", "on_it"),
    [
        (1, True, set(), 0),
        (2, True, {"trunk"}, 2),
        (3, True, {"trunk", "a"}, 3),
        (4, True, {"trunk", "a", "b"}, 4),
        (6, False, set(), 0),
    ],
)
def test_few_types_make_a_shorter_trajectory(n_types, trajectory, branches, on_it):
    obs = Simulation(**SMALL, n_types=n_types, trajectory=trajectory).obs
    assert set(obs["branch"].dropna()) == branches
    on = obs["pseudotime"].notna()
    assert obs.loc[on, "cell_type"].nunique() == on_it
    assert obs["cell_type"].nunique() == n_types
    assert not on.any() or obs["pseudotime"].max() > 0.95


def test_only_living_cells_where_asked_for():
    obs = Simulation(**SMALL, dead_share=0, empty_share=0).obs
    assert (obs["status"] == "cell").all()
    assert obs["cell_type"].notna().all()


def test_shares_that_add_up_to_one_leave_no_living_cell():
    obs = Simulation(**SMALL, dead_share=0.7, empty_share=0.3).obs
    assert set(obs["status"]) == {"dead", "empty"}


def test_the_file_written_in_blocks_is_the_whole(small, tmp_path):
    path = tmp_path / "new" / "small.h5ad"
    n_counts = Simulation(**SMALL).write_h5ad(path, threads=2)
    read = ad.read_h5ad(path)
    assert n_counts == small.X.nnz
    assert (read.X != small.X).nnz == 0
    pd.testing.assert_frame_equal(read.obs, small.obs, check_column_type=False)
    pd.testing.assert_frame_equal(read.var, small.var, check_column_type=False)
    assert read.uns["simulation"] == Simulation(**SMALL).parameters
    with h5py.File(path) as file:
        X = file["X"]
        assert (X["data"].dtype, X["indices"].dtype) == (np.int32, np.int32)
        assert X["indptr"].dtype == np.int64
        assert "raw" not in file
    assert [file.name for file in path.parent.iterdir()] == ["small.h5ad"]


def test_a_broken_run_leaves_no_file(tmp_path, monkeypatch):
    draw = Simulation._draw

    def break_down(self, block):
        if block == 1:
            raise OSError("no space left")
        return draw(self, block)

    monkeypatch.setattr(Simulation, "_draw", break_down)
    with pytest.raises(OSError, match="no space left"):
        Simulation(**SMALL).write_h5ad(tmp_path / "small.h5ad", threads=2)
    assert list(tmp_path.iterdir()) == []


def test_the_step_writes_the_dataset_with_its_provenance(small, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="scrna")
    path = tmp_path / "small.h5ad"
    simulate(path, **SMALL, threads=2)
    assert (ad.read_h5ad(path).X != small.X).nnz == 0
    with h5py.File(path) as file:
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["step"] == "simulate"
    assert provenance["parameters"].items() >= (SMALL | {"seed": 0, "dispersion": 0.3}).items()
    status = small.obs["status"].value_counts()
    assert caplog.messages[0] == (
        f"simulated 2,500 droplets × 300 genes: {status['cell']:,} cells of 6 types in 3 batches, "
        f"{status['dead']} dead, {status['empty']} empty; {small.X.nnz:,} counts above zero"
    )


def test_the_step_takes_every_parameter_of_the_simulation():
    settings = inspect.signature(simulate).parameters
    for field in dataclasses.fields(Simulation):
        assert settings[field.name].default == field.default
    assert set(settings) - {field.name for field in dataclasses.fields(Simulation)} == {
        "h5ad",
        "threads",
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_obs": 0}, r"simulate\.n_obs is 0; give a number from 1 to 100,000,000"),
        ({"n_vars": 100}, r"simulate\.n_vars is 100; give a number from 200 to 200,000"),
        ({"dispersion": 0}, r"simulate\.dispersion is 0; give a number from 0\.01 to 10"),
        ({"mean_counts": float("nan")}, r"simulate\.mean_counts is nan; give a number from 1"),
        ({"dead_share": 1.2}, r"simulate\.dead_share is 1\.2; give a number from 0 to 1"),
        ({"seed": -1}, r"simulate\.seed is -1; give a number from 0 to 4,294,967,295"),
        (
            {"dead_share": 0.6, "empty_share": 0.5},
            r"dead_share 0\.6 and simulate\.empty_share 0\.5 are more than 1 together; lower one",
        ),
        (
            {"n_vars": 300, "markers_per_type": 40},
            r"markers_per_type is 40 for 6 types: 240 markers, where 300 genes leave 93; give at "
            r"most 15, or more genes \(simulate\.n_vars\)",
        ),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        Simulation(**parameters)


def test_the_bounds_take_in_every_default():
    for field in dataclasses.fields(Simulation):
        if field.name != "trajectory":
            low, high = BOUNDS[field.name]
            assert low <= field.default <= high


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_types_split_by_batch_until_harmony_joins_them(demo):
    import harmonypy
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    adata = demo.copy()
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, inplace=True)
    keep = (adata.obs["n_genes_by_counts"] >= 200) & (adata.obs["pct_counts_mt"] <= 20)
    adata = adata[keep].copy()
    assert (adata.obs["status"] == "cell").all()
    sc.pp.filter_genes(adata, min_cells=3)
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=50, random_state=0)
    harmony = harmonypy.run_harmony(
        adata.obsm["X_pca"], adata.obs, "batch", random_state=0, verbose=False
    )
    adata.obsm["X_pca_harmony"] = harmony.Z_corr
    agreement = {}
    for rep in ("X_pca", "X_pca_harmony"):
        sc.pp.neighbors(adata, n_neighbors=15, n_pcs=40, use_rep=rep, random_state=0)
        sc.tl.leiden(adata, resolution=0.6, flavor="igraph", n_iterations=2, random_state=0)
        agreement[rep] = adjusted_rand_score(adata.obs["leiden"], adata.obs["cell_type"])
    assert agreement["X_pca"] < 0.6
    assert agreement["X_pca_harmony"] > 0.9
