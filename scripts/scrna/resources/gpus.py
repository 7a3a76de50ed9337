"""Find the GPUs of this machine and their memory.

NVML and /proc answer in milliseconds and start no CUDA context, so that the Snakefile can ask
before the DAG is built.
"""

import importlib.util
import os
from dataclasses import dataclass

from scrna.errors import UserError
from scrna.resources.host_memory import gib, meminfo

MIN_COMPUTE_CAPABILITY = (7, 5)  # the oldest that rapids-singlecell's GPU code covers
MIN_CUDA = 13  # the pinned RAPIDS is the build for CUDA 13


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance of one, that CUDA may use in this process.

    Parameters
    ----------
    index
        Its number on the machine as nvidia-smi counts, whatever CUDA_VISIBLE_DEVICES says.
    uuid
        Its name for NVML and for CUDA_VISIBLE_DEVICES.
    name
        Its product name: ``NVIDIA GB10``.
    compute_capability
        Major and minor.
    memory_total
        Bytes of its own memory; None where it shares the host's.
    unified
        Whether CPU and GPU share one memory (DGX Spark).
    driver
        Version of the NVIDIA driver.
    """

    index: int
    uuid: str
    name: str
    compute_capability: tuple[int, int]
    memory_total: int | None
    unified: bool
    driver: str


#: What `remember` found.
_known: tuple[list[Gpu], str | None] | None = None


def visible_gpus() -> list[Gpu]:
    """List the GPUs that CUDA would use here, in CUDA_VISIBLE_DEVICES' order.

    Numbers in CUDA_VISIBLE_DEVICES count as nvidia-smi does, which is CUDA's own order where all
    GPUs are alike or CUDA_DEVICE_ORDER is PCI_BUS_ID.

    Returns
    -------
    Empty without a driver, a GPU or permission to use one: `gpu_problem` says which.
    """
    return _look()[0]


def chosen_gpus(asked: str | int) -> list[Gpu]:
    """Pick the GPUs that a config asks for.

    Parameters
    ----------
    asked
        ``all`` that are visible, how many of them, or their numbers as nvidia-smi counts: ``0,1``.

    Raises
    ------
    UserError
        If there are not so many, or one of the numbers is not there.
    """
    found = visible_gpus()
    if asked == "all":
        return found
    wanted = [int(number) for number in asked.split(",")] if isinstance(asked, str) else None
    chosen = found[:asked] if wanted is None else [gpu for gpu in found if gpu.index in wanted]
    if len(chosen) != (asked if wanted is None else len(set(wanted))):
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found) or "none"
        msg = f"gpus is {asked!r}, but the GPUs here are: {there}"
        raise UserError(msg)
    return chosen


def gpu_problem() -> str | None:
    """Return why RAPIDS cannot use the first GPU; None if it can."""
    return _look()[1]


def resolve_backend(asked: str) -> tuple[str, str]:
    """Decide between GPU and CPU, once and before any work.

    Parameters
    ----------
    asked
        ``auto`` takes the GPU where there is a usable one and rapids-singlecell is installed,
        ``gpu`` insists on it, ``cpu`` asks for nothing.

    Returns
    -------
    ``gpu`` or ``cpu``, and a line that says so with the reason.

    Raises
    ------
    UserError
        ``gpu`` was asked for and cannot be had.
    """
    if asked == "cpu":
        return "cpu", "backend: cpu (as the config asks)"
    if asked not in ("auto", "gpu"):
        message = f"backend: {asked!r} is unknown; choose auto, gpu or cpu"
        raise UserError(message)
    found, problem = _look()
    advice = "Fix that, run on another machine"
    if problem is None and importlib.util.find_spec("rapids_singlecell") is None:
        problem = f"rapids-singlecell is not installed for the {found[0].name}"
        advice = "Run `make` on this machine, which installs envs/gpu.txt where it finds a GPU"
    if problem is None:
        return "gpu", f"backend: gpu ({found[0].name}, {_memory_in_words(found[0])})"
    if asked == "gpu":
        message = f"backend: gpu is not possible: {problem}. {advice}, or set backend: cpu"
        raise UserError(message)
    return "cpu", f"backend: cpu ({problem})"


def gpu_memory() -> int | None:
    """Return the bytes of the first GPU's memory, maybe the host's; None without a GPU."""
    found = visible_gpus()
    if not found:
        return None
    return found[0].memory_total or meminfo().total


def remember() -> None:
    """Have this process ask for its GPUs once, and keep NVML open: each time takes milliseconds."""
    global _known
    _known = _look()
    if _known[0]:
        import pynvml

        pynvml.nvmlInit()


def _look() -> tuple[list[Gpu], str | None]:
    """Ask NVML for the visible GPUs, and why RAPIDS could not use the first."""
    if _known is not None:
        return _known
    try:
        import pynvml
    except ModuleNotFoundError:
        return [], "the package nvidia-ml-py, which asks the NVIDIA driver, is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return [], "no NVIDIA driver found"
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer: {error}"
    try:
        every = _accessible()
        visible = _visible(every, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return visible, _problem(every, visible, pynvml.nvmlSystemGetCudaDriverVersion())
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer: {error}"
    finally:
        pynvml.nvmlShutdown()


def _problem(every: list[Gpu], visible: list[Gpu], cuda: int) -> str | None:
    if not every:
        return "the NVIDIA driver finds no GPU that this process may use"
    if not visible:
        asked = os.environ["CUDA_VISIBLE_DEVICES"]
        return f"CUDA_VISIBLE_DEVICES={asked!r} hides every GPU"
    first = visible[0]
    if first.compute_capability < MIN_COMPUTE_CAPABILITY:
        has, needs = first.compute_capability, MIN_COMPUTE_CAPABILITY
        return (
            f"GPU {first.index} ({first.name}) has compute capability {has[0]}.{has[1]}, "
            f"RAPIDS needs {needs[0]}.{needs[1]} or newer"
        )
    if cuda < 1000 * MIN_CUDA:  # NVML writes CUDA 13.1 as 13010
        return (
            f"the NVIDIA driver {first.driver} goes up to CUDA {cuda // 1000}.{cuda % 1000 // 10}, "
            f"RAPIDS needs a driver for CUDA {MIN_CUDA}"
        )
    return None


def _accessible() -> list[Gpu]:
    """Every GPU that this process may open; CUDA leaves out and does not count the others."""
    import pynvml

    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError_NoPermission:  # another SLURM job's, say
            continue
        found.append(_gpu(handle, handle))
    return found


def _gpu(handle, physical) -> Gpu:
    """Describe a device; `physical` is the GPU that a MIG instance is part of, else the device."""
    import pynvml

    try:
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
    except pynvml.NVMLError_NotSupported:  # GB10: the memory is the host's
        total = None
    return Gpu(
        index=pynvml.nvmlDeviceGetIndex(physical),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(physical)),
        memory_total=total,
        unified=total is None,
        driver=pynvml.nvmlSystemGetDriverVersion(),
    )


def _visible(every: list[Gpu], asked: str | None) -> list[Gpu]:
    """Pick the GPUs that CUDA_VISIBLE_DEVICES names, as CUDA reads it.

    Numbers, UUIDs or their beginnings; what follows the first entry that names no GPU is not
    read, and a GPU named twice leaves none.
    """
    if asked is None:
        return every
    chosen = []
    for entry in map(str.strip, asked.split(",")):
        if entry.startswith("MIG-"):
            matches = _mig(entry)
        elif entry.startswith("GPU-"):
            matches = [gpu for gpu in every if gpu.uuid.startswith(entry)]
        else:
            matches = [gpu for place, gpu in enumerate(every) if entry == str(place)]
        if len(matches) != 1:
            break
        chosen += matches
    return chosen if len(set(chosen)) == len(chosen) else []


def _mig(uuid: str) -> list[Gpu]:
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return []
    return [_gpu(handle, pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))]


def _memory_in_words(gpu: Gpu) -> str:
    if gpu.unified:
        return f"unified memory {gib(meminfo().total)}"
    return f"memory {gib(gpu.memory_total)}"
