"""Simulated counts whose truth is known: a demo without a download, data for tests and benchmarks.

A droplet's counts are negative-binomial. Its expected counts are a depth times a profile over the
genes: the profile of its cell type, or on the trajectory a mixture of two neighbouring types, times
its batch's factor of each gene. Dead cells have few counts, mostly mitochondrial ones; empty
droplets hold a little of the average of all cells.

The first four types lie on a trajectory: ``type_1`` is its start, ``type_2`` the fork at
pseudotime 0.5, ``type_3`` and ``type_4`` the ends of the branches ``a`` and ``b``. Two or three
types make an unbranched path; one type, and every type after the fourth, is an island.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scrna.errors import UserError
from scrna.ingest.h5ad_writer import write_h5ad
from scrna.progress import Progress

BOUNDS = {
    "n_obs": (1, 100_000_000),
    "n_vars": (200, 200_000),
    "n_types": (1, 50),
    "n_batches": (1, 50),
    "mean_counts": (1, 1_000_000),
    "depth_spread": (0, 2),
    "dispersion": (0.01, 10),
    "markers_per_type": (0, 1_000),
    "marker_fold": (1, 1_000),
    "batch_strength": (0, 3),
    "dead_share": (0, 1),
    "empty_share": (0, 1),
    "seed": (0, 2**32 - 1),
}

# fmt: off
_MT_GENES = ["ND1", "ND2", "CO1", "CO2", "ATP8", "ATP6", "CO3", "ND3", "ND4L", "ND4", "ND5", "ND6",
             "CYB"]
# fmt: on
_HB_GENES = ["HBA1", "HBA2", "HBB", "HBD", "HBG1", "HBG2"]
_RIBO_GENES = [f"RPS{i}" for i in range(2, 30)] + [f"RPL{i}" for i in range(3, 42)]
_RIBO_SHARE = 0.15  # of the counts that are not mitochondrial
_HB_SHARE = 0.0005
_BASE_SPREAD = 2.0  # sd of the log of a gene's expression: some 2,000 genes in 5,000 counts
_MARKER_RANKS = (0.6, 0.95)  # markers are neither hardly ever seen nor among the highest genes
_LIVING_MT = (5, 95)  # beta distribution of the mitochondrial share: mean 5 %
_DEAD_MT = (0.35, 0.75)  # uniform
_EMPTY_MT = 0.1
_DEAD_DEPTH = 0.25  # of a living cell's counts
_EMPTY_DEPTH = 0.01
_NEIGHBOURS = ((1,), (0, 2, 3), (1,), (1,))  # of the types on the trajectory

# Other values of these two make other counts.
_BLOCK = 1024  # cells with a seed of their own
_DENSE = 2**21  # cells × genes that a thread holds dense


class _Cells(NamedTuple):
    """What the droplets' expected counts are made of, an array of length n_obs each."""

    batch: np.ndarray
    type_: np.ndarray  # n_types for empty droplets
    neighbour: np.ndarray  # the type that is mixed in
    weight: np.ndarray  # of the neighbour
    depth: np.ndarray  # expected total counts
    mt_share: np.ndarray


