"""10x mtx folders: matrix.mtx, features.tsv or genes.tsv, barcodes.tsv, gzipped or not."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scrna.errors import UserError
from scrna.ingest.formats.base import BLOCK_NNZ, Block, Source, intact
from scrna.ingest.formats.tenx import gene_mask
from scrna.ingest.formats.text import BoundedText
from scrna.ingest.obs_table import CellTable, Text
from scrna.log import log

if TYPE_CHECKING:
    import pandas as pd

_PARTS = {
    "matrix": ("matrix.mtx", "matrix.mtx.gz"),
    "features": ("features.tsv", "features.tsv.gz", "genes.tsv", "genes.tsv.gz"),
    "barcodes": ("barcodes.tsv", "barcodes.tsv.gz"),
}
_Entries = tuple[np.ndarray, np.ndarray, np.ndarray]  # gene, cell, value
_FIELDS = (["integer"], ["real"])
_HEADER_BYTES = 2**20
_ENTRY_TEXT = 100  # bytes of the text of one entry, at most
_NAMES_BYTES = 2**28  # of the text of a table of names: 14 million barcodes
_NAMES = {"features": 5_000_000, "barcodes": 2**24}  # lines
_ENTRY_BYTES = 40  # of one entry while a matrix is sorted in memory


class MtxSource(Source):
    """A feature-barcode matrix as Matrix Market text, genes × cells.

    Cell Ranger writes it cell by cell, and so it is streamed. One in another order is sorted in
    memory if it fits.

    Parameters
    ----------
    files
        The folder's files. Names may have something before them, as GEO's have.
    memory
        Bytes that may be held for a matrix that is not sorted by cell.
    """

    kind = "10x_mtx"

    def __init__(self, files: list[Path], *, memory: int):
        folder = files[0].parent
        self._parts = {part: _only(files, part, names, folder) for part, names in _PARTS.items()}
        self.files = list(self._parts.values())
        self._memory = memory
        _check_links(self.files, folder)
        with intact(f"a table of {folder}"):
            features, barcodes = (_read_table(self._parts[part], n) for part, n in _NAMES.items())
        self._barcodes = barcodes[0]
        columns = {1: "gene_symbols", 2: "feature_types"}
        self._var = features.set_axis(features[0].array)[[c for c in columns if c in features]]
        self._var = self._var.rename(columns=columns)
        types = self._var.get("feature_types")
        self._is_gene, self.notes = gene_mask(types, len(self._var), folder.name)

    def matrices(self) -> list[str]:
        """Name the one matrix ``X``."""
        return ["X"]

    def cells(self) -> CellTable:
        """Open the table of cells: barcodes and nothing else."""
        return CellTable({}, Text.of(self._barcodes))

    def var(self, matrix: str) -> "pd.DataFrame":
        """Read the table of genes: ids; ``gene_symbols``, ``feature_types``."""
        return self._var[self._is_gene]

    def blocks(self, matrix: str, cells: np.ndarray) -> Iterator[Block]:
        """Read the matrix in blocks of cells, genes alone."""
        path = self._parts["matrix"]
        n_vars = len(self._var)
        text = BoundedText(path, max_bytes=_HEADER_BYTES, max_lines=_HEADER_BYTES)
        with intact(str(path)), text as stream:
            nnz = self._check_header(stream)
            stream.max_bytes = stream.max_lines = _HEADER_BYTES + nnz * _ENTRY_TEXT
            entries = _entries(stream, path, nnz, (n_vars, self.n_obs))
            for start, stop, (genes, numbers, values) in self._by_cell(entries, nnz):
                wanted = cells[start:stop]
                if not wanted.any():
                    continue
                indptr = np.searchsorted(numbers, np.arange(start, stop + 1))
                block = sparse.csr_matrix((values, genes, indptr), shape=(stop - start, n_vars))
                block = block if self._is_gene.all() else block[:, self._is_gene]
                yield Block(
                    start + np.flatnonzero(wanted), block if wanted.all() else block[wanted]
                )

    def _check_header(self, stream: BoundedText) -> int:
        """Read up to the sizes, check them against the tables, and return the number of entries."""
        path = self._parts["matrix"]
        kind = stream.readline().decode(errors="replace").lower().split()
        if kind[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
            msg = f"{path} is no sparse Matrix Market file: it starts with {' '.join(kind)[:60]!r}"
            raise UserError(msg)
        if kind[3:4] not in _FIELDS or kind[4:] != ["general"]:
            found = " ".join(kind[3:])[:60] or "unnamed"
            msg = (
                f"{path} holds {found} entries, not counts; its first line should be "
                "'%%MatrixMarket matrix coordinate integer general'"
            )
            raise UserError(msg)
        while (line := stream.readline()).startswith(b"%"):
            pass
        sizes = [int(word) for word in line.split() if word.isdigit() and len(word) < 16]
        expected = [len(self._var), self.n_obs]
        if len(sizes) != 3 or sizes[:2] != expected:
            said = line.decode(errors="replace").strip()[:60]
            msg = (
                f"{path} says that its size is {said!r}, but "
                f"{self._parts['features'].name} has {expected[0]:,} features and "
                f"{self._parts['barcodes'].name} has {expected[1]:,} barcodes"
            )
            if sizes[:2] == expected[::-1]:
                msg += ": it is transposed, cells × genes; 10x's are genes × cells"
            raise UserError(msg)
        return sizes[2]

    def _by_cell(self, entries: Iterator[_Entries], nnz: int) -> Iterator[tuple]:
        """Cut entries between cells: from which cell to which, and their entries."""
        first = next(entries, None)
        if first is None:
            first = tuple(np.empty(0, np.int64) for _ in range(3))
        chunks = itertools.chain([first], entries)
        if not _is_sorted(first[1]):
            chunks = self._sorted(chunks, nnz)
        done, rest = 0, tuple(part[:0] for part in first)
        for chunk in chunks:
            chunk = tuple(np.concatenate(pair) for pair in zip(rest, chunk, strict=True))
            cells = chunk[1]
            if not _is_sorted(cells):
                msg = (
                    f"{self._parts['matrix']} is sorted by cell at first and not further down: "
                    "convert it to .h5ad (scanpy.read_10x_mtx) and use that"
                )
                raise UserError(msg)
            last = int(cells[-1]) if len(cells) else 0  # more of this one may come
            n = np.searchsorted(cells, last)
            if last > done:
                yield done, last, tuple(part[:n] for part in chunk)
            done, rest = last, tuple(part[n:] for part in chunk)
        yield done, self.n_obs, rest

    def _sorted(self, chunks: Iterator[_Entries], nnz: int) -> Iterator[_Entries]:
        """Sort all entries by cell, in memory."""
        path, needed = self._parts["matrix"], nnz * _ENTRY_BYTES
        if needed > self._memory:
            msg = (
                f"{path} is not sorted by cell; to sort its {nnz:,} entries would take "
                f"{needed / 1e9:,.1f} GB, more than the {self._memory / 1e9:,.1f} GB allowed: "
                "convert it to .h5ad (scanpy.read_10x_mtx) and use that"
            )
            raise UserError(msg)
        log.info("%s is not sorted by cell: its %s entries are sorted in memory", path, f"{nnz:,}")
        parts = [np.concatenate(part) for part in zip(*chunks, strict=True)]
        order = np.argsort(parts[1], kind="stable")
        for start in range(0, nnz, BLOCK_NNZ):
            here = order[start : start + BLOCK_NNZ]
            yield tuple(part[here] for part in parts)


def _entries(
    stream: BoundedText, path: Path, nnz: int, shape: tuple[int, int]
) -> Iterator[_Entries]:
    """Read the entries, in pieces: genes and cells from 0, values."""
    import pandas as pd

    found = 0
    if nnz:
        try:
            table = pd.read_csv(
                stream, sep=r"\s+", header=None, index_col=False, names=["gene", "cell", "value"],
                chunksize=BLOCK_NNZ, dtype={"gene": np.int32, "cell": np.int32},
            )  # fmt: skip
            for piece in table:
                found += len(piece)
                if found > nnz:
                    break
                genes, cells = piece["gene"].to_numpy() - 1, piece["cell"].to_numpy() - 1
                _check_range(path, genes, shape[0], "feature")
                _check_range(path, cells, shape[1], "barcode")
                yield genes, cells, piece["value"].to_numpy(np.float64)
        except UserError:
            raise
        except ValueError as error:
            msg = f"{path} has a line that is not three numbers after {found:,} entries: {error}"
            raise UserError(msg) from error
    if found != nnz:
        there = "more" if found > nnz else f"{found:,}"
        msg = f"{path} has {there} entries where it announces {nnz:,}: it is cut off or damaged"
        raise UserError(msg)


def _check_range(path: Path, numbers: np.ndarray, n: int, what: str) -> None:
    if not 0 <= numbers.min() <= numbers.max() < n:
        wrong = numbers[(numbers < 0) | (numbers >= n)][0] + 1
        msg = f"{path} has an entry for {what} {wrong:,}, but there are {n:,}: it is damaged"
        raise UserError(msg)


def _is_sorted(numbers: np.ndarray) -> bool:
    return bool(np.all(numbers[1:] >= numbers[:-1]))


def _only(files: list[Path], part: str, names: tuple[str, ...], folder: Path) -> Path:
    """Find the one file of a part."""
    found = [file for file in files if file.name.endswith(names)]
    if len(found) == 1:
        return found[0]
    problem = f"several {part} files" if found else f"no {part} file ({' or '.join(names)})"
    listed = ", ".join(sorted(file.name for file in (found or files))[:10])
    msg = f"{folder} has {problem}; it holds {listed}. Name the folder with one mtx matrix"
    raise UserError(msg)


def _check_links(files: list[Path], folder: Path) -> None:
    """Refuse links that lead out of the folder: it may come from somebody else."""
    inside = folder.resolve()
    for file in files:
        target = file.resolve()
        if not target.is_relative_to(inside):
            msg = (
                f"{file} is a link that leads out of its folder, to {target}: name the folder with "
                "the files themselves, or copy them (cp -rL)"
            )
            raise UserError(msg)


def _read_table(path: Path, max_lines: int) -> "pd.DataFrame":
    """Read a table of strings without a header; quotes and NA are names like others."""
    import pandas as pd

    try:
        with BoundedText(path, max_bytes=_NAMES_BYTES, max_lines=max_lines) as stream:
            return pd.read_csv(
                stream,
                sep="\t",
                header=None,
                dtype=str,
                quoting=csv.QUOTE_NONE,
                keep_default_na=False,
            )
    except UserError:
        raise
    except ValueError as error:
        msg = f"{path} is no table of names: {error}"
        raise UserError(msg) from error
