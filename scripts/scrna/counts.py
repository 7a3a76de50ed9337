"""Open the count matrix: row blocks, masks and size factors applied on the way into memory.

``counts.zarr`` is written once (`convert`) and read by every step that needs counts. A filter is
a pair of masks and normalisation a factor a cell, so a step reads what it needs, where it needs it
(CPU or GPU), and the matrix is never written again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scrna import slots
from scrna.backend import arrays, csr_matrix
from scrna.codecs import fast_codecs
from scrna.damage import read_summary, reading
from scrna.errors import UserError
from scrna.integrity import (
    ShardedArray,
    check_content,
    check_sizes,
    check_there,
    files_of,
    reading_elements,
)
from scrna.sizes import BLOCK_NNZ, GPU_MAX_NNZ


class Block(NamedTuple):
    """Consecutive cells as CSR parts; ``indptr`` starts at 0, ``data`` may be left unread."""

    start: int
    stop: int
    data: Any
    indices: Any
    indptr: Any

    @property
    def rows(self):
        """The row within the block of each non-zero, int64."""
        xp = np if isinstance(self.indices, np.ndarray) else arrays("gpu")
        n = len(self.indices)
        return xp.cumsum(xp.bincount(self.indptr[1:-1], minlength=n + 1)[:n])

    def row_sums(self, values):
        """Sum whole numbers, one for each non-zero, over each row; int64, exact."""
        xp = np if isinstance(values, np.ndarray) else arrays("gpu")
        running = xp.zeros(len(values) + 1, dtype=xp.int64)
        xp.cumsum(values, dtype=xp.int64, out=running[1:])
        return running[self.indptr[1:]] - running[self.indptr[:-1]]


class Counts:
    """The count matrix on disk.

    Parameters
    ----------
    path
        ``counts.zarr``, an AnnData store whose X is CSR, with ``counts.json`` beside it.

    Raises
    ------
    DamagedError
        If a file of the store is missing or cut off; what else is damaged is told when it is read.
    """

    def __init__(self, path: Path):
        import zarr

        self.path = path = Path(path)
        with reading(path / "zarr.json", path):
            self._group = zarr.open_group(path, mode="r", use_consolidated=False)
            files = files_of(self._group)
            check_there(path, files)
            check_content(path, files, "X")
            check_content(path, {name: files[name] for name in files if name.endswith(".json")})
        with reading(path / "X", path):
            with fast_codecs():
                self._data = ShardedArray(path, self._group["X/data"], files)
                self._indices = ShardedArray(path, self._group["X/indices"], files)
            self.indptr: np.ndarray = self._group["X/indptr"][:].astype(np.int64)
            self.shape: tuple[int, int] = tuple(int(n) for n in self._group["X"].attrs["shape"])
        n_stored = [part.array.shape[0] for part in (self._data, self._indices)]
        check_sizes(path, self.shape, self.indptr, n_stored)

    @property
    def summary(self) -> dict[str, Any]:
        """What ``counts.json`` says: sizes, source, columns, warnings."""
        return read_summary(self.path.with_suffix(".json"))

    def genes(self) -> np.ndarray:
        """Gene symbols, unique; object array (n_vars,)."""
        return self._index("var")

    def gene_ids(self) -> list[str]:
        """Gene ids, as var ``gene_ids`` has them; none where it is missing."""
        if "gene_ids" not in self._group["var"]:
            return []
        return [str(name) for name in np.asarray(_column(self._group["var/gene_ids"]))]

    def cell_names(self) -> np.ndarray:
        """Cell names, unique; object array (n_obs,)."""
        return self._index("obs")

    def _index(self, slot: str) -> np.ndarray:
        """Read the index of a DataFrame in the store, without the 2 s of importing anndata."""
        with reading(self.path / slot, self.path):
            key = f"{slot}/{self._group[slot].attrs['_index']}"
        with reading_elements(self.path, self._group, [key]):
            index = self._group[key]
            # strings that may be missing are a group
            values = index if hasattr(index, "dtype") else index["values"]
            return np.asarray(values[:], dtype=object)

    def table(self, slot: str):
        """Read the whole of ``obs`` or ``var`` as a DataFrame."""
        from anndata.io import read_elem

        with reading_elements(self.path, self._group, [slot]):
            return read_elem(self._group[slot])

    def obs(self, columns: list[str]):
        """Read columns of obs as a DataFrame (n_obs rows), categories as such."""
        import pandas as pd

        elements = {name: f"obs/{name}" for name in columns}
        with reading_elements(self.path, self._group, elements.values()):
            return pd.DataFrame({name: _column(self._group[key]) for name, key in elements.items()})

    def ranges(self, rows: np.ndarray | None = None) -> list[tuple[int, int]]:
        """Cut the cells into consecutive ranges, first and after the last, of a block each.

        Parameters
        ----------
        rows
            Mask of the cells asked for; ranges without any are left out.
        """
        spans = row_ranges(self.indptr, BLOCK_NNZ)
        return [span for span in spans if rows is None or rows[slice(*span)].any()]

    def read(self, start: int, stop: int, backend: str, *, with_data: bool = True) -> Block:
        """Read a range of cells.

        Parameters
        ----------
        start, stop
            The range.
        backend
            Where the block's arrays lie.
        with_data
            False leaves the counts themselves unread (``data`` is None): their places suffice to
            count cells.
        """
        xp = arrays(backend)
        span = slice(int(self.indptr[start]), int(self.indptr[stop]))
        fetch = _to_gpu if backend == "gpu" else _to_cpu
        data = self._data.read(span, fetch) if with_data else None
        indices = self._indices.read(span, fetch).astype(xp.int32, copy=False)
        indptr = self.indptr[start : stop + 1] - self.indptr[start]
        return Block(start, stop, data, indices, xp.asarray(indptr))

    def take(
        self, start: int, stop: int, backend: str, cells: np.ndarray, genes: np.ndarray | None
    ) -> Block:
        """Read the counts of some cells and genes of a range of cells.

        Parameters
        ----------
        start, stop
            The range.
        backend
            Where the matrix lies.
        cells
            Mask over the cells of the range.
        genes
            Numbers of the genes taken, in their order; None takes all.

        Returns
        -------
        Block of the cells taken, numbered from 0; ``data`` is float32, ``indices`` number the genes
        taken.
        """
        block = self.read(start, stop, backend)
        if backend == "gpu":
            return cut(block, cells, genes, self.shape[1])
        parts = (block.data.astype(np.float32), block.indices, block.indptr)
        matrix = csr_matrix(parts, (stop - start, self.shape[1]), backend)
        if not cells.all():
            matrix = matrix[np.flatnonzero(cells)]
        if genes is not None:
            matrix = matrix[:, genes]
        return Block(0, matrix.shape[0], matrix.data, matrix.indices, matrix.indptr)

    def blocks(
        self,
        backend: str = "cpu",
        *,
        rows: np.ndarray | None = None,
        with_data: bool = True,
        threads: int = 2,
    ) -> Iterator[Block]:
        """Read the matrix in blocks of consecutive cells, ahead of their use.

        Parameters
        ----------
        backend
            Where the blocks' arrays lie.
        rows
            Mask of the cells asked for; blocks without any are not read. Blocks still hold all
            their cells.
        with_data
            As in `read`.
        threads
            Blocks that are read at the same time.

        Yields
        ------
        Blocks of at most `BLOCK_NNZ` non-zeros, in order.
        """
        yield from in_order(
            lambda span: self.read(*span, backend, with_data=with_data),
            self.ranges(rows),
            threads,
        )

    def kept_blocks(
        self, backend: str, cells: np.ndarray | None = None, genes: np.ndarray | None = None
    ) -> Iterator[Block]:
        """Read the counts of the cells and genes taken, in blocks, ahead of their use.

        Parameters
        ----------
        backend
            Where the blocks' arrays lie.
        cells, genes
            Masks over all cells and genes of the store; None takes all.

        Yields
        ------
        Blocks of the taken cells, numbered among themselves; ``data`` is float32 and ``indices``
        number the taken genes.
        """
        cells = np.ones(self.shape[0], bool) if cells is None else np.asarray(cells)
        columns = None if genes is None or np.all(genes) else np.flatnonzero(genes)
        done = 0
        for block in in_order(
            lambda span: self.take(*span, backend, cells[slice(*span)], columns),
            self.ranges(cells),
        ):
            yield block._replace(start=done, stop=done + block.stop)
            done += block.stop

    def matrix(
        self,
        backend: str,
        *,
        nnz: int,
        cells: np.ndarray | None = None,
        genes: np.ndarray | None = None,
        size_factor: np.ndarray | None = None,
    ):
        """Read cells and genes as one float32 CSR matrix: counts, or log-normalised values.

        It is filled block by block where it lies, so that it is in memory once.

        Parameters
        ----------
        backend
            Where the matrix lies: scipy's or CuPy's.
        nnz
            Non-zeros of these cells and genes.
        cells, genes
            Masks over all cells and genes of the store; None takes all.
        size_factor
            For each of the cells taken: counts are divided by it and log1p is taken, which is
            scanpy's `normalize_total` and `log1p`.

        Returns
        -------
        CSR, cells taken × genes taken.

        Raises
        ------
        UserError
            If it has more non-zeros than CuPy's sparse matrices hold.
        ValueError
            If there are not as many non-zeros as said.
        """
        if backend == "gpu" and nnz > GPU_MAX_NNZ:
            msg = (
                f"{self.path} has {nnz:,} non-zeros in the cells and genes that stay, more than a "
                f"sparse matrix on the GPU holds ({GPU_MAX_NNZ:,}): set execution: auto, or keep "
                "fewer (keep_obs, filter)"
            )
            raise UserError(msg)
        n_cells = self.shape[0] if cells is None else int(np.sum(cells))
        n_genes = self.shape[1] if genes is None else int(np.sum(genes))
        blocks = self.kept_blocks(backend, cells, genes)
        if size_factor is not None:
            blocks = (b._replace(data=log_normalize(b, size_factor)) for b in blocks)
        matrix = joined(blocks, (n_cells, n_genes), nnz, backend)
        if matrix is None:
            msg = f"{self.path} does not have the {nnz:,} non-zeros of the filter: run qc anew"
            raise ValueError(msg)
        return matrix


def cut(block: Block, cells: np.ndarray, genes: np.ndarray | None, n_vars: int) -> Block:
    """Cut a block to some of its cells and genes, all non-zeros at once, as a GPU likes it.

    CuPy's own indexing, first of rows, then of columns, takes longer than reading the block.

    Parameters
    ----------
    block
        Counts, NumPy's or CuPy's arrays.
    cells, genes, n_vars
        Mask over its cells, numbers of the genes taken in their order or None, and how many there
        are.

    Returns
    -------
    As `Counts.take`.
    """
    xp = np if isinstance(block.indices, np.ndarray) else arrays("gpu")
    indices = block.indices
    if genes is not None:
        numbers = np.full(n_vars, -1, dtype=np.int32)
        numbers[genes] = np.arange(len(genes), dtype=np.int32)
        indices = xp.asarray(numbers)[indices]
    stays = indices >= 0
    if not cells.all():
        stays &= xp.asarray(cells)[block.rows]
    places = xp.flatnonzero(stays)
    bounds = np.append(np.flatnonzero(cells), len(cells))  # cells left out have no non-zeros now
    indptr = xp.searchsorted(places, block.indptr[xp.asarray(bounds)]).astype(xp.int32)
    data = block.data[places].astype(xp.float32)
    return Block(0, len(bounds) - 1, data, indices[places], indptr)


def joined(blocks: Iterable[Block], shape: tuple[int, int], nnz: int, backend: str):
    """Fill one CSR matrix from blocks, where it lies, so that it is in memory once.

    Parameters
    ----------
    blocks
        Blocks of its cells, in order; float32.
    shape
        Cells and genes.
    nnz
        Non-zeros.
    backend
        Where the matrix and the blocks lie.

    Returns
    -------
    float32 CSR; None if the blocks do not have as many non-zeros.
    """
    xp = arrays(backend)
    places = xp.int64 if nnz > GPU_MAX_NNZ else xp.int32
    data = xp.empty(nnz, xp.float32)
    indices = xp.empty(nnz, xp.int32)
    indptr = xp.zeros(shape[0] + 1, places)
    filled = 0
    for block in blocks:
        end = filled + len(block.data)
        if end > nnz:
            return None
        data[filled:end] = block.data
        indices[filled:end] = block.indices
        indptr[block.start + 1 : block.stop + 1] = block.indptr[1:].astype(places) + filled
        filled = end
    return csr_matrix((data, indices, indptr), shape, backend) if filled == nnz else None


def columns_of(matrix, genes: np.ndarray, backend: str):
    """Take columns out of a matrix that is in memory, a block of rows at a time.

    Parameters
    ----------
    matrix
        float32 CSR, scipy's or CuPy's.
    genes
        Mask over its columns.
    backend
        Where it lies.

    Returns
    -------
    CSR, all rows × genes taken.
    """
    xp = arrays(backend)
    numbers = xp.asarray(np.flatnonzero(genes))
    indptr = matrix.indptr if backend == "cpu" else matrix.indptr.get()
    counted = xp.bincount(matrix.indices, minlength=matrix.shape[1])
    nnz = int(counted[numbers].sum())

    def blocks() -> Iterator[Block]:
        for start, stop in row_ranges(indptr, BLOCK_NNZ):
            part = matrix[start:stop][:, numbers]
            yield Block(start, stop, part.data, part.indices, part.indptr)

    return joined(blocks(), (matrix.shape[0], len(numbers)), nnz, backend)


def log_normalize(block: Block, size_factor: np.ndarray):
    """Log-normalise the counts of a block of taken cells; float32, a value a non-zero.

    Parameters
    ----------
    block
        A block of `Counts.kept_blocks`.
    size_factor
        The factors of all cells taken.
    """
    xp = np if isinstance(block.data, np.ndarray) else arrays("gpu")
    factor = xp.asarray(size_factor[block.start : block.stop], dtype=xp.float32)
    return xp.log1p(block.data / factor[block.rows])


def in_order(function: Callable[[Any], Any], items: Iterable, threads: int = 2) -> Iterator[Any]:
    """Call a function on items in threads of its own, ahead of the results' use.

    Parameters
    ----------
    function
        What is called.
    items
        Its arguments, one each.
    threads
        Calls at the same time; as many results more may wait.

    Yields
    ------
    The results, in the order of the items.
    """
    waiting = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def row_ranges(indptr: np.ndarray, max_nnz: int) -> Iterator[tuple[int, int]]:
    """Cut rows into ranges of at most ``max_nnz`` non-zeros, a row at least."""
    start, n = 0, len(indptr) - 1
    while start < n:
        fits = np.searchsorted(indptr, indptr[start] + max_nnz, side="right") - 1
        stop = min(max(int(fits), start + 1), n)
        yield start, stop
        start = stop


def kept(filtered: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the masks of the cells and genes that the filter keeps."""
    return slots.read(filtered, "obs/keep"), slots.read(filtered, "var/keep")


def _to_cpu(array, span: slice) -> np.ndarray:
    return array[span]


def _to_gpu(array, span: slice):
    """Decompress into pinned memory and move it from there, several times as fast as otherwise."""
    import cupy
    from cupyx import empty_pinned
    from zarr.core.buffer.cpu import NDBuffer

    n = span.stop - span.start
    # of one size, so that CuPy's pool gives the same memory again
    pinned = empty_pinned(max(n, min(BLOCK_NNZ, array.shape[0])), array.dtype)[:n]
    array.get_basic_selection(span, out=NDBuffer.from_numpy_array(pinned))
    values = cupy.empty(n, array.dtype)
    values.set(pinned)
    # moving goes on after `set` returns, and another block may be given the pinned memory by then
    cupy.cuda.get_current_stream().synchronize()
    return values


def _column(element):
    """Read a column of a DataFrame in the store: categories without importing anndata."""
    if element.attrs["encoding-type"] == "categorical":
        return slots.read_categories(element)
    from anndata.io import read_elem

    return read_elem(element)
