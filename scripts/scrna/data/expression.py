"""Read the expression of a few genes: of single cells, and by group as in dot plots.

The matrix is read once for all genes, in blocks of cells. Only the values of these genes stay in
memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scrna.data import step_files
from scrna.data.block import in_order, row_ranges
from scrna.data.counts import Counts, kept
from scrna.data.csr_writer import CHUNK
from scrna.data.genes import find_genes
from scrna.errors import UserError
from scrna.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

#: Non-zeros of a block: less than 100 MB a thread, whatever the size of the matrix.
_BLOCK_NNZ = 2**22
_THREADS = 2


class Part(NamedTuple):
    """Values of some genes in consecutive cells, those that are not 0."""

    cells: np.ndarray
    """The place of each value's cell among the kept cells, ascending; int64."""
    genes: np.ndarray
    """The place of its gene among those asked for; int16."""
    values: np.ndarray
    """log1p of counts divided by the size factor, float32: the same bits as in ``final``'s X."""


class GroupSums:
    """Mean and fraction of genes in groups of cells, a `Part` after another.

    Parameters
    ----------
    groups
        The group of each kept cell; cells without one are left out.
    n_genes
        How many genes.
    """

    def __init__(self, groups: "pd.Categorical", n_genes: int):
        self._codes = np.asarray(groups.codes)
        self._shape = len(groups.categories), n_genes
        self._sizes = np.bincount(self._codes[self._codes >= 0], minlength=self._shape[0])
        self._sums = np.zeros(self._shape)
        self._counts = np.zeros(self._shape)

    def add(self, part: Part) -> None:
        """Count the values of a part."""
        codes = self._codes[part.cells].astype(np.int64)
        known = codes >= 0
        places = codes[known] * self._shape[1] + part.genes[known]
        n = self._shape[0] * self._shape[1]
        sums = np.bincount(places, weights=part.values[known], minlength=n)
        self._sums += sums.reshape(self._shape)
        self._counts += np.bincount(places, minlength=n).reshape(self._shape)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and fraction, float64 (groups × genes); NaN for a group without cells."""
        with np.errstate(invalid="ignore"):
            return self._sums / self._sizes[:, None], self._counts / self._sizes[:, None]


def of_cells(
    counts: Path, filtered: Path, normalized: Path, genes: Sequence[str], cells: np.ndarray
) -> np.ndarray:
    """Read the log-normalised expression of genes in some of the kept cells.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    genes
        Names as `places_of` takes them.
    cells
        Places among the kept cells, ascending, each once.

    Returns
    -------
    float32 (cells × genes), as in the X of ``final``.

    Raises
    ------
    UserError
        If a gene is not there, as `places_of` says.
    """
    distinct, again = _distinct(counts, filtered, genes)
    cells = np.asarray(cells)
    found = np.zeros((len(cells), len(distinct)), np.float32)
    for part in parts(counts, filtered, normalized, distinct, cells):
        found[np.searchsorted(cells, part.cells), part.genes] = part.values
    return found[:, again]


def by_group(
    counts: Path,
    filtered: Path,
    normalized: Path,
    genes: Sequence[str],
    groups: "pd.Categorical",
) -> tuple[np.ndarray, np.ndarray]:
    """Average the expression of genes over groups of cells: what a dot plot shows.

    Parameters
    ----------
    counts, filtered, normalized, genes
        As in `of_cells`.
    groups
        The group of each kept cell; cells without one are left out.

    Returns
    -------
    mean, fraction
        float64 (groups × genes): the mean of the log-normalised values, and the fraction of the
        cells that have the gene, which are colour and size in scanpy's `dotplot`; NaN for a group
        without cells.

    Raises
    ------
    UserError
        If a gene is not there, as `places_of` says.
    """
    distinct, again = _distinct(counts, filtered, genes)
    sums = GroupSums(groups, len(distinct))
    for part in parts(counts, filtered, normalized, distinct):
        sums.add(part)
    mean, fraction = sums.result()
    return mean[:, again], fraction[:, again]


def parts(
    counts: Path,
    filtered: Path,
    normalized: Path,
    places: np.ndarray,
    cells: np.ndarray | None = None,
) -> Iterator[Part]:
    """Read the values of genes, a block of cells after another, in the cells' order.

    Parameters
    ----------
    counts, filtered, normalized
        As in `of_cells`.
    places
        Places of the genes in the store, each once, from `places_of`.
    cells
        Places among the kept cells, ascending, each once; None takes all.

    Yields
    ------
    A `Part` for each block that holds cells asked for.
    """
    store = Counts(counts)
    mask, _ = kept(filtered)
    rows = np.flatnonzero(mask)
    number = np.cumsum(mask) - 1  # of the kept cells, for each cell
    if cells is not None:
        rows = rows[cells]
        mask = np.zeros_like(mask)
        mask[rows] = True
    factor = step_files.read(normalized, "obs/size_factor").astype(np.float32)
    column = np.full(store.shape[1], -1, np.int16)
    column[places] = np.arange(len(places))

    def read(span: tuple[int, int]) -> Part:
        block = store.read(*span, "cpu")
        genes = column[block.indices]
        own = np.flatnonzero(genes >= 0)
        row = np.searchsorted(block.indptr, own, side="right") - 1
        wanted = mask[span[0] + row]
        own, row = own[wanted], number[span[0] + row[wanted]]
        values = block.data[own].astype(np.float32) / factor[row]  # as `log_normalize` does
        return Part(row, genes[own], np.log1p(values))

    spans = list(_spans(store.indptr, rows))
    with Progress("expression", total=sum(stop - start for start, stop in spans)) as progress:
        for span, part in zip(spans, in_order(read, spans, _THREADS), strict=True):
            progress.update(span[1] - span[0])
            yield part


def places_of(
    counts: Path, filtered: Path, genes: Sequence[str], *, key: str = "figures.genes"
) -> np.ndarray:
    """Find genes by their symbols, as ``final`` has them in its var_names, or by their ids.

    Parameters
    ----------
    counts, filtered
        ``counts.zarr`` and the step file of ``filter``.
    genes
        Symbols, or the ids of var's ``gene_ids``; a symbol goes first.
    key
        The config key that names them, for messages.

    Returns
    -------
    The place of each in the store, int64.

    Raises
    ------
    UserError
        If a gene is not there, with those of like names, or if the filter took it.
    """
    store = Counts(counts)
    stays = kept(filtered)[1]
    found = find_genes(genes, store.genes(), store.gene_ids, key=key)
    for gene, place in zip(genes, found, strict=True):
        if not stays[place]:
            msg = (
                f"{key}: {gene} is in too few cells and was taken out by the filter. Lower "
                f"filter.min_cells, or take {gene} out of the list"
            )
            raise UserError(msg)
    return np.array(found, dtype=np.int64)


def names_of(counts: Path, places: np.ndarray) -> list[str]:
    """Return the symbols of genes, given their positions in the store."""
    return Counts(counts).genes()[places].tolist()


def _distinct(counts: Path, filtered: Path, genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Find genes once each, and where each of the list is among them."""
    return np.unique(places_of(counts, filtered, genes), return_inverse=True)


def _spans(indptr: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rows, ascending, into ranges to read: what lies a chunk apart is left out."""
    if len(rows) == 0:
        return
    gaps = indptr[rows[1:]] - indptr[rows[:-1] + 1]
    for run in np.split(rows, np.flatnonzero(gaps > CHUNK) + 1):
        first, last = int(run[0]), int(run[-1]) + 1
        for start, stop in row_ranges(indptr[first : last + 1], _BLOCK_NNZ):
            yield first + start, first + stop
