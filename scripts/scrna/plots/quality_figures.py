"""Figures of quality control: each function draws one, from tables of cells.

Axes are labelled, and the number of cells is in the title.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scrna.plots.colours import INK, KEPT, REMOVED
from scrna.plots.style import (
    by_number,
    legend,
    log10p1,
    log_ticks,
    panels,
    points_by_group,
    shortened,
    violin,
    width_of,
)

#: qc column → its name on an axis, and whether that is logarithmic.
QC = {
    "total_counts": ("counts per cell", True),
    "n_genes_by_counts": ("genes per cell", True),
    "pct_counts_mt": ("mitochondrial counts (%)", False),
    "pct_counts_ribo": ("ribosomal counts (%)", False),
}
#: Bounds of the filter → the qc column that they cut.
BOUNDS = {
    "min_counts": "total_counts",
    "max_counts": "total_counts",
    "min_genes": "n_genes_by_counts",
    "max_genes": "n_genes_by_counts",
    "max_pct_mt": "pct_counts_mt",
    "max_pct_ribo": "pct_counts_ribo",
}
#: How the violin of a batch is drawn (`scrna.plots.style.violin`); and batches shown, at most.
VIOLIN = {"most_cells": 10_000, "alpha": 0.45, "line": 2.5, "mark": 4}
MOST_BATCHES = 40


def qc_violins(
    qc: pd.DataFrame,
    batch: pd.Categorical | None,
    table: pd.DataFrame,
    limits: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Draw the distribution of each qc column in each batch, with the filter's bounds.

    Parameters
    ----------
    qc
        Columns of `QC` (all cells, before the filter).
    batch
        The batch of each cell, or None.
    table
        The rows of ``filter.csv`` of all cells.
    limits
        Batch → bound → its value, for bounds that differ between batches.
    """
    batch = pd.Categorical(["all cells"] * len(qc)) if batch is None else batch
    sizes = pd.Series(batch).value_counts()
    names = sorted(sizes.index[sizes > 0][:MOST_BATCHES], key=by_number)
    wide = max(5.0, 0.45 * len(names) + 1.5)
    named = [f"{shortened(name)}\n{sizes[name]:,}" for name in names]
    fits = width_of(names) < (wide - 1) / max(1, len(names))
    figure, axes = panels(2, 2, (wide, 3.4 if fits else 3.4 + 0.8 * width_of(names)))
    rng = np.random.default_rng(0)
    for ax, (column, (label, is_log)) in zip(axes.flat, QC.items(), strict=True):
        values = qc[column].to_numpy()
        values = log10p1(values) if is_log else values.astype(float)
        for place, name in enumerate(names):
            own = values[np.asarray(batch == name) & np.isfinite(values)]
            if len(own):
                violin(ax, place, own, KEPT, rng, **VIOLIN)
        for name, bound in _bounds(table, column).items():
            at = log10p1(bound) if is_log else bound
            ax.axhline(at, color=REMOVED, linestyle="--", linewidth=1, gid=name)
            ax.annotate(
                f"{name} {bound:,g}", (1, at), xycoords=("axes fraction", "data"), fontsize=7,
                ha="right", va="bottom", color=REMOVED,
            )  # fmt: skip
        for place, name in enumerate(names):
            for bound, value in (limits or {}).get(name, {}).items():
                if BOUNDS.get(bound.removesuffix("_mad")) == column:
                    at = log10p1(value) if is_log else value
                    across = [place - 0.42, place + 0.42]
                    ax.plot(across, [at, at], "--", color=REMOVED, gid=f"{bound} of {name}")
        if is_log:
            log_ticks(ax.yaxis)
        ax.set_ylabel(label)
        ax.set_xticks(range(len(names)), named, rotation=0 if fits else 90)
    more = f"; the {len(names)} largest of {len(sizes)} batches" if len(sizes) > len(names) else ""
    figure.suptitle(f"Quality of {len(qc):,} cells before filtering{more}")
    return figure


def qc_scatter(qc: pd.DataFrame, keep: np.ndarray, table: pd.DataFrame) -> Figure:
    """Draw counts against genes and against pct_mt, for kept and removed cells."""
    figure, axes = panels(1, 2, (5, 4.2))
    kinds = pd.Categorical.from_codes((~keep).astype(int), ["kept", "removed"])
    x = log10p1(qc["total_counts"])
    colours = {"kept": KEPT, "removed": REMOVED}
    for ax, column in zip(axes[0], ["n_genes_by_counts", "pct_counts_mt"], strict=True):
        label, is_log = QC[column]
        y = log10p1(qc[column]) if is_log else qc[column].to_numpy(dtype=float)
        shown = np.isfinite(y)
        points_by_group(ax, np.column_stack([x, y])[shown], kinds[shown], colours)
        log_ticks(ax.xaxis)
        if is_log:
            log_ticks(ax.yaxis)
        for bound in _bounds(table, column).values():
            at = log10p1(bound) if is_log else bound
            ax.axhline(at, color=INK, linestyle="--", linewidth=0.8)
        for bound in _bounds(table, "total_counts").values():
            ax.axvline(log10p1(bound), color=INK, linestyle="--", linewidth=0.8)
        ax.set(xlabel=QC["total_counts"][0], ylabel=label)
    counts = {f"kept ({keep.sum():,})": KEPT, f"removed ({(~keep).sum():,})": REMOVED}
    legend(axes[0, 1], counts, "")
    figure.suptitle(f"{len(qc):,} cells; dashed: bounds of the filter")
    return figure


def filter_bars(table: pd.DataFrame) -> Figure:
    """Draw how many cells each bound of the filter removed, in all and alone."""
    rows = table[~table["criterion"].isin(["all", "kept", "min_cells"])]
    ends = table.set_index("criterion")
    figure, axes = panels(1, 1, (6.5, 1.6 + 0.35 * len(rows)))
    ax = axes[0, 0]
    place = np.arange(len(rows))
    names = [
        row.criterion if np.isnan(row.bound) else f"{row.criterion} {row.bound:,g}"
        for row in rows.itertuples()
    ]
    light = "#8fbfe0"
    ax.barh(place, rows["cells"], color=light, label="together with others")
    ax.barh(place, rows["cells_by_this_alone"], color=KEPT, label="by this alone")
    for at, cells in zip(place, rows["cells"], strict=True):
        ax.annotate(f"{int(cells):,}", (cells, at), (3, 0), textcoords="offset points", va="center")
    ax.set_yticks(place, names)
    ax.invert_yaxis()
    ax.set_xlim(0, max(1, 1.12 * rows["cells"].max()) if len(rows) else 1)
    ax.set_xlabel("cells removed (a cell may break several bounds)")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    (kept, genes), (n_obs, n_vars) = (
        ends.loc[which, ["cells", "genes"]].astype(int) for which in ("kept", "all")
    )
    ax.set_title(f"{kept:,} of {n_obs:,} cells and {genes:,} of {n_vars:,} genes kept")
    return figure


def _bounds(table: pd.DataFrame, column: str) -> dict[str, float]:
    """Return the bounds of the filter on a qc column that are the same for all cells."""
    names = table["criterion"].str.removesuffix("_mad")
    rows = table[(names.map(BOUNDS) == column) & table["bound"].notna()]
    return dict(zip(rows["criterion"], rows["bound"], strict=True))
