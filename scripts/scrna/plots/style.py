"""The common style of figures: fonts, points, legends, axes, and saving to files.

Figures are `matplotlib.figure.Figure` objects without pyplot, so that there is no global state and
no display is needed.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Locator

from scrna.plots.colours import INK, MISSING, colours_of
from scrna.plots.pixels import Squares

#: Points up to which each is drawn by itself; more are counted in squares (`scrna.plots.pixels`).
MOST_DRAWN = 100_000
#: Entries of a legend; its last line says how many groups are left out.
MOST_NAMED = 60
SEQUENTIAL = "viridis"
#: Characters of a name that are shown, and the inches that one takes, at most.
LONGEST = 32
CHARACTER = 0.075
#: A larger SVG file is removed again.
MOST_SVG_BYTES = 2_000_000
_LINE = 0.14  # inches
_FEWEST_FOR_SHAPE = 3  # cells of a violin
#: Draw an image as fields with sharp edges, also in SVG.
HEAT_MAP = {"aspect": "auto", "interpolation": "none"}
#: JSON file beside the figures: why a figure could not be drawn.
NOT_DRAWN = "not_drawn.json"
#: A figure, or a function that draws it.
Drawing = Figure | Callable[[], Figure]
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
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "text.parse_math": False,  # names of genes and groups may have a $
    "svg.fonttype": "none",  # text that stays text, to be edited
    "svg.hashsalt": "scrna",  # the same file for the same figure
}


def as_groups(column):
    """Convert a column of obs to groups, in the order of their names."""
    text = pd.Series(column).astype("str").where(pd.notna(column))
    return pd.Categorical(text, categories=sorted(text.dropna().unique(), key=by_number))


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Make a figure of rows × columns panels, each of a size in inches; axes as a 2-D array."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def in_random_order(n: int) -> np.ndarray:
    """Shuffle points so that no group of cells hides another; the same in each run."""
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
        Squares(ax, xy).draw_groups(names, listed)
        return colours
    order = in_random_order(len(xy))
    ax.scatter(*xy[order].T, c=to_rgba_array(listed)[names[order]], **_marks(len(xy)))
    return colours


def points_by_value(
    ax: Axes,
    xy: np.ndarray,
    values: np.ndarray,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    cmap: Colormap | str = SEQUENTIAL,
    high_on_top: bool = False,
) -> None:
    """Draw points coloured by a number, with its scale; those without one are grey.

    Parameters
    ----------
    ax, xy
        Where; coordinates (n × 2).
    values
        A number for each point (n).
    label
        What the numbers are, with their unit.
    limits
        What the colours span: the 1st to the 99th percentile by default, so that a few cells do not
        flatten the rest.
    cmap
        The colours.
    high_on_top
        Whether high values lie over low ones; else the order is random. Of many points a pixel
        shows the mean.
    """
    known = np.isfinite(values)
    if limits is None:
        limits = np.percentile(values[known], [1, 99]) if known.any() else (0, 1)
    low, high = limits
    scale = ScalarMappable(Normalize(low, max(high, np.nextafter(low, np.inf))), cmap)
    nothing = pd.Categorical.from_codes(np.full((~known).sum(), -1), [])
    coloured, values = xy[known], values[known]
    if len(xy) > MOST_DRAWN:
        limits = np.array([xy.min(axis=0), xy.max(axis=0)])
        if len(nothing):
            Squares(ax, xy[~known], limits).draw_groups(nothing.codes, [MISSING])
        Squares(ax, coloured, limits).draw_values(values, scale)
    else:
        if len(nothing):
            points_by_group(ax, xy[~known], nothing)
        order = np.argsort(values, kind="stable") if high_on_top else in_random_order(len(values))
        how = {"norm": scale.norm, "cmap": scale.cmap} | _marks(len(xy))
        ax.scatter(*coloured[order].T, c=values[order], **how)
    bar = ax.figure.colorbar(scale, cax=ax.inset_axes([1.02, 0.15, 0.03, 0.7]))
    bar.set_label(label)
    bar.outline.set_visible(False)


def _marks(n: int) -> dict:
    """Return the size of n points, in pt², and their other common settings."""
    return {"s": float(np.clip(30_000 / max(n, 1), 0.4, 14)), "linewidths": 0, "rasterized": True}


def label_groups(
    ax: Axes,
    xy: np.ndarray,
    groups: pd.Categorical,
    *,
    size: tuple[float, float] | None = None,
) -> None:
    """Write each group's name at the median of its points.

    Parameters
    ----------
    ax
        Where; its points are drawn already.
    xy
        Coordinates (n × 2).
    groups
        The group of each (n).
    size
        The panel's, in inches, as `panels` was told. With it names that would lie over each other
        make room, and a line leads to the median of one that went far.
    """
    from matplotlib.patheffects import withStroke

    there = [code for code in range(len(groups.categories)) if (groups.codes == code).any()]
    names = [shortened(groups.categories[code]) for code in there]
    middles = np.array([np.median(xy[groups.codes == code], axis=0) for code in there])
    places = middles
    if size and len(there) > 1:
        spans = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())])
        unit = spans / (0.8 * np.array(size))  # of data an inch; the axes' names take the rest
        sizes = np.array([(CHARACTER * len(name) + 0.03, _LINE) for name in names])
        places = apart(middles / unit, sizes) * unit
        for middle, place in zip(middles, places, strict=True):
            if (np.abs(place - middle) / unit > 1.5 * _LINE).any():
                ax.plot(*zip(middle, place, strict=True), color=INK, linewidth=0.5, gid="leader")
    for name, place in zip(names, places, strict=True):
        text = ax.text(*place, name, ha="center", va="center", fontsize=8)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def apart(places: np.ndarray, sizes: np.ndarray, *, steps: int = 500) -> np.ndarray:
    """Move boxes until none lies over another, or the steps are done.

    Parameters
    ----------
    places, sizes
        Middles, and widths and heights (n × 2), in one unit.
    steps
        In each, two boxes that overlap move away from each other, the shorter way.
    """
    places = np.array(places, dtype=float)
    least = (sizes[:, None] + sizes) / 2
    first = np.sign(np.arange(len(places))[:, None] - np.arange(len(places)))  # where they coincide
    for _ in range(steps):
        between = places[:, None] - places
        missing = least - np.abs(between)
        overlap = (missing > 0).all(axis=-1) & (first != 0)
        if not overlap.any():
            break
        shorter = missing.argmin(axis=-1)
        for axis in (0, 1):
            away = np.where(between[..., axis] == 0, first, np.sign(between[..., axis]))
            move = np.where(overlap & (shorter == axis), away * missing[..., axis], 0)
            places[:, axis] += 0.5 * move.sum(axis=1) / np.maximum(1, overlap.sum(axis=1))
    return places


def shortened(name: str) -> str:
    """Cut a name that is longer than `LONGEST`."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def width_of(names: Sequence[str]) -> float:
    """Estimate the width of the longest of some names, in inches."""
    return CHARACTER * max((len(shortened(name)) for name in names), default=0)


