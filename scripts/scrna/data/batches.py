"""Find the batches that Harmony integrates in columns of obs, or refuse with the reason."""

from collections.abc import Iterable

import numpy as np

from scrna.errors import UserError
from scrna.log import log

#: Harmony makes one soft cluster of this many cells.
FEWEST_CELLS = 30


def complete_batches(batches, missing_batch: str):
    """Assign a batch to every cell, or refuse.

    Parameters
    ----------
    batches
        DataFrame, a column for each batch variable.
    missing_batch
        ``refuse`` or ``own_batch``.

    Returns
    -------
    DataFrame of categories without missing values.

    Raises
    ------
    UserError
        If values are missing and are to be refused, or a column has none at all.
    """
    batches = batches.copy()
    for name in batches:
        missing = batches[name].isna()
        if missing.all():
            msg = (
                f"batch_key {name!r} has no value in any of the {len(batches):,} cells. "
                "Set the dataset's batch_key to null, or to another column"
            )
            raise UserError(msg)
        if missing.any() and missing_batch == "refuse":
            msg = (
                f"batch_key {name!r} has no value in {int(missing.sum()):,} of {len(batches):,} "
                "cells. Fill them in, or set harmony.missing_batch to own_batch"
            )
            raise UserError(msg)
        batches[name] = as_text(batches[name], "missing")
    return batches


def as_text(column, missing: str):
    """Turn a column into categories of text in the order of the alphabet, its gaps into one."""
    import pandas as pd

    codes, values = pd.factorize(column)  # few values stand for all cells; a gap's code is -1
    texts, place = np.unique([*map(str, values), missing], return_inverse=True)
    labels = pd.Series(pd.Categorical.from_codes(place[codes], texts), index=column.index)
    return labels.cat.remove_unused_categories()


def in_large_batches(batches, min_batch_cells: int) -> np.ndarray:
    """Flag the cells that can be integrated: all of their batches have enough cells.

    Parameters
    ----------
    batches
        What `complete_batches` returns.
    min_batch_cells
        The least number of cells of a batch.

    Returns
    -------
    Mask, bool (cells).

    Raises
    ------
    UserError
        If there is nothing to integrate: a column with fewer than two such batches, or fewer
        cells in them than Harmony needs.
    """
    large = np.ones(len(batches), dtype=bool)
    for name in batches:
        sizes = batches[name].value_counts()
        _check_column(name, sizes[sizes > 0], min_batch_cells)
        large &= ~batches[name].isin(sizes.index[sizes < min_batch_cells]).to_numpy()
    for name in batches:  # cells may have gone for the other column's sake
        if batches[name][large].nunique() < 2:
            others = ", ".join(other for other in batches if other != name)
            msg = (
                f"batch_key {name!r} has fewer than two batches among the {large.sum():,} cells "
                f"whose other batches ({others}) have harmony.min_batch_cells ({min_batch_cells}) "
                "cells. Take one of the columns out of the dataset's batch_key"
            )
            raise UserError(msg)
    if large.sum() < FEWEST_CELLS:
        msg = (
            f"harmony has {large.sum()} cells to integrate, fewer than {FEWEST_CELLS}: those in "
            f"batches of harmony.min_batch_cells ({min_batch_cells}) cells or more. Set the "
            "dataset's batch_key to null, or loosen the filter"
        )
        raise UserError(msg)
    return large


def warn_of_small(batches, min_batch_cells: int) -> None:
    """Warn of batches that are too small to be integrated."""
    for name in batches:
        sizes = batches[name].value_counts()
        small = sizes[(sizes < min_batch_cells) & (sizes > 0)]
        if len(small):
            log.warning(
                "%s: %s have under %d cells; their %s cells keep their uncorrected coordinates",
                name,
                ", ".join(map(str, small.index[:10])),
                min_batch_cells,
                f"{small.sum():,}",
            )


def _check_column(name: str, sizes, min_batch_cells: int) -> None:
    """Refuse a column without two batches of enough cells; `sizes` has the largest first."""
    n_cells, n_large = int(sizes.sum()), int((sizes >= min_batch_cells).sum())
    if n_cells > 1 and sizes.iloc[0] == 1:
        found = f"has another value in each of the {n_cells:,} cells: they are no batches"
    elif n_large >= 2:
        return
    elif len(sizes) == 1:
        found = f"has one batch, {sizes.index[0]!r}, in all of the {n_cells:,} cells"
    else:
        found = (
            f"has {len(sizes):,} batches in {n_cells:,} cells, but {n_large} of "
            f"harmony.min_batch_cells ({min_batch_cells}) cells or more; the largest are "
            f"{_listed(sizes.items())}"
        )
    msg = (
        f"batch_key {name!r} {found}. There is nothing to integrate: set the dataset's batch_key "
        "to null, or to another column"
    )
    raise UserError(msg)


def _listed(sizes: Iterable[tuple[str, int]], most: int = 5) -> str:
    return ", ".join(f"{batch} ({n:,})" for batch, n in list(sizes)[:most])
