"""Matrices in HDF5 files, read by blocks of cells: CSR, CSC and dense."""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from scipy import sparse

from scrna.counts import row_ranges
from scrna.errors import UserError
from scrna.log import log
from scrna.progress import Progress
from scrna.sources.base import BLOCK_NNZ, Block, NotMatrix

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, or say why it cannot be."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        msg = f"{path} does not open as HDF5, it is damaged or cut off; get it again ({error})"
        raise UserError(msg) from error
    with file:
        yield file


class Column:
    """A 1-D dataset of numbers; its gzipped chunks are inflated by all cores.

    HDF5 inflates one chunk after the other, at some 200 MB/s: by far the slowest part of a
    conversion. Other filters, and datasets without chunks, are left to HDF5.

    Parameters
    ----------
    dataset
        The dataset, in an open file.
    threads
        The pool that inflates.
    """

    def __init__(self, dataset: h5py.Dataset, threads: ThreadPoolExecutor):
        self.dataset = dataset
        self.dtype = dataset.dtype.newbyteorder("=")
        self._threads = threads
        pipeline = dataset.id.get_create_plist()
        filters = [pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())]
        self._is_shuffled = filters == [_SHUFFLE, _DEFLATE]
        self._is_deflated = self._is_shuffled or filters == [_DEFLATE]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, span: slice) -> np.ndarray:
        chunk = self.dataset.chunks[0] if self.dataset.chunks else 0
        if not self._is_deflated or span.stop - span.start < chunk:
            return self.dataset[span].astype(self.dtype, copy=False)
        values = np.empty(span.stop - span.start, self.dataset.dtype)

        def inflate(start: int) -> None:
            piece = self._chunk(start)
            low, high = max(start, span.start), min(start + chunk, span.stop)
            values[low - span.start : high - span.start] = piece[low - start : high - start]

        first = span.start // chunk * chunk
        for _ in self._threads.map(inflate, range(first, span.stop, chunk)):
            pass
        return values.astype(self.dtype, copy=False)

    def _chunk(self, start: int) -> np.ndarray:
        chunk, dtype = self.dataset.chunks[0], self.dataset.dtype
        stop = min(start + chunk, len(self.dataset))
        if self.dataset.id.get_chunk_info_by_coord((start,)).byte_offset is None:
            return self.dataset[start:stop]  # never written: it holds the fill value
        mask, packed = self.dataset.id.read_direct_chunk((start,))
        if mask:  # a filter was skipped for this chunk
            return self.dataset[start:stop]
        raw = np.frombuffer(zlib.decompress(packed, bufsize=chunk * dtype.itemsize), np.uint8)
        if self._is_shuffled:
            raw = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T).reshape(-1)
        return raw.view(dtype)


def thread_pool() -> ThreadPoolExecutor:
    """Make a pool with a thread for each core that this process may use."""
    return ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))


def checked_indptr(dataset: h5py.Dataset, n: int, nnz: int) -> np.ndarray:
    """Read row (or column) pointers and make sure that they can be followed."""
    indptr = dataset[:].astype(np.int64)
    is_sound = len(indptr) == n + 1 and indptr[0] == 0 and indptr[-1] == nnz
    if not is_sound or np.any(np.diff(indptr) < 0):
        msg = f"damaged: its row pointers do not fit {n:,} rows and {nnz:,} stored values"
        raise NotMatrix(msg)
    return indptr


def csr_blocks(
    data: Column,
    indices: Column,
    indptr: np.ndarray,
    n_vars: int,
    cells: np.ndarray,
    *,
    genes: np.ndarray | None = None,
) -> Iterator[Block]:
    """Read a CSR matrix; ranges of rows without a wanted cell are not read.

    Parameters
    ----------
    data, indices, indptr
        Its parts.
    n_vars
        Columns on disk.
    cells
        Mask of the cells wanted.
    genes
        Mask of the columns wanted; None takes all.
    """
    chunk = data.dataset.chunks[0] if data.dataset.chunks else 0
    # A chunk is inflated whole, so a block is at least one.
    for start, stop in row_ranges(indptr, max(BLOCK_NNZ, chunk)):
        wanted = cells[start:stop]
        if not wanted.any():
            continue
        span = slice(int(indptr[start]), int(indptr[stop]))
        columns = _checked(indices[span], n_vars)
        values = data[span].astype(_number_type(data.dtype), copy=False)
        pointers = indptr[start : stop + 1] - span.start
        n_columns = n_vars
        if genes is not None:
            is_gene = genes[columns]
            values, columns = values[is_gene], (np.cumsum(genes) - 1)[columns[is_gene]]
            pointers = np.concatenate([[0], np.cumsum(is_gene)])[pointers]
            n_columns = int(genes.sum())
        block = sparse.csr_matrix(
            (values, columns.astype(np.int32, copy=False), pointers),
            shape=(stop - start, n_columns),
        )
        numbers = start + np.flatnonzero(wanted)
        yield Block(numbers, block if wanted.all() else block[wanted])


