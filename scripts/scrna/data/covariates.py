"""Check and read the obs columns in ``pca.regress_out``."""

import numpy as np

from scrna.errors import UserError


def as_numbers(values: np.ndarray, name: str, *, may_be_missing: bool = False) -> np.ndarray:
    """Convert a column to numbers.

    Parameters
    ----------
    values
        One for each cell.
    name
        The column, for messages.
    may_be_missing
        Whether numbers that are not finite are let through.

    Returns
    -------
    float64 (cells).

    Raises
    ------
    UserError
        If the column is not numeric, or has numbers that are not finite.
    """
    is_numeric = values.dtype.kind in "biuf"
    if not is_numeric or not (may_be_missing or np.isfinite(values).all()):
        msg = (
            f"pca.regress_out names {name!r}, which is not a column of finite numbers in every "
            f"kept cell (found {values.dtype}, e.g. {values[:3].tolist()})"
        )
        raise UserError(msg)
    return values.astype(np.float64)
