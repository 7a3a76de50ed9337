"""Make AnnData objects without names of cells, for steps that do not need them."""


def anndata_without_names(n_obs: int, matrix=None, *, obs=None, **slots):
    """Make an AnnData whose cells are named by number.

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
    from anndata import AnnData

    columns = pd.DataFrame(obs if obs is not None else {}, copy=False)
    names = pd.RangeIndex(n_obs).astype(str)
    frame = columns.set_axis(names) if len(columns.columns) else pd.DataFrame(index=names)
    return AnnData(matrix, obs=frame, **slots)
