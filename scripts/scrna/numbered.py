"""Names for cells where names mean nothing."""

import numpy as np


def nameless(n_obs: int, matrix=None, *, obs=None, **slots):
    """Make an AnnData whose cells are numbered, for steps to which their names mean nothing.

    AnnData looks whether names are unique text, for 0.2 s with a million cells: numbers are.

    Parameters
    ----------
    n_obs
        How many cells.
    matrix
        X, cells × genes; None for an AnnData without genes.
    obs
        Columns of obs, a mapping or a DataFrame, whose index is not looked at.
    **slots
        Further ones, as AnnData names them.

    Returns
    -------
    The AnnData; X and what is in the slots is not copied.
    """
    import pandas as pd
    from anndata import AnnData, settings

    columns = pd.DataFrame(obs if obs is not None else {}, copy=False)
    names = cell_numbers(n_obs)
    frame = columns.set_axis(names) if len(columns.columns) else pd.DataFrame(index=names)
    with settings.override(restrict_index_types=False):
        return AnnData(matrix, obs=frame, **slots)


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
