"""Matrices in HDF5 files, read by blocks of cells: CSR, CSC and dense."""

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse

from scrna.data.block import in_order, row_ranges
from scrna.errors import UserError
from scrna.ingest.formats.base import BLOCK_NNZ, Block, NotMatrix, intact, n_threads
from scrna.ingest.formats.hdf5_checks import check_links
from scrna.log import log
from scrna.progress import Progress

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_DENSE_BYTES = 2**26  # of a dense block
_DENSE_VALUES = 64  # blocks' values in a dense block of higher chunks: all non-zero, 2 GB at work
_CSC_BYTES = 2**28  # at work while cells are collected
_LARGE_CHUNK = 4  # blocks: a larger one is kept inflated, for the blocks that are in it
_ROW_BYTES = 40  # of a cell that is collected, beside its values


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, or say why it cannot be."""
    try:
        file = h5py.File(path, "r")
    except PermissionError:
        raise
    except OSError as error:
        msg = f"{path} does not open as HDF5, it is damaged or cut off; get it again ({error})"
        raise UserError(msg) from error
    with file:
        with intact(str(path)):
            check_links(file)
        yield file


class Column:
    """A 1-D dataset of numbers that several threads may read at the same time.

    HDF5 lets one thread in at a time and inflates one chunk after the other, at some 200 MB/s: by
    far the slowest part of a conversion. So the bytes of plain and gzipped datasets are read from
    the file itself and inflated by the thread that asks. Other filters are left to HDF5. Of chunks
    that hold many blocks, as R's rhdf5 writes them, the last one stays inflated.

    Parameters
    ----------
    dataset
        The dataset, in an open file.
    """

    def __init__(self, dataset: h5py.Dataset):
        self.dataset = dataset
        self.dtype = dataset.dtype.newbyteorder("=")
        self.chunk = dataset.chunks[0] if dataset.chunks else 0
        pipeline = dataset.id.get_create_plist()
        filters = [pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())]
        is_plain = dataset.file.userblock_size == 0 and dataset.dtype.kind in "iuf"
        self._is_direct = is_plain and filters in ([], [_DEFLATE], [_SHUFFLE, _DEFLATE])
        self._is_deflated = _DEFLATE in filters
        self._is_shuffled = _SHUFFLE in filters
        self._is_large = self.chunk > _LARGE_CHUNK * BLOCK_NNZ
        self._kept: tuple[int, np.ndarray] | None = None  # the last large chunk: start, values
        self._lock = threading.Lock()
        self._path = dataset.file.filename
        self._offset = None if self.chunk else dataset.id.get_offset()  # of one that is in a piece

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def n_together(self) -> int:
        """Values that had better be read at once: those of a chunk, unless it stays inflated."""
        return 0 if self._is_large else self.chunk

    def __getitem__(self, span: slice) -> np.ndarray:
        n = span.stop - span.start
        if not self._is_direct or (not self.chunk and self._offset is None) or not n:
            return self.dataset[span].astype(self.dtype, copy=False)
        values = np.empty(n, self.dataset.dtype)
        with open(self._path, "rb", buffering=0) as file:
            if not self.chunk:
                _read_into(file.fileno(), values, self._offset + span.start * values.itemsize)
            else:
                for start in range(span.start // self.chunk * self.chunk, span.stop, self.chunk):
                    low, high = max(start, span.start), min(start + self.chunk, span.stop)
                    part = values[low - span.start : high - span.start]
                    self._read_chunk(file.fileno(), start, low - start, part)
        return values.astype(self.dtype, copy=False)

    def _read_chunk(self, file: int, start: int, skip: int, part: np.ndarray) -> None:
        """Fill a part of the result from a chunk, ``skip`` values after its start."""
        where = self.dataset.id.get_chunk_info_by_coord((start,))
        if where.byte_offset is None or where.filter_mask:
            # never written, and it holds the fill value; or a filter was skipped for it
            part[:] = self.dataset[start + skip : start + skip + len(part)]
            return
        dtype = part.dtype
        if not self._is_deflated:
            _read_into(file, part, where.byte_offset + skip * dtype.itemsize)
            return
        if not self._is_large:
            values = self._inflated(file, where)
        else:
            with self._lock:
                if self._kept is None or self._kept[0] != start:
                    self._kept = None  # before the next one
                    self._kept = start, self._inflated(file, where)
                values = self._kept[1]
        part[:] = values[skip : skip + len(part)]

    def _inflated(self, file: int, where: h5py.h5d.StoreInfo) -> np.ndarray:
        """Inflate a chunk, to its size and no further."""
        dtype = self.dataset.dtype
        n_bytes = self.chunk * dtype.itemsize
        if where.size > n_bytes + n_bytes // 100 + 1024:  # deflate never adds as much
            msg = f"a chunk of {n_bytes:,} bytes takes {where.size:,} bytes, compressed"
            raise zlib.error(msg)
        packed = np.empty(where.size, np.uint8)
        _read_into(file, packed, where.byte_offset)
        inflate = zlib.decompressobj()
        raw = inflate.decompress(packed, n_bytes)
        if len(raw) < n_bytes or inflate.decompress(inflate.unconsumed_tail, 1):
            msg = f"a chunk inflates to {'more' if len(raw) == n_bytes else 'less'} than its values"
            raise zlib.error(msg)
        del packed
        raw = np.frombuffer(raw, np.uint8)
        if self._is_shuffled:
            raw = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T).reshape(-1)
        return raw.view(dtype)


def _read_into(file: int, values: np.ndarray, offset: int) -> None:
    """Fill an array from a place in a file."""
    left = memoryview(values).cast("B")
    while left:
        n = os.preadv(file, [left], offset)
        if not n:
            msg = "the file ends within a dataset"
            raise EOFError(msg)
        left, offset = left[n:], offset + n


def checked_indptr(dataset: h5py.Dataset, n: int, nnz: int) -> np.ndarray:
    """Read row (or column) pointers, int64, and make sure that they can be followed."""
    indptr = dataset[:].astype(np.int64, copy=False)
    is_sound = len(indptr) == n + 1 and indptr[0] == 0 and indptr[-1] == nnz
    if not is_sound or np.any(indptr[1:] < indptr[:-1]):
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
    """Read a CSR matrix, several blocks at a time; those without a wanted cell are not read.

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
    dtype = _number_type(data.dtype)

    def read(rows: tuple[int, int]) -> Block:
        start, stop = rows
        wanted = cells[start:stop]
        span = slice(int(indptr[start]), int(indptr[stop]))
        columns = _checked(indices[span], n_vars)
        values = data[span].astype(dtype, copy=False)
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
        return Block(numbers, block if wanted.all() else block[wanted])

    # a chunk is inflated whole, so a block is at least one
    n_values = max(BLOCK_NNZ, data.n_together)
    ranges = (rows for rows in row_ranges(indptr, n_values) if cells[slice(*rows)].any())
    yield from in_order(read, ranges, n_threads(n_values))


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
        Bytes for the cells that are collected in a pass, one cell at least.
    """
    csc = _Csc(data, indices, indptr, shape, cells)
    sizes = csc.row_sizes()
    row_bytes = sizes * csc.value_bytes + _ROW_BYTES
    ranges = list(row_ranges(np.concatenate([[0], np.cumsum(row_bytes)]), max(1, memory)))
    log.info(
        "the matrix is stored by genes (CSC), not by cells: it is read %d times, "
        "with %s MB of cells in memory at once",
        len(ranges) + 1,
        f"{max(row_bytes[a:b].sum() for a, b in ranges) / 1e6:,.0f}",
    )
    del row_bytes
    for number, (first, last) in enumerate(ranges, start=1):
        if not cells[first:last].any():
            continue
        label = f"collect cells, {number} of {len(ranges)}"
        collected = csc.rows(first, last, sizes[first:last], label)
        for start, stop in row_ranges(collected.indptr, BLOCK_NNZ):
            wanted = cells[first + start : first + stop]
            if wanted.any():
                yield Block(first + start + np.flatnonzero(wanted), collected[start:stop][wanted])
        del collected  # before the next cells are collected


class _Csc:
    """A CSC matrix on disk, read in spans of values whatever the columns."""

    def __init__(
        self,
        data: Column,
        indices: Column,
        indptr: np.ndarray,
        shape: tuple[int, int],
        cells: np.ndarray,
    ):
        self._data, self._indices, self._indptr = data, indices, indptr
        self._shape, self._cells = shape, cells
        self._dtype = _number_type(data.dtype)
        self._n_values = max(BLOCK_NNZ // 4, data.n_together)
        self.value_bytes = self._dtype.itemsize + 4

    def row_sizes(self) -> np.ndarray:
        """Count each wanted cell's values, int64."""
        n_obs = self._shape[0]
        # each count goes through all cells once
        spans = self._spans(max(self._n_values, n_obs // 4))
        sizes = np.zeros(n_obs, np.int64)

        def count(span: slice) -> np.ndarray:
            return _checked(self._indices[span], n_obs)

        with Progress("count each cell's values", total=self._nnz, unit="values") as progress:
            for rows in in_order(count, spans, n_threads(spans[0].stop, _CSC_BYTES)):
                sizes += np.bincount(rows, minlength=n_obs)
                progress.update(len(rows))
        sizes[~self._cells] = 0
        return sizes

    def rows(self, first: int, last: int, sizes: np.ndarray, label: str) -> sparse.csr_matrix:
        """Go through all columns and put the values of some rows where they belong in CSR."""
        n_rows = last - first
        starts = np.concatenate([[0], np.cumsum(sizes)])
        values = np.empty(starts[-1], self._dtype)
        columns = np.empty(starts[-1], np.int32)
        place = starts[:-1].copy()  # where a row's next value goes
        spans = self._spans(max(self._n_values, n_rows // 4))

        def read(span: slice) -> tuple[int, sparse.csr_matrix]:
            rows = self._indices[span]
            is_here = (rows >= first) & (rows < last)
            is_here[is_here] = self._cells[rows[is_here]]
            edges = np.clip(self._indptr, span.start, span.stop) - span.start
            ends = np.concatenate([[0], np.cumsum(is_here)])[edges]
            values = self._data[span][is_here].astype(self._dtype, copy=False)
            parts = (values, (rows[is_here] - first).astype(np.int32, copy=False), ends)
            piece = sparse.csc_matrix(parts, shape=(n_rows, self._shape[1])).tocsr()
            return span.stop - span.start, piece

        with Progress(label, total=self._nnz, unit="values") as progress:
            for n, piece in in_order(read, spans, n_threads(spans[0].stop, _CSC_BYTES)):
                sizes_here = np.diff(piece.indptr)
                target = np.repeat(place - piece.indptr[:-1], sizes_here)
                target += np.arange(piece.nnz)
                values[target], columns[target] = piece.data, piece.indices
                place += sizes_here
                progress.update(n)
        return sparse.csr_matrix((values, columns, starts), shape=(n_rows, self._shape[1]))

    @property
    def _nnz(self) -> int:
        return int(self._indptr[-1])

    def _spans(self, n_values: int) -> list[slice]:
        starts = range(0, max(1, self._nnz), n_values)
        return [slice(start, min(start + n_values, self._nnz)) for start in starts]


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
    dtype = _number_type(dataset.dtype)
    row_bytes = max(1, n_vars * dataset.dtype.itemsize)
    n_rows = max(1, min(_DENSE_BYTES, 16 * BLOCK_NNZ) // row_bytes)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if chunk <= n_rows:
        n_rows -= n_rows % chunk
    else:
        most = min(memory // row_bytes, _DENSE_VALUES * BLOCK_NNZ // max(1, n_vars))
        n_rows = min(chunk, max(1, most))

    def read(start: int) -> Block:
        wanted = cells[start : start + n_rows]
        values = dataset[start : start + n_rows]
        values = values if wanted.all() else values[wanted]
        block = sparse.csr_matrix(values.astype(dtype, copy=False))
        return Block(start + np.flatnonzero(wanted), block)

    starts = (start for start in range(0, n_obs, n_rows) if cells[start : start + n_rows].any())
    # HDF5 reads one block after the other; meanwhile another is made sparse
    yield from in_order(read, starts, 2 if n_rows * row_bytes < memory // 8 else 1)


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
