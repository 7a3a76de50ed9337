"""Pictures of scores: of gene sets in cells, and of cell types in clusters."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scrna.plots.colours import INK, KEPT, colours_of
from scrna.plots.style import (
    HEAT_MAP,
    legend,
    panels,
    points_by_group,
    points_by_value,
    shortened,
    violin,
    width_of,
    without_ticks,
)

#: Panels beside each other.
_COLUMNS = 4
#: How the violin of a cluster is drawn (`scrna.plots.style.violin`).
VIOLIN = {"most_cells": 5_000, "alpha": 0.6, "line": 2, "mark": 3}
#: Fields of a heat map up to which each carries its number.
_MOST_NUMBERS = 400


class TypeScores(NamedTuple):
    """Scores of cell types in groups of cells."""

    groups: Sequence[str]
    types: Sequence[str]
    scores: np.ndarray
    """Groups × types."""
    names: Sequence[str]
    """The name that each group got."""


def scores_embedding(
    rep: str, xy: np.ndarray, scores: Mapping[str, np.ndarray], phase: pd.Categorical | None
) -> Figure:
    """Draw the scores of gene sets on the UMAP, a panel each, and the phases before them.

    Parameters
    ----------
    rep
        The representation, for the title.
    xy
        Coordinates of the kept cells (n × 2).
    scores
        Name → score of each cell (n).
    phase
        The phase of each cell, or None.
    """
    n_panels = len(scores) + (phase is not None)
    columns = min(_COLUMNS, n_panels)
    figure, axes = panels(-(-n_panels // columns), columns, (3.8, 3.0))
    free = iter(axes.flat)
    if phase is not None:
        ax = next(free)
        legend(ax, points_by_group(ax, xy, phase), "phase")
        ax.set_title("phase")
        without_ticks(ax, "UMAP")
    for name, values in scores.items():
        ax = next(free)
        points_by_value(ax, xy, values, "score")
        ax.set_title(shortened(name))
        without_ticks(ax, "UMAP")
    for ax in free:
        ax.set_visible(False)
    figure.suptitle(f"{rep}: scores of gene sets on the UMAP of {len(xy):,} cells")
    return figure


def score_violins(rep: str, clusters: pd.Categorical, scores: Mapping[str, np.ndarray]) -> Figure:
    """Draw the distribution of each score in each cluster, a row each.

    Parameters
    ----------
    rep
        The representation, for the title.
    clusters
        The cluster of each kept cell (n).
    scores
        Name → score of each cell (n).
    """
    names = list(clusters.categories)
    figure, axes = panels(len(scores), 1, (max(5.0, 0.45 * len(names) + 1.5), 1.9))
    colours = list(colours_of(names).values())
    rng = np.random.default_rng(0)
    for ax, (score, values) in zip(axes[:, 0], scores.items(), strict=True):
        for place in range(len(names)):
            own = values[clusters.codes == place]
            violin(ax, place, own, colours[place], rng, **VIOLIN)
        ax.axhline(0, color=INK, linewidth=0.5, linestyle="--")
        ax.set_xticks(range(len(names)), names)
        ax.set_ylabel("score")
        ax.set_title(shortened(score))
    axes[-1, 0].set_xlabel("leiden cluster")
    figure.suptitle(f"{rep}: scores of gene sets by cluster, {len(clusters):,} cells")
    return figure


def type_heatmap(of: Mapping[str, TypeScores], by: str) -> Figure:
    """Draw the score of each cell type in each group; the type that names a group has a frame.

    Parameters
    ----------
    of
        Representation → its scores.
    by
        What the groups are of.
    """
    rows = max(len(one.groups) for one in of.values())
    columns = max(len(one.types) for one in of.values())
    size = max(4.0, 2.8 + 0.42 * columns), max(3.0, 1.3 + 0.26 * rows)
    types = [name for one in of.values() for name in one.types]
    figure, axes = panels(1, len(of), (size[0], size[1] + width_of(types)))
    most = max(float(np.abs(one.scores).max()) for one in of.values()) or 1.0
    for ax, (rep, one) in zip(axes[0], of.items(), strict=True):
        drawn = ax.imshow(one.scores, cmap="RdBu_r", vmin=-most, vmax=most, **HEAT_MAP)
        ax.set_xticks(range(len(one.types)), map(shortened, one.types), rotation=90)
        named = [f"{group}: {name}" for group, name in zip(one.groups, one.names, strict=True)]
        ax.set_yticks(range(len(one.groups)), map(shortened, named))
        ax.set(xlabel="cell type", ylabel=by, title=rep)
        if one.scores.size <= _MOST_NUMBERS:
            for (i, j), score in np.ndenumerate(one.scores):
                ink = "white" if abs(score) > 0.6 * most else INK
                ax.text(j, i, f"{score:.1f}", ha="center", va="center", fontsize=6, color=ink)
        known = list(one.types)
        for row, name in enumerate(one.names):
            if name in known:
                x = known.index(name) + np.array([-0.5, 0.5, 0.5, -0.5, -0.5])
                y = row + np.array([-0.5, -0.5, 0.5, 0.5, -0.5])
                ax.plot(x, y, color=KEPT, linewidth=1.5, clip_on=False, gid="named")
    bar = figure.colorbar(drawn, ax=list(axes[0]), fraction=0.03, shrink=min(0.7, 3 / size[1]))
    bar.set_label("mean z-score of the markers")
    figure.suptitle("Scores of cell types by their marker genes")
    return figure