def csc_blocks(
    data: Column,
    indices: Column,
    indptr: np.ndarray,
    shape: tuple[int, int],
    cells: np.ndarray,
    *,
    memory: int,
) -> Iterator[Block]:
    """Read a CSC matrix, whose cells are spread over the whole file.

    One pass counts each cell's values; then as many cells as fit into memory are collected in one
    pass each.

    Parameters
    ----------
    data, indices, indptr
        Its parts.
    shape
        Cells, genes.
    cells
        Mask of the cells wanted.
    memory
        Bytes for the cells that are collected in a pass.
    """
    n_obs, n_vars = shape
    column_ranges = list(row_ranges(indptr, max(BLOCK_NNZ, n_obs)))
    lengths = np.zeros(n_obs, np.int64)
    with Progress("count each cell's values", total=n_vars, unit="genes") as progress:
        for start, stop in column_ranges:
            rows = _checked(indices[int(indptr[start]) : int(indptr[stop])], n_obs)
            lengths += np.bincount(rows, minlength=n_obs)
            progress.update(stop - start)
    lengths[~cells] = 0
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    value_bytes = _number_type(data.dtype).itemsize + 4
    ranges = list(row_ranges(row_starts, max(1, memory // value_bytes)))
    log.info(
        "the matrix is stored by genes (CSC), not by cells: it is read %d times, "
        "with %s MB of cells in memory at once",
        len(ranges) + 1,
        f"{max(row_starts[b] - row_starts[a] for a, b in ranges) * value_bytes / 1e6:,.0f}",
    )
    csc = _Csc(data, indices, indptr, column_ranges, cells, n_vars)
    for number, (first, last) in enumerate(ranges, start=1):
        label = f"collect cells, {number} of {len(ranges)}"
        collected = _collect(csc, row_starts[first : last + 1], first, label)
        for start, stop in row_ranges(collected.indptr, BLOCK_NNZ):
            wanted = cells[first + start : first + stop]
            if wanted.any():
                yield Block(first + start + np.flatnonzero(wanted), collected[start:stop][wanted])


class _Csc(NamedTuple):
    data: Column
    indices: Column
    indptr: np.ndarray
    ranges: list[tuple[int, int]]  # columns that are read at once
    cells: np.ndarray
    n_vars: int


def _collect(csc: _Csc, row_starts: np.ndarray, first: int, label: str) -> sparse.csr_matrix:
    """Go through all columns and put the values of some rows where they belong in CSR."""
    row_starts = row_starts - row_starts[0]
    n_rows = len(row_starts) - 1
    values = np.empty(row_starts[-1], _number_type(csc.data.dtype))
    columns = np.empty(row_starts[-1], np.int32)
    place = row_starts[:-1].copy()  # where a row's next value goes
    with Progress(label, total=csc.n_vars, unit="genes") as progress:
        for start, stop in csc.ranges:
            pointers = csc.indptr[start : stop + 1]
            span = slice(int(pointers[0]), int(pointers[-1]))
            rows = csc.indices[span].astype(np.int64, copy=False)
            is_here = (rows >= first) & (rows < first + n_rows) & csc.cells[rows]
            ends = np.concatenate([[0], np.cumsum(is_here)])[pointers - span.start]
            parts = (csc.data[span][is_here], rows[is_here] - first, ends)
            piece = sparse.csc_matrix(parts, shape=(n_rows, stop - start)).tocsr()
            lengths = np.diff(piece.indptr)
            target = np.repeat(place - piece.indptr[:-1], lengths) + np.arange(piece.nnz)
            values[target] = piece.data
            columns[target] = piece.indices + start
            place += lengths
            progress.update(stop - start)
    return sparse.csr_matrix((values, columns, row_starts), shape=(n_rows, csc.n_vars))


def dense_blocks(dataset: h5py.Dataset, cells: np.ndarray, *, memory: int) -> Iterator[Block]:
    """Read a dense matrix in whole chunks of rows, as long as those fit into memory.

    Parameters
    ----------
    dataset
        Cells × genes.
    cells
        Mask of the cells wanted.
    memory
        Bytes that a block may take.
    """
    n_obs, n_vars = dataset.shape
    _number_type(dataset.dtype)
    row_bytes = max(1, n_vars * dataset.dtype.itemsize)
    n_rows = max(1, 4 * BLOCK_NNZ // row_bytes)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if chunk <= n_rows:
        n_rows -= n_rows % chunk
    else:
        n_rows = min(chunk, max(1, memory // row_bytes))
    for start in range(0, n_obs, n_rows):
        stop = min(start + n_rows, n_obs)
        wanted = cells[start:stop]
        if wanted.any():
            values = dataset[start:stop][wanted]
            block = sparse.csr_matrix(values.astype(_number_type(values.dtype), copy=False))
            yield Block(start + np.flatnonzero(wanted), block)


def _number_type(dtype: np.dtype) -> np.dtype:
    """Name the type in which scipy can hold the values of a dataset."""
    if dtype.kind not in "iuf":
        kinds = {"b": "true and false", "c": "complex numbers"}
        msg = f"it holds {kinds.get(dtype.kind, 'text')}, not numbers"
        raise NotMatrix(msg)
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def _checked(numbers: np.ndarray, n: int) -> np.ndarray:
    """Refuse row or column numbers that would lead outside of the matrix."""
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
        msg = f"damaged: it has a value at {numbers.max():,}, with {n:,} rows or columns"
        raise NotMatrix(msg)
    return numbers
