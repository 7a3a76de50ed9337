"""Work on the count matrix in blocks of cells: over threads, or over the workers of a Dask cluster.

On one GPU, or on the CPU, a few threads of this process share the blocks: one reads and
decompresses while another computes. Where one of several GPUs does not hold the matrix, the blocks
are spread over a Dask cluster that has a worker for each: the one in whose worker this process
runs, or one started for the step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scrna.backend import arrays, to_host
from scrna.data import read_progress, step_files
from scrna.data.block import columns_of
from scrna.data.counts import Counts, kept
from scrna.data.lazy_matrix import from_kept, held_blocks, hold, in_blocks
from scrna.data.row_blocks import bytes_at_work, cluster_for, machine_settings
from scrna.log import log
from scrna.provenance import note
from scrna.resources import admission, kept_matrices


@contextmanager
def open_matrix(
    step: str,
    counts: Path,
    filtered: Path,
    normalized: Path | None,
    *,
    backend: str,
    asked: str,
    genes: np.ndarray | None = None,
    needs_client: bool = False,
    **settings,
) -> Iterator[Any]:
    """Open the matrix of the kept cells, in memory or in blocks, as its size asks for.

    Parameters
    ----------
    step
        The step that works on it.
    counts, filtered, normalized
        ``counts.zarr`` and the step files of the filter and the normalisation; without the last
        the values are counts, with it log-normalised.
    backend
        Where it lies.
    asked
        ``memory`` or ``blocks``; ``auto`` leaves it to `scrna.resources.plan`.
    genes
        Mask over the kept genes, to take some of them; None takes all that the filter keeps.
    needs_client
        Whether the library that works on the blocks does so through a cluster alone.
    **settings
        What the memory that the step needs depends on, for `scrna.resources.admission.decide`.

    Yields
    ------
    float32, kept cells × genes: CSR (scipy's or CuPy's), or a Dask array whose blocks are CSR.
    Dask computes such an array rightly within the context alone.
    """
    wanted = _wanted(counts, filtered, normalized, genes, backend)
    choice = admission.decide(
        step,
        asked=asked,
        backend=backend,
        n_obs=wanted.shape[0],
        n_vars=wanted.shape[1],
        nnz=wanted.nnz,
        kept=wanted.keys if genes is None else {},
        **settings,
    )
    there = kept_matrices.get(wanted.keys[choice.mode])
    is_lazy = choice.mode == "blocks"
    # columns of kept blocks are held beside them
    needed = 8 * wanted.nnz + bytes_at_work() if is_lazy and genes is not None else 0
    if there and needed > admission.usable_memory(backend):
        there = None
    if there:
        log.info("the matrix is in memory from an earlier step")
    note("matrix", "kept in memory" if there else "read")
    if is_lazy:
        with _lazy(step, wanted, there, needs_client=needs_client) as lazy:
            yield lazy
    else:
        yield _whole(wanted, there)


def gene_values(
    counts: Path, filtered: Path, normalized: Path, gene: int, *, backend: str
) -> np.ndarray:
    """Return the log-normalised values of one gene, from a matrix in memory or from disk.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of the filter and the normalisation.
    gene
        Its number among all genes.
    backend
        Where the matrix lies, or is read to.

    Returns
    -------
    float32 (kept cells).
    """
    cells, kept_genes = kept(filtered)
    keys = _keys(backend, counts, filtered, normalized).values()
    there = next((found for found in map(kept_matrices.get, keys) if found), None)
    if there and kept_genes[gene]:
        column = int(kept_genes[:gene].sum())
        return np.concatenate([_column(block, column, backend) for block in there.blocks])
    nnz = int(step_files.read(filtered, "var/n_cells_kept")[gene])
    factor = step_files.read(normalized, "obs/size_factor")
    alone = np.arange(len(kept_genes)) == gene
    store = Counts(counts)
    read = store.matrix(backend, nnz=nnz, cells=cells, genes=alone, size_factor=factor)
    return _column(read, 0, backend)


def _column(matrix, column: int, backend: str) -> np.ndarray:
    """Return a column of a CSR matrix; slicing would take several times its memory."""
    xp = arrays(backend)
    places = xp.flatnonzero(matrix.indices == column)
    values = xp.zeros(matrix.shape[0], dtype=xp.float32)
    values[xp.searchsorted(matrix.indptr, places, side="right") - 1] = matrix.data[places]
    return to_host(values)


class _Wanted(NamedTuple):
    """The columns that a step asks for, of the kept cells."""

    store: Counts
    backend: str
    cells: np.ndarray
    used: np.ndarray
    """Mask of the genes, over all."""
    genes: np.ndarray | None
    """The same over the kept genes; None for all of them."""
    factor: np.ndarray | None
    nnz: int
    keys: dict[str, tuple | None]
    """By mode, under which key the matrix of all kept genes is kept; counts are not."""

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.cells.sum()), int(self.used.sum())


def _wanted(
    counts: Path, filtered: Path, normalized: Path | None, genes: np.ndarray | None, backend: str
) -> _Wanted:
    """Gather what `matrix` is asked for."""
    cells, kept_genes = kept(filtered)
    used = kept_genes.copy()
    if genes is not None:
        used[used] = genes
    nnz = int(step_files.read(filtered, "var/n_cells_kept")[used].sum())
    factor = None if normalized is None else step_files.read(normalized, "obs/size_factor")
    keys = _keys(backend, counts, filtered, normalized)
    return _Wanted(Counts(counts), backend, cells, used, genes, factor, nnz, keys)


def _whole(wanted: _Wanted, there: kept_matrices.Kept | None):
    """Return the matrix in memory: a kept one, columns of it, or read from disk."""
    store, backend, cells, used, genes, factor, nnz, keys = wanted
    if there:
        whole = there.blocks[0]
        return whole if genes is None else columns_of(whole, genes, backend)
    whole = store.matrix(backend, nnz=nnz, cells=cells, genes=used, size_factor=factor)
    if genes is None:
        _keep(keys["memory"], [whole], backend)
    return whole


@contextmanager
def _lazy(
    step: str, wanted: _Wanted, there: kept_matrices.Kept | None, *, needs_client: bool
) -> Iterator[Any]:
    """Return the matrix in blocks: kept ones, or read from disk."""
    store, backend, cells, used, genes, factor, nnz, keys = wanted
    to_hold = 0 if there else nnz
    with cluster_for(backend, to_hold, needs_client=needs_client) as client, ExitStack() as stack:
        if client is None:
            import dask

            pool = stack.enter_context(ThreadPoolExecutor(machine_settings["threads"]))
            stack.enter_context(dask.config.set(scheduler="threads", pool=pool))
        topic = stack.enter_context(read_progress.told(step, wanted.shape[0], client))
        try:
            if there and client is None:
                yield from_kept(there.blocks, genes, backend)
                return
            lazy = in_blocks(store, backend, cells, used, factor, topic)
            lazy = hold(lazy, nnz, backend, client)
            if genes is None and held_blocks:
                _keep(keys["blocks"], held_blocks, backend)
            yield lazy
        finally:
            held_blocks.clear()


def _keys(
    backend: str, counts: Path, filtered: Path, normalized: Path | None
) -> dict[str, tuple | None]:
    """Return the keys under which the matrix of all kept genes is kept; counts are not kept."""
    if normalized is None or not kept_matrices.is_on():  # counts are for one step alone
        return {"memory": None, "blocks": None}
    digests = [step_files.digest_of(file) for file in (counts, filtered, normalized)]
    return kept_matrices.keys_of(backend, ("memory", "blocks"), digests)


def _keep(key: tuple | None, matrix: Sequence[Any], backend: str) -> None:
    """Keep a matrix for later steps, if enough memory stays free."""
    if admission.usable_memory(backend) > 0:
        kept_matrices.put(key, matrix)


# --------------------------------------------------------------------------------------- clusters
