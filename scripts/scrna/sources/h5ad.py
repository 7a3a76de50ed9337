"""AnnData files (``.h5ad``) of any age."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from scrna.errors import UserError
from scrna.sources.base import Block, NotMatrix, Source, intact
from scrna.sources.hdf5 import (
    Column,
    checked_indptr,
    csc_blocks,
    csr_blocks,
    dense_blocks,
    open_hdf5,
    thread_pool,
)

if TYPE_CHECKING:
    import pandas as pd


class H5adSource(Source):
    """An AnnData file.

    Matrices are read here, by blocks, since AnnData reads CSC and dense ones whole; the tables of
    cells and genes by AnnData. Encodings since AnnData 0.5 are understood: before 0.7, tables were
    compound datasets, sparse matrices had other attributes, and `.raw` lay beside X.

    Parameters
    ----------
    path
        The file.
    memory
        Bytes that may be held for a CSC or dense matrix.
    """

    kind = "h5ad"

    def __init__(self, path: Path, *, memory: int):
        self.files = [path]
        self.notes = []
        self._memory = memory
        self._stack = ExitStack()
        self._file = self._stack.enter_context(open_hdf5(path))
        self._threads = self._stack.enter_context(thread_pool())
        missing = [name for name in ("obs", "var") if name not in self._file]
        if missing:
            msg = f"{path.name} is no AnnData file: it has no {' and no '.join(missing)}"
            raise UserError(msg)
        self._is_old = isinstance(self._file["obs"], h5py.Dataset)
        self._tables: dict[str, pd.DataFrame] = {}

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    @property
    def n_obs(self) -> int:
        """Cells in the file."""
        return len(self.obs())

    def matrices(self) -> list[str]:
        """Name X, raw.X and the layers, as far as the file has them."""
        found = ["X"] if "X" in self._file else []
        found += ["raw.X"] if "raw.X" in self._file or "raw/X" in self._file else []
        return found + [f"layers/{name}" for name in self._file.get("layers", ())]

    def obs(self) -> "pd.DataFrame":
        """Read the table of cells."""
        return self._table("obs")

    def var(self, matrix: str) -> "pd.DataFrame":
        """Read the table of genes; that of ``raw.X`` is its own."""
        try:
            return self._table("raw/var" if matrix == "raw.X" else "var")
        except KeyError as error:
            msg = "its table of genes, raw/var, is missing"
            raise NotMatrix(msg) from error

    def blocks(self, matrix: str, cells: np.ndarray) -> Iterator[Block]:
        """Read a matrix in blocks of cells."""
        with intact(f"{matrix} of {self.name}"):
            yield from self._blocks(matrix, cells)

    def _blocks(self, matrix: str, cells: np.ndarray) -> Iterator[Block]:
        element = self._element(matrix)
        format_, shape = _layout(element)
        expected = (self.n_obs, len(self.var(matrix)))
        if shape != expected:
            msg = "its size is {}, not {:,} cells × {:,} genes".format(
                " × ".join(f"{n:,}" for n in shape), *expected
            )
            raise NotMatrix(msg)
        if format_ == "dense":
            yield from dense_blocks(element, cells, memory=self._memory)
            return
        data, indices = (Column(element[name], self._threads) for name in ("data", "indices"))
        nnz = min(len(data), len(indices))
        if format_ == "csr":
            indptr = checked_indptr(element["indptr"], shape[0], nnz)
            yield from csr_blocks(data, indices, indptr, shape[1], cells)
        else:
            indptr = checked_indptr(element["indptr"], shape[1], nnz)
            yield from csc_blocks(data, indices, indptr, shape, cells, memory=self._memory)

    def _element(self, matrix: str) -> h5py.Group | h5py.Dataset:
        if matrix == "raw.X" and "raw.X" not in self._file:
            return self._file["raw/X"]
        return self._file[matrix]

    def _table(self, name: str) -> "pd.DataFrame":
        if not self._tables:
            with intact(f"obs or var of {self.name}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old encodings; they are read all the same
                self._tables = self._old_tables() if self._is_old else self._new_tables()
        return self._tables[name]

    def _new_tables(self) -> dict[str, "pd.DataFrame"]:
        from anndata.io import read_elem

        names = [name for name in ("obs", "var", "raw/var") if name in self._file]
        return {name: read_elem(self._file[name]) for name in names}

    def _old_tables(self) -> dict[str, "pd.DataFrame"]:
        """Let AnnData put the categories, which lie in uns, back into the tables."""
        import anndata as ad

        adata = ad.read_h5ad(self.files[0], backed="r")
        try:
            tables = {"obs": adata.obs.copy(), "var": adata.var.copy()}
            return tables | ({"raw/var": adata.raw.var.copy()} if adata.raw is not None else {})
        finally:
            adata.file.close()


def _layout(element: h5py.Group | h5py.Dataset) -> tuple[str, tuple[int, ...]]:
    """Tell ``csr``, ``csc`` or ``dense``, and the shape."""
    if isinstance(element, h5py.Dataset):
        if len(element.shape or ()) != 2:
            msg = "there is no matrix"
            raise NotMatrix(msg)
        return "dense", element.shape
    encoding = element.attrs.get("h5sparse_format", element.attrs.get("encoding-type", "nothing"))
    encoding = encoding.decode() if isinstance(encoding, bytes) else encoding
    format_ = encoding.removesuffix("_matrix")
    if format_ not in {"csr", "csc"}:
        msg = f"it is encoded as {encoding!r}, not as a sparse or dense matrix"
        raise NotMatrix(msg)
    shape = element.attrs.get("h5sparse_shape", element.attrs.get("shape"))
    return format_, tuple(int(n) for n in shape)
