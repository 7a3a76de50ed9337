"""What all pictures share: one look, points by the thousand or the million, legends, axes.

Pictures are made of `matplotlib.figure.Figure` without pyplot, which keeps no state of its own and
needs no display.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from scrna.colours import INK, MISSING, colours_of

#: Points up to which each is drawn by itself; more are counted pixel by pixel (datashader).
MOST_DRAWN = 100_000
#: Entries of a legend; the groups beyond are told in its last line.
MOST_NAMED = 60
SEQUENTIAL = "viridis"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Make a figure of rows × columns panels, each of a size in inches; axes as a 2-D array."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    return figure, figure.subplots(rows, columns, squeeze=False)


def in_random_order(n: int) -> np.ndarray:
    """Order points so that no group of cells lies on top of another; the same in each run."""
    return np.random.default_rng(0).permutation(n)


def points_by_group(ax: Axes, xy: np.ndarray, groups: pd.Categorical, colours=None) -> dict:
    """Draw points in the colours of their groups.

    Parameters
    ----------
    ax
        Where.
    xy
        Coordinates (n × 2).
    groups
        The group of each (n); a missing one is grey.
    colours
        Group → colour; `colours_of` the groups by default.

    Returns
    -------
    Group → colour, ``missing`` among them where some are.
    """
    colours = dict(colours or colours_of(list(groups.categories)))
    names = groups.codes
    if (names < 0).any():
        colours["missing"] = MISSING
        names = np.where(names < 0, len(groups.categories), names)
    listed = list(colours.values())
    if len(xy) > MOST_DRAWN:
        from datashader import count_cat

        table = _table(xy, pd.Categorical.from_codes(names, list(colours)))
        _shade(ax, table, count_cat("c"), color_key=listed, alpha_range=(160, 255))
        return colours
    order = in_random_order(len(xy))
    ax.scatter(*xy[order].T, c=np.array(listed)[names[order]], **_marks(len(xy)))
    return colours


def points_by_value(ax: Axes, xy: np.ndarray, values: np.ndarray, label: str) -> None:
    """Draw points coloured by a number, with its scale; those without one are grey.

    The colours span the 1st to the 99th percentile, so that a few cells do not flatten the rest.
    """
    known = np.isfinite(values)
    low, high = np.percentile(values[known], [1, 99]) if known.any() else (0, 1)
    scale = {"cmap": SEQUENTIAL, "vmin": low, "vmax": max(high, np.nextafter(low, np.inf))}
    if not known.all():
        nothing = pd.Categorical.from_codes(np.full((~known).sum(), -1), [])
        points_by_group(ax, xy[~known], nothing)
    if len(xy) > MOST_DRAWN:
        from datashader import mean

        drawn = _shade(ax, _table(xy[known], values[known]), mean("c"), norm="linear", **scale)
    else:
        order = in_random_order(int(known.sum()))
        drawn = ax.scatter(*xy[known][order].T, c=values[known][order], **scale, **_marks(len(xy)))
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes([1.02, 0.15, 0.03, 0.7]))
    bar.set_label(label)
    bar.outline.set_visible(False)


def _marks(n: int) -> dict:
    """Give the size of n points, in pt², and what else they have in common."""
    return {"s": float(np.clip(30_000 / max(n, 1), 0.4, 14)), "linewidths": 0, "rasterized": True}


def _table(xy: np.ndarray, values) -> pd.DataFrame:
    return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "c": values})


def _shade(ax: Axes, table: pd.DataFrame, reduction, **how):
    """Draw points counted pixel by pixel."""
    from functools import partial

    import datashader as ds
    from datashader.mpl_ext import dsshow
    from datashader.transfer_functions import dynspread

    spread = partial(dynspread, threshold=0.5, max_px=2)
    point = ds.Point("x", "y")
    return dsshow(table, point, reduction, ax=ax, aspect="auto", shade_hook=spread, **how)


def label_groups(ax: Axes, xy: np.ndarray, groups: pd.Categorical) -> None:
    """Write each group's name at the median of its points."""
    from matplotlib.patheffects import withStroke

    for code, name in enumerate(groups.categories):
        of_group = xy[groups.codes == code]
        if len(of_group):
            text = ax.text(*np.median(of_group, axis=0), name, ha="center", va="center", fontsize=8)
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def legend(ax: Axes, colours: dict[str, str], title: str) -> None:
    """Name the groups beside a panel, `MOST_NAMED` of them."""
    named = dict(list(colours.items())[:MOST_NAMED])
    marks = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=str(name))
        for name, colour in named.items()
    ]
    if rest := len(colours) - len(named):
        marks.append(Line2D([], [], linestyle="", label=f"and {rest:,} more"))
    ax.legend(
        handles=marks,
        title=title,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        ncols=-(-len(marks) // 20),
        handletextpad=0.2,
        alignment="left",
    )


def without_ticks(ax: Axes, name: str, axes: Sequence[int] = (1, 2)) -> None:
    """Name the axes of an embedding, whose units mean nothing."""
    ax.set(xlabel=f"{name} {axes[0]}", ylabel=f"{name} {axes[1]}", xticks=[], yticks=[])


def log_ticks(axis) -> None:
    """Label an axis of log10(1 + x) with x itself: 0, 1, 10, ..."""
    axis.set_major_locator(FixedLocator(np.log10(1 + np.array([0, *10.0 ** np.arange(10)]))))
    axis.set_major_formatter(lambda value, _: f"{round(10**value - 1):,}")


def log10p1(values: np.ndarray | float) -> np.ndarray:
    """Take log10(1 + x), which keeps the zeros of empty droplets."""
    return np.log10(1 + np.asarray(values, dtype=float))


def by_number(name: str) -> list:
    """Sort names as people do, type_2 before type_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
