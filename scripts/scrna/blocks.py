"""Work on the count matrix in blocks of cells: over threads, or over the workers of a Dask cluster.

On one GPU, or on the CPU, a few threads of this process share the blocks: one reads and
decompresses while another computes. Where one of several GPUs does not hold the matrix, the blocks
are spread over a Dask cluster that has a worker for each: the one in whose worker this process
runs, or one started for the step.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scrna import cache, execution, passes, slots
from scrna.backend import arrays, csr_matrix, start_gpu, to_host
from scrna.counts import Counts, columns_of, in_order, kept, log_normalize
from scrna.log import log
from scrna.progress import Progress
from scrna.sizes import BLOCK_NNZ, BYTES_AT_WORK
from scrna.step import note

#: How this process works on blocks; `configure` sets it from the config.
_machine: dict[str, Any] = {
    "gpus": 1,
    "threads": 4,
    "protocol": "tcp",
    "gpu": {"memory": "pool", "pool_gb": 1},
}


def configure(*, gpus: int, threads: int, protocol: str, gpu: dict[str, Any]) -> None:
    """Set how this process works on blocks.

    Parameters
    ----------
    gpus
        GPUs to spread blocks over, where this process is not a cluster's worker.
    threads
        Blocks that are worked on at the same time, for each GPU.
    protocol
        How the workers of a cluster that is started here talk.
    gpu
        Memory settings of such workers, as `scrna.backend.start_gpu` takes them.
    """
    _machine.update(gpus=gpus, threads=threads, protocol=protocol, gpu=gpu)


def each(
    function: Callable[..., Any],
    store: Counts,
    backend: str,
    *args,
    rows: np.ndarray | None = None,
    label: str,
) -> Iterator[Any]:
    """Call a function on every block of the count matrix.

    Parameters
    ----------
    function
        A module's function, called with a `Block` and `args`; on several GPUs in other processes.
        What it returns lies in the CPU's memory.
    store
        The counts.
    backend
        Where the blocks' arrays lie.
    *args
        More arguments, the same for every block.
    rows
        Mask of the cells asked for; blocks without any are not read.
    label
        What is being done, for the progress.

    Yields
    ------
    What the function returned, in the blocks' order.
    """
    spans = store.ranges(rows)
    total = sum(stop - start for start, stop in spans)
    nnz = int(store.indptr[-1])
    execution.decide(label, backend=backend, n_obs=total, n_vars=store.shape[1], nnz=nnz)
    with _cluster(backend, nnz) as client, Progress(label, total=total) as progress:
        if client is None:
            results = in_order(
                lambda span: function(store.read(*span, backend), *args),
                spans,
                _machine["threads"],
            )
        else:
            # The arguments go with each task. Scattered, they would lie under keys made of their
            # content, which steps that run at the same time share: one that ends takes them away
            # from the other.
            calls = [
                client.submit(_call, function, store.path, span, backend, *args, pure=False)
                for span in spans
            ]
            results = (call.result() for call in calls)
        for (start, stop), result in zip(spans, results, strict=True):
            progress.update(stop - start)
            yield result


@contextmanager
def matrix(
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
        ``memory`` or ``blocks``; ``auto`` leaves it to `scrna.execution`.
    genes
        Mask over the kept genes, to take some of them; None takes all that the filter keeps.
    needs_client
        Whether the library that works on the blocks does so through a cluster alone.
    **settings
        What the memory that the step needs depends on, for `scrna.execution.decide`.

    Yields
    ------
    float32, kept cells × genes: CSR (scipy's or CuPy's), or a Dask array whose blocks are CSR.
    Dask computes such an array rightly within the context alone.
    """
    wanted = _wanted(counts, filtered, normalized, genes, backend)
    choice = execution.decide(
        step,
        asked=asked,
        backend=backend,
        n_obs=wanted.shape[0],
        n_vars=wanted.shape[1],
        nnz=wanted.nnz,
        kept=wanted.keys if genes is None else {},
        **settings,
    )
    there = cache.get(wanted.keys[choice.mode])
    is_lazy = choice.mode == "blocks"
    # columns of kept blocks are held beside them
    needed = 8 * wanted.nnz + _at_work() if is_lazy and genes is not None else 0
    if there and needed > execution.usable_memory(backend):
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
    """Give one gene's log-normalised values: of a matrix that is in memory, or read.

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
    there = next((found for found in map(cache.get, keys) if found), None)
    if there and kept_genes[gene]:
        column = int(kept_genes[:gene].sum())
        return np.concatenate([_column(block, column, backend) for block in there.blocks])
    nnz = int(slots.read(filtered, "var/n_cells_kept")[gene])
    factor = slots.read(normalized, "obs/size_factor")
    alone = np.arange(len(kept_genes)) == gene
    store = Counts(counts)
    read = store.matrix(backend, nnz=nnz, cells=cells, genes=alone, size_factor=factor)
    return _column(read, 0, backend)


def _column(matrix, column: int, backend: str) -> np.ndarray:
    """Give a column of a CSR matrix; slicing it would take several times the matrix's memory."""
    xp = arrays(backend)
    places = xp.flatnonzero(matrix.indices == column)
    values = xp.zeros(matrix.shape[0], dtype=xp.float32)
    values[xp.searchsorted(matrix.indptr, places, side="right") - 1] = matrix.data[places]
    return to_host(values)


