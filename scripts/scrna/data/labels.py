"""Read labels of cells, for example known types; some values mean that a cell has none."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def numbered_labels(column: "pd.Series", missing: Iterable[str]) -> np.ndarray:
    """Return a number for the label of each cell; -1 for cells without a label.

    Parameters
    ----------
    column
        The label of each cell.
    missing
        Values that mean none, whatever their case and the spaces around them; gaps are none anyway.

    Returns
    -------
    int (cells).
    """
    import pandas as pd

    codes, values = pd.factorize(column)
    none = {_folded(value) for value in missing}
    is_none = np.array([_folded(value) in none for value in values], dtype=bool)
    places = np.where(is_none, -1, np.arange(len(is_none)))
    return np.append(places, -1)[codes]  # a gap's code is -1, the last place


def _folded(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # -1 may be stored as -1.0
    return str(value).strip().casefold()
