"""Figures of gene expression: dot plot, heat map, embedding, ranks of markers.

Dot plot and heat map have a field of fixed size for each group and gene, so that the figure grows
with their number.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from scrna.plots.colours import INK, MISSING
from scrna.plots.style import CHARACTER, HEAT_MAP, panels, points_by_value, shortened, without_ticks

#: Size of a field in inches.
FIELD = 0.22
#: From grey, no expression, to dark, for readers with any colour vision.
EXPRESSION = LinearSegmentedColormap.from_list(
    "expression", [MISSING, "#fcae91", "#ef3b2c", "#67000d"]
)
MEAN = "mean expression in the group\nln(1 + normalised counts)"
#: Panels per row in the figure of an embedding.
_COLUMNS = 4
_LARGEST = 0.92  # diameter of the largest dot, as a share of a field


class GroupMeans(NamedTuple):
    """Expression of genes in groups of cells."""

    groups: list[str]
    """The groups' names, a row each."""
    genes: list[str]
    """The genes' names, a column each."""
    mean: np.ndarray
    """Mean log-normalised expression, groups × genes."""
    fraction: np.ndarray
    """Fraction of the group's cells that have the gene, groups × genes."""
    brackets: Sequence[tuple[str, int]] = ()
    """Whose genes they are: a name and how many, from the first column on."""