@dataclass(kw_only=True)
class Simulation:
    """Droplets of several cell types and batches, drawn block by block.

    The same parameters give the same counts, whatever the number of threads.

    Parameters
    ----------
    n_obs, n_vars
        Droplets, dead and empty ones included, and genes.
    n_types, n_batches
        Cell types ``type_1`` …, and batches ``batch_1`` … of equal size.
    trajectory
        Whether the first four types form a branching trajectory; without, all are islands.
    mean_counts
        Mean total counts of a living cell.
    depth_spread
        Standard deviation of the log of a cell's expected total counts.
    dispersion
        φ of the negative binomial: variance = mean + φ · mean².
    markers_per_type
        Marker genes of each type.
    marker_fold
        Median factor of a marker gene's expression in its type.
    batch_strength
        Standard deviation of the log of the factor that each gene has in each batch. At 0.15
        clusters mix the batches, at 0.25 they split by batch and Harmony mends it, at 0.4 Harmony
        gives up.
    dead_share, empty_share
        Expected share of dead cells and of empty droplets in n_obs.
    seed
        The seed.

    Attributes
    ----------
    obs : pandas.DataFrame
        The truth: ``cell_type`` (NaN for empty droplets), ``batch``, ``status`` (cell, dead or
        empty), ``pseudotime`` (0 to 1) and ``branch`` (trunk, a, b), both NaN off the trajectory.
    var : pandas.DataFrame
        Indexed by unique symbols: ``gene_ids``, ``marker_of`` (the type, NaN for most genes).

    Raises
    ------
    UserError
        If a parameter is out of its bounds, or more markers are asked for than there are genes.
    """

    n_obs: int = 3000
    n_vars: int = 2000
    n_types: int = 6
    n_batches: int = 3
    trajectory: bool = True
    mean_counts: float = 5000
    depth_spread: float = 0.35
    dispersion: float = 0.3
    markers_per_type: int = 40
    marker_fold: float = 8
    batch_strength: float = 0.25
    dead_share: float = 0.05
    empty_share: float = 0.05
    seed: int = 0

    def __post_init__(self):
        self.parameters = asdict(self)
        self._check()
        self._types = [f"type_{i}" for i in range(1, self.n_types + 1)]
        n_blocks = -(-self.n_obs // _BLOCK)
        genes, cells, *self._seeds = np.random.SeedSequence(self.seed).spawn(n_blocks + 2)
        self._make_genes(np.random.default_rng(genes))
        self._make_cells(np.random.default_rng(cells))

    def blocks(
        self, *, threads: int | None = None
    ) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
        """Draw the counts, about a thousand droplets at a time.

        Parameters
        ----------
        threads
            Threads that draw; by default one for each core that the process may use.

        Yields
        ------
        Counts (CSR, int32, sorted indices) and obs of the next rows. At most twice as many blocks
        as threads are held.
        """
        threads = threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool:
            waiting = deque()
            for block in range(len(self._seeds)):
                waiting.append(pool.submit(self._draw, block))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def to_anndata(self, *, threads: int | None = None) -> AnnData:
        """Draw the whole in memory; `threads` as in `blocks`."""
        counts = [X for X, _ in self.blocks(threads=threads)]
        return AnnData(
            X=sparse.vstack(counts, format="csr"), obs=self.obs, var=self.var, uns=self._uns()
        )

    def write_h5ad(self, path: Path, *, threads: int | None = None) -> int:
        """Draw the whole into an h5ad file, holding a few blocks in memory.

        Parameters
        ----------
        path
            The file; it has this name when it is complete.
        threads
            As in `blocks`.

        Returns
        -------
        The number of non-zero counts.
        """
        truth = AnnData(obs=self.obs, var=self.var, uns=self._uns())
        with Progress("simulate", total=self.n_obs, unit="cells") as progress:
            counts = (X for X, _ in self.blocks(threads=threads))
            return write_h5ad(path, truth, counts, progress)

    def _uns(self) -> dict:
        return {"simulation": dict(self.parameters)}

    def _check(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = self.parameters[name]
            if not low <= value <= high:
                msg = f"simulate.{name} is {value:,}; give a number from {low:,} to {high:,}"
                raise UserError(msg)
        if self.dead_share + self.empty_share > 1:
            msg = (
                f"simulate.dead_share {self.dead_share} and simulate.empty_share "
                f"{self.empty_share} are more than 1 together; lower one of them"
            )
            raise UserError(msg)

    def _make_genes(self, rng: np.random.Generator) -> None:
        """Make var and the profiles: of each type in each batch over the genes, sum 1 each.

        A batch's last profile is that of its empty droplets. Mitochondrial genes have zeros: a
        cell's share of them is its own.
        """
        mt = [f"MT-{name}" for name in _MT_GENES]
        ribo = _RIBO_GENES[: self.n_vars // 20]
        n_special = len(mt) + len(ribo) + len(_HB_GENES)
        n_other = self.n_vars - n_special
        base = rng.lognormal(0, _BASE_SPREAD, n_other)
        marker_of = self._choose_markers(rng, base)

        symbols = mt + ribo + _HB_GENES + [f"GENE{i}" for i in range(1, n_other + 1)]
        values = np.zeros((self.n_types, self.n_vars))
        first = len(mt)
        for names, share in ((ribo, _RIBO_SHARE), (_HB_GENES, _HB_SHARE)):
            values[:, first : first + len(names)] = share * base.sum() * _shares(rng, len(names))
            first += len(names)
        values[:, n_special:] = base
        for k in range(self.n_types):
            mine = n_special + np.flatnonzero(marker_of == k)
            values[k, mine] *= rng.lognormal(np.log(self.marker_fold), 0.3, len(mine))
            for i, gene in enumerate(mine, start=1):
                symbols[gene] = f"MARK{k + 1}-{i}"

        order = rng.permutation(self.n_vars)
        codes = np.concatenate([np.full(n_special, -1), marker_of])[order]
        self.var = pd.DataFrame(
            {
                "gene_ids": [f"ENSG{i:011d}" for i in range(1, self.n_vars + 1)],
                "marker_of": pd.Categorical.from_codes(codes, self._types),
            },
            index=pd.Index(np.array(symbols)[order]),
        )
        self._mt_genes = np.flatnonzero(order < len(mt))
        self._mt_profile = _shares(rng, len(mt)).astype(np.float32)
        values = np.vstack([values, values.mean(axis=0)])[:, order]
        shifts = rng.lognormal(0, self.batch_strength, (self.n_batches, 1, self.n_vars))
        profiles = np.float32(values) * np.float32(shifts)
        self._profiles = profiles / profiles.sum(axis=2, keepdims=True)

    def _choose_markers(self, rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
        """Return for each gene the number of the type that it marks, -1 for none."""
        low, high = (int(rank * len(base)) for rank in _MARKER_RANKS)
        n_markers = self.n_types * self.markers_per_type
        if n_markers > high - low:
            msg = (
                f"simulate.markers_per_type is {self.markers_per_type} for {self.n_types} types: "
                f"{n_markers:,} markers, where {self.n_vars:,} genes leave {high - low:,}; give "
                f"at most {(high - low) // self.n_types}, or more genes (simulate.n_vars)"
            )
            raise UserError(msg)
        marker_of = np.full(len(base), -1)
        chosen = rng.choice(np.argsort(base)[low:high], n_markers, replace=False)
        marker_of[chosen] = np.repeat(np.arange(self.n_types), self.markers_per_type)
        return marker_of

    def _make_cells(self, rng: np.random.Generator) -> None:
        """Make obs, and what each droplet's expected counts are made of."""
        n = self.n_obs
        living = max(0, 1 - self.dead_share - self.empty_share)
        status = rng.choice(3, n, p=[living, self.dead_share, self.empty_share])
        is_dead, is_empty = status == 1, status == 2
        batch = rng.integers(self.n_batches, size=n)
        type_ = rng.integers(self.n_types, size=n)
        neighbour, weight, pseudotime, branch = self._place(rng, type_)

        depth = rng.lognormal(-(self.depth_spread**2) / 2, self.depth_spread, n) * self.mean_counts
        depth *= np.array([1, _DEAD_DEPTH, _EMPTY_DEPTH])[status]
        mt_share = rng.beta(*_LIVING_MT, n)
        mt_share[is_dead] = rng.uniform(*_DEAD_MT, np.count_nonzero(is_dead))
        mt_share[is_empty] = _EMPTY_MT
        profile = np.where(is_empty, self.n_types, type_)
        neighbour[is_empty] = self.n_types
        self._cells = _Cells(batch, profile, neighbour, weight, depth, mt_share)

        batches = [f"batch_{i}" for i in range(1, self.n_batches + 1)]
        self.obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(np.where(is_empty, -1, type_), self._types),
                "batch": pd.Categorical.from_codes(batch, batches),
                "status": pd.Categorical.from_codes(status, ["cell", "dead", "empty"]),
                "pseudotime": np.where(is_empty, np.nan, pseudotime),
                "branch": pd.Categorical.from_codes(
                    np.where(is_empty, -1, branch), ["trunk", "a", "b"]
                ),
            },
            index=pd.Index([f"cell_{i}" for i in range(1, n + 1)]),
        )

    def _place(self, rng: np.random.Generator, type_: np.ndarray) -> tuple[np.ndarray, ...]:
        """Place each cell between its type and a neighbouring one, or on its island.

        Returns
        -------
        The neighbour (an island's is itself) and its weight, at most 0.5; pseudotime (NaN on an
        island) and branch (-1 on an island, 0 trunk, 1 a, 2 b).
        """
        neighbour, weight = type_.copy(), np.zeros(len(type_))
        pseudotime, branch = np.full(len(type_), np.nan), np.full(len(type_), -1)
        n_nodes = min(len(_NEIGHBOURS), self.n_types) if self.trajectory else 0
        if n_nodes < 2:
            return neighbour, weight, pseudotime, branch
        time = np.array([0, 1] if n_nodes == 2 else [0, 0.5, 1, 1])
        for k in range(n_nodes):
            cells = np.flatnonzero(type_ == k)
            others = rng.choice([other for other in _NEIGHBOURS[k] if other < n_nodes], len(cells))
            w = 0.5 * rng.beta(1, 2, len(cells))  # more cells at the types than half-way
            neighbour[cells], weight[cells] = others, w
            pseudotime[cells] = (1 - w) * time[k] + w * time[others]
            branch[cells] = np.maximum(k, others) - 1
        return neighbour, weight, pseudotime, branch

    def _draw(self, block: int) -> tuple[sparse.csr_matrix, pd.DataFrame]:
        """Draw one block's counts, a few dense rows at a time."""
        rng = np.random.default_rng(self._seeds[block])
        first, last = block * _BLOCK, min((block + 1) * _BLOCK, self.n_obs)
        step = max(1, _DENSE // self.n_vars)
        parts = [
            self._draw_rows(rng, slice(row, min(row + step, last)))
            for row in range(first, last, step)
        ]
        return sparse.vstack(parts, format="csr"), self.obs.iloc[first:last]

    def _draw_rows(self, rng: np.random.Generator, rows: slice) -> sparse.csr_matrix:
        """Draw negative-binomial counts: Poisson, with a gamma-distributed rate.

        Most counts are 0. A Poisson count is the number of arrivals within a time that is the
        rate, so the first arrival, exponential, tells the zeros; what follows it is Poisson again
        and is drawn for the others alone.
        """
        rate = self._expected(rows)
        rate *= rng.standard_gamma(1 / self.dispersion, rate.shape, dtype=np.float32)
        rate *= np.float32(self.dispersion)
        arrival = rng.standard_exponential(rate.shape, dtype=np.float32)
        is_positive = arrival < rate
        counts = 1 + rng.poisson(rate[is_positive] - arrival[is_positive])
        indices = np.nonzero(is_positive)[1]
        indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(is_positive, axis=1))])
        return sparse.csr_matrix(
            (counts.astype(np.int32), indices.astype(np.int32), indptr), shape=rate.shape
        )

    def _expected(self, rows: slice) -> np.ndarray:
        """Compute the expected counts of some droplets, float32, droplets × genes."""
        cells = _Cells(*(values[rows] for values in self._cells))
        weight, depth, mt_share = (
            values.astype(np.float32)[:, None]
            for values in (cells.weight, cells.depth, cells.mt_share)
        )
        rate = (1 - weight) * self._profiles[cells.batch, cells.type_]
        rate += weight * self._profiles[cells.batch, cells.neighbour]
        rate *= depth * (1 - mt_share)
        rate[:, self._mt_genes] = depth * mt_share * self._mt_profile
        return rate


def _shares(rng: np.random.Generator, n: int) -> np.ndarray:
    """Shares of `n` genes that differ in expression, sum 1."""
    values = rng.lognormal(0, 0.7, n)
    return values / values.sum()
