"""What all steps share: provenance, logging, and the set-up of the process.

A step is a function of paths and plain parameters. Positional parameters are the files that it
reads and writes, keyword-only parameters are settings. `step` marks it. `scrna.workflow.rule.run`
calls it from the script of a rule, in the process of the rule or in a worker (`scrna.engine`); a
test or a notebook can call the function directly.
"""

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scrna.damage import setting_aside
from scrna.data import step_files
from scrna.log import log
from scrna.provenance import _PACKAGES, _process, _record, plain
from scrna.steps import is_light

_PACKAGES |= {"sklearn": "scikit-learn", "umap": "umap-learn", "cupy": "cupy-cuda13x"}
_PACKAGES |= {name: f"{name}-cu13" for name in ("cuml", "cuvs", "pylibcugraph", "rmm")}
_PACKAGES |= {"rapids_singlecell": "rapids-singlecell-cu13"}


def step(function: Callable) -> Callable:
    """Mark a step's function: what it writes carries how it came to be.

    Parameters
    ----------
    function
        Positional parameters are files, keyword-only parameters settings.

    Returns
    -------
    The function, which keeps its parameters and the digests of its inputs for `provenance` while
    it runs and logs how long it took.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        files, settings = {}, {}
        for name, parameter in signature.parameters.items():
            value = bound.arguments[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                settings |= value
            else:
                is_setting = parameter.kind is parameter.KEYWORD_ONLY
                (settings if is_setting else files)[name] = value
        backend = settings.pop("backend", "cpu")
        settings.pop("threads", None)  # they change no result
        named = settings.pop("named", None)  # what was checked, which changes no result either
        record = {
            "step": function.__name__,
            "backend": backend,
            "parameters": plain(settings),
            "inputs": _digests(files),
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "clock": time.perf_counter(),
        }
        if named is not None:
            record["named"] = plain(named)
        token = _record.set(record)
        keep_warnings = _keeping_warnings(record)
        log.addFilter(keep_warnings)
        try:
            result = function(*bound.args, **bound.kwargs)
            log.info(
                "%s done in %.1f s on the %s",
                function.__name__,
                time.perf_counter() - record["clock"],
                backend.upper(),
            )
            return result
        finally:
            log.removeFilter(keep_warnings)
            _record.reset(token)

    return wrapped


def _keeping_warnings(record: dict[str, Any]) -> Callable[[logging.LogRecord], bool]:
    """Make a log filter that passes all records and collects each warning once."""

    def keep(said: logging.LogRecord) -> bool:
        # what the libraries warn of comes from scrna.log
        if said.levelno == logging.WARNING and said.module != "log":
            warned = record.setdefault("warnings", [])
            if (text := said.getMessage()) not in warned:
                warned.append(text)
        return True

    return keep


def perform(function: Callable, job: Mapping[str, Any], worker: str = "own process") -> dict:
    """Call a step's function in this process, set up as the job asks.

    Parameters
    ----------
    function
        A function marked by `step`.
    job
        What `scrna.workflow.rule.begin` made of the rule.
    worker
        Where this is, for the provenance: ``warm`` or ``own process``.

    Returns
    -------
    ``memory``: start_bytes, peak_bytes and source of what was in use on the GPU; None on the CPU.
    """
    files = {
        name: [Path(item) for item in value] if isinstance(value, list) else Path(value)
        for name, value in job["files"].items()
    }
    settings = dict(job["settings"])
    if "threads" in inspect.signature(function).parameters:
        settings["threads"] = job["threads"]
    process: dict[str, Any] = {"worker": worker, "code": job.get("code")}
    is_warm, backend = worker == "warm", settings.get("backend")
    with ExitStack() as stack:
        if backend == "gpu":
            gpu = stack.enter_context(_on_gpu(function.__name__, job, is_warm=is_warm))
        if backend is not None:
            configure(job["config"])
        if is_warm:
            from scrna.resources import admission

            admission.make_room_for(function.__name__, backend, settings)
        if backend == "gpu":
            from scrna.resources.gpu_memory import MemoryPeak

            process["peak"] = stack.enter_context(MemoryPeak(gpu))
        token = _process.set(process)
        stack.callback(_process.reset, token)
        with setting_aside():
            function(**files, **settings, **job["untracked"])
    if (peak := process.get("peak")) is None:
        return {"memory": None}
    source = "/proc/meminfo" if gpu.unified else "NVML"
    used = {"start_bytes": peak.start_bytes, "peak_bytes": peak.peak_bytes, "source": source}
    return {"memory": used}


def configure(config: Mapping[str, Any]) -> None:
    """Apply the settings of the config that concern the process; they change no result."""
    from scrna.data import row_blocks
    from scrna.resources import admission
    from scrna.resources.gpus import visible_gpus

    admission.configure(**config["memory"], limit_gb=config["gpu"]["limit_gb"])
    row_blocks.configure(
        gpus=len(visible_gpus()),
        threads=config["dask"]["threads"],
        protocol=config["dask"]["protocol"],
        gpu=config["gpu"],
    )


@contextmanager
def _on_gpu(name: str, job: Mapping[str, Any], *, is_warm: bool) -> Iterator[Any]:
    """Import what the step needs, wait for the GPUs, set up the memory; give the first GPU.

    The locks are held until the process ends, since only then its memory on the GPUs is free. A
    warm worker, which frees what a step leaves, gives them back.
    """
    from scrna import backend
    from scrna.resources import gpus
    from scrna.resources.gpus import visible_gpus
    from scrna.resources.locks import gpu_lock

    gpus.resolve_backend("gpu")  # refused here where the run was started on another machine
    asked = job["config"].get("gpus", "all")
    if asked != "all" and not is_warm:  # a worker's process has chosen
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus.chosen_gpus(asked))
    if not is_light(name, "gpu"):
        backend.load("gpu")
    used = visible_gpus()
    with ExitStack() as stack:
        for index in sorted({gpu.index for gpu in used}):
            lock = gpu_lock(job["label"], index)
            if is_warm:
                stack.callback(lock.release)
        log.info("on GPU %s", ", ".join(f"{gpu.index}, {gpu.name}" for gpu in used))
        start_gpu(**job["config"]["gpu"])
        if is_warm:  # the peak is to be this step's
            import rmm.statistics

            rmm.statistics.push_statistics()
            stack.callback(rmm.statistics.pop_statistics)
        yield used[0]


@functools.lru_cache(maxsize=1)
def start_gpu(**memory) -> None:
    """Set up the GPU's memory, once in a process as long as the settings are the same."""
    from scrna.resources import gpu_pool

    gpu_pool.start_gpu(**memory)


def _digests(files: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Digests of the inputs among a step's files, by parameter name; outputs do not exist yet."""
    found = {}
    for name, value in files.items():
        if isinstance(value, list | tuple):
            digest = [known for item in value if (known := step_files.digest_of(Path(item)))]
        else:
            digest = step_files.digest_of(Path(value))
        if digest:
            found[name] = digest
    return found
