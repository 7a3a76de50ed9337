"""Scores of gene sets in cells, as scanpy's `score_genes` has them, from blocks of cells.

A score is the mean of the set's genes in a cell less that of control genes, which are drawn from
the bins of mean expression that the set's genes lie in (Tirosh et al. 2016, Satija et al. 2015).
The libraries' functions take genes out of the whole matrix. Here the means of all genes come from
one pass over the matrix and the scores of all sets from a second one, a block of cells at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from scrna.backend import arrays, to_host
from scrna.data.block import row_ranges
from scrna.resources.estimates import BLOCK_NNZ

PHASES = ["G1", "S", "G2M"]


def gene_means(matrix, backend: str) -> np.ndarray:
    """Compute the mean of each gene.

    Parameters
    ----------
    matrix
        Cells × genes, CSR or a Dask array whose blocks are CSR.
    backend
        Where it lies.

    Returns
    -------
    float64 (genes). Sums of float32 values in float64 are exact up to some ten million cells, so
    they are the same in whatever order.
    """
    sums = np.zeros(matrix.shape[1])
    for part in _each(matrix, _gene_sums, backend):
        sums += part
    return sums / matrix.shape[0]


def control_genes(
    means: np.ndarray, genes: np.ndarray, *, ctrl_size: int, n_bins: int, seed: int
) -> np.ndarray:
    """Draw the control genes of a set: the same genes as scanpy draws.

    Parameters
    ----------
    means
        Of all genes.
    genes
        Places of the set's genes.
    ctrl_size
        Genes drawn from each bin of means in which the set has genes.
    n_bins
        Bins.
    seed
        scanpy's ``random_state``.

    Returns
    -------
    Places, ascending; none of the set's own. Empty where its bins have no other genes.
    """
    import pandas as pd

    rng = np.random.RandomState(seed)
    of_bin = max(1, int(np.round(len(means) / (n_bins - 1))))
    bins = pd.Series(means).rank(method="min").to_numpy() // of_bin
    drawn = []
    for one in np.unique(bins[genes]):
        candidates = np.flatnonzero(bins == one)
        if ctrl_size < len(candidates):
            candidates = candidates[rng.choice(len(candidates), ctrl_size, replace=False)]
        drawn.append(candidates)
    return np.setdiff1d(np.concatenate(drawn), genes)


def set_scores(
    matrix, sets: Mapping[str, tuple[np.ndarray, np.ndarray]], backend: str
) -> dict[str, np.ndarray]:
    """Score sets of genes in every cell.

    Parameters
    ----------
    matrix, backend
        As in `gene_means`.
    sets
        Name → places of the set's genes and of its control genes.

    Returns
    -------
    Name → float64 (cells): the mean of the genes less that of the controls.
    """
    weights = np.zeros((matrix.shape[1], len(sets)))
    for column, (genes, controls) in enumerate(sets.values()):
        weights[genes, column] = 1 / len(genes)
        weights[controls, column] = -1 / len(controls)
    parts = _each(matrix, _weighted_sums, backend, weights)
    return dict(zip(sets, np.concatenate(list(parts)).T, strict=True))


def phases(s_score: np.ndarray, g2m_score: np.ndarray) -> np.ndarray:
    """Return the phase of each cell as a place in `PHASES`, as scanpy assigns it.

    G1 where both scores are below 0, else the phase of the higher one, S where they are equal.
    """
    codes = np.where(g2m_score > s_score, PHASES.index("G2M"), PHASES.index("S"))
    codes[(s_score < 0) & (g2m_score < 0)] = PHASES.index("G1")
    return codes


def _each(matrix, function: Callable[..., np.ndarray], *args: Any) -> Iterator[np.ndarray]:
    """Call a function on the blocks of a matrix, in order; its results lie on the host."""
    if hasattr(matrix, "dask"):
        import dask

        call, shared = dask.delayed(function), [dask.delayed(arg) for arg in args]
        yield from dask.compute(*[call(block, *shared) for block in matrix.to_delayed().ravel()])
        return
    for start, stop in row_ranges(to_host(matrix.indptr), BLOCK_NNZ):
        yield function(matrix[start:stop], *args)


def _gene_sums(block, backend: str) -> np.ndarray:
    xp, n_genes = arrays(backend), block.shape[1]
    return to_host(xp.bincount(block.indices, weights=block.data, minlength=n_genes))


def _weighted_sums(block, backend: str, weights: np.ndarray) -> np.ndarray:
    if block.nnz == 0:
        return np.zeros((block.shape[0], weights.shape[1]))
    return to_host(block.astype(np.float64) @ arrays(backend).asarray(weights))
