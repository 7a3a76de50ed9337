"""Draw the expression of marker genes and of the genes in ``figures.genes``.

Purpose
    Show the markers of each group, and genes of interest, by group and on the UMAP.

Method
    The first ``n_markers`` of each group in the table of markers, fewer if there are many groups.
    The panels of ranks show the first 20 genes of a group by their scores, as scanpy's
    ``pl.rank_genes_groups``. The matrix is read once, for the genes of the other pictures. Clusters
    with names in ``annotations`` are labelled ``0: B cells``.

Settings
    Section ``figures``; ``markers.groupby``; ``annotations`` of the dataset.

Inputs
    ``counts.zarr``, filter, normalize, ``markers.csv``, umap, and the clustering unless ``groupby``
    is a column of obs.

Outputs
    A folder: ``markers_ranks``, ``markers_dotplot``, ``markers_heatmap``; with ``figures.genes``
    also ``genes_dotplot`` and, for the first grouping, ``genes_umap``.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrna.damage import reading
from scrna.data import expression, step_files
from scrna.data.groups import groups_of
from scrna.data.spreadsheet import unescaped
from scrna.log import log
from scrna.methods.cell_types import cell_types
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run

if TYPE_CHECKING:
    import pandas as pd

#: Most columns of a figure; with more, each group shows fewer markers.
MOST_COLUMNS = 120
#: Genes of a group in the panels of ranks, as scanpy shows them; and panels, at most.
RANKED = 20
MOST_PANELS = 60


@step
def marker_figures(
    counts: Path,
    filtered: Path,
    normalized: Path,
    table: Path,
    umap: Path,
    clusters: Path | list[Path],
    out: Path,
    *,
    groupby: str,
    genes: list[str],
    n_markers: int,
    dpi: int,
    formats: list[str],
    names: dict[str, str] | None = None,
    on_umap: bool = True,
) -> None:
    """Draw the genes of a representation's groups.

    Parameters
    ----------
    counts, filtered, normalized, umap
        ``counts.zarr`` and step files.
    table
        ``markers.csv``.
    clusters
        The step file of the clustering; an empty list where ``groupby`` is a column of obs.
    out
        The folder of figures; an existing one is replaced.
    groupby
        What the markers are of: the clustering, or a column of obs.
    genes
        Symbols or ids of genes to show; one that is named twice is shown once.
    n_markers
        Markers of each group, at most.
    dpi, formats
        Dots per inch; ``png``, and ``svg`` for figures without a scatter plot.
    names
        Cluster → name, where the config annotates this representation's clusters.
    on_umap
        Whether to draw `genes` on the UMAP as well.

    Raises
    ------
    UserError
        If a gene is not there, or a cluster that is named.
    """
    from scrna.plots.saving import save_folder

    drawn = pictures(
        *(counts, filtered, normalized, table, umap, clusters),
        groupby=groupby,
        genes=genes,
        n_markers=n_markers,
        names=names or {},
        on_umap=on_umap,
    )
    save_folder(out, drawn, dpi=dpi, formats=formats, made=provenance())


def pictures(
    counts: Path,
    filtered: Path,
    normalized: Path,
    table: Path,
    umap: Path,
    clusters: Path | list[Path],
    *,
    groupby: str,
    genes: list[str],
    n_markers: int,
    names: dict[str, str],
    on_umap: bool = True,
) -> Iterator[tuple]:
    """Draw the figures one after another.

    Parameters
    ----------
    counts, filtered, normalized, table, umap, clusters, groupby, genes, n_markers, names, on_umap
        As in `marker_figures`.

    Yields
    ------
    The name of a figure and a function that draws it, a `matplotlib.figure.Figure`.
    """
    from scrna.plots import expression_figures as draw

    groups = groups_of(counts, filtered, clusters, groupby)
    named = group_names(groups, groupby, names)
    ranked = read_table(table)
    markers, n_each = top_markers(ranked, list(groups.categories), n_markers)
    shown = dict.fromkeys(expression.places_of(counts, filtered, genes).tolist())
    listed = [gene for own in markers.values() for gene in own]
    columns = expression.places_of(counts, filtered, listed, key="markers.csv").tolist()
    if not markers:
        log.warning("no group has markers: none are drawn")
    if not shown and not columns:
        return
    places = np.array(list(dict.fromkeys([*shown, *columns])))
    symbols = expression.names_of(counts, places)
    means, fractions, values = read(counts, filtered, normalized, groups, places, len(shown))

    def of(wanted: list[int], brackets=()) -> draw.GroupMeans:
        at = [place_in[place] for place in wanted]
        here = [symbols[i] for i in at]
        return draw.GroupMeans(rows, here, means[:, at], fractions[:, at], brackets)

    place_in = {place: i for i, place in enumerate(places.tolist())}
    sizes = groups.value_counts()
    rows = [f"{name} ({sizes[group]:,})" for group, name in named.items()]
    rep, n_obs = umap.parent.name, f"{sizes.sum():,} cells"
    if columns:
        panels, title = rank_panels(ranked, named, sizes, f"{rep}: markers by {groupby}, {n_obs}")
        yield "markers_ranks", partial(draw.ranks, panels, title)
        brackets = [(named[group], len(own)) for group, own in markers.items()]
        chosen = of(columns, brackets)
        which = f"first {n_each} markers" if n_each > 1 else "first marker"
        title = f"{rep}: {which} of each group ({groupby}), {n_obs}"
        yield "markers_dotplot", partial(draw.dotplot, chosen, title)
        yield "markers_heatmap", partial(draw.heatmap, chosen, title)
    if shown:
        title = f"{rep}: genes by {groupby}, {n_obs}"
        yield "genes_dotplot", partial(draw.dotplot, of(list(shown)), title)
    if shown and on_umap:
        xy = step_files.read(umap, "obsm/X_umap")[:, :2]
        of_gene = dict(zip(symbols, values.T, strict=False))
        title = f"{rep}: genes on the UMAP of {len(xy):,} cells"
        yield "genes_umap", partial(draw.genes_embedding, "UMAP", xy, of_gene, title)


def group_names(groups: "pd.Categorical", groupby: str, names: dict[str, str]) -> dict[str, str]:
    """Name groups for people: ``0: B cells`` where the cluster has a name."""
    known = list(groups.categories)
    if names:
        cell_types(groups, groupby, names)  # which refuses clusters that there are not
    return {group: f"{group}: {names[group]}" if group in names else group for group in known}


def read_table(table: Path) -> "pd.DataFrame":
    """Read group, names and scores of ``markers.csv``."""
    import pandas as pd

    step_files.check_table(table)
    kinds = {"group": str, "names": str, "scores": float}
    with reading(table):
        # a gene may be called NA, a score may be missing
        found = pd.read_csv(
            table, usecols=[*kinds], dtype=kinds, keep_default_na=False, na_values={"scores": [""]}
        )
    text = ["group", "names"]
    return found.assign(**{name: found[name].map(unescaped) for name in text})


def rank_panels(
    ranked: "pd.DataFrame", named: dict[str, str], sizes: "pd.Series", title: str
) -> tuple[dict[str, tuple[list[str], np.ndarray]], str]:
    """Take what the panels of ranks show: those of the largest groups, where there are many.

    Parameters
    ----------
    ranked
        As `read_table` returns it.
    named
        Group → its name, in the order of the panels.
    sizes
        Cells of each group.
    title
        What is shown.

    Returns
    -------
    Name of each group → genes and their scores, the highest first; the title, which says if groups
    are left out.
    """
    of = dict(tuple(ranked.groupby("group", sort=False)))
    there = [group for group in named if group in of]
    largest = sorted(there, key=lambda group: -sizes[group])[:MOST_PANELS]
    if len(largest) < len(there):
        title += f"; the {len(largest)} largest of {len(there)} groups"
    first = {group: of[group].head(RANKED).dropna() for group in there if group in largest}
    panels = {
        named[group]: (part["names"].tolist(), part["scores"].to_numpy())
        for group, part in first.items()
    }
    return panels, title


def top_markers(
    found: "pd.DataFrame", groups: list[str], n_markers: int
) -> tuple[dict[str, list[str]], int]:
    """Take the first markers of each group from the table, fewer where the groups are many.

    Parameters
    ----------
    found
        As `read_table` returns it, the highest scores of a group first.
    groups
        The groups in their order; those without markers are left out.
    n_markers
        For each, at most.

    Returns
    -------
    Group → genes, and how many for each.
    """
    there = found["group"].nunique()
    n_each = max(1, min(n_markers, MOST_COLUMNS // max(1, there)))
    if n_each < n_markers and there:
        log.info("%d markers of each of %d groups are drawn, for room", n_each, there)
    first = found.groupby("group").head(n_each)
    own = {group: part["names"].tolist() for group, part in first.groupby("group")}
    return {group: own[group] for group in groups if group in own}, n_each


def read(
    counts: Path, filtered: Path, normalized: Path, groups, places: np.ndarray, n_shown: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read genes once: their mean and fraction by group, and the first of them for every cell.

    Parameters
    ----------
    counts, filtered, normalized
        As in `marker_figures`.
    groups
        The group of each kept cell.
    places
        Places of the genes in the store.
    n_shown
        How many of them are wanted for every cell.

    Returns
    -------
    mean, fraction
        float64 (groups × genes), as `scrna.data.expression.by_group`.
    values
        float32 (cells × ``n_shown``), as `scrna.data.expression.of_cells`.
    """
    sums = expression.GroupSums(groups, len(places))
    values = np.zeros((len(groups), n_shown), np.float32, order="F")
    for part in expression.parts(counts, filtered, normalized, places):
        sums.add(part)
        own = part.genes < n_shown
        values[part.cells[own], part.genes[own]] = part.values[own]
    return *sums.result(), values


if __name__ == "__main__":
    run(marker_figures, snakemake)
