"""The groups of cells that markers are of."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrna import slots
from scrna.counts import Counts, kept

if TYPE_CHECKING:
    import pandas as pd


def groups_of(
    counts: Path, filtered: Path, clusters: Path | list[Path], groupby: str
) -> "pd.Categorical":
    """Read the group of each kept cell.

    Parameters
    ----------
    counts, filtered
        ``counts.zarr`` and the step file of ``filter``.
    clusters
        The step file of the clustering; empty where `groupby` is a column of obs.
    groupby
        The clustering, or the column.

    Returns
    -------
    Categories are text; those without cells are left out.
    """
    if clusters:
        groups = slots.read(clusters, f"obs/{groupby}")
    else:
        cells, _ = kept(filtered)
        groups = Counts(counts).obs([groupby])[groupby].astype("category")[cells].array
    groups = groups.remove_unused_categories()
    return groups.rename_categories([str(group) for group in groups.categories])
