"""Outliers of a distribution, a sample at a time.

A value is an outlier where it lies more than a number of MADs from its sample's median. The MAD is
the median of the absolute deviations from the median, not scaled by 1.4826. So do Germain et al.
2020 (doi:10.1186/s13059-020-02136-7) and the book "Single-cell best practices", chapter on quality
control, whose numbers of MADs nf-core/scdownstream takes over.
"""

import numpy as np

from scrna.data.samples import Samples


def mad_bounds(values: np.ndarray, samples: Samples, n_mads: float) -> tuple[np.ndarray, ...]:
    """Compute the bounds of each sample.

    Parameters
    ----------
    values
        A number for each cell; NaN does not count.
    samples
        The sample of each cell.
    n_mads
        How many MADs a bound is from the median.

    Returns
    -------
    The lower and the upper bound of each sample. Both are NaN where the MAD is zero, as half of the
    values or more are the same: they say nothing of how far values spread.
    """
    low, high = np.full((2, len(samples.names)), np.nan)
    order = np.argsort(samples.codes, kind="stable")
    ends = np.cumsum(samples.sizes())
    for place, own in enumerate(np.split(values[order], ends[:-1])):
        known = own[~np.isnan(own)]
        if not len(known):
            continue
        median = np.median(known)
        mad = np.median(np.abs(known - median))
        if mad > 0:
            low[place], high[place] = median - n_mads * mad, median + n_mads * mad
    return low, high
