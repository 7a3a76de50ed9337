"""Set up how a process allocates memory on its GPU (RMM)."""

import ctypes
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

from scrna import provenance


def start_gpu(*, memory: str, pool_gb: float, limit_gb: float | None = None) -> None:
    """Set up the GPU's memory, before the first array is made.

    Every library here (CuPy, cuML, cuGraph, cuVS) then allocates through RMM, which counts.

    Parameters
    ----------
    memory
        ``pool``: one growing pool, the fastest; ``async``: CUDA's own pool, which gives memory
        back; ``managed``: CUDA's managed memory, which may exceed the device's at a price in
        speed; ``cuda``: plain allocations; ``auto``: see `memory_kind`.
    pool_gb
        First size of the pool, GiB. It grows as needed: a share of the memory, RMM's own default,
        would take half of a machine whose GPU and CPU share it.
    limit_gb
        Most GiB that this process allocates; None: what there is.
    """
    context = Thread(target=_make_context)
    context.start()
    import cupy
    import rmm.statistics
    from rmm import mr
    from rmm.allocators.cupy import rmm_cupy_allocator

    context.join()
    limit = None if limit_gb is None else int(limit_gb * 2**30)
    memory = memory_kind(memory)
    if memory == "pool":
        first = int(min(pool_gb, limit_gb or pool_gb) * 2**30)
        resource = mr.PoolMemoryResource(mr.CudaMemoryResource(), first, limit)
    else:
        kinds = {
            "async": partial(mr.CudaAsyncMemoryResource, release_threshold=0),
            "managed": mr.ManagedMemoryResource,
            "cuda": mr.CudaMemoryResource,
        }
        resource = kinds[memory]()
        if limit is not None:
            resource = mr.LimitingResourceAdaptor(resource, limit)
    mr.set_current_device_resource(resource)
    rmm.statistics.enable_statistics()
    provenance.gpu_facts = gpu_record
    cupy.cuda.set_allocator(rmm_cupy_allocator)


def _make_context() -> None:
    """Make CUDA's context on the first GPU, for all libraries; CuPy is imported meanwhile.

    What goes wrong is left to the first call that needs the context: it says so.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def memory_kind(asked: str) -> str:
    """Choose how the GPU's memory is allocated: what was asked for, or under ``auto`` by the GPU.

    A pool on memory of the GPU's own. Where the GPU shares the host's, CUDA's ``async``: a pool
    there grows by doubling, to twice what a step needs, and keeps it from all else.
    """
    if asked != "auto":
        return asked
    from scrna.resources.gpus import visible_gpus

    return "async" if any(gpu.unified for gpu in visible_gpus()) else "pool"


def gpu_record() -> dict[str, Any]:
    """Return which GPU this process uses and the most memory that it held there.

    Returns
    -------
    ``device`` (the GPU's name) and ``gpu_peak_bytes`` (allocated through RMM so far; None where
    `start_gpu` was not called).
    """
    import cupy
    import rmm.statistics

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    statistics = rmm.statistics.get_statistics()
    return {"device": name, "gpu_peak_bytes": statistics.peak_bytes if statistics else None}
