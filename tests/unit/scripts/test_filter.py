import csv
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import median_abs_deviation

from scripts.filter import BOUNDS, cells_per_gene, filter_cells
from scripts.qc import qc
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.samples import Samples
from scrna.errors import UserError
from scrna.methods.outliers import mad_bounds

NO_BOUNDS = dict.fromkeys(BOUNDS) | {"min_cells": None, "fewest_cells": 1}


@pytest.fixture
def run_filter(tmp_path, write_counts, settings):
    """Write counts and, by hand, what qc says of the cells; then filter."""

    def run(X, *, mt=True, pct=None, obs=None, doublets=None, **changes):
        X = sp.csr_matrix(X)
        store = write_counts(tmp_path, X, obs)
        if doublets is not None:
            flags = {"obs/predicted_doublet": np.array(doublets, dtype=bool)}
            step_files.write(tmp_path / "doublets.h5", flags)
            changes["remove_doublets"] = True
        columns = {
            "obs/total_counts": np.asarray(X.sum(axis=1)).ravel().astype(float),
            "obs/n_genes_by_counts": np.diff(X.indptr),
            "var/n_cells_by_counts": X.getnnz(axis=0),
            "var/mt": np.full(X.shape[1], mt),
        }
        for family in ("mt", "ribo", "hb"):
            columns[f"obs/pct_counts_{family}"] = np.zeros(X.shape[0])
        for family, values in (pct or {}).items():
            columns[f"obs/pct_counts_{family}"] = np.array(values)
        step_files.write(tmp_path / "qc.h5", columns)
        out, table = tmp_path / "filter.h5", tmp_path / "filter.csv"
        wanted = settings("filter", **NO_BOUNDS | changes)
        of_doublets = [] if doublets is None else tmp_path / "doublets.h5"
        filter_cells(store, tmp_path / "qc.h5", out, table, of_doublets, **wanted)
        with open(table) as file:
            return step_files.read_all(out), list(csv.DictReader(file))

    return run


def cells_with(genes, counts):
    """Cells with these numbers of genes, and these totals."""
    X = np.zeros((len(genes), max(genes)), dtype=int)
    for row, n, total in zip(X, genes, counts, strict=True):
        row[:n] = 1
        if n:
            row[0] = total - n + 1
    return X


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ("min_genes", 3, [0, 0, 1, 1]),
        ("max_genes", 3, [1, 0, 0, 0]),
        ("max_pct_mt", 5, [1, 0, 0, 1]),
    ],
)
def test_bounds_can_be_strict(run_filter, bound, value, expected):
    X = cells_with([2, 3, 4, 5], [10, 20, 30, 31])
    pct = {"mt": [4, 5, 5.001, np.nan]}
    found, _ = run_filter(X, pct=pct, inclusive=False, **{bound: value})
    assert found["obs/keep"].tolist() == [bool(kept) for kept in expected]


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ("min_genes", 3, [0, 1, 1, 1]),
        ("max_genes", 3, [1, 1, 0, 0]),
        ("min_counts", 20, [0, 1, 1, 1]),
        ("max_counts", 30.0, [1, 1, 1, 0]),
        ("max_pct_mt", 5, [1, 1, 0, 1]),
        ("max_pct_ribo", 0, [1, 0, 1, 1]),
        ("max_pct_hb", 99.5, [1, 1, 1, 0]),
    ],
)
def test_bounds_include_their_value(run_filter, bound, value, expected):
    pct = {"mt": [4, 5, 5.001, np.nan], "ribo": [0, 0.1, 0, np.nan], "hb": [0, 0, 99.5, 100]}
    X = cells_with([2, 3, 4, 5], [10, 20, 30, 31])
    found, table = run_filter(X, pct=pct, **{bound: value})
    assert found["obs/keep"].tolist() == [bool(kept) for kept in expected]
    gone = [bound for kept in expected if not kept]
    assert [reason for reason in found["obs/filter_reason"] if reason != "kept"] == gone
    assert (table[1]["criterion"], float(table[1]["bound"])) == (bound, value)
    assert int(table[1]["cells"]) == int(table[1]["cells_by_this_alone"]) == len(gone)


