import logging

import numpy as np
import pytest
import scipy.sparse as sp

from scripts.normalize import cell_totals, normalize
from scrna import counts as counts_module
from scrna import slots
from scrna.counts import Counts, log_normalized
from scrna.errors import UserError


@pytest.fixture
def filtered(tmp_path, write_counts):
    """Write counts and a filter's masks."""

    def write(X, cells=None, genes=None):
        X = np.asarray(X)
        masks = {
            "obs/keep": np.ones(X.shape[0], bool) if cells is None else np.array(cells, bool),
            "var/keep": np.ones(X.shape[1], bool) if genes is None else np.array(genes, bool),
        }
        slots.write(tmp_path / "filter.h5", masks)
        return write_counts(tmp_path, X, dtype=np.uint32), tmp_path / "filter.h5"

    return write


X = [[1, 2, 5, 0], [9, 9, 9, 9], [0, 3, 7, 2], [0, 0, 50, 0], [4, 0, 1, 12]]


@pytest.mark.parametrize("target_sum", [6, 0.5])
def test_factors_bring_kept_genes_to_the_total(tmp_path, filtered, target_sum):
    files = filtered(X, cells=[1, 0, 1, 1, 1], genes=[1, 1, 0, 1])
    normalize(*files, tmp_path / "n.h5", target_sum=target_sum)
    factor = slots.read(tmp_path / "n.h5", "obs/size_factor")
    assert factor.tolist() == [3 / target_sum, 5 / target_sum, 1 / target_sum, 16 / target_sum]
    assert slots.read(tmp_path / "n.h5", "uns/target_sum") == target_sum


def test_the_median_is_that_of_cells_with_counts(tmp_path, filtered, caplog):
    files = filtered(X, cells=[1, 0, 1, 1, 1], genes=[1, 1, 0, 1])
    normalize(*files, tmp_path / "n.h5", target_sum="median")
    assert slots.read(tmp_path / "n.h5", "uns/target_sum") == 5
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == "1 cells have no count in the genes that stay; their values are 0"
    values = log_normalized(*files, tmp_path / "n.h5", "cpu").toarray()
    assert np.isfinite(values).all()
    assert values[2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.expm1(values[[0, 1, 3]]).sum(axis=1), [5] * 3, rtol=1e-6)


def test_no_count_at_all_has_no_median(tmp_path, filtered):
    files = filtered(np.zeros((3, 2), int))
    with pytest.raises(UserError, match="no kept cell has a count in the genes that stay"):
        normalize(*files, tmp_path / "n.h5", target_sum="median")


@pytest.mark.parametrize("nnz", [1, 7, 2**24])
def test_totals_are_exact(filtered, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    X = np.random.default_rng(0).integers(0, 2**32, (20, 9)) * (np.arange(9) % 4 != 1)
    X[4] = 0
    cells, genes = np.arange(20) % 3 > 0, np.arange(9) > 2
    store = Counts(filtered(sp.csr_matrix(X).toarray())[0])
    totals = cell_totals(store, cells, genes)
    assert totals.tolist() == X[cells][:, genes].sum(axis=1).tolist()