class _Wanted(NamedTuple):
    """What a step asks for of the kept cells."""

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
    nnz = int(slots.read(filtered, "var/n_cells_kept")[used].sum())
    factor = None if normalized is None else slots.read(normalized, "obs/size_factor")
    keys = _keys(backend, counts, filtered, normalized)
    return _Wanted(Counts(counts), backend, cells, used, genes, factor, nnz, keys)


def _whole(wanted: _Wanted, there: cache.Kept | None):
    """Give the matrix in memory: one that is kept, or columns of it, or read from disk."""
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
    step: str, wanted: _Wanted, there: cache.Kept | None, *, needs_client: bool
) -> Iterator[Any]:
    """Give the matrix in blocks: of those that are kept, or read from disk."""
    store, backend, cells, used, genes, factor, nnz, keys = wanted
    to_hold = 0 if there else nnz
    with _cluster(backend, to_hold, needs_client=needs_client) as client, ExitStack() as stack:
        if client is None:
            import dask

            pool = stack.enter_context(ThreadPoolExecutor(_machine["threads"]))
            stack.enter_context(dask.config.set(scheduler="threads", pool=pool))
        topic = stack.enter_context(passes.told(step, wanted.shape[0], client))
        try:
            if there and client is None:
                yield _from_kept(there.blocks, genes, backend)
                return
            lazy = _in_blocks(store, backend, cells, used, factor, topic)
            lazy = _held(lazy, nnz, backend, client)
            if genes is None and _blocks:
                _keep(keys["blocks"], _blocks, backend)
            yield lazy
        finally:
            _blocks.clear()


def _keys(
    backend: str, counts: Path, filtered: Path, normalized: Path | None
) -> dict[str, tuple | None]:
    """Tell the keys that the matrix of all kept genes is kept under; counts are not kept."""
    if normalized is None:  # one step alone needs them
        return {"memory": None, "blocks": None}
    return cache.keys_of(backend, ("memory", "blocks"), (counts, filtered, normalized))


def _keep(key: tuple | None, matrix: Sequence[Any], backend: str) -> None:
    """Keep a matrix for the steps to come, if the headroom is free beside it."""
    if execution.usable_memory(backend) > 0:
        cache.put(key, matrix)


def _in_blocks(store: Counts, backend: str, cells, genes, factor, topic: str | None):
    """Make the Dask array that reads kept cells and genes, a block of cells a chunk."""
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
    store = _opened(path)
    block = store.take(*span, backend, mask, columns)
    data = block.data if factor is None else log_normalize(block, factor)
    passes.tell(block.stop, topic)
    n_genes = store.shape[1] if columns is None else len(columns)
    return csr_matrix((data, block.indices, block.indptr), (block.stop, n_genes), backend)


