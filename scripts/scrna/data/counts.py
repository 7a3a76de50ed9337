"""Open the count matrix: row blocks, masks and size factors applied on the way into memory.

``counts.zarr`` is written once (`convert`) and read by every step that needs counts. A filter is
a pair of masks and normalisation a factor a cell, so a step reads what it needs, where it needs it
(CPU or GPU), and the matrix is never written again.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from scrna.backend import arrays, csr_matrix
from scrna.damage import DamagedError, read_summary, reading, whole_summary
from scrna.data import step_files
from scrna.data.block import Block, cut, in_order, joined, log_normalize, row_ranges
from scrna.data.codecs import fast_codecs
from scrna.data.integrity import (
    ShardedArray,
    check_content,
    check_sizes,
    check_there,
    files_of,
    reading_elements,
)
from scrna.errors import UserError
from scrna.resources.estimates import BLOCK_NNZ, GPU_MAX_NNZ


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
        """The contents of ``counts.json``: sizes, source, columns, warnings."""
        return read_summary(self.path.with_suffix(".json"))

    def genes(self) -> np.ndarray:
        """Gene symbols, unique; object array (n_vars,)."""
        return self._index("var")

    def gene_ids(self) -> list[str]:
        """Gene ids, as var ``gene_ids`` has them; none where it is missing."""
        if "gene_ids" not in self._group["var"]:
            return []
        return [str(name) for name in np.asarray(_obs_column(self._group["var/gene_ids"]))]

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

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs."""
        with reading_elements(self.path, self._group, ["obs"]):
            return list(self._group["obs"].attrs["column-order"])

    def obs(self, columns: list[str]):
        """Read columns of obs as a DataFrame (n_obs rows), categories as such."""
        import pandas as pd

        elements = {name: f"obs/{name}" for name in columns}
        with reading_elements(self.path, self._group, elements.values()):
            return pd.DataFrame(
                {name: _obs_column(self._group[key]) for name, key in elements.items()}
            )

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
                f"{self.path} has {nnz:,} non-zeros in the kept cells and genes, more than a "
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


def kept(filtered: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the masks of the cells and genes that the filter keeps."""
    return step_files.read(filtered, "obs/keep"), step_files.read(filtered, "var/keep")


def _to_cpu(array, span: slice) -> np.ndarray:
    return array[span]


def _to_gpu(array, span: slice):
    """Decompress into pinned memory and move it from there, several times as fast as otherwise."""
    import cupy
    from cupyx import empty_pinned
    from zarr.buffer.cpu import NDBuffer

    n = span.stop - span.start
    # of one size, so that CuPy's pool gives the same memory again
    pinned = empty_pinned(max(n, min(BLOCK_NNZ, array.shape[0])), array.dtype)[:n]
    array.get_basic_selection(span, out=NDBuffer.from_numpy_array(pinned))
    values = cupy.empty(n, array.dtype)
    values.set(pinned)
    # moving goes on after `set` returns, and another block may be given the pinned memory by then
    cupy.cuda.get_current_stream().synchronize()
    return values


def _obs_column(element):
    """Read a column of a DataFrame in the store: categories without importing anndata."""
    if element.attrs["encoding-type"] == "categorical":
        return step_files.read_categories(element)
    from anndata.io import read_elem

    return read_elem(element)


def sizes_of(folder: Path) -> dict[str, Any] | None:
    """Read the sizes of a dataset from its results.

    Parameters
    ----------
    folder
        Where ``counts.json`` lies, and ``filter.h5`` once it is known which cells stay.

    Returns
    -------
    n_obs, n_vars and nnz, and at_most: whether they are bounds, the filter not being known. None
    where the counts are not converted, or are to be converted again.
    """
    summary, filtered = folder / "counts.json", folder / "filter.h5"
    if (facts := whole_summary(summary)) is None:
        return None
    if filtered.exists() and filtered.stat().st_mtime >= summary.stat().st_mtime:
        from scrna.data import step_files

        with suppress(DamagedError):  # the first step that reads it says so
            genes = step_files.read(filtered, "var/keep")
            return {
                "n_obs": int(step_files.read(filtered, "obs/keep").sum()),
                "n_vars": int(genes.sum()),
                "nnz": int(step_files.read(filtered, "var/n_cells_kept")[genes].sum()),
                "at_most": False,
            }
    return {key: facts[key] for key in ("n_obs", "n_vars", "nnz")} | {"at_most": True}
