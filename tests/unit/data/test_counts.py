import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scrna.data import counts as counts_module
from scrna.data.block import Block, cut, in_order, log_normalize, row_ranges
from scrna.data.counts import Counts
from tests.unit.steps import LOG_ERROR

BLOCK_SIZES = [1, 13, 60, 2**24]


@pytest.fixture(scope="module", name="X")
def _x():
    """Counts with empty rows at the ends and within, an empty column, and a full row."""
    rng = np.random.default_rng(1)
    X = rng.poisson(0.7, (50, 30))
    X[[0, 20, 21, 48, 49]] = 0
    X[:, 4] = 0
    X[33] = 7
    X[5, 5] = 2**16 + 1
    return sp.csr_matrix(X, dtype=np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_counts, X):
    obs = pd.DataFrame(
        {"batch": pd.Categorical(list("ab") * 25), "day": np.arange(50)},
        index=[f"cell {i}" for i in range(50)],
    )
    path = write_counts(tmp_path_factory.mktemp("counts"), X, obs, dtype=np.uint32)
    return Counts(path)


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(2)
    cells, genes = rng.random(50) < 0.6, rng.random(30) < 0.5
    cells[40:47] = False
    return cells, genes


def same(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert found.has_canonical_format
    expected.sort_indices()
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_columns_are_as_anndata_reads_them(tmp_path, write_counts, X):
    columns = {
        "plain": pd.Categorical(list("ab") * 25),
        "gaps": pd.Categorical([*list("zβ") * 24, None, "z"], categories=["z", "β", "no one"]),
        "ordered": pd.Categorical(["low", "high"] * 25, ["low", "high"], ordered=True),
        "numbers": pd.Categorical([3, 1] * 25),
        "text": ["x, y"] * 50,
        "flag": np.arange(50) % 2 == 0,
    }
    obs = pd.DataFrame(columns, index=[f"cell {i}" for i in range(50)])
    store = Counts(write_counts(tmp_path, X, obs, dtype=np.uint32))
    expected = store.table("obs")[list(columns)].reset_index(drop=True)
    pd.testing.assert_frame_equal(store.obs(list(columns)), expected, check_exact=True)


def test_what_the_store_tells(store, X):
    assert store.shape == (50, 30)
    assert store.summary["nnz"] == X.nnz
    assert store.genes().tolist() == [f"gene_{i}" for i in range(30)]
    assert store.cell_names().tolist() == [f"cell {i}" for i in range(50)]
    assert store.genes().dtype == object
    table = store.obs(["day", "batch"])
    assert list(table) == ["day", "batch"]
    assert table["day"].tolist() == list(range(50))
    assert table["batch"].tolist() == list("ab") * 25
    assert isinstance(table["batch"].dtype, pd.CategoricalDtype)
    assert store.table("obs").index.tolist() == store.cell_names().tolist()
    assert store.table("var").index.tolist() == store.genes().tolist()


def test_names_that_are_not_latin(tmp_path, write_counts):
    names = ["β-actin", "基因", "x"]
    path = write_counts(tmp_path, np.eye(3), var=pd.DataFrame(index=names))
    assert Counts(path).genes().tolist() == names


@pytest.mark.parametrize("nnz", BLOCK_SIZES)
def test_blocks_hold_every_cell_once(store, X, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    blocks = list(store.blocks())
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, 50)
    for block in blocks:
        part = X[block.start : block.stop]
        assert part.nnz <= nnz or block.stop - block.start == 1
        assert block.data.dtype == np.uint32
        np.testing.assert_array_equal(block.data, part.data)
        np.testing.assert_array_equal(block.indices, part.indices)
        np.testing.assert_array_equal(block.indptr, part.indptr)
        np.testing.assert_array_equal(block.rows, part.tocoo().row)


def test_blocks_of_rows_asked_for(store, monkeypatch):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", 60)
    rows = np.zeros(50, dtype=bool)
    rows[[10, 30]] = True
    blocks = list(store.blocks(rows=rows, with_data=False))
    assert 1 <= len(blocks) <= 2
    assert all(rows[block.start : block.stop].any() for block in blocks)
    assert all(block.data is None for block in blocks)
    assert not list(store.blocks(rows=np.zeros(50, dtype=bool)))


@pytest.mark.parametrize(
    "indptr", [[0], [0, 0], [0, 3], [0, 0, 0, 2, 2, 5, 5, 5], [0, 1, 2, 3], [0, 4, 4]]
)
def test_rows_of_non_zeros(indptr):
    indptr = np.array(indptr)
    indices = np.zeros(indptr[-1], dtype=np.int32)
    rows = Block(0, len(indptr) - 1, None, indices, indptr).rows
    assert rows.tolist() == np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)).tolist()


