"""Blocks of cells: parts of a CSR matrix, cut to cells and genes, joined and normalised."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from scrna.backend import arrays, csr_matrix
from scrna.resources.estimates import BLOCK_NNZ, GPU_MAX_NNZ


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
    """Select columns of a matrix in memory, one block of rows at a time.

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