def legend(ax: Axes, colours: dict[str, str], title: str) -> None:
    """Name the groups beside a panel, `MOST_NAMED` of them."""
    named = dict(list(colours.items())[:MOST_NAMED])
    marks = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=shortened(name))
        for name, colour in named.items()
    ]
    if rest := len(colours) - len(named):
        marks.append(Line2D([], [], linestyle="", label=f"and {rest:,} more"))
    ax.legend(
        handles=marks,
        title=title,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        ncols=_columns(len(marks)),
        handletextpad=0.2,
        alignment="left",
    )


def legend_width(names: Sequence[str]) -> float:
    """Estimate the size of a `legend`, in inches."""
    shown = list(names)[:MOST_NAMED]
    return 0.2 + _columns(len(names)) * (0.35 + width_of(shown))


def _columns(n: int) -> int:
    return max(1, -(-min(n, MOST_NAMED + 1) // 20))


def without_ticks(ax: Axes, name: str, axes: Sequence[int] = (1, 2)) -> None:
    """Label the axes of an embedding, without ticks, since their units mean nothing."""
    ax.set(xlabel=f"{name} {axes[0]}", ylabel=f"{name} {axes[1]}", xticks=[], yticks=[])


def log_ticks(axis) -> None:
    """Label an axis of log10(1 + x) with x itself: 0, 1, 10, ..., and 2 and 5 where it is short."""
    axis.set_major_locator(_LogLocator())
    axis.set_major_formatter(lambda value, _: f"{round(10**value - 1):,}")


class _LogLocator(Locator):
    def __call__(self) -> np.ndarray:
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        steps = [1] if vmax - vmin > 2 else [1, 2, 5]
        values = np.log10(1 + np.append(0, np.outer(10.0 ** np.arange(10), steps)))
        return values[(values >= vmin) & (values <= vmax)]


def violin(
    ax: Axes,
    place: int,
    values: np.ndarray,
    colour: str,
    rng: np.random.Generator,
    *,
    most_cells: int,
    alpha: float,
    line: float,
    mark: float,
) -> None:
    """Draw a violin with its quartiles; too few values for a shape, or equal ones, as points.

    Parameters
    ----------
    ax, place
        Where, and the position on its x axis.
    values
        Of the cells; of more than `most_cells` the shape is that of a random part.
    colour, rng
        Of the shape, and the generator that draws the part.
    alpha, line, mark
        The shape's opacity, and the sizes of the quartiles' line and of the median, in points.
    """
    if len(values) < _FEWEST_FOR_SHAPE or np.ptp(values) == 0:
        ax.plot([place] * len(values), values, ".", color=colour)
        return
    some = rng.choice(values, most_cells) if len(values) > most_cells else values
    if np.ptp(some) > 0:
        body = ax.violinplot([some], [place], widths=0.85, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, alpha=alpha, edgecolor="none")
    low, middle, high = np.percentile(values, [25, 50, 75])
    ax.plot([place, place], [low, high], color=INK, linewidth=line, solid_capstyle="butt")
    ax.plot([place], [middle], "o", color="white", markeredgecolor=INK, markersize=mark)


def log10p1(values: np.ndarray | float) -> np.ndarray:
    """Compute log10(1 + x), which keeps the zeros of empty droplets."""
    return np.log10(1 + np.asarray(values, dtype=float))


def by_number(name: str) -> list:
    """Sort names as people do, type_2 before type_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
