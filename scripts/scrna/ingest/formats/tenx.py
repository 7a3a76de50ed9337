"""10x Genomics ``.h5`` files, of Cell Ranger 3 and later and of Cell Ranger 2."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from scrna.errors import UserError
from scrna.ingest.formats.base import Block, Source, intact
from scrna.ingest.formats.hdf5 import Column, checked_indptr, csr_blocks, open_hdf5
from scrna.ingest.formats.hdf5_checks import check_sizes
from scrna.ingest.obs_table import CellTable, Text

if TYPE_CHECKING:
    import pandas as pd

GENES = "Gene Expression"


class TenxSource(Source):
    """A feature-barcode matrix of Cell Ranger: genes × cells by columns, which is CSR of cells.

    Parameters
    ----------
    path
        The file.
    """

    kind = "10x_h5"

    def __init__(self, path: Path):
        self.files = [path]
        self._stack = ExitStack()
        self._file = self._stack.enter_context(open_hdf5(path))
        with intact(str(path)):
            check_sizes(self._file)
        self._group = _matrix_group(self._file, path.name)
        with intact(path.name):
            self._var = self._read_var()
            self._barcodes = self._group["barcodes"]
            shape = tuple(int(n) for n in self._group["shape"])
        if shape != (len(self._var), len(self._barcodes)):
            msg = (
                f"{path.name} is damaged: its matrix is {shape[0]:,} × {shape[1]:,}, with "
                f"{len(self._var):,} features and {len(self._barcodes):,} barcodes"
            )
            raise UserError(msg)
        types = self._var.get("feature_types")
        self._is_gene, self.notes = gene_mask(types, len(self._var), path.name)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def matrices(self) -> list[str]:
        """Name the one matrix ``X``."""
        return ["X"]

    def cells(self) -> CellTable:
        """Open the table of cells: barcodes and nothing else."""

        def read(start: int, stop: int) -> np.ndarray:
            with intact(f"the barcodes of {self.name}"):
                return np.array([name.decode() for name in self._barcodes[start:stop]], object)

        return CellTable({}, Text(read, len(self._barcodes)))

    def var(self, matrix: str) -> "pd.DataFrame":
        """Read the table of genes: ids; ``gene_symbols``, ``feature_types``, ``genome``."""
        return self._var[self._is_gene]

    def blocks(self, matrix: str, cells: np.ndarray) -> Iterator[Block]:
        """Read the matrix in blocks of cells, genes alone."""
        with intact(f"the matrix of {self.name}"):
            data = Column(self._group["data"])
            indices = Column(self._group["indices"])
            nnz = min(len(data), len(indices))
            indptr = checked_indptr(self._group["indptr"], self.n_obs, nnz)
            genes = None if self._is_gene.all() else self._is_gene
            yield from csr_blocks(data, indices, indptr, len(self._var), cells, genes=genes)

    def _read_var(self) -> "pd.DataFrame":
        import pandas as pd

        features = self._group.get("features")
        if features is None:  # Cell Ranger 2
            names = {"id": self._group["genes"], "name": self._group["gene_names"]}
        else:
            names = features
        columns = {"name": "gene_symbols", "feature_type": "feature_types", "genome": "genome"}
        table = {new: _strings(names[old]) for old, new in columns.items() if old in names}
        return pd.DataFrame(table, index=pd.Index(_strings(names["id"]), dtype="str"), dtype="str")


def gene_mask(types: "pd.Series | None", n: int, name: str) -> tuple[np.ndarray, list[str]]:
    """Tell the genes from the other features, and say what is left out.

    Parameters
    ----------
    types
        The feature types; None where the file has none, and all are genes.
    n
        Number of features.
    name
        The source's name, for messages.

    Returns
    -------
    The mask of the genes, (n,), and notes.
    """
    if types is None:
        return np.ones(n, bool), []
    is_gene = (types == GENES).to_numpy(bool)
    others = Counter(types[~is_gene])
    said = ", ".join(f"{number:,} of type {kind}" for kind, number in others.most_common())
    if not is_gene.any():
        msg = f"{name} has no features of type {GENES}: it has {said or 'none at all'}"
        raise UserError(msg)
    notes = [f"{is_gene.sum():,} genes are used; other features are left out: {said}."]
    return is_gene, notes if others else []


def _matrix_group(file: h5py.File, name: str) -> h5py.Group:
    if "matrix" in file:
        return file["matrix"]
    genomes = [key for key, group in file.items() if isinstance(group, h5py.Group)]
    genomes = [key for key in genomes if "barcodes" in file[key] and "genes" in file[key]]
    if not genomes:
        msg = f"{name} is no 10x file: it has no group with barcodes and genes"
        raise UserError(msg)
    if len(genomes) > 1:
        msg = (
            f"{name} holds the genomes {', '.join(genomes)}, each in a matrix of its own: convert "
            "the one you want to .h5ad (scanpy.read_10x_h5(path, genome=...)) and use that"
        )
        raise UserError(msg)
    return file[genomes[0]]


def _strings(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() for value in dataset[:]]
