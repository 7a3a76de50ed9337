"""Call a function on blocks of cells: over threads, or over the workers of a Dask cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scrna.data import read_progress
from scrna.data.block import in_order
from scrna.data.counts import Counts
from scrna.progress import Progress
from scrna.resources import admission
from scrna.resources.estimates import BLOCK_NNZ, BYTES_AT_WORK
from scrna.resources.gpu_pool import start_gpu

#: How this process works on blocks; `configure` sets it from the config.
machine_settings: dict[str, Any] = {
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
        Memory settings of such workers, as `scrna.resources.gpu_pool.start_gpu` takes them.
    """
    machine_settings.update(gpus=gpus, threads=threads, protocol=protocol, gpu=gpu)


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
    admission.decide(label, backend=backend, n_obs=total, n_vars=store.shape[1], nnz=nnz)
    with cluster_for(backend, nnz) as client, Progress(label, total=total) as progress:
        if client is None:
            results = in_order(
                lambda span: function(store.read(*span, backend), *args),
                spans,
                machine_settings["threads"],
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


def bytes_at_work() -> int:
    """Return the bytes of the blocks that are processed on a device at the same time."""
    return BLOCK_NNZ * BYTES_AT_WORK * machine_settings["threads"]


@contextmanager
def cluster_for(backend: str, nnz: int, *, needs_client: bool = False) -> Iterator[Any]:
    """Return the client of a cluster with several workers; None where threads are enough.

    They are on one GPU that holds the non-zeros, however many there are: two H200 took three times
    as long as one for 2 G non-zeros, most of it for handing blocks and functions around.
    """
    spreads = backend == "cpu" or 8 * nnz + bytes_at_work() > admission.usable_memory(backend)
    if read_progress.in_worker():
        from distributed import worker_client

        with worker_client() as client:
            several = len(client.scheduler_info(n_workers=-1)["workers"]) > 1
            if (several and spreads) or needs_client:
                with client.as_current():
                    yield client
                return
        yield None
    elif backend == "gpu" and ((machine_settings["gpus"] > 1 and spreads) or needs_client):
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

        is_tcp = machine_settings["protocol"] == "tcp"
        private = {"protocol": "tls", "security": Security.temporary()} if is_tcp else {}
        cluster = LocalCUDACluster(
            n_workers=machine_settings["gpus"],
            threads_per_worker=machine_settings["threads"],
            dashboard_address=None,
            **({"protocol": machine_settings["protocol"]} | private),
        )
        client = Client(cluster, set_as_default=False)
        client.run(start_gpu, **machine_settings["gpu"])
        _own.extend([client, cluster])
    return _own[0]


def end_cluster() -> None:
    """End the cluster over this process's GPUs, where there is one: it holds their memory."""
    while _own:
        _own.pop(0).close()


def _call(function, path: Path, span: tuple[int, int], backend: str, *args) -> Any:
    return function(open_counts(path).read(*span, backend), *args)


def open_counts(path: Path) -> Counts:
    """Open the counts once in a process, as long as they are the same."""
    return _open(path, (path / "zarr.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _open(path: Path, written: int) -> Counts:
    return Counts(path)
