"""Read how much memory a GPU has free, wait for it, and record the peak."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

from scrna.errors import UserError
from scrna.log import log
from scrna.resources.gpus import Gpu
from scrna.resources.host_memory import CGROUPS, PROC, Memory, gib, host_memory, meminfo


def available_memory(
    gpu: Gpu | None, *, limit: int | None = None, proc: Path = PROC, cgroups: Path = CGROUPS
) -> Memory:
    """Return how much memory is free on a GPU, or on the host.

    On a device that shares the host's memory NVML does not answer, and cudaMemGetInfo counts page
    cache as taken that the kernel would give back; the host's own figures are right there.

    Parameters
    ----------
    gpu
        One of `visible_gpus`; None asks for the host.
    limit
        Bytes that a process takes there at most (the config's gpu.limit_gb).
    proc, cgroups
        The file systems to ask; for tests.
    """
    if gpu is None or gpu.unified:
        memory = host_memory(proc=proc, cgroups=cgroups)
    else:
        with _reader(gpu, proc) as read:
            memory = read()
    if limit is None or limit >= memory.total:
        return memory
    return Memory(limit, min(memory.available, limit), f"gpu.limit_gb, {memory.source}")


def wait_for_memory(
    gpu: Gpu,
    needed: int,
    wait_s: float,
    *,
    held: int = 0,
    read: Callable[[], Memory] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a GPU has memory free: what a killed process held may linger for a minute.

    Parameters
    ----------
    gpu
        One of `visible_gpus`.
    needed
        Bytes.
    wait_s
        Seconds to wait for them.
    held
        Bytes that this process holds already without using them, in its pool: they count as free.
    read
        Tells the memory; `available_memory` if None.
    clock, sleep
        Python's; for tests.

    Raises
    ------
    UserError
        If they are not free in time, or there are not as many: the figures, and what to do.
    """
    read = read or partial(available_memory, gpu)
    start, said = clock(), False
    while (memory := read()).available + held < needed:
        waited = clock() - start
        if needed > memory.total or waited >= wait_s:
            raise UserError(_too_little(gpu, needed, memory, held, waited))
        if not said:
            log.info(
                "waiting up to %.0f s for %s on %s: %s of %s are free (%s)",
                wait_s,
                gib(needed),
                gpu.name,
                gib(memory.available + held),
                gib(memory.total),
                memory.source,
            )
            said = True
        sleep(min(1.0, wait_s - waited))


def pool_held() -> int:
    """Return the unused bytes in RMM's pool of this process."""
    if "rmm" not in sys.modules:
        return 0
    import rmm.mr
    import rmm.statistics

    used = rmm.statistics.get_statistics()
    resource = rmm.mr.get_current_device_resource()
    while not hasattr(resource, "pool_size"):
        if not hasattr(resource, "get_upstream"):
            return 0
        resource = resource.get_upstream()
    return max(0, resource.pool_size() - used.current_bytes) if used else 0


def allocated() -> int:
    """Return the bytes on the GPU that this process has allocated through RMM."""
    if "rmm" not in sys.modules:
        return 0
    import rmm.statistics

    used = rmm.statistics.get_statistics()
    return used.current_bytes if used else 0


class MemoryPeak:
    """The most memory that a GPU had in use while the block ran, all processes together.

    CUDA's allocations do not show in a process's own figures where the GPU shares the host's
    memory, so the machine's are sampled, in a thread.

    Parameters
    ----------
    gpu
        One of `visible_gpus`; None samples the host's memory.
    interval
        Seconds between two samples.
    proc
        The proc file system; for tests.

    Attributes
    ----------
    start_bytes, peak_bytes
        In use at the beginning, and at the most since; None before the block is entered.
    """

    def __init__(self, gpu: Gpu | None, *, interval: float = 0.1, proc: Path = PROC):
        self.start_bytes: int | None = None
        self.peak_bytes: int | None = None
        self._gpu, self._interval, self._proc = gpu, interval, proc
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        read = self._stack.enter_context(_reader(self._gpu, self._proc))
        self._sample(read)
        self.start_bytes = self.peak_bytes
        done = threading.Event()

        def watch() -> None:
            with suppress(Exception):  # a driver that stops answering: the peak so far is kept
                while not done.wait(self._interval):
                    self._sample(read)

        thread = threading.Thread(target=watch, name="memory-peak", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(done.set)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _sample(self, read: Callable[[], Memory]) -> None:
        memory = read()
        self.peak_bytes = max(self.peak_bytes or 0, memory.total - memory.available)


@contextmanager
def _reader(gpu: Gpu | None, proc: Path) -> Iterator[Callable[[], Memory]]:
    """Return a function that reads the memory of a whole device; NVML is opened once."""
    if gpu is None or gpu.unified:
        yield lambda: meminfo(proc)
        return
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)

        def read() -> Memory:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return Memory(memory.total, memory.free, "NVML")

        yield read
    finally:
        pynvml.nvmlShutdown()


def _too_little(gpu: Gpu, needed: int, memory: Memory, held: int, waited: float) -> str:
    """Describe how much memory is missing and what to do."""
    where = f"GPU {gpu.index} ({gpu.name})"
    if needed > memory.total:
        return (
            f"{gib(needed)} of memory are needed on {where}, which has {gib(memory.total)} "
            f"({memory.source}): take a larger GPU, keep fewer cells, or set backend: cpu"
        )
    said = (
        f"{gib(needed)} of memory are needed on {where}, but {gib(memory.available + held)} of "
        f"{gib(memory.total)} are free ({memory.source}) after {waited:.0f} s. "
    )
    if gpu.unified:
        return said + (
            "CPU and GPU share this memory: close other programs, and give back what the kernel "
            "keeps of files, as root: sync; echo 3 > /proc/sys/vm/drop_caches"
        )
    return said + (
        "Another process holds the rest (nvidia-smi lists them): end it, or raise memory.wait_s"
    )
