"""The matrix of the kept cells as a Dask array of blocks, read when needed or held in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scrna.backend import arrays, csr_matrix
from scrna.data import read_progress
from scrna.data.block import log_normalize
from scrna.data.counts import Counts
from scrna.data.row_blocks import bytes_at_work, open_counts
from scrna.log import log
from scrna.resources import admission, kept_matrices


def in_blocks(store: Counts, backend: str, cells, genes, factor, topic: str | None):
    """Make a Dask array that reads kept cells and genes, with a block of cells per chunk."""
    import dask
    import dask.array as da

    columns = dask.delayed(None if genes.all() else np.flatnonzero(genes))
    n_genes = int(genes.sum())
    xp = arrays(backend)
    empty = (xp.zeros(n, dtype) for n, dtype in ((0, "f4"), (0, "i4"), (1, "i4")))
    meta = csr_matrix(tuple(empty), (0, n_genes), backend)
    parts, done = [], 0
    for span in store.ranges(cells):
        mask = cells[slice(*span)]
        stop = done + int(mask.sum())
        own = None if factor is None else factor[done:stop]
        part = dask.delayed(_taken)(store.path, span, mask, columns, own, backend, topic)
        parts.append(da.from_delayed(part, (stop - done, n_genes), dtype=np.float32, meta=meta))
        done = stop
    return da.concatenate(parts)


def _taken(
    path: Path, span: tuple[int, int], mask, columns, factor, backend: str, topic: str | None
):
    """Read a block of the kept cells and genes, log-normalised where there is a factor."""
    store = open_counts(path)
    block = store.take(*span, backend, mask, columns)
    data = block.data if factor is None else log_normalize(block, factor)
    read_progress.tell(block.stop, topic)
    n_genes = store.shape[1] if columns is None else len(columns)
    return csr_matrix((data, block.indices, block.indptr), (block.stop, n_genes), backend)


def hold(lazy, nnz: int, backend: str, client):
    """Read the blocks now and hold them where they lie, if there is memory for all of them.

    What works on them then reads the disk once, and not once for each of its passes.
    """
    n_devices = 1 if client is None else len(client.scheduler_info(n_workers=-1)["workers"])
    at_work = bytes_at_work() * n_devices
    needed = 8 * nnz + 4 * lazy.shape[0]
    kept_matrices.make_room((needed + at_work) // n_devices - admission.usable_memory(backend))
    there = admission.usable_memory(backend) * n_devices
    if needed + at_work > there:
        log.info(
            "blocks are read again for each pass: they need %.1f GB, and %.1f GB are free",
            needed / 1e9,
            there / 1e9,
        )
        return lazy
    if client is None:
        return _held_here(lazy)
    lazy = lazy.persist()
    from distributed import wait

    wait(lazy)
    return lazy


#: Blocks that this process holds for the step that runs.
held_blocks: list[Any] = []


def _held_here(lazy):
    """Hold blocks in this process, beside the graph of the array that is made of them.

    In the graph, where `persist` puts them, they would be pickled and hashed with every function
    of the libraries that refers to the array: half a minute for 2 G non-zeros.
    """
    import dask

    held_blocks[:] = dask.compute(*lazy.to_delayed().ravel())
    return _of_held()


def from_kept(blocks: Sequence[Any], genes: np.ndarray | None, backend: str):
    """Make the Dask array of blocks that an earlier step has read, cut to some genes."""
    if genes is None:
        held_blocks[:] = blocks
    else:
        numbers = arrays(backend).asarray(np.flatnonzero(genes))
        held_blocks[:] = [block[:, numbers] for block in blocks]
    return _of_held()


def _of_held():
    """Make the Dask array of the blocks that are held."""
    import dask
    import dask.array as da

    meta = held_blocks[0][:0]
    parts = [
        da.from_delayed(dask.delayed(_block)(i), block.shape, dtype=np.float32, meta=meta)
        for i, block in enumerate(held_blocks)
    ]
    return da.concatenate(parts)


def _block(i: int):
    return held_blocks[i]
