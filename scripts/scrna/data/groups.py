"""Read the groups of cells for which markers are computed."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.errors import UserError

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

    Raises
    ------
    UserError
        If there is no such column.
    """
    if clusters:
        groups = step_files.read(clusters, f"obs/{groupby}")
    else:
        cells, _ = kept(filtered)
        store = Counts(counts)
        if groupby not in (columns := store.obs_columns):
            msg = f"obs has no column {groupby!r} to group the cells by; there are "
            raise UserError(msg + ", ".join(columns))
        groups = store.obs([groupby])[groupby].astype("category")[cells].array
    groups = groups.remove_unused_categories()
    return groups.rename_categories([str(group) for group in groups.categories])


def check_groups(sizes: "pd.Series", groupby: str, min_cells: int, method: str) -> list[str]:
    """List the groups with cells enough for markers.

    Parameters
    ----------
    sizes
        Cells of each group, by its name.
    groupby
        What the groups are of, for messages.
    min_cells
        The least number of cells.
    method
        The test.

    Returns
    -------
    Names of groups, in the order of `sizes`.

    Raises
    ------
    UserError
        If there is none, or only one of several for logistic regression.
    """
    large = [group for group, n in sizes.items() if n >= min_cells]
    if not large:
        msg = (
            f"no group of {groupby!r} has markers.min_cells ({min_cells}) cells; the largest has "
            f"{max(sizes, default=0)}. Lower it, or group by something coarser"
        )
        raise UserError(msg)
    if method == "logreg" and len(large) == 1 < len(sizes):
        msg = (
            f"markers.method logreg compares groups with each other, but only one of {groupby!r} "
            f"has markers.min_cells ({min_cells}) cells. Lower it, or take wilcoxon"
        )
        raise UserError(msg)
    return large
