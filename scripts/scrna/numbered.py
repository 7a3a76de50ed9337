"""Names for cells where names mean nothing."""

import numpy as np


def cell_numbers(n: int):
    """Name cells by their number, for steps to which names mean nothing: AnnData asks for text.

    Thousands and the rest are put together from a few strings, which takes a third of the time
    that ``pandas.RangeIndex(n).astype(str)`` does.

    Parameters
    ----------
    n
        How many.

    Returns
    -------
    Index of text: 0, 1, and so on.
    """
    import pandas as pd

    thousands = np.array(["", *map(str, range(1, n // 1000 + 1))], dtype=object)
    rest = np.array([f"{i:03d}" for i in range(1000)], dtype=object)
    names = np.add.outer(thousands, rest).ravel()[:n]
    names[:1000] = [str(i) for i in range(min(n, 1000))]
    return pd.Index(names, dtype=object)
