"""Choose the cells and genes to keep, and record why others are removed.

Purpose
    Masks of cells and genes. The matrix is not cut; later steps apply the masks when they read it.

Method
    A cell is removed if it breaks a bound of section ``filter``; a gene if fewer than ``min_cells``
    of the kept cells have it. With ``mad`` there are bounds from the data too: so many MADs from
    the median of the cell's sample (`scrna.methods.outliers`). A cell has to pass both kinds, so
    the tighter bound counts. Bounds by MAD have the names of the fixed ones with ``_mad`` appended.

Settings
    Section ``filter``.

Inputs
    ``counts.zarr``, qc; doublets if they are removed.

Outputs
    A step file: obs ``keep``, ``filter_reason`` (all bounds that a cell breaks); var ``keep``,
    ``n_cells_kept``.

    ``filter.csv``: per bound the number of cells that break it, and that break only it; then the
    same per sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scrna.data import filter_csv, step_files
from scrna.data.counts import Counts
from scrna.data.data_checks import check_cells, check_kept_genes
from scrna.data.samples import Samples, samples_of
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.outliers import mad_bounds
from scrna.step import step
from scrna.workflow.rule import run

#: Bound → the qc column it looks at, and whether it is a least or a most.
BOUNDS = {
    "min_counts": ("total_counts", "min"),
    "max_counts": ("total_counts", "max"),
    "min_genes": ("n_genes_by_counts", "min"),
    "max_genes": ("n_genes_by_counts", "max"),
    "max_pct_mt": ("pct_counts_mt", "max"),
    "max_pct_ribo": ("pct_counts_ribo", "max"),
    "max_pct_hb": ("pct_counts_hb", "max"),
}
#: Column of qc that ``mad`` names → its lower and its upper bound, None where that side has none,
#: and whether it is compared as log1p.
MAD_BOUNDS = {
    "total_counts": ("min_counts_mad", "max_counts_mad", True),
    "n_genes_by_counts": ("min_genes_mad", "max_genes_mad", True),
    "pct_counts_mt": (None, "max_pct_mt_mad", False),
}
#: Cells left in a sample, and the share of them that a sample may lose, without a warning.
FEWEST_OF_SAMPLE = 50
MOST_LOST = 0.5
#: Samples that a message lists.
_MOST_LISTED = 10
#: Threads that read, at most: more than the disk or the memory gives are of no use.
_READERS = 8


@step
def filter_cells(
    counts: Path,
    qc: Path,
    out: Path,
    table: Path,
    doublets: Path | Sequence[Path] = (),
    *,
    min_cells: int | None,
    missing_mt: str,
    fewest_cells: int,
    mad: Mapping[str, float | None] | None = None,
    by: str | None = None,
    remove_doublets: bool = False,
    inclusive: bool = True,
    threads: int = 1,
    named: dict[str, Any] | None = None,
    **bounds: float | None,
) -> None:
    """Choose the cells and genes to keep.

    Parameters
    ----------
    counts, qc
        ``counts.zarr`` and the step file of ``qc``.
    out
        The step file: obs keep, filter_reason (n_obs); var keep, n_cells_kept (n_vars).
    table
        CSV: a row a bound, with how many cells broke it, and broke it alone; after them the same of
        each sample, where there are samples.
    doublets
        The step file of ``doublets`` where `remove_doublets`, else empty.
    min_cells
        Genes in fewer of the cells that stay go; None keeps all.
    missing_mt
        ``refuse`` or ``skip`` bounds on pct_counts_mt where there is no mitochondrial gene.
    fewest_cells
        Fewer cells left are refused.
    mad
        Column of qc (those of `MAD_BOUNDS`) → MADs from the median of a sample; None is no bound.
    by
        Column of obs with the sample of each cell; None takes all cells as one sample.
    remove_doublets
        Whether predicted doublets go.
    inclusive
        Whether a cell that lies on a bound is kept.
    threads
        CPU threads that read.
    named
        Cells, genes, labels and batches that the config names: what the filter leaves of them is
        checked here and not hours later.
    **bounds
        The bounds of `BOUNDS`; None is no bound.

    Raises
    ------
    UserError
        If too few cells or no genes are left, or max_pct_mt cannot be applied, or if what the
        config names was removed.
    """
    store = Counts(counts)
    samples = samples_of(store, by, "filter.by")
    broken, limits = breaking(qc, bounds, mad or {}, samples, missing_mt, inclusive)
    if remove_doublets:
        broken["doublet"] = step_files.read(doublets, "obs/predicted_doublet")
    keep, reason = reasons(broken, store.shape[0])
    rows = filter_csv.tally(broken, limits)
    if (n_kept := int(keep.sum())) < fewest_cells:
        raise UserError(_too_few(n_kept, len(keep), fewest_cells, rows))
    if by is not None:
        warn_of_samples(samples, keep, by)
    if named:
        _check_kept_cells(store, keep, named)
    n_cells = cells_per_gene(store, step_files.read(qc, "var/n_cells_by_counts"), keep, threads)
    keep_genes = n_cells >= (min_cells or 0)
    if not keep_genes.any():
        msg = f"no gene is in {min_cells} of the {n_kept:,} kept cells: lower filter.min_cells"
        raise UserError(msg)
    if named:
        check_kept_genes(named, store.genes(), store.gene_ids, n_cells, keep_genes)
    of_samples = [] if by is None else filter_csv.tally_samples(broken, limits, keep, samples)
    filter_csv.write(table, rows, keep, keep_genes, min_cells, of_samples)
    step_files.write(
        out,
        {
            "obs/keep": keep,
            "obs/filter_reason": reason,
            "var/keep": keep_genes,
            "var/n_cells_kept": n_cells,
        },
        table=lambda: table,
    )
    taken = "; ".join(filter_csv.in_words(row) for row in rows if row["cells"])
    taken = taken or "no cell breaks a bound"
    log.info("%s of %s cells kept; %s", f"{n_kept:,}", f"{len(keep):,}", taken)
    log.info(
        "%s of %s genes kept, found in at least %s cells",
        f"{keep_genes.sum():,}",
        f"{len(keep_genes):,}",
        min_cells or 0,
    )


def breaking(
    qc: Path,
    bounds: Mapping[str, float | None],
    mad: Mapping[str, float | None],
    samples: Samples,
    missing_mt: str,
    inclusive: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, float | np.ndarray]]:
    """Flag the cells that break each bound.

    Parameters
    ----------
    qc, bounds, mad, missing_mt, inclusive
        As in `filter_cells`.
    samples
        The sample of each cell.

    Returns
    -------
    broken
        Bound → flags of the cells that break it, bool (n_obs).
    limits
        Bound → its value; of a bound by MAD that of each sample.
    """
    fixed = {name: bound for name, bound in bounds.items() if bound is not None}
    by_mad = {column: n_mads for column, n_mads in mad.items() if n_mads is not None}
    if not step_files.read(qc, "var/mt").any():
        _without_mt("max_pct_mt", fixed.pop("max_pct_mt", None), missing_mt)
        _without_mt("mad.pct_counts_mt", by_mad.pop("pct_counts_mt", None), missing_mt)
    broken = {name: breaks(qc, name, bound, inclusive=inclusive) for name, bound in fixed.items()}
    limits: dict[str, float | np.ndarray] = dict(fixed)
    for column, n_mads in by_mad.items():
        for name, flags, of_samples in outliers(qc, column, n_mads, samples):
            broken[name], limits[name] = flags, of_samples
    return broken, limits


def breaks(qc: Path, name: str, bound: float, *, inclusive: bool = True) -> np.ndarray:
    """Flag the cells that break a bound; bool (n_obs). An empty cell's percentages break none."""
    column, kind = BOUNDS[name]
    values = step_files.read(qc, f"obs/{column}")
    inside = values > bound if kind == "min" else values < bound
    if inclusive:
        inside |= values == bound
    return ~(inside | np.isnan(values))


