"""Doublets of one sample, by Scrublet (Wolock et al. 2019, doi:10.1016/j.cels.2018.11.005).

Scores are those of ``scrublet`` of scanpy or rapids-singlecell. Which cells count as doublets is
said here, since Scrublet's own threshold exists only where the scores of the simulated doublets
have two maxima.
"""

from typing import NamedTuple

import numpy as np

from scrna.backend import load, to_host
from scrna.errors import UserError

#: Share of doublets per cell that was recovered: 0.8 % a 1,000, as 10x Genomics state for their
#: Chromium chips (user guide of Single Cell 3' v3.1, table of multiplet rates).
RATE_PER_CELL = 0.008 / 1000
#: No sample is expected to have more; one of which the rate above says so is hardly one sample.
HIGHEST_RATE = 0.25
#: Fewer cells are not scored: Scrublet takes 30 components of them.
FEWEST_CELLS = 50
#: A threshold that calls more of a sample doublets is none.
MOST_DOUBLETS = 0.5
#: Bins and rounds of `minimum_between_maxima`, those of scikit-image.
_BINS, _ROUNDS = 256, 10_000


class Called(NamedTuple):
    """Which cells count as doublets.

    Parameters
    ----------
    flags
        For each cell; one without a score is none.
    threshold
        Cells with a higher score are doublets.
    found_by
        ``minimum``: the lowest point between the two maxima of the simulated doublets' scores;
        ``expected_rate``: as many cells as are expected.
    """

    flags: np.ndarray
    threshold: float
    found_by: str


def rate_of(n_cells: int, asked: float | None) -> float:
    """Return the share of doublets that a sample is expected to have, asked for or by its size."""
    return min(RATE_PER_CELL * n_cells, HIGHEST_RATE) if asked is None else asked


def scores(
    matrix, rate: float, *, sample: str, seed: int, backend: str
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the doublet scores of a sample.

    Parameters
    ----------
    matrix
        Its counts, float32 CSR, where the backend computes.
    rate
        The share of doublets that is expected.
    sample
        Its name, for messages.
    seed
        Of the simulated doublets.
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    The score of each cell, NaN where it has fewer than three genes; and the scores of the simulated
    doublets.

    Raises
    ------
    UserError
        If the sample has too few variable genes.
    """
    import anndata as ad

    adata = ad.AnnData(matrix)
    try:
        # with a threshold it does not look for one itself, which needs scikit-image
        load(backend).pp.scrublet(
            adata, expected_doublet_rate=rate, threshold=0.0, random_state=seed, verbose=False
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        msg = (
            f"scrublet cannot score the doublets of sample {sample!r} ({matrix.shape[0]:,} cells): "
            f"{error}. Most often too few genes vary among its cells. Set doublets.method: none, "
            "or doublets.by to a column with larger samples"
        )
        raise UserError(msg) from error
    simulated = to_host(adata.uns["scrublet"]["doublet_scores_sim"])
    return adata.obs["doublet_score"].to_numpy(dtype=float), np.asarray(simulated, dtype=float)


def call(observed: np.ndarray, simulated: np.ndarray, rate: float) -> Called:
    """Tell doublets from single cells by their scores.

    Parameters
    ----------
    observed
        The score of each cell; NaN for one without.
    simulated
        Those of the simulated doublets.
    rate
        The share of doublets that is expected.

    Returns
    -------
    By the minimum between the two maxima of the simulated doublets' scores. Where there are not two
    maxima, or it would call over half of the cells doublets, by the expected share of the cells.
    """
    known = observed[~np.isnan(observed)]
    threshold = minimum_between_maxima(simulated)
    found_by = "minimum"
    if threshold is None or (known > threshold).mean() > MOST_DOUBLETS:
        threshold, found_by = float(np.quantile(known, 1 - rate)), "expected_rate"
    return Called(observed > threshold, threshold, found_by)


def minimum_between_maxima(values: np.ndarray) -> float | None:
    """Find the lowest point between the two maxima of a distribution.

    The method of Prewitt and Mendelsohn (1966), as ``threshold_minimum`` of scikit-image has it,
    which Scrublet uses: the histogram is smoothed, three bins at a time, until it has at most two
    maxima.

    Parameters
    ----------
    values
        Numbers.

    Returns
    -------
    The middle of the bin; None where two maxima are not left.
    """
    from scipy.ndimage import uniform_filter1d

    if np.ptp(values) == 0:
        return None
    heights, edges = np.histogram(values, _BINS)
    heights = heights.astype(np.float32)
    for _ in range(_ROUNDS):
        heights = uniform_filter1d(heights, 3)
        maxima = _maxima(heights)
        if len(maxima) < 3:
            break
    if len(maxima) != 2:
        return None
    lowest = maxima[0] + int(np.argmin(heights[maxima[0] : maxima[1] + 1]))
    return float((edges[lowest] + edges[lowest + 1]) / 2)


def _maxima(heights: np.ndarray) -> np.ndarray:
    """Find where a curve turns from rising to falling; of a plateau, its last point.

    A curve that falls from the start has a maximum there.
    """
    steps = np.sign(np.diff(heights))
    turns = np.flatnonzero(steps)
    falls = steps[turns] < 0
    was_falling = np.r_[False, falls[:-1]]
    return turns[falls & ~was_falling]
