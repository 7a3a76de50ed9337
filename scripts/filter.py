"""Choose the cells and genes to keep, and record why others are removed.

Purpose
    Masks of cells and genes. The matrix is not cut; later steps apply the masks when they read it.

Method
    A cell is removed if it breaks a bound of section ``filter``; a gene if fewer than ``min_cells``
    of the kept cells have it.

Settings
    Section ``filter``.

Inputs
    ``counts.zarr``, qc.

Outputs
    A step file: obs ``keep``, ``filter_reason`` (all bounds that a cell breaks); var ``keep``,
    ``n_cells_kept``.

    ``filter.csv``: per bound the number of cells that break it, and that break only it.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scrna.atomic import replacing
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.data_checks import check_cells, check_kept_genes
from scrna.errors import UserError
from scrna.log import log
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
#: Threads that read, at most: more than the disk or the memory gives are of no use.
_READERS = 8


@step
def filter_cells(
    counts: Path,
    qc: Path,
    out: Path,
    table: Path,
    *,
    min_cells: int | None,
    missing_mt: str,
    fewest_cells: int,
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
        CSV: a row a bound, with how many cells broke it, and broke it alone.
    min_cells
        Genes in fewer of the cells that stay go; None keeps all.
    missing_mt
        ``refuse`` or ``skip`` max_pct_mt where there is no mitochondrial gene.
    fewest_cells
        Fewer cells left are refused.
    threads
        CPU threads that read.
    named
        Cells, genes, labels and batches that the config names: what the filter leaves of them is
        checked here and not hours later.
    **bounds
        The bounds of `BOUNDS`, inclusive; None is no bound.

    Raises
    ------
    UserError
        If too few cells or no genes are left, or max_pct_mt cannot be applied, or if what the
        config names was removed.
    """
    if bounds["max_pct_mt"] is not None and not step_files.read(qc, "var/mt").any():
        bounds["max_pct_mt"] = _without_mt(bounds["max_pct_mt"], missing_mt)
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    broken = {name: breaks(qc, name, bound) for name, bound in bounds.items()}
    keep, reason = reasons(broken, len(step_files.read(qc, "obs/total_counts")))
    rows = tally(broken, bounds)
    if (n_kept := int(keep.sum())) < fewest_cells:
        raise UserError(_too_few(n_kept, len(keep), fewest_cells, rows))
    store = Counts(counts)
    if named:
        _check_kept_cells(store, keep, named)
    n_cells = cells_per_gene(store, step_files.read(qc, "var/n_cells_by_counts"), keep, threads)
    keep_genes = n_cells >= (min_cells or 0)
    if not keep_genes.any():
        msg = f"no gene is in {min_cells} of the {n_kept:,} kept cells: lower filter.min_cells"
        raise UserError(msg)
    if named:
        check_kept_genes(named, store.genes(), store.gene_ids, n_cells, keep_genes)
    _write_table(table, rows, keep, keep_genes, min_cells)
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
    taken = "; ".join(in_words(row) for row in rows if row["cells"]) or "no cell breaks a bound"
    log.info("%s of %s cells kept; %s", f"{n_kept:,}", f"{len(keep):,}", taken)
    log.info(
        "%s of %s genes kept, found in at least %s cells",
        f"{keep_genes.sum():,}",
        f"{len(keep_genes):,}",
        min_cells or 0,
    )


def breaks(qc: Path, name: str, bound: float) -> np.ndarray:
    """Flag the cells that break a bound; bool (n_obs). An empty cell's percentages break none."""
    column, kind = BOUNDS[name]
    values = step_files.read(qc, f"obs/{column}")
    return values < bound if kind == "min" else values > bound


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


def tally(broken: dict[str, np.ndarray], bounds: dict[str, float]) -> list[dict]:
    """Count the cells that break each bound, and that break it alone."""
    how_many = sum((flags.astype(int) for flags in broken.values()), start=0)
    return [
        {
            "criterion": name,
            "bound": bounds[name],
            "cells": int(flags.sum()),
            "cells_by_this_alone": int((flags & (how_many == 1)).sum()),
        }
        for name, flags in broken.items()
    ]


def as_text(rows: list[dict]) -> str:
    """Lay the table out for a log or a message."""
    return "\n".join(
        f"  {row['criterion']:>13} {row['bound']:<8g} takes {row['cells']:>10,} cells, "
        f"{row['cells_by_this_alone']:,} by itself"
        for row in rows
    )


def in_words(row: dict) -> str:
    """Write how many cells a bound removed: ``57 over 5 % mt``."""
    kind, what = row["criterion"].split("_", 1)
    where = "under" if kind == "min" else "over"
    unit = what.replace("pct_", "% ")
    return f"{row['cells']:,} {where} {row['bound']:g} {unit}"


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


def _without_mt(bound: float, missing_mt: str) -> None:
    """Leave max_pct_mt out, or refuse to."""
    if missing_mt == "refuse":
        msg = (
            f"filter.max_pct_mt is {bound:g}, but qc found no mitochondrial gene. Set "
            "datasets.NAME.gene_symbols to the column with symbols or qc.mt to the genes; "
            "or set filter.max_pct_mt to null, or filter.missing_mt to skip"
        )
        raise UserError(msg)
    log.warning(
        "max_pct_mt is skipped: there is no mitochondrial gene (filter.missing_mt: %s)", missing_mt
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
        f"({fewest_cells}). Loosen the bounds that removed the most:\n{as_text(rows)}"
    )


def _write_table(
    path: Path, rows: list[dict], keep: np.ndarray, keep_genes: np.ndarray, min_cells: int | None
) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        fields = ["criterion", "bound", "cells", "cells_by_this_alone", "genes"]
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerow({"criterion": "all", "cells": len(keep), "genes": len(keep_genes)})
        writer.writerows(rows)
        gone = int((~keep_genes).sum())
        writer.writerow({"criterion": "min_cells", "bound": min_cells, "genes": gone})
        kept = {"criterion": "kept", "cells": int(keep.sum()), "genes": int(keep_genes.sum())}
        writer.writerow(kept)


if __name__ == "__main__":
    run(filter_cells, snakemake)
