"""The counts of several samples in one store, block by block."""

import os
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import zarr
from scipy.sparse import csr_matrix

from scrna.data.block import Block, in_order, row_ranges
from scrna.data.counts import Counts
from scrna.data.csr_writer import CSRWriter, MatrixInfo, Rows
from scrna.progress import Progress

#: Non-zeros of a block: each thread holds some 50 MB while it makes one.
_BLOCK_NNZ = 2**20
_MOST_THREADS = 8
#: Of the cells of the smaller of two samples, the share of barcodes of the other that makes one
#: suspect. Two samples of 10,000 cells share 1.4 % by chance at most (737,280 barcodes).
SUSPECT = 0.5


def merge_counts(
    root: zarr.Group,
    samples: Mapping[str, Counts],
    places: Mapping[str, np.ndarray],
    n_vars: int,
    *,
    label: str,
) -> MatrixInfo:
    """Write the counts of samples, one below the other, as X of a store.

    Parameters
    ----------
    root
        The root group of the store.
    samples
        Sample → its counts, in their order.
    places
        Of `scrna.ingest.gene_join.join_genes`.
    n_vars
        Genes of the result.
    label
        What the progress is called.
    """
    dtype = np.result_type(*(np.dtype(store.summary["dtype"]) for store in samples.values()))
    spans = [
        (name, span)
        for name, store in samples.items()
        for span in row_ranges(store.indptr, _BLOCK_NNZ)
    ]

    def made(where: tuple[str, tuple[int, int]]) -> Rows:
        name, span = where
        return moved(samples[name].read(*span, "cpu"), places[name], n_vars, dtype)

    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    n_obs = sum(store.shape[0] for store in samples.values())
    with (
        CSRWriter(root, "X", n_vars=n_vars, dtype=dtype) as writer,
        Progress(label, total=n_obs) as progress,
    ):
        for rows in in_order(made, spans, threads):
            writer.append(rows)
            progress.update(len(rows.sizes))
        return writer.close()


def moved(block: Block, places: np.ndarray, n_vars: int, dtype: np.dtype) -> Rows:
    """Put the counts of a block at the places of its genes in a joined list.

    Parameters
    ----------
    block
        Counts in memory.
    places
        For each gene of the block its place, -1 for none; no place twice.
    n_vars
        Genes of the joined list.
    dtype
        Type of the values on disk, which holds all of them.
    """
    indices, indptr, data = places[block.indices], block.indptr, block.data
    if (places < 0).any():
        stays = np.flatnonzero(indices >= 0)
        indptr = np.searchsorted(stays, indptr)
        indices, data = indices[stays], data[stays]
    if not np.all(np.diff(places[places >= 0]) > 0):
        matrix = csr_matrix((data, indices, indptr), (len(indptr) - 1, n_vars))
        matrix.sort_indices()
        indices, data = matrix.indices, matrix.data
    return Rows(
        data.astype(dtype, copy=False),
        indices.astype(np.int32, copy=False),
        np.diff(indptr).astype(np.int32),
    )


def shared_names(hashes: Mapping[str, np.ndarray]) -> tuple[bool, list[str]]:
    """Compare the names of the cells of samples.

    Parameters
    ----------
    hashes
        Sample → the hashes of the names of its cells (`scrna.ingest.obs_table.Text.hashes`).

    Returns
    -------
    is_any
        Whether a name is there in two samples.
    notes
        A sentence for each pair of samples whose cells have the same names, which a swap or a copy
        may explain.
    """
    unique = [np.unique(one) for one in hashes.values()]
    sizes = list(map(len, unique))
    distinct, rows = np.unique(np.concatenate(unique), return_inverse=True)
    of = np.repeat(np.arange(len(sizes)), sizes)
    has = csr_matrix((np.ones(len(rows), np.int64), (rows, of)), (len(distinct), len(sizes)))
    shared = (has.T @ has).toarray()
    notes = []
    for (i, a), (j, b) in combinations(enumerate(hashes), 2):
        if shared[i, j] > SUSPECT * (least := min(sizes[i], sizes[j])):
            notes.append(
                f"Samples {a} and {b} share {shared[i, j]:,} of {least:,} barcodes: is one of them "
                "a copy of the other, or were files swapped? The cells of both are kept."
            )
    return len(distinct) < sum(sizes), notes
