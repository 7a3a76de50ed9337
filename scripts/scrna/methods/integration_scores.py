"""Score how well batches are mixed and labels kept in a representation, independent of clusters.

The scores of the scIB benchmark (Luecken et al. 2022): shares of nearest neighbors, LISI (Korsunsky
et al. 2019) and silhouettes, with the values of harmonypy and scikit-learn. All come from one pass
over the distances: neighbors are found once, in blocks of cells by matrix products. scib-metrics
has the same scores but needs JAX, several hundred MB and a compilation at each start.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

#: Number of nearest cells used, without the cell itself, as in scanpy's graph.
N_NEIGHBORS = 15
#: LISI's own default: the effective number of neighbors; it looks at three times as many.
PERPLEXITY = 30
_DEALS = 5  # times that batches are assigned at random
_BLOCK = 2**20  # distances of a block, 8 MB; a thread holds three times as much
#: How LISI searches for a cell's kernel width, as harmonypy does.
_TOLERANCE = 1e-5
_MOST_STEPS = 50


class Surroundings(NamedTuple):
    """The neighborhood of each of n cells."""

    near: np.ndarray
    """The nearest cells of each cell, without the cell itself, nearest first (n × k)."""
    distances: np.ndarray
    """Their distances (n × k)."""
    sums: list[np.ndarray]
    """For each grouping, the sum of a cell's distances to the cells of each group (n × groups)."""


def score(
    points: np.ndarray,
    batches: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, float]:
    """Score one representation.

    Parameters
    ----------
    points
        Cells × components.
    batches
        Number of each cell's batch.
    labels
        Number of each cell's label, -1 for none; None without labels. Scores of labels are those
        of the labelled cells among themselves.
    seed
        Of the chance that batches are compared with.
    threads
        Blocks that are worked on at the same time.

    Returns
    -------
    same_batch, same_batch_expected
        Share of a cell's nearest from its own batch (0 to 1), and the same by chance.
    ilisi, ilisi_expected
        Integration LISI, the effective number of batches around a cell (1 to all of them; Korsunsky
        et al. 2019), and what it would be if each neighborhood were as the whole: the inverse
        Simpson index of the batches, of each label where there are labels. Batches that are mixed
        have a little less, as a neighborhood is a small sample.
    silhouette_batch
        Silhouette of the batches (-1 to 1): about 0 where they lie over each other.
    same_label, clisi, silhouette_label
        Likewise for labels: high shares and silhouettes and a cLISI of 1 are good.

    What cannot be computed, for there is one batch, one label or no label, is NaN.
    """
    batches = np.unique(batches, return_inverse=True)[1]
    strata = np.zeros_like(batches) if labels is None else labels
    found = dict.fromkeys(
        "same_batch same_batch_expected ilisi ilisi_expected silhouette_batch "
        "same_label clisi silhouette_label".split(),
        math.nan,
    )
    has = np.zeros(len(points), bool) if labels is None else labels >= 0
    kinds = None if labels is None else np.unique(labels[has], return_inverse=True)[1]
    several_batches = batches.max(initial=0) > 0
    several_kinds = kinds is not None and kinds.max(initial=0) > 0
    is_one_search = several_batches and several_kinds and has.all()
    if several_batches:
        around = surroundings(points, [batches, kinds] if is_one_search else [batches], threads)
        found["same_batch"] = _same(around, batches)
        found["same_batch_expected"] = _expected(around, batches, strata, seed)
        found["ilisi"] = lisi(around, batches).mean()
        found["ilisi_expected"] = _expected_lisi(batches, strata)
        found["silhouette_batch"] = silhouette(around.sums[0], batches)
    if several_kinds:
        if not is_one_search:
            around = surroundings(points[has], [kinds], threads)
        found["same_label"] = _same(around, kinds)
        found["clisi"] = lisi(around, kinds).mean()
        found["silhouette_label"] = silhouette(around.sums[-1], kinds)
    return {name: float(value) for name, value in found.items()}


