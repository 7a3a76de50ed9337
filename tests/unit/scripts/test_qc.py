import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scripts.qc import find_genes, qc
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.errors import UserError

FAMILIES = ["mt", "ribo", "hb"]
SYMBOLS = ["MT-ND1", "MT-CO1", "mt-Cyb", "MTOR", "RPS3", "RPL7", "RPE", "HBA1", "HBP1", "CD3E"]


def random_counts(n_obs=120, n_vars=90):
    """Counts with empty cells and genes among them, and a cell with a single gene."""
    rng = np.random.default_rng(0)
    X = rng.integers(1, 300, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.7)
    X[[0, 50, 51, n_obs - 1]] = 0
    X[:, [0, 40, n_vars - 1]] = 0
    X[7, 4:] = 0
    symbols = [*SYMBOLS, *(f"gene_{i}" for i in range(n_vars - len(SYMBOLS)))]
    return AnnData(sp.csr_matrix(X, dtype=np.float32), var=pd.DataFrame(index=symbols))


@pytest.fixture
def run_qc(tmp_path, write_counts, settings):
    def run(adata, **changes):
        store = write_counts(tmp_path, adata.X, adata.obs, adata.var, dtype=np.uint32)
        qc(store, tmp_path / "qc.h5", **settings("qc", **changes), backend="cpu")
        return step_files.read_all(tmp_path / "qc.h5")

    return run


def test_every_column_is_scanpys(run_qc):
    import scanpy as sc

    adata = random_counts()
    found = run_qc(adata, percent_top=[50, 5])
    for name in FAMILIES:
        adata.var[name] = found.pop(f"var/{name}")
    assert adata.var_names[adata.var["mt"]].tolist() == ["MT-ND1", "MT-CO1", "mt-Cyb"]
    assert adata.var_names[adata.var["ribo"]].tolist() == ["RPS3", "RPL7"]
    assert adata.var_names[adata.var["hb"]].tolist() == ["HBA1"]
    obs, var = sc.pp.calculate_qc_metrics(adata, qc_vars=FAMILIES, percent_top=[50, 5])
    expected = {f"obs/{name}": obs[name] for name in obs}
    expected |= {f"var/{name}": var[name] for name in var}
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
    assert np.isnan(found["obs/pct_counts_mt"][0])  # an empty cell's, as in scanpy


@pytest.mark.parametrize("nnz", [1, 7, 100, 1001])
def test_where_blocks_end_does_not_matter(run_qc, monkeypatch, nnz):
    adata = random_counts()
    whole = run_qc(adata)
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    for name, values in run_qc(adata).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


def test_sums_are_exact_where_float32_is_not(run_qc):
    X = np.array([[2**24 + 1, 1, 1, 3], [2**31 + 1, 2, 0, 2**31 + 3], [0, 0, 1, 0]])
    var = pd.DataFrame(index=["MT-A", "MT-B", "C", "D"])
    found = run_qc(AnnData(sp.csr_matrix(X, dtype=np.float64), var=var), percent_top=[1, 2, 9])
    assert found["obs/total_counts"].tolist() == X.sum(axis=1).tolist()
    assert found["var/total_counts"].tolist() == X.sum(axis=0).tolist()
    assert found["obs/total_counts_mt"].tolist() == X[:, :2].sum(axis=1).tolist()
    assert found["obs/n_genes_by_counts"].tolist() == [4, 3, 1]
    top = np.sort(X, axis=1)[:, ::-1] / X.sum(axis=1, keepdims=True) * 100
    assert found["obs/pct_counts_in_top_1_genes"].tolist() == top[:, 0].tolist()
    np.testing.assert_allclose(found["obs/pct_counts_in_top_2_genes"], top[:, :2].sum(axis=1))
    # a set larger than there are genes holds them all
    assert found["obs/pct_counts_in_top_9_genes"].tolist() == [100, 100, 100]


def test_counts_without_any_count_have_columns_all_the_same(run_qc):
    found = run_qc(AnnData(sp.csr_matrix((5, 60), dtype=np.float32)))
    assert found["obs/total_counts"].tolist() == [0] * 5
    assert np.isnan(found["obs/pct_counts_in_top_50_genes"]).all()
    assert found["var/pct_dropout_by_counts"].tolist() == [100] * 60


def test_no_top_sets_give_no_such_column(run_qc):
    assert not [name for name in run_qc(random_counts(), percent_top=[]) if "top" in name]


@pytest.mark.parametrize(
    ("wanted", "ignore_case", "expected"),
    [
        ("^MT-", True, ["MT-ND1", "MT-CO1", "mt-Cyb"]),
        ("^MT-", False, ["MT-ND1", "MT-CO1"]),
        ("MT", False, ["MT-ND1", "MT-CO1", "MTOR"]),
        ("D", False, []),  # matched at the beginning
        ("^HB[^P]", True, ["HBA1"]),
        (["CD3E", "MT-ND1"], True, ["MT-ND1", "CD3E"]),
        ([], True, []),
    ],
)
def test_genes_of_a_family(wanted, ignore_case, expected):
    symbols = np.array(SYMBOLS, dtype=object)
    flags = find_genes(symbols, wanted, ignore_case=ignore_case, key="qc.mt")
    assert flags.dtype == bool
    assert symbols[flags].tolist() == expected


def test_a_listed_gene_that_is_missing_is_named():
    symbols = np.array(SYMBOLS, dtype=object)
    with pytest.raises(UserError, match=r"qc\.mt lists .* symbols \(MT-ND1, MT.*: X, mt-nd1$"):
        find_genes(symbols, ["CD3E", "X", "mt-nd1"], ignore_case=True, key="qc.mt")


def test_a_wrong_expression_is_named():
    with pytest.raises(
        UserError, match=r"qc\.ribo is '\^RP\[', which is not a valid regular expression: "
    ):
        find_genes(np.array(SYMBOLS, dtype=object), "^RP[", ignore_case=True, key="qc.ribo")


def test_without_mitochondrial_genes_the_symbol_column_is_named(run_qc, caplog):
    adata = random_counts()
    adata.var_names = [f"ENSG{i:011}" for i in range(adata.n_vars)]
    found = run_qc(adata)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "no mitochondrial gene: ^MT- matches none of the 90 symbols" in warning
    assert "var column feature_name; e.g. ENSG00000000000, " in warning
    assert not found["var/mt"].any()
    assert not found["obs/total_counts_mt"].any()