def test_reasons_and_table(run_filter):
    X = cells_with([0, 3, 4, 5, 6], [0, 3, 40, 90, 6])
    bounds = {"min_genes": 1, "max_genes": 5, "max_counts": 50, "max_pct_mt": 20}
    found, table = run_filter(X, pct={"mt": [np.nan, 1, 50, 50, 1]}, **bounds)
    assert found["obs/filter_reason"].tolist() == [
        "min_genes", "kept", "max_pct_mt", "max_counts,max_pct_mt", "max_genes",
    ]  # fmt: skip
    assert found["obs/keep"].tolist() == [False, True, False, False, False]
    assert [list(row.values()) for row in table] == [
        ["all", "", "5", "", "6", ""],
        ["max_counts", "50", "1", "0", "", ""],
        ["min_genes", "1", "1", "1", "", ""],
        ["max_genes", "5", "1", "1", "", ""],
        ["max_pct_mt", "20", "2", "1", "", ""],
        ["min_cells", "", "", "", "0", ""],
        ["kept", "", "1", "", "6", ""],
    ]


def test_without_bounds_all_stay(run_filter):
    X = cells_with([0, 3, 4], [0, 3, 4])
    found, table = run_filter(X)
    assert found["obs/keep"].all()
    assert found["obs/filter_reason"].tolist() == ["kept"] * 3
    assert found["var/keep"].all()
    assert [row["criterion"] for row in table] == ["all", "min_cells", "kept"]