def reasons(broken: dict[str, np.ndarray], n_obs: int) -> tuple[np.ndarray, step_files.Categories]:
    """Find the cells to keep, and for the others all bounds that they break.

    Parameters
    ----------
    broken
        Bound → flags of the cells that break it.
    n_obs
        Cells there are.

    Returns
    -------
    keep
        bool (n_obs).
    reason
        Categories (n_obs): ``kept``, or the names of the bounds, joined by commas.
    """
    bits = np.zeros(n_obs, dtype=np.int16)
    for place, flags in enumerate(broken.values()):
        bits |= flags.astype(np.int16) << place
    found, codes = np.unique(bits, return_inverse=True)
    names = [
        ",".join(name for place, name in enumerate(broken) if value >> place & 1) or "kept"
        for value in found.tolist()
    ]
    return bits == 0, step_files.Categories(codes, names)


def outliers(
    qc: Path, column: str, n_mads: float, samples: Samples
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Find the cells that lie too many MADs from the median of their sample.

    Parameters
    ----------
    qc
        The step file of ``qc``.
    column
        One of `MAD_BOUNDS`.
    n_mads
        How many MADs are allowed.
    samples
        The sample of each cell.

    Yields
    ------
    The name of a bound, flags of the cells that break it, and the bound of each sample in the
    column's own unit; NaN where a sample has none, of which a warning tells.
    """
    lower, upper, is_log = MAD_BOUNDS[column]
    values = step_files.read(qc, f"obs/{column}").astype(float)
    values = np.log1p(values) if is_log else values
    low, high = mad_bounds(values, samples, n_mads)
    if (without := np.isnan(low)).any():
        log.warning(
            "filter.mad.%s sets no bound in %s: half of the cells or more have the same value, "
            "so that the MAD is zero",
            column,
            _listed([samples.names[place] for place in np.flatnonzero(without)]),
        )
    back = np.expm1 if is_log else np.array
    # held against each other as log1p, where the median of equal values is exactly that value
    if lower:
        yield lower, values < low[samples.codes], back(low)
    yield upper, values > high[samples.codes], back(high)


def warn_of_samples(samples: Samples, keep: np.ndarray, by: str) -> None:
    """Warn of samples of which little is left."""
    n_all, n_kept = samples.sizes(), samples.sizes(keep)
    said = [
        f"{name} ({left:,} of {n:,} stay)"
        for name, left, n in zip(samples.names, n_kept, n_all, strict=True)
    ]
    found = {
        "over half of the cells go": n_kept < (1 - MOST_LOST) * n_all,
        f"under {FEWEST_OF_SAMPLE} cells are left": n_kept < FEWEST_OF_SAMPLE,
    }
    for what, flags in found.items():
        if flags.any():
            log.warning(
                "%s in %s: look at the bounds of each sample in filter.csv",
                what,
                _listed([said[place] for place in np.flatnonzero(flags)], of=f"samples of {by}"),
            )


def _listed(names: list[str], of: str = "samples") -> str:
    """Name the first of several samples."""
    shown = ", ".join(names[:_MOST_LISTED])
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return f"{len(names):,} {of}: {shown}{more}"


def cells_per_gene(
    store: Counts, n_cells: np.ndarray, keep: np.ndarray, threads: int = 1
) -> np.ndarray:
    """Count for each gene the kept cells that have it, int64 (n_vars).

    From all cells' number less that of the removed, so that where few cells go little is read.
    """
    removed = np.zeros_like(n_cells)
    for block in store.blocks(rows=~keep, with_data=False, threads=min(threads, _READERS)):
        lengths = np.diff(block.indptr)
        gone = np.repeat(~keep[block.start : block.stop], lengths)
        removed += np.bincount(block.indices[gone], minlength=len(n_cells))
    return n_cells - removed


def _check_kept_cells(store: Counts, keep: np.ndarray, named: dict[str, Any]) -> None:
    """Refuse settings that the cells which stay do not allow."""

    def column(name: str):
        return store.obs([name])[name][keep]

    def names() -> Iterator[np.ndarray]:
        yield store.cell_names()[keep]

    check_cells(named, column, names, is_filtered=True)


def _without_mt(name: str, bound: float | None, missing_mt: str) -> None:
    """Leave a bound on mitochondrial counts out, or refuse to."""
    if bound is None:
        return
    if missing_mt == "refuse":
        msg = (
            f"filter.{name} is {bound:g}, but qc found no mitochondrial gene. Set "
            "datasets.NAME.gene_symbols to the column with symbols or qc.mt to the genes; "
            f"or set filter.{name} to null, or filter.missing_mt to skip"
        )
        raise UserError(msg)
    log.warning(
        "%s is skipped: there is no mitochondrial gene (filter.missing_mt: %s)", name, missing_mt
    )


def _too_few(n_kept: int, n_obs: int, fewest_cells: int, rows: list[dict]) -> str:
    """Describe that too few cells are left, and which bounds removed them."""
    if n_kept == n_obs:
        return (
            f"all {n_obs:,} cells pass the filter, but filter.fewest_cells is {fewest_cells}: "
            "lower filter.fewest_cells, or analyse more cells"
        )
    return (
        f"{n_kept:,} of {n_obs:,} cells pass the filter, fewer than filter.fewest_cells "
        f"({fewest_cells}). Loosen the bounds that removed the most:\n{filter_csv.as_text(rows)}"
    )


if __name__ == "__main__":
    run(filter_cells, snakemake)