@pytest.mark.parametrize("nnz", BLOCK_SIZES)
def test_the_matrix_of_masks_is_that_of_slicing(store, X, masks, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    cells, genes = masks
    for taken in ({}, {"cells": cells}, {"genes": genes}, {"cells": cells, "genes": genes}):
        expected = X[taken.get("cells", slice(None))][:, taken.get("genes", slice(None))]
        found = store.matrix("cpu", nnz=expected.nnz, **taken)
        same(found, expected)
        assert found.indptr.dtype == np.int32


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_number_of_non_zeros_is_not_believed(store, X, wrong):
    with pytest.raises(ValueError, match=r"does not have the .* non-zeros"):
        store.matrix("cpu", nnz=X.nnz + wrong)


@pytest.mark.parametrize("nnz", BLOCK_SIZES)
def test_kept_blocks_hold_the_same(store, X, masks, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    cells, genes = masks
    expected = X[cells][:, genes]
    done = 0
    for block in store.kept_blocks("cpu", cells, genes):
        assert block.start == done
        done = block.stop
        shape = (done - block.start, genes.sum())
        part = sp.csr_matrix((block.data, block.indices, block.indptr), shape)
        same(part, expected[block.start : done])
    assert done == cells.sum()


@pytest.mark.parametrize("nnz", BLOCK_SIZES)
@pytest.mark.parametrize("taken", ["both", "cells", "genes", "all", "no cell", "no gene"])
def test_what_the_gpu_cuts_blocks_by_is_slicing(store, X, masks, monkeypatch, nnz, taken):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    cells = masks[0] if taken in ("both", "cells") else np.full(50, taken != "no cell")
    genes = {"both": masks[1], "genes": masks[1], "no gene": np.zeros(30, bool)}.get(taken)
    numbers = None if genes is None else np.flatnonzero(genes)
    for block in store.blocks():
        kept = cells[block.start : block.stop]
        found = cut(block, kept, numbers, 30)
        part = X[block.start : block.stop][kept]
        expected = part if genes is None else part[:, genes]
        assert (found.start, found.stop) == (0, kept.sum())
        assert found.data.dtype == np.float32
        same(sp.csr_matrix((found.data, found.indices, found.indptr), expected.shape), expected)


def test_masks_that_take_no_count(store):
    empty = store.matrix("cpu", nnz=0, cells=np.arange(50) == 20, genes=np.arange(30) == 4)
    assert (empty.shape, empty.nnz) == ((1, 1), 0)


@pytest.mark.parametrize("nnz", BLOCK_SIZES)
def test_size_factors_are_those_of_the_cells_taken(store, X, masks, monkeypatch, nnz):
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", nnz)
    cells, genes = masks
    factor = np.random.default_rng(3).uniform(0.01, 9, cells.sum())
    nnz = X[cells][:, genes].nnz
    found = store.matrix("cpu", nnz=nnz, cells=cells, genes=genes, size_factor=factor)
    expected = np.log1p(X[cells][:, genes].toarray() / factor[:, None])
    np.testing.assert_allclose(found.toarray(), expected, rtol=LOG_ERROR)
    blocks = [log_normalize(b, factor) for b in store.kept_blocks("cpu", cells, genes)]
    np.testing.assert_array_equal(np.concatenate(blocks), found.data)


def test_results_of_threads_come_in_order():
    import time

    def late(n):
        time.sleep(0.02 if n % 3 == 0 else 0)
        return n

    assert list(in_order(late, range(20), threads=4)) == list(range(20))


def test_an_error_in_a_thread_ends_the_rest():
    called = []

    def fail(n):
        called.append(n)
        if n == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        list(in_order(fail, range(1000), threads=2))
    assert len(called) < 20


@pytest.mark.parametrize(
    ("indptr", "max_nnz", "expected"),
    [
        ([0], 5, []),
        ([0, 0, 0], 5, [(0, 2)]),
        ([0, 2, 4, 6], 4, [(0, 2), (2, 3)]),
        ([0, 9, 10, 30, 31], 5, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([0, 5, 5, 5, 6, 6], 5, [(0, 3), (3, 5)]),
        ([0, 0, 7, 7], 5, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_rows_are_cut_into_ranges(indptr, max_nnz, expected):
    assert list(row_ranges(np.array(indptr), max_nnz)) == expected