@pytest.mark.parametrize("nnz", [1, 50, 2**24])
def test_genes_are_counted_over_the_cells_that_stay(run_filter, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    rng = np.random.default_rng(0)
    X = rng.poisson(0.4, (60, 40))
    found, _ = run_filter(X, min_counts=12, max_genes=15, min_cells=6)
    keep = (X.sum(axis=1) >= 12) & ((X > 0).sum(axis=1) <= 15)
    assert 10 < keep.sum() < 50
    np.testing.assert_array_equal(found["obs/keep"], keep)
    n_cells = (X[keep] > 0).sum(axis=0)
    np.testing.assert_array_equal(found["var/n_cells_kept"], n_cells)
    np.testing.assert_array_equal(found["var/keep"], n_cells >= 6)
    assert 0 < found["var/keep"].sum() < 40


def test_blocks_without_removed_cells_are_not_read(tmp_path, write_counts, monkeypatch):
    X = sp.csr_matrix(np.ones((6, 4), dtype=int))
    store = Counts(write_counts(tmp_path, X))
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", 4)
    read = []
    monkeypatch.setattr(store._indices, "array", Spy(store._indices.array, read))
    keep = np.array([1, 1, 0, 1, 1, 0], dtype=bool)
    assert cells_per_gene(store, np.full(4, 6), keep).tolist() == [4] * 4
    assert read == [slice(8, 12), slice(20, 24)]


class Spy:
    """An array that notes what is read of it."""

    def __init__(self, array, read):
        self.array, self.read = array, read

    def __getattr__(self, name):
        return getattr(self.array, name)

    def __getitem__(self, key):
        self.read.append(key)
        return self.array[key]


def test_too_few_cells_left_are_refused_with_the_table(run_filter, tmp_path):
    X = cells_with([2, 3, 4, 5, 6], [10, 20, 30, 40, 1234])
    with pytest.raises(UserError) as refusal:
        run_filter(X, min_genes=3, max_counts=30, fewest_cells=3)
    lines = str(refusal.value).split("\n")
    assert lines[0] == (
        "2 of 5 cells pass the filter, fewer than filter.fewest_cells (3). "
        "Loosen the bounds that removed the most:"
    )
    assert [line.split() for line in lines[1:]] == [
        "max_counts 30 takes 2 cells, 2 by itself".split(),
        "min_genes 3 takes 1 cells, 1 by itself".split(),
    ]
    assert not (tmp_path / "filter.h5").exists()
    assert not (tmp_path / "filter.csv").exists()


def test_nothing_left_is_refused(run_filter):
    expected = r"0 of 2 cells pass [^\n]*\n *min_counts 1000 +takes +2 cells"
    with pytest.raises(UserError, match=expected):
        run_filter(cells_with([2, 3], [10, 20]), min_counts=1000)


def test_few_cells_that_no_bound_took_are_refused_without_a_table(run_filter):
    X = cells_with([2, 3], [10, 20])
    expected = r"all 2 cells pass the filter, .* lower filter\.fewest_cells"
    with pytest.raises(UserError, match=expected):
        run_filter(X, min_counts=1, fewest_cells=10)


def test_no_gene_left_is_refused(run_filter):
    expected = r"no gene is in 3 of the 2 kept cells: lower filter\.min_cells"
    with pytest.raises(UserError, match=expected):
        run_filter(cells_with([2, 3], [10, 20]), min_cells=3)


def test_max_pct_mt_without_such_genes_is_refused_where_asked(run_filter):
    X = cells_with([2, 3], [10, 20])
    expected = r"filter\.max_pct_mt is 20, but qc found no mitochondrial gene.*\.missing_mt to skip"
    with pytest.raises(UserError, match=expected):
        run_filter(X, mt=False, max_pct_mt=20, missing_mt="refuse")
    found, _ = run_filter(X, mt=False, max_pct_mt=None, missing_mt="refuse")
    assert found["obs/keep"].all()


def test_max_pct_mt_without_such_genes_is_skipped_with_a_warning(run_filter, caplog):
    X = cells_with([2, 3], [10, 20])
    found, table = run_filter(X, mt=False, max_pct_mt=20, missing_mt="skip", min_genes=3)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("max_pct_mt is skipped: there is no mitochondrial gene")
    assert found["obs/keep"].tolist() == [False, True]
    assert [row["criterion"] for row in table] == ["all", "min_genes", "min_cells", "kept"]


def test_provenance_has_the_bounds(run_filter, tmp_path):
    run_filter(cells_with([2, 3], [10, 20]), max_genes=7, min_cells=1)
    record = step_files.provenance_of(tmp_path / "filter.h5")
    expected = NO_BOUNDS | {"max_genes": 7, "min_cells": 1, "missing_mt": "skip"}
    expected |= {"mad": None, "by": None, "remove_doublets": False, "inclusive": True}
    assert record["parameters"] == expected


# ------------------------------------------------------------------------------ bounds by MAD

MAD = {"total_counts": 5, "n_genes_by_counts": 5, "pct_counts_mt": 3}


def random_cells(n, depth, seed=0):
    """Counts of cells, the first of which are far from the others, and their mt percentages."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(rng.gamma(8, depth / 8, (n, 1)) * np.ones(200))
    X[:3] *= 40
    X[3:5] = 0
    X[3:5, 0] = 1
    return X, np.r_[np.full(6, 60.0), rng.uniform(1, 9, n - 6)]


def outliers_of(values, n_mads):
    """As scanpy's users compute them, with SciPy's MAD."""
    far = n_mads * median_abs_deviation(values, nan_policy="omit")
    return values < np.nanmedian(values) - far, values > np.nanmedian(values) + far


def test_bounds_by_mad_are_those_of_scipy_in_each_sample(run_filter):
    parts = [random_cells(80, depth, seed) for seed, depth in enumerate((1, 2, 0.5))]
    X, pct = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    of = np.repeat(["b", "a", "c"], 80)
    shuffled = np.random.default_rng(0).permutation(240)
    X, pct, of = X[shuffled], pct[shuffled], of[shuffled]
    found, table = run_filter(
        X, pct={"mt": pct}, obs=pd.DataFrame({"lane": of}), mad=MAD, by="lane"
    )
    broken = {name: np.zeros(240, bool) for name in ("counts", "genes", "mt")}
    for sample in "abc":
        own = of == sample
        for name, values in (("counts", X.sum(axis=1)), ("genes", (X > 0).sum(axis=1))):
            broken[name][own] = np.logical_or(*outliers_of(np.log1p(values[own]), 5))
        broken["mt"][own] = outliers_of(pct[own], 3)[1]
    assert all(flags.any() for flags in broken.values())
    gone = np.logical_or.reduce(list(broken.values()))
    np.testing.assert_array_equal(found["obs/keep"], ~gone)
    reasons = found["obs/filter_reason"]
    for name, flags in broken.items():
        assert [name in reason for reason in reasons] == flags.tolist()
    rows = pd.DataFrame(table).replace("", np.nan).set_index(["sample", "criterion"])
    for sample in "abc":
        own = of == sample
        assert int(rows.loc[(sample, "all"), "cells"]) == 80
        assert int(rows.loc[(sample, "kept"), "cells"]) == (own & ~gone).sum()
        assert int(rows.loc[(sample, "max_pct_mt_mad"), "cells"]) == (own & broken["mt"]).sum()
        values = X.sum(axis=1)[own]
        center, mad = np.median(np.log1p(values)), median_abs_deviation(np.log1p(values))
        for bound, sign in (("min_counts_mad", -1), ("max_counts_mad", 1)):
            limit = float(rows.loc[(sample, bound), "bound"])
            assert limit == pytest.approx(np.expm1(center + sign * 5 * mad))
    everything = rows.loc[rows.index.get_level_values("sample").isna()].droplevel("sample")
    assert list(everything.index[:2]) == ["all", "min_counts_mad"]
    assert everything.loc["max_pct_mt_mad", "bound"] is np.nan
    assert int(everything.loc["kept", "cells"]) == (~gone).sum()


def test_a_sample_keeps_the_same_cells_alone_and_beside_its_copy_at_half_depth(run_filter):
    X, pct = random_cells(200, 6)
    alone, _ = run_filter(X, pct={"mt": pct}, mad=MAD, max_pct_mt=8.5)
    half = np.random.default_rng(1).binomial(X, 0.5)
    half_alone, _ = run_filter(half, pct={"mt": pct}, mad=MAD, max_pct_mt=8.5)
    obs = pd.DataFrame({"sample": np.repeat(["whole", "half"], 200)})
    both = np.concatenate([X, half])
    given = {"pct": {"mt": np.tile(pct, 2)}, "mad": MAD, "max_pct_mt": 8.5}
    beside, _ = run_filter(both, obs=obs, by="sample", **given)
    as_one, _ = run_filter(both, obs=obs, **given)
    expected = np.concatenate([alone["obs/keep"], half_alone["obs/keep"]])
    assert 0.5 < expected.mean() < 1
    np.testing.assert_array_equal(beside["obs/keep"], expected)
    assert (as_one["obs/keep"] != expected).any()


def test_of_a_fixed_bound_and_one_by_mad_the_tighter_counts(run_filter):
    X = cells_with([5] * 6, [10, 11, 12, 13, 14, 90])
    mad = {"total_counts": 3}
    by_mad, table = run_filter(X, mad=mad, max_counts=95)
    assert by_mad["obs/filter_reason"].tolist() == ["kept"] * 5 + ["max_counts_mad"]
    limit = next(float(row["bound"]) for row in table if row["criterion"] == "max_counts_mad")
    assert 14 < limit < 90  # one sample: its bound stands in the row of all cells
    fixed, _ = run_filter(X, mad=mad, max_counts=12)
    assert fixed["obs/keep"].tolist() == [True] * 3 + [False] * 3
    assert fixed["obs/filter_reason"].tolist()[-1] == "max_counts,max_counts_mad"


def test_without_spread_no_bound_is_set_and_it_is_said(run_filter, caplog):
    X = cells_with([5] * 7, [10, 10, 10, 10, 10, 11, 500])
    obs = pd.DataFrame({"lane": ["a"] * 6 + ["lonely"]})
    found, table = run_filter(X, mad={"total_counts": 5}, by="lane", obs=obs)
    assert found["obs/keep"].all()
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said[0].startswith("filter.mad.total_counts sets no bound in 2 samples: a, lonely: half")
    rows = [row for row in table if row["criterion"] == "max_counts_mad"]
    assert [(row["sample"], row["bound"], row["cells"]) for row in rows] == [
        ("", "", "0"), ("a", "", "0"), ("lonely", "", "0"),
    ]  # fmt: skip


def test_cells_without_a_sample_are_one_of_their_own(run_filter, caplog):
    X, pct = random_cells(90, 5)
    lanes = pd.Categorical(["=b"] * 30 + [None] * 30 + [""] * 10 + ["a"] * 20)
    _, table = run_filter(X, pct={"mt": pct}, mad=MAD, by="lane", obs=pd.DataFrame({"lane": lanes}))
    sizes = {r["sample"]: int(r["cells"]) for r in table if r["sample"] and r["criterion"] == "all"}
    assert sizes == {"'=b": 30, "a": 20, "missing": 40}  # no spreadsheet runs the first
    assert "40 of 90 cells have no value in lane (filter.by)" in caplog.text


def test_samples_of_which_little_is_left_are_named(run_filter, caplog):
    X = cells_with([5] * 300, [10] * 60 + [100] * 140 + [10] * 40 + [100] * 60)
    obs = pd.DataFrame({"lane": np.repeat(["good", "bad"], [200, 100]).astype(object)})
    obs.loc[:9, "lane"] = "tiny"
    run_filter(X, min_counts=50, by="lane", obs=obs)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [
        "over half of the cells go in 1 samples of lane: tiny (0 of 10 stay): look at the bounds "
        "of each sample in filter.csv",
        "under 50 cells are left in 1 samples of lane: tiny (0 of 10 stay): look at the bounds of "
        "each sample in filter.csv",
    ]


def test_mad_of_mitochondrial_counts_without_such_genes_is_as_max_pct_mt(run_filter, caplog):
    X = cells_with([2, 3, 4], [10, 20, 30])
    with pytest.raises(UserError, match=r"filter\.mad\.pct_counts_mt is 3, but qc found no mito"):
        run_filter(X, mt=False, mad=MAD, missing_mt="refuse")
    _, table = run_filter(X, mt=False, mad={"pct_counts_mt": 3})
    assert "mad.pct_counts_mt is skipped" in caplog.text
    assert [row["criterion"] for row in table] == ["all", "min_cells", "kept"]


def test_doublets_go_where_asked(run_filter):
    X = cells_with([3] * 4, [5, 6, 7, 900])
    found, table = run_filter(X, doublets=[0, 1, 0, 1], max_counts=100)
    assert found["obs/filter_reason"].tolist() == [
        "kept", "doublet", "kept", "max_counts,doublet",
    ]  # fmt: skip
    (row,) = (row for row in table if row["criterion"] == "doublet")
    assert list(row.values()) == ["doublet", "", "2", "1", "", ""]


def test_pbmc3k_by_mad(tmp_path, real_data, write_counts, settings):
    """The cells of scanpy's own columns and SciPy's MAD; and those that scdownstream keeps."""
    import anndata as ad
    import scanpy as sc

    adata = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    store = write_counts(tmp_path, adata.X, adata.obs, adata.var)
    files = tmp_path / "qc.h5", tmp_path / "filter.h5", tmp_path / "filter.csv"
    qc(store, files[0], **settings("qc", percent_top=[20]), backend="cpu")
    filter_cells(store, *files, **settings("filter", max_genes=None, max_pct_mt=None, mad=MAD))
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=[20], inplace=True)
    columns = ["log1p_total_counts", "log1p_n_genes_by_counts", "pct_counts_mt"]
    counts, genes, mt = (
        outliers_of(adata.obs[name].to_numpy(), n)
        for name, n in zip(columns, MAD.values(), strict=True)
    )
    gone = counts[0] | counts[1] | genes[0] | genes[1] | mt[1]
    np.testing.assert_array_equal(step_files.read(files[1], "obs/keep"), ~gone)
    # scdownstream's 2,419: few mitochondrial counts go too, and the share of the 20 highest genes
    one = Samples(np.zeros(adata.n_obs, dtype=int), ["all"])
    theirs = [*zip(columns, MAD.values(), strict=True), ("pct_counts_in_top_20_genes", 5)]
    keep = np.ones(adata.n_obs, bool)
    for name, n_mads in theirs:
        values = step_files.read(files[0], f"obs/{name}")
        low, high = mad_bounds(values, one, n_mads)
        keep &= (values >= low[0]) & (values <= high[0])
    assert (keep.sum(), (~gone).sum()) == (2419, 2434)


def test_pbmc3k_keeps_the_cells_of_the_tutorial(tmp_path, real_data, write_counts, settings):
    import anndata as ad

    adata = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    store = write_counts(tmp_path, adata.X, adata.obs, adata.var)
    files = tmp_path / "qc.h5", tmp_path / "filter.h5", tmp_path / "filter.csv"
    qc(store, files[0], **settings("qc"), backend="cpu")
    bounds = settings("filter", min_genes=200, max_genes=2499, max_pct_mt=5)
    filter_cells(store, *files, **bounds)
    keep = step_files.read(files[1], "obs/keep")
    assert keep.sum() == 2638
    np.testing.assert_array_equal(keep, adata.obs["scanpy_kept"])
    expected = adata.X[keep].getnnz(axis=0)
    np.testing.assert_array_equal(step_files.read(files[1], "var/n_cells_kept"), expected)
    table = pd.read_csv(files[2], index_col="criterion")
    assert table.loc["kept", ["cells", "genes"]].tolist() == [2638, (expected >= 3).sum()]
