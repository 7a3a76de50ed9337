"""Figures of a dataset: each function draws one, from tables of cells or genes.

Axes are labelled, and the number of cells or genes is in the title.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from scrna.plots.colours import INK, KEPT, REMOVED
from scrna.plots.style import (
    HEAT_MAP,
    by_number,
    label_groups,
    legend,
    legend_width,
    panels,
    points_by_group,
    points_by_value,
    shortened,
    width_of,
    without_ticks,
)

#: Most fields of a heat map that are labelled with their numbers.
MOST_NUMBERS = 300
MISSING_NAME = "missing"
#: Size of a panel with an embedding, in inches.
EMBEDDING = (5, 4)


class Embedding(NamedTuple):
    """Cells in the plane: the name of the axes (UMAP), and coordinates by representation."""

    name: str
    of: dict[str, np.ndarray]


def hvg_dispersion(var: Mapping[str, np.ndarray], flavor: str) -> Figure:
    """Draw mean and variability of each gene, with highly variable genes highlighted.

    Parameters
    ----------
    var
        Columns of the step file of ``hvg`` by name.
    flavor
        That of the step.
    """
    kinds = {
        "dispersions_norm": "normalised dispersion",
        "dispersions": "dispersion",
        "variances_norm": "normalised variance",
        "residual_variances": "variance of Pearson residuals",
        "variances": "variance of the counts",
    }
    shown = [name for name in kinds if name in var]
    figure, axes = panels(1, len(shown), (4.6, 4))
    high = np.asarray(var["highly_variable"], dtype=bool)
    groups = pd.Categorical.from_codes((~high).astype(int), ["highly variable", "other"])
    colours = {"highly variable": REMOVED, "other": "#9a9a9a"}
    is_log_mean = flavor == "seurat"  # the means of this flavor are log1p already
    for ax, name in zip(axes[0], shown, strict=True):
        x, y = (np.asarray(var[key], dtype=float) for key in ("means", name))
        # dispersions_norm may be negative, and seurat's dispersion is a logarithm
        log_y = name in ("dispersions", "variances", "residual_variances") and flavor != "seurat"
        known = np.isfinite(x) & np.isfinite(y) & ((x > 0) | is_log_mean) & ((y > 0) | (not log_y))
        x, y = x[known], y[known]
        points = np.column_stack([x if is_log_mean else np.log10(x), np.log10(y) if log_y else y])
        points_by_group(ax, points, groups[known], colours)
        on = "counts" if "variances" in name else "normalised expression"
        mean = f"mean {on}"
        ax.set_xlabel(f"ln(1 + {mean})" if is_log_mean else f"log10 {mean}")
        ax.set_ylabel(f"log10 {kinds[name]}" if log_y else kinds[name])
    legend(axes[0, -1], colours, f"genes ({flavor})")
    figure.suptitle(f"{high.sum():,} of {len(high):,} genes are highly variable")
    return figure


def pca_variance(ratio: np.ndarray, n_obs: int) -> Figure:
    """Draw the share of the variance in each principal component, and the elbow of the curve."""
    figure, axes = panels(1, 2, (4.6, 3.6))
    place = np.arange(1, len(ratio) + 1)
    at = elbow(ratio)
    for ax, values, label in (
        (axes[0, 0], 100 * ratio, "variance explained (%)"),
        (axes[0, 1], 100 * np.cumsum(ratio), "cumulative variance explained (%)"),
    ):
        ax.plot(place, values, "o-", color=KEPT, markersize=3, linewidth=1)
        ax.axvline(at, color=REMOVED, linestyle="--", linewidth=1)
        ax.annotate(f" elbow: {at}", (at, 0.95), xycoords=("data", "axes fraction"), color=REMOVED)
        ax.set(xlabel="principal component", ylabel=label)
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].yaxis.set_minor_formatter("")
    axes[0, 1].set_ylim(0)
    figure.suptitle(f"{len(ratio)} principal components of {n_obs:,} cells")
    return figure


def elbow(ratio: np.ndarray) -> int:
    """Find the component farthest below the line from the first to the last.

    The rule of Satopää et al. (2011, Kneedle) without its smoothing, on the logarithms.
    """
    heights = np.log(np.maximum(ratio, np.finfo(float).tiny))
    line = np.linspace(heights[0], heights[-1], len(heights))
    return int(np.argmax(line - heights)) + 1


def embedding(
    points: Embedding,
    clusters: Mapping[str, pd.Categorical],
    groups: Mapping[str, pd.Categorical],
    values: Mapping[str, np.ndarray],
    louvain: Mapping[str, pd.Categorical] | None = None,
) -> Figure:
    """Draw an embedding by clusters, groups and values: one per row, representations in columns.

    Parameters
    ----------
    points
        Coordinates of the kept cells.
    clusters
        Representation → Leiden cluster of each cell.
    groups
        Column of obs → group of each cell: batches, labels.
    values
        Name with unit → number of each cell.
    louvain
        Representation → Louvain cluster of each cell, where they are computed.
    """
    clusterings = {"leiden": clusters} | ({"louvain": louvain} if louvain else {})
    rows = len(clusterings) + len(groups) + len(values)
    figure, axes = panels(rows, len(points.of), EMBEDDING)
    beside = max((legend_width(of.categories) for of in groups.values()), default=0)
    figure.set_figwidth(figure.get_figwidth() + max(0, beside - 1))
    n_obs = len(next(iter(points.of.values())))
    for column, (rep, xy) in enumerate(points.of.items()):
        row = iter(axes[:, column])
        for name, of_rep in clusterings.items():
            ax = next(row)
            points_by_group(ax, xy, of_rep[rep])
            label_groups(ax, xy, of_rep[rep], size=EMBEDDING)
            ax.set_title(f"{rep}: {len(of_rep[rep].categories)} clusters ({name})")
        for name, of in groups.items():
            ax = next(row)
            colours = points_by_group(ax, xy, of)
            ax.set_title(f"{rep}: {name}")
            if column == len(points.of) - 1:
                legend(ax, colours, name)
        for name, of in values.items():
            ax = next(row)
            points_by_value(ax, xy, of, name)
            ax.set_title(f"{rep}: {name}")
    for ax in axes.flat:
        without_ticks(ax, points.name)
    figure.suptitle(f"{points.name} of {n_obs:,} cells")
    return figure


def cluster_table(
    clusters: Mapping[str, pd.Categorical], of: pd.Categorical, column: str
) -> Figure:
    """Draw the composition of each cluster by group, as a heat map per representation.

    The first row, of all cells, is what a cluster would have where groups are evenly mixed. Cells
    without a group count as ``missing``.
    """
    of = pd.Series(of).astype("str").fillna(MISSING_NAME).to_numpy()
    names = sorted(set(of.tolist()), key=lambda name: (name == MISSING_NAME, by_number(name)))
    rows = max(len(own.categories) for own in clusters.values()) + 1
    has_numbers = rows * len(names) <= MOST_NUMBERS
    wide, high = (0.42 if has_numbers else 0.22) * len(names), 0.24 * rows
    size = max(4.0, 1.6 + wide), max(3.0, 1.3 + high + width_of(names))
    figure, axes = panels(1, len(clusters), size)
    for ax, (rep, own) in zip(axes[0], clusters.items(), strict=True):
        counts = pd.crosstab(np.asarray(own), of).reindex(list(own.categories), columns=names)
        counts = pd.concat([counts.sum().to_frame("all cells").T, counts])
        shares = 100 * counts.to_numpy() / counts.sum(axis=1).to_numpy()[:, None]
        drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100, **HEAT_MAP)
        ax.set_xticks(range(len(names)), map(shortened, names), rotation=90)
        sizes = counts.sum(axis=1)
        ax.set_yticks(range(len(counts)), [f"{name} ({sizes[name]:,})" for name in counts.index])
        ax.set(xlabel=column, ylabel="leiden cluster (cells)", title=rep)
        if has_numbers:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    ink = "white" if share > 55 else INK
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=7, color=ink)
        ax.axhline(0.5, color=INK, linewidth=1)
    bar = figure.colorbar(drawn, ax=list(axes[0]), fraction=0.03, shrink=min(0.7, 3 / size[1]))
    bar.set_label("share of the cluster's cells (%)")
    figure.suptitle(f"Clusters by {column}, {len(of):,} cells")
    return figure
