"""AnnData files (``.h5ad``) of any age."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scrna.errors import UserError
from scrna.ingest.formats.base import Block, NotMatrix, Source, intact
from scrna.ingest.formats.hdf5 import (
    Column,
    checked_indptr,
    csc_blocks,
    csr_blocks,
    dense_blocks,
    open_hdf5,
)
from scrna.ingest.formats.hdf5_checks import check_sizes
from scrna.ingest.obs_table import CellTable, Text


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
        with intact(str(path)):
            check_sizes(self._file)
        missing = [name for name in ("obs", "var") if name not in self._file]
        if missing:
            msg = f"{path.name} is no AnnData file: it has no {' and no '.join(missing)}"
            raise UserError(msg)
        self._is_old = isinstance(self._file["obs"], h5py.Dataset)
        self._tables: dict[str, pd.DataFrame] = {}
        self._cells: CellTable | None = None

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def matrices(self) -> list[str]:
        """Name X, raw.X and the layers, as far as the file has them."""
        found = ["X"] if "X" in self._file else []
        found += ["raw.X"] if "raw.X" in self._file or "raw/X" in self._file else []
        return found + [f"layers/{name}" for name in self._file.get("layers", ())]

    def cells(self) -> CellTable:
        """Open the table of cells, which is read a column at a time."""
        if self._cells is None:
            with intact(f"obs of {self.name}"):
                obs = self._file["obs"]
                if not self._is_old and _text(obs.attrs.get("encoding-version")) == "0.2.0":
                    self._cells = _cell_table(obs, f"obs of {self.name}")
                else:
                    self._cells = CellTable.of(self._table("obs"))
        return self._cells

    def var(self, matrix: str) -> pd.DataFrame:
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
        data, indices = (Column(element[name]) for name in ("data", "indices"))
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

    def _table(self, name: str) -> pd.DataFrame:
        if not self._tables:
            with intact(f"obs or var of {self.name}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old encodings; they are read all the same
                self._tables = self._old_tables() if self._is_old else self._new_tables()
        return self._tables[name]

    def _new_tables(self) -> dict[str, pd.DataFrame]:
        from anndata.io import read_elem

        names = [name for name in ("var", "raw/var") if name in self._file]
        if _text(self._file["obs"].attrs.get("encoding-version")) != "0.2.0":
            names.append("obs")
        return {name: read_elem(self._file[name]) for name in names}

    def _old_tables(self) -> dict[str, pd.DataFrame]:
        """Let AnnData put the categories, which lie in uns, back into the tables."""
        import anndata as ad

        adata = ad.read_h5ad(self.files[0], backed="r")
        try:
            tables = {"obs": adata.obs.copy(), "var": adata.var.copy()}
            return tables | ({"raw/var": adata.raw.var.copy()} if adata.raw is not None else {})
        finally:
            adata.file.close()


def _cell_table(obs: h5py.Group, where: str) -> CellTable:
    """Open a table whose columns are each encoded by themselves, as AnnData does since 0.7."""
    from anndata.io import read_elem

    index = obs[_text(obs.attrs["_index"])]
    names = _strings(index)
    if names is None:  # numbers
        names = Text.of(pd.Index(read_elem(index)))
    columns = {str(name): obs[_text(name)] for name in obs.attrs["column-order"]}

    def reader(column: h5py.Group | h5py.Dataset) -> Callable[[], Any]:
        def read():
            with intact(where), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old encodings; they are read all the same
                strings = _strings(column)
                return read_elem(column) if strings is None else strings

        return read

    return CellTable({name: reader(column) for name, column in columns.items()}, names)


def _strings(column: h5py.Group | h5py.Dataset) -> Text | None:
    """Open a column of strings; None if it is of another kind."""
    encoding = _text(column.attrs.get("encoding-type"))
    if encoding not in {"string-array", "nullable-string-array"}:
        return None
    values, mask = column, None
    if encoding == "nullable-string-array":
        values, mask = column["values"], column["mask"]
    strings = values.asstr()

    def read(start: int, stop: int) -> np.ndarray:
        with intact(values.name):
            found = strings[start:stop].astype(object, copy=False)
            if mask is not None:
                found[mask[start:stop]] = None
            return found

    return Text(read, len(values))


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _layout(element: h5py.Group | h5py.Dataset) -> tuple[str, tuple[int, ...]]:
    """Tell ``csr``, ``csc`` or ``dense``, and the shape."""
    if isinstance(element, h5py.Dataset):
        if len(element.shape or ()) != 2:
            msg = "there is no matrix"
            raise NotMatrix(msg)
        return "dense", element.shape
    encoding = element.attrs.get("h5sparse_format", element.attrs.get("encoding-type", "nothing"))
    format_ = _text(encoding).removesuffix("_matrix")
    if format_ not in {"csr", "csc"}:
        msg = f"it is encoded as {_text(encoding)!r}, not as a sparse or dense matrix"
        raise NotMatrix(msg)
    shape = element.attrs.get("h5sparse_shape", element.attrs.get("shape"))
    return format_, tuple(int(n) for n in shape)