def _held(lazy, nnz: int, backend: str, client):
    """Read the blocks now and hold them where they lie, if there is memory for all of them.

    What works on them then reads the disk once, and not once for each of its passes.
    """
    n_devices = 1 if client is None else len(client.scheduler_info(n_workers=-1)["workers"])
    at_work = _at_work() * n_devices
    needed = 8 * nnz + 4 * lazy.shape[0]
    cache.make_room((needed + at_work) // n_devices - execution.usable_memory(backend))
    there = execution.usable_memory(backend) * n_devices
    if needed + at_work > there:
        log.info(
            "blocks are read again for each pass: all of them take %.1f GB, %.1f GB are there",
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


def _at_work() -> int:
    """Tell the bytes that the blocks take on a device that are worked on there."""
    return BLOCK_NNZ * BYTES_AT_WORK * _machine["threads"]


#: Blocks that this process holds for the step that runs.
_blocks: list[Any] = []


def _held_here(lazy):
    """Hold blocks in this process, beside the graph of the array that is made of them.

    In the graph, where `persist` puts them, they would be pickled and hashed with every function
    of the libraries that refers to the array: half a minute for 2 G non-zeros.
    """
    import dask

    _blocks[:] = dask.compute(*lazy.to_delayed().ravel())
    return _of_held()


def _from_kept(blocks: Sequence[Any], genes: np.ndarray | None, backend: str):
    """Make the Dask array of blocks that an earlier step has read, cut to some genes."""
    if genes is None:
        _blocks[:] = blocks
    else:
        numbers = arrays(backend).asarray(np.flatnonzero(genes))
        _blocks[:] = [block[:, numbers] for block in blocks]
    return _of_held()


def _of_held():
    """Make the Dask array of the blocks that are held."""
    import dask
    import dask.array as da

    meta = _blocks[0][:0]
    parts = [
        da.from_delayed(dask.delayed(_block)(i), block.shape, dtype=np.float32, meta=meta)
        for i, block in enumerate(_blocks)
    ]
    return da.concatenate(parts)


def _block(i: int):
    return _blocks[i]


# --------------------------------------------------------------------------------------- clusters


@contextmanager
def _cluster(backend: str, nnz: int, *, needs_client: bool = False) -> Iterator[Any]:
    """Give the client of a cluster with several workers; None where threads are enough.

    They are on one GPU that holds the non-zeros, however many there are: two H200 took three times
    as long as one for 2 G non-zeros, most of it for handing blocks and functions around.
    """
    spreads = backend == "cpu" or 8 * nnz + _at_work() > execution.usable_memory(backend)
    if passes.in_worker():
        from distributed import worker_client

        with worker_client() as client:
            several = len(client.scheduler_info(n_workers=-1)["workers"]) > 1
            if (several and spreads) or needs_client:
                with client.as_current():
                    yield client
                return
        yield None
    elif backend == "gpu" and ((_machine["gpus"] > 1 and spreads) or needs_client):
        client = _own_cluster()
        with client.as_current():
            yield client
    else:
        yield None


#: The cluster that this process has started over its GPUs, once; it ends with the process.
_own: list[Any] = []


def _own_cluster():
    """Return the client of a cluster over this process's GPUs, started where it is not there.

    Dask speaks TLS there with a certificate that never leaves the processes' memory: no other user
    of this machine can run code through it. UCX knows no credentials.
    """
    if not _own:
        from dask_cuda import LocalCUDACluster
        from distributed import Client
        from distributed.security import Security

        is_tcp = _machine["protocol"] == "tcp"
        private = {"protocol": "tls", "security": Security.temporary()} if is_tcp else {}
        cluster = LocalCUDACluster(
            n_workers=_machine["gpus"],
            threads_per_worker=_machine["threads"],
            dashboard_address=None,
            **({"protocol": _machine["protocol"]} | private),
        )
        client = Client(cluster, set_as_default=False)
        client.run(start_gpu, **_machine["gpu"])
        _own.extend([client, cluster])
    return _own[0]


def end_cluster() -> None:
    """End the cluster over this process's GPUs, where there is one: it holds their memory."""
    while _own:
        _own.pop(0).close()


def _call(function, path: Path, span: tuple[int, int], backend: str, *args) -> Any:
    return function(_opened(path).read(*span, backend), *args)


def _opened(path: Path) -> Counts:
    """Open the counts once in a process, as long as they are the same."""
    return _open(path, (path / "zarr.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _open(path: Path, written: int) -> Counts:
    return Counts(path)
