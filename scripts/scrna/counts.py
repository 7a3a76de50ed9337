"""Open the count matrix: row blocks, masks and size factors applied on the way into memory.

``counts.zarr`` is written once (`convert`) and read by every step that needs counts. A filter is
a pair of masks and normalisation a factor a cell, so a step reads what it needs, where it needs it
(CPU or GPU), and the matrix is never written again.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scrna import slots
from scrna.backend import arrays, csr_matrix
from scrna.errors import UserError

#: Non-zeros that a block holds at most, unless one row alone holds more: 2**24 are 100 MB as
#: uint16 counts and int32 indices, whole shards to read, small against any memory.
BLOCK_NNZ = 2**24
#: CuPy numbers the non-zeros of a sparse matrix with 32 bits.
GPU_MAX_NNZ = 2**31 - 1


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


class Counts:
    """The count matrix on disk.

    Parameters
    ----------
    path
        ``counts.zarr``, an AnnData store whose X is CSR, with ``counts.json`` beside it.
    """

    def __init__(self, path: Path):
        import zarr
        import zarrs  # noqa: F401 - decodes shards in parallel, without Python's lock

        self.path = Path(path)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            self._group = zarr.open_group(self.path, mode="r", use_consolidated=False)
            self._data = self._group["X/data"]
            self._indices = self._group["X/indices"]
        self.indptr: np.ndarray = self._group["X/indptr"][:].astype(np.int64)
        self.shape: tuple[int, int] = tuple(int(n) for n in self._group["X"].attrs["shape"])

    @property
    def summary(self) -> dict[str, Any]:
        """What ``counts.json`` says: sizes, source, columns, warnings."""
        return json.loads(self.path.with_suffix(".json").read_text())

    def genes(self) -> np.ndarray:
        """Gene symbols, unique; object array (n_vars,)."""
        return _index(self._group["var"])

    def cell_names(self) -> np.ndarray:
        """Cell names, unique; object array (n_obs,)."""
        return _index(self._group["obs"])

    def table(self, slot: str):
        """Read the whole of ``obs`` or ``var`` as a DataFrame."""
        from anndata.io import read_elem

        return read_elem(self._group[slot])

    def obs(self, columns: list[str]):
        """Read columns of obs as a DataFrame (n_obs rows), categories as such."""
        import pandas as pd
        from anndata.io import read_elem

        return pd.DataFrame({name: read_elem(self._group[f"obs/{name}"]) for name in columns})

    def blocks(
        self, backend: str = "cpu", *, rows: np.ndarray | None = None, with_data: bool = True
    ) -> Iterator[Block]:
        """Read the matrix in blocks of consecutive cells.

        Parameters
        ----------
        backend
            Where the blocks' arrays lie.
        rows
            Mask of the cells asked for; blocks without any are not read. Blocks still hold all
            their cells.
        with_data
            False leaves the counts themselves unread (``data`` is None): their places suffice to
            count cells.

        Yields
        ------
        Blocks of at most `BLOCK_NNZ` non-zeros, in order.
        """
        xp = arrays(backend)
        ranges = [
            span
            for span in row_ranges(self.indptr, BLOCK_NNZ)
            if rows is None or rows[slice(*span)].any()
        ]
        with ThreadPoolExecutor(max_workers=1) as ahead:  # reads a block while one is worked on
            coming = [ahead.submit(self._read, *ranges[0], with_data)] if ranges else []
            for place, (start, stop) in enumerate(ranges):
                data, indices = coming.pop().result()
                if place + 1 < len(ranges):
                    coming.append(ahead.submit(self._read, *ranges[place + 1], with_data))
                indptr = self.indptr[start : stop + 1] - self.indptr[start]
                data = data if data is None else xp.asarray(data)
                yield Block(start, stop, data, xp.asarray(indices), xp.asarray(indptr))

    def _read(self, start: int, stop: int, with_data: bool) -> tuple:
        """Read the counts and the columns of a range of cells."""
        span = slice(self.indptr[start], self.indptr[stop])
        return (self._data[span] if with_data else None), self._indices[span]

    def kept_blocks(
        self, backend: str, cells: np.ndarray | None = None, genes: np.ndarray | None = None
    ) -> Iterator[Block]:
        """Read the counts of the cells and genes taken, in blocks.

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
        xp = arrays(backend)
        cells = np.ones(self.shape[0], bool) if cells is None else np.asarray(cells)
        columns = None if genes is None or np.all(genes) else xp.asarray(np.flatnonzero(genes))
        done = 0
        for block in self.blocks(backend, rows=cells):
            mask = cells[block.start : block.stop]
            values = block.data.astype(xp.float32)
            shape = (block.stop - block.start, self.shape[1])
            matrix = csr_matrix((values, block.indices, block.indptr), shape, backend)
            if not mask.all():
                matrix = matrix[xp.asarray(np.flatnonzero(mask))]
            if columns is not None:
                matrix = matrix[:, columns]
            n = matrix.shape[0]
            yield Block(done, done + n, matrix.data, matrix.indices, matrix.indptr)
            done += n

    def matrix(
        self,
        backend: str,
        *,
        cells: np.ndarray | None = None,
        genes: np.ndarray | None = None,
        size_factor: np.ndarray | None = None,
    ):
        """Read cells and genes as one float32 CSR matrix: counts, or log-normalised values.

        Parameters
        ----------
        backend
            Where the matrix lies: scipy's or CuPy's.
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
        """
        xp = arrays(backend)
        parts, nnz = [], 0
        for block in self.kept_blocks(backend, cells, genes):
            values = block.data
            nnz += len(values)
            if backend == "gpu" and nnz > GPU_MAX_NNZ:
                msg = (
                    f"{self.path} has more non-zeros in the cells and genes that stay than a "
                    f"sparse matrix on the GPU holds ({GPU_MAX_NNZ:,}): keep fewer (keep_obs, "
                    "filter), or set backend: cpu"
                )
                raise UserError(msg)
            if size_factor is not None:
                values = log_normalize(block, size_factor)
            parts.append((values, block.indices, xp.diff(block.indptr)))
        data, indices, lengths = (xp.concatenate(arrays_) for arrays_ in zip(*parts, strict=True))
        indptr = xp.zeros(len(lengths) + 1, dtype=xp.int64)
        indptr[1:] = xp.cumsum(lengths)
        if len(data) < 2**31:
            indptr = indptr.astype(xp.int32)
        n_genes = self.shape[1] if genes is None else int(genes.sum())
        return csr_matrix((data, indices, indptr), (len(lengths), n_genes), backend)


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


def log_normalized(counts: Path, filtered: Path, normalized: Path, backend: str, genes=None):
    """Read the log-normalised matrix of the kept cells.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of the filter and the normalisation.
    backend
        Where the matrix lies.
    genes
        Mask over the kept genes, to take some of them; None takes all that the filter keeps.

    Returns
    -------
    float32 CSR, kept cells × genes.
    """
    cells, kept_genes = kept(filtered)
    if genes is not None:
        kept_genes = kept_genes.copy()
        kept_genes[kept_genes] = genes
    factor = slots.read(normalized, "obs/size_factor")
    return Counts(counts).matrix(backend, cells=cells, genes=kept_genes, size_factor=factor)


def _index(frame) -> np.ndarray:
    """Read the index of a DataFrame in the store, without the 2 s of importing anndata."""
    index = frame[frame.attrs["_index"]]
    values = index if hasattr(index, "dtype") else index["values"]  # strings that may be missing
    return np.asarray(values[:], dtype=object)