def dotplot(of: GroupMeans, title: str) -> Figure:
    """Draw a dot for each group and gene, as scanpy's `dotplot`.

    Its area is the fraction of the cells that have the gene; its colour is the mean expression.

    Parameters
    ----------
    of
        What is drawn.
    title
        What it is, with the number of cells.
    """
    figure, ax = _fields(of, title)
    most = largest_fraction(of.fraction)
    row, column = np.indices(of.mean.shape).reshape(2, -1)
    dots = _dots(ax, column, row, of.fraction.ravel() / most)
    dots.set(array=of.mean.ravel(), cmap="Reds", clim=(0, _top(of.mean)))
    ax.set_xticks(np.arange(len(of.genes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(of.groups) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="#eeeeee", linewidth=0.5)
    ax.set_axisbelow(True)
    x = len(of.genes) + 0.5
    _scale(ax, dots, x, MEAN)
    shares = np.linspace(most / 5, most, 5)
    y = np.arange(5) + 6.0
    _dots(ax, np.full(5, x + 0.5), y, shares / most).set(facecolor="#9a9a9a", clip_on=False)
    for place, share in zip(y, shares, strict=True):
        ax.text(x + 1.4, place, f"{100 * share:g}", va="center", fontsize=7)
    ax.text(x, 5.0, "cells expressing it (%)", fontsize=7)
    return figure


def heatmap(of: GroupMeans, title: str) -> Figure:
    """Draw the mean expression of genes in groups, each gene scaled from 0 to 1.

    0 is the group with the lowest mean and 1 that with the highest: scanpy's ``standard_scale`` by
    ``var``. A gene that is the same in all groups is 0.

    Parameters
    ----------
    of, title
        As in `dotplot`.
    """
    figure, ax = _fields(of, title)
    drawn = ax.imshow(standard_scale(of.mean), cmap="Blues", vmin=0, vmax=1, **HEAT_MAP)
    label = "mean expression, for each gene\n0: lowest group, 1: highest"
    _scale(ax, drawn, len(of.genes) + 0.5, label)
    return figure


def genes_embedding(
    name: str, xy: np.ndarray, genes: Mapping[str, np.ndarray], title: str
) -> Figure:
    """Draw the expression of genes on an embedding, a panel each.

    Parameters
    ----------
    name
        The axes' name, as UMAP.
    xy
        Coordinates of the cells (n × 2).
    genes
        Gene → log-normalised expression of the cells (n); 0 is grey, and the colours end at the
        99th percentile of the cells that have it.
    title
        What it is, with the number of cells.
    """
    columns = min(_COLUMNS, len(genes))
    rows = -(-len(genes) // columns)
    figure, axes = panels(rows, columns, (3.6, 3.0))
    for ax, (gene, values) in zip(axes.flat, genes.items(), strict=False):
        there = values[values > 0]
        top = float(np.percentile(there, 99)) if len(there) else 1.0
        label = "ln(1 + normalised counts)"
        points_by_value(ax, xy, values, label, limits=(0, top), cmap=EXPRESSION, high_on_top=True)
        ax.set_title(f"{gene}, in {len(there) / max(1, len(values)):.1%} of cells")
        without_ticks(ax, name)
    for ax in axes.flat[len(genes) :]:
        ax.set_visible(False)
    figure.suptitle(title)
    return figure


def ranks(groups: Mapping[str, tuple[Sequence[str], np.ndarray]], title: str) -> Figure:
    """Draw the scores of each group's first markers, a panel each, as scanpy's `rank_genes_groups`.

    Each panel has a scale of its own (scanpy's ``sharey=False``).

    Parameters
    ----------
    groups
        Name of a group → its genes and their scores, the highest first.
    title
        What it is, with the number of cells.
    """
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = panels(rows, columns, (3.6, 3.0))
    for ax, (group, (genes, scores)) in zip(axes.flat, groups.items(), strict=False):
        for place, (gene, score) in enumerate(zip(genes, scores, strict=True)):
            name = ax.text(place, score, shortened(gene), rotation=90, ha="center", va="bottom")
            name.set(fontsize=7, in_layout=False)
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
        room = 0.3 * (high - low) or 0.3 * abs(high) or 1.0  # the highest gene's name stands above
        ax.set(xlim=(-0.9, len(genes) - 0.1), ylim=(low - room / 6, high + room))
        ax.set_title(f"{shortened(group)} vs. rest")
    for ax in axes[:, 0]:
        ax.set_ylabel("score")
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax in axes.flat[max(0, len(groups) - columns) : len(groups)]:
        ax.set_xlabel("ranking")
    figure.suptitle(title)
    return figure


def standard_scale(mean: np.ndarray) -> np.ndarray:
    """Scale columns from 0, their lowest, to 1, their highest; one without a range is 0."""
    low, high = np.nanmin(mean, axis=0), np.nanmax(mean, axis=0)
    return (mean - low) / np.where(high > low, high - low, 1)


def largest_fraction(fraction: np.ndarray) -> float:
    """Return the fraction of the largest dot, rounded up to tenths, as in scanpy."""
    return max(0.1, float(np.ceil(10 * np.nanmax(fraction)) / 10))


def _fields(of: GroupMeans, title: str) -> tuple[Figure, Axes]:
    """Make the axes, a unit for each row and column, with their names around them."""
    n_rows, n_columns = of.mean.shape
    size = FIELD * n_columns, FIELD * n_rows
    figure = Figure(figsize=(size[0] + 4, size[1] + 4), layout="none")
    width, height = figure.get_size_inches()
    ax = figure.add_axes([2 / width, 2 / height, size[0] / width, size[1] / height])
    ax.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    ax.set_xticks(range(n_columns), map(shortened, of.genes), rotation=90, fontsize=8)
    ax.set_yticks(range(n_rows), map(shortened, of.groups), fontsize=8)
    ax.tick_params(length=2)
    ax.tick_params(which="minor", length=0)
    if of.brackets:
        _brackets(ax, of.brackets)
    ax.set_title(title, pad=10)
    return figure, ax


def _brackets(ax: Axes, brackets: Sequence[tuple[str, int]]) -> None:
    """Label the columns with the groups whose markers they are."""
    ends = np.cumsum([n for _, n in brackets])
    starts = ends - [n for _, n in brackets]
    for start, end in zip(starts, ends, strict=True):
        x, y = [start - 0.4, start - 0.4, end - 0.6, end - 0.6], [-0.65, -0.9, -0.9, -0.65]
        ax.plot(x, y, color=INK, linewidth=0.8, clip_on=False, gid="bracket")
    names = [shortened(name) for name, _ in brackets]
    above = ax.secondary_xaxis("top")
    above.set_xticks((starts + ends - 1) / 2, names, fontsize=8)
    for label, (_, n) in zip(above.get_xticklabels(), brackets, strict=True):
        label.set_rotation(0 if len(label.get_text()) * CHARACTER < n * FIELD else 90)
    above.tick_params(length=0, pad=8)
    above.spines["top"].set_visible(False)


def _dots(ax: Axes, x: np.ndarray, y: np.ndarray, area: np.ndarray) -> EllipseCollection:
    """Draw circles, of areas from 0 to 1, that fit into fields."""
    diameter = _LARGEST * np.sqrt(np.nan_to_num(area))
    dots = EllipseCollection(
        *(diameter, diameter, np.zeros(len(x))),
        units="xy",
        offsets=np.column_stack([x, y]),
        offset_transform=ax.transData,
        edgecolor="#808080",
        linewidth=0.3,
    )
    return ax.add_collection(dots, autolim=False)


def _scale(ax: Axes, drawn, x: float, label: str) -> None:
    """Draw the scale of the colours beside the first rows."""
    left, low = ax.transAxes.inverted().transform(ax.transData.transform([x, 2.5]))
    (_, n_columns), (n_rows, _) = ax.get_xlim(), ax.get_ylim()
    place = ax.inset_axes([left, low, 5 / (n_columns + 0.5), 0.6 / (n_rows + 0.5)])
    bar = ax.figure.colorbar(drawn, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.set_title(label, fontsize=7, pad=3)


def _top(mean: np.ndarray) -> float:
    return float(max(np.nanmax(mean), np.finfo(np.float32).tiny))
