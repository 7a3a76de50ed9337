import csv
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scripts.filter import BOUNDS, cells_per_gene, filter_cells
from scripts.qc import qc
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.errors import UserError

NO_BOUNDS = dict.fromkeys(BOUNDS) | {"min_cells": None, "fewest_cells": 1}


@pytest.fixture
def run_filter(tmp_path, write_counts, settings):
    """Write counts and, by hand, what qc says of the cells; then filter."""

    def run(X, *, mt=True, pct=None, **changes):
        X = sp.csr_matrix(X)
        store = write_counts(tmp_path, X)
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
        filter_cells(store, tmp_path / "qc.h5", out, table, **wanted)
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
        ["all", "", "5", "", "6"],
        ["max_counts", "50", "1", "0", ""],
        ["min_genes", "1", "1", "1", ""],
        ["max_genes", "5", "1", "1", ""],
        ["max_pct_mt", "20", "2", "1", ""],
        ["min_cells", "", "", "", "0"],
        ["kept", "", "1", "", "6"],
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
    assert record["parameters"] == expected


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