def surroundings(
    points: np.ndarray, groupings: Sequence[np.ndarray], threads: int = 1
) -> Surroundings:
    """Find the nearest of each cell, as many as LISI looks at, and how far away the groups lie.

    Parameters
    ----------
    points
        Cells × components.
    groupings
        The group of each cell, numbered from 0, for each grouping.
    threads
        Blocks of cells that are worked on at the same time.
    """
    points = points - points.mean(axis=0, dtype=np.float64)  # float64; small numbers stay exact
    n = len(points)
    n_neighbors = min(max(N_NEIGHBORS, 3 * _perplexity(n)), n - 1)
    squares = (points**2).sum(axis=1)
    members = [np.eye(groups.max() + 1)[groups] for groups in groupings]

    def of_block(start: int) -> Surroundings:
        rows = np.arange(start, min(n, start + size))
        squared = points[rows] @ points.T
        squared *= -2
        squared += squares[rows, None]
        squared += squares
        squared[np.arange(len(rows)), rows] = np.inf  # a cell is not its own neighbor
        near = np.argpartition(squared, n_neighbors - 1, axis=1)[:, :n_neighbors]
        squared[np.arange(len(rows)), rows] = 0
        distances = np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
        sums = [distances @ own for own in members]
        # of near cells the difference of large squares is not exact enough
        exact = np.sqrt(((points[rows, None] - points[near]) ** 2).sum(axis=2))
        order = np.argsort(exact, axis=1, kind="stable")
        ordered = (np.take_along_axis(of, order, axis=1) for of in (near, exact))
        return Surroundings(*ordered, sums)

    size = max(1, _BLOCK // n)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(of_block, range(0, n, size)))
    near, distances, sums = zip(*parts, strict=True)
    return Surroundings(
        np.concatenate(near),
        np.concatenate(distances),
        [np.concatenate(own) for own in zip(*sums, strict=True)],
    )


def lisi(around: Surroundings, groups: np.ndarray) -> np.ndarray:
    """Compute the local inverse Simpson index of each cell, as harmonypy's `compute_lisi` does.

    A cell's neighbors are weighted by a Gaussian kernel of their distances, as in t-SNE: its width
    is such that the weights have the perplexity that is asked for.

    Parameters
    ----------
    around
        What `surroundings` found.
    groups
        The group of each cell, numbered from 0.

    Returns
    -------
    The effective number of groups around each cell.
    """
    perplexity = _perplexity(len(groups))
    near = around.near[:, : 3 * perplexity]
    weights = _weights(around.distances[:, : 3 * perplexity], math.log(perplexity))
    at = np.arange(len(groups))[:, None] * (groups.max() + 1) + groups[near]
    shares = np.bincount(at.ravel(), weights.ravel(), minlength=len(groups) * (groups.max() + 1))
    simpson = (shares.reshape(len(groups), -1) ** 2).sum(axis=1)
    return 1 / np.where(simpson > 0, simpson, -1)  # -1, as harmonypy, where all weights are 0


def _weights(distances: np.ndarray, entropy: float) -> np.ndarray:
    """Weight neighbors so that the weights of each cell have an entropy, by bisection."""
    weights = np.zeros_like(distances)
    left = np.arange(len(distances))  # cells whose width is still sought
    width = np.ones(len(distances))
    low, high = np.full(len(distances), -np.inf), np.full(len(distances), np.inf)
    for _ in range(_MOST_STEPS + 1):
        own, beta = distances[left], width[left]
        kernel = np.exp(-own * beta[:, None])
        total = kernel.sum(axis=1)
        there = total > 0
        total[~there] = 1
        weights[left] = kernel / total[:, None]
        reached = np.log(total) + beta * (own * weights[left]).sum(axis=1)
        off = np.where(there, reached, 0) - entropy
        keep = np.abs(off) >= _TOLERANCE
        left, off, beta = left[keep], off[keep], beta[keep]
        if len(left) == 0:
            break
        is_wide = off > 0
        low[left[is_wide]], high[left[~is_wide]] = beta[is_wide], beta[~is_wide]
        below, above = low[left], high[left]
        between = (below + above) / 2
        width[left] = np.select(
            [np.isfinite(between), is_wide], [between, 2 * beta], default=beta / 2
        )
    return weights


def silhouette(sums: np.ndarray, groups: np.ndarray) -> float:
    """Compute the mean silhouette, as scikit-learn's `silhouette_score` does.

    Parameters
    ----------
    sums
        The sum of each cell's distances to the cells of each group (n × groups).
    groups
        The group of each cell, numbered from 0.

    Returns
    -------
    The mean over the cells (-1 to 1); one that is alone in its group counts as 0. NaN where every
    cell is a group of its own.
    """
    n = len(groups)
    if groups.max() >= n - 1:
        return math.nan
    sizes, cells = np.bincount(groups), np.arange(n)
    own_size = sizes[groups]
    inside = sums[cells, groups] / np.maximum(own_size - 1, 1)
    others = sums / sizes
    others[cells, groups] = np.inf
    outside = others.min(axis=1)
    larger = np.maximum(inside, outside)
    values = np.divide(outside - inside, larger, out=np.zeros(n), where=larger > 0)
    values[own_size == 1] = 0
    return float(values.mean())


def _perplexity(n: int) -> int:
    return max(1, min(PERPLEXITY, (n - 1) // 3))


def _same(around: Surroundings, groups: np.ndarray) -> float:
    """Share of the nearest that are of a cell's own group."""
    return (groups[around.near[:, :N_NEIGHBORS]] == groups[:, None]).mean()


def _expected(
    around: Surroundings, batches: np.ndarray, strata: np.ndarray, seed: int
) -> np.floating:
    """Mean share of the same batch where batches are dealt out anew within each stratum."""
    rng = np.random.default_rng(seed)
    by_stratum = np.argsort(strata, kind="stable")
    shares = []
    for _ in range(_DEALS):
        dealt = np.empty_like(batches)
        mixed = np.lexsort((rng.random(len(batches)), strata))
        dealt[by_stratum] = batches[mixed]
        shares.append(_same(around, dealt))
    return np.mean(shares)


def _expected_lisi(batches: np.ndarray, strata: np.ndarray) -> float:
    """Mean over the cells of the inverse Simpson index of the batches in their stratum."""
    table = np.zeros((strata.max() + 2, batches.max() + 1))
    np.add.at(table, (strata, batches), 1)  # cells without a label are the last row
    sizes = table.sum(axis=1)
    there = sizes > 0
    simpson = ((table[there] / sizes[there, None]) ** 2).sum(axis=1)
    return np.average(1 / simpson, weights=sizes[there])
