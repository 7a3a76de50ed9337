"""The sample of each cell, for the steps that go a sample at a time."""

from typing import NamedTuple

import numpy as np

from scrna.data.counts import Counts
from scrna.log import log

#: What cells without a sample are called.
MISSING = "missing"


class Samples(NamedTuple):
    """The sample of each cell.

    Parameters
    ----------
    codes
        The number of its sample, for each cell.
    names
        The names of the samples.
    """

    codes: np.ndarray
    names: list[str]

    def sizes(self, cells: np.ndarray | None = None) -> np.ndarray:
        """Count the cells of each sample; with a mask, those of them that it holds."""
        codes = self.codes if cells is None else self.codes[cells]
        return np.bincount(codes, minlength=len(self.names))


def samples_of(store: Counts, by: str | None, key: str) -> Samples:
    """Read which sample each cell is of.

    Parameters
    ----------
    store
        The counts.
    by
        A column of obs, which the conversion has checked to be there; None takes all cells as one
        sample.
    key
        The config key that names it, for messages.

    Returns
    -------
    Samples in the order of the column's categories, or of their names where it has none. Cells
    without one are a sample of their own, the last, named `MISSING`; a warning counts them.
    """
    if by is None:
        return Samples(np.zeros(store.shape[0], dtype=np.intp), ["all cells"])
    import pandas as pd

    column = store.obs([by])[by].astype("category").cat.remove_unused_categories()
    texts = column.cat.categories.astype(str)
    codes, names = pd.factorize(texts)  # 1 and "1" are one name
    codes = codes[column.cat.codes]
    codes[column.isna().to_numpy()] = -1
    names = list(names)
    if "" in names:  # an empty text is no name
        place = names.index("")
        codes[codes == place] = -1
        codes[codes > place] -= 1
        del names[place]
    if (n_missing := int((codes < 0).sum())) > 0:
        log.warning(
            "%s of %s cells have no value in %s (%s): they count as one sample more, %r",
            f"{n_missing:,}",
            f"{len(codes):,}",
            by,
            key,
            MISSING,
        )
        if MISSING not in names:
            names.append(MISSING)
        codes[codes < 0] = names.index(MISSING)
    return Samples(codes.astype(np.intp), names)
