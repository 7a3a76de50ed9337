"""Figures of trajectories: PAGA, pseudotime, the diffusion map."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scrna.plots.colours import INK, colours_of
from scrna.plots.dataset_figures import EMBEDDING, Embedding
from scrna.plots.style import (
    label_groups,
    legend,
    legend_width,
    panels,
    points_by_group,
    points_by_value,
    without_ticks,
)

#: Two components of a diffusion map (n × 2), NaN for cells that have no place on it, and which
#: components they are. It may have fewer than two.
type Diffusion = tuple[np.ndarray, np.ndarray]


def trajectory(
    points: Embedding,
    clusters: Mapping[str, pd.Categorical],
    links: Mapping[str, np.ndarray],
    pseudotime: Mapping[str, np.ndarray],
    diffmaps: Mapping[str, Diffusion],
    *,
    least: float = 0.05,
) -> Figure:
    """Draw PAGA over an embedding, and pseudotime, if any, on it and on the diffusion map.

    Parameters
    ----------
    points, clusters
        As in `embedding`.
    links
        Representation → connectivities of PAGA (clusters × clusters).
    pseudotime
        Representation → pseudotime of each cell; may be empty.
    diffmaps
        Representation → two components of the diffusion map (n × 2), NaN for cells that have no
        place on it, and which they are; one with fewer components is left out.
    least
        Weaker connections are left out.
    """
    diffmaps = {rep: of for rep, of in diffmaps.items() if of[0].shape[1] == 2}
    rows = 1 + bool(pseudotime) + bool(diffmaps)
    figure, axes = panels(rows, len(points.of), EMBEDDING)
    for column, (rep, xy) in enumerate(points.of.items()):
        _paga(axes[0, column], xy, clusters[rep], links[rep], least)
        axes[0, column].set_title(f"{rep}: PAGA, connections from {least:g}")
        if rep in pseudotime:
            points_by_value(axes[1, column], xy, pseudotime[rep], "pseudotime")
            axes[1, column].set_title(f"{rep}: pseudotime from the root (0)")
        for ax in axes[:2, column]:
            without_ticks(ax, points.name)
        if rep in diffmaps:
            own, components = diffmaps[rep]
            known = np.isfinite(own).all(axis=1)
            values = pseudotime[rep][known]
            points_by_value(axes[2, column], own[known], values, "pseudotime")
            axes[2, column].set_title(f"{rep}: pseudotime on the diffusion map")
            without_ticks(axes[2, column], "diffusion component", components)
        elif diffmaps:
            axes[2, column].set_visible(False)
    n_obs = len(next(iter(points.of.values())))
    figure.suptitle(f"Trajectory over the {points.name} of {n_obs:,} cells")
    return figure


def diffusion_map(
    maps: Mapping[str, Diffusion],
    clusters: Mapping[str, pd.Categorical],
    labels: Mapping[str, pd.Categorical],
) -> Figure:
    """Draw the diffusion map by cluster and by label, a column per representation.

    Parameters
    ----------
    maps
        Representation → its diffusion map; one with fewer than two components is left out.
    clusters
        Representation → Leiden cluster of each cell.
    labels
        Column of obs → label of each cell.
    """
    figure, axes = panels(1 + len(labels), len(maps), EMBEDDING)
    beside = max((legend_width(of.categories) for of in labels.values()), default=0)
    figure.set_figwidth(figure.get_figwidth() + max(0, beside - 1))
    for column, (rep, (points, components)) in enumerate(maps.items()):
        if points.shape[1] < 2:
            for ax in axes[:, column]:
                ax.set_visible(False)
            continue
        known = np.isfinite(points).all(axis=1)
        xy = points[known]
        row = iter(axes[:, column])
        ax = next(row)
        points_by_group(ax, xy, clusters[rep][known])
        label_groups(ax, xy, clusters[rep][known], size=EMBEDDING)
        ax.set_title(f"{rep}: {len(clusters[rep].categories)} clusters (leiden)")
        for name, of in labels.items():
            ax = next(row)
            colours = points_by_group(ax, xy, of[known])
            ax.set_title(f"{rep}: {name}")
            if column == len(maps) - 1:
                legend(ax, colours, name)
        for ax in axes[:, column]:
            without_ticks(ax, "diffusion component", components)
    is_whole = all(np.isfinite(points).all() for points, _ in maps.values())
    n_obs = len(next(iter(maps.values()))[0])
    rest = "" if is_whole else "; shown are those with a pseudotime"
    figure.suptitle(f"Diffusion map of {n_obs:,} cells{rest}")
    return figure


def _paga(ax, xy: np.ndarray, clusters: pd.Categorical, links: np.ndarray, least: float) -> None:
    """Draw the links between clusters over their cells, all grey."""
    points_by_group(ax, xy, pd.Categorical.from_codes(np.full(len(xy), -1), []))
    sizes = np.bincount(clusters.codes, minlength=len(clusters.categories))
    middles = np.array([np.median(xy[clusters.codes == i], axis=0) for i in range(len(sizes))])
    for i, j in zip(*np.nonzero(np.triu(links, 1) >= least), strict=True):
        ax.plot(*middles[[i, j]].T, color=INK, linewidth=0.3 + 4 * links[i, j], zorder=2)
    ax.scatter(
        *middles.T,
        s=40 + 500 * np.sqrt(sizes / sizes.sum()),
        c=list(colours_of(list(clusters.categories)).values()),
        edgecolors="white",
        zorder=3,
    )
    label_groups(ax, xy, clusters)
