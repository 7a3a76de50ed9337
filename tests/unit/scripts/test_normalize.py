import logging

import numpy as np
import pytest
import scipy.sparse as sp

from scripts.normalize import cell_totals, normalize
from scrna.backend import computed
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.matrix import open_matrix
from scrna.errors import UserError
from tests.unit.steps import LOG_ERROR


@pytest.fixture
def filtered(tmp_path, write_counts):
    """Write counts and a filter's masks."""

    def write(X, cells=None, genes=None):
        X = np.asarray(X)
        masks = {
            "obs/keep": np.ones(X.shape[0], bool) if cells is None else np.array(cells, bool),
            "var/keep": np.ones(X.shape[1], bool) if genes is None else np.array(genes, bool),
        }
        masks["var/n_cells_kept"] = (X[masks["obs/keep"]] > 0).sum(axis=0)
        step_files.write(tmp_path / "filter.h5", masks)
        return write_counts(tmp_path, X, dtype=np.uint32), tmp_path / "filter.h5"

    return write


X = [[1, 2, 5, 0], [9, 9, 9, 9], [0, 3, 7, 2], [0, 0, 50, 0], [4, 0, 1, 12]]


@pytest.mark.parametrize("target_sum", [6, 0.5])
def test_factors_bring_kept_genes_to_the_total(tmp_path, filtered, target_sum):
    files = filtered(X, cells=[1, 0, 1, 1, 1], genes=[1, 1, 0, 1])
    normalize(*files, tmp_path / "n.h5", target_sum=target_sum, backend="cpu")
    factor = step_files.read(tmp_path / "n.h5", "obs/size_factor")
    assert factor.tolist() == [3 / target_sum, 5 / target_sum, 1 / target_sum, 16 / target_sum]
    assert step_files.read(tmp_path / "n.h5", "uns/target_sum") == target_sum


def test_the_median_is_that_of_cells_with_counts(tmp_path, filtered, caplog):
    files = filtered(X, cells=[1, 0, 1, 1, 1], genes=[1, 1, 0, 1])
    normalize(*files, tmp_path / "n.h5", target_sum="median", backend="cpu")
    assert step_files.read(tmp_path / "n.h5", "uns/target_sum") == 5
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == "1 cells have no count in the kept genes; their values are 0"
    files = *files, tmp_path / "n.h5"
    with open_matrix("hvg", *files, backend="cpu", asked="memory") as matrix:
        values = matrix.toarray()
    assert np.isfinite(values).all()
    assert values[2].tolist() == [0, 0, 0]
    counts = np.expm1(values[[0, 1, 3]].astype(np.float64))
    condition = np.log1p(5) * 6 / 5  # of expm1 where it gives 5, the most that there is here
    np.testing.assert_allclose(counts.sum(axis=1), [5] * 3, rtol=condition * LOG_ERROR)


def test_no_count_at_all_has_no_median(tmp_path, filtered):
    files = filtered(np.zeros((3, 2), int))
    with pytest.raises(UserError, match="no kept cell has a count in the kept genes"):
        normalize(*files, tmp_path / "n.h5", target_sum="median", backend="cpu")


@pytest.mark.parametrize("nnz", [1, 7, 2**24])
def test_totals_are_exact(filtered, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    X = np.random.default_rng(0).integers(0, 2**32, (20, 9)) * (np.arange(9) % 4 != 1)
    X[4] = 0
    cells, genes = np.arange(20) % 3 > 0, np.arange(9) > 2
    store = Counts(filtered(sp.csr_matrix(X).toarray())[0])
    totals = cell_totals(store, cells, genes, "cpu")
    assert totals.tolist() == X[cells][:, genes].sum(axis=1).tolist()


@pytest.mark.parametrize("target_sum", [10000, 123.4, "median"])
@pytest.mark.parametrize("execution", ["memory", "blocks"])
def test_log_normalised_values_are_scanpys(tmp_path, simulated, target_sum, execution):
    import scanpy as sc

    files = simulated.counts, simulated.filtered, tmp_path / "n.h5"
    normalize(*files, target_sum=target_sum, backend="cpu")
    expected = simulated.kept
    sc.pp.normalize_total(expected, target_sum=None if target_sum == "median" else target_sum)
    sc.pp.log1p(expected)
    genes = np.arange(expected.n_vars) % 3 == 0
    for taken in (None, genes):
        with open_matrix("hvg", *files, backend="cpu", asked=execution, genes=taken) as matrix:
            found = computed(matrix)
        assert found.dtype == np.float32
        values = expected.X if taken is None else expected.X[:, genes]
        np.testing.assert_allclose(found.toarray(), values.toarray(), rtol=2 * LOG_ERROR)
    # the mask of the filter is not changed by it
    assert step_files.read(simulated.filtered, "var/keep").sum() == expected.n_vars
