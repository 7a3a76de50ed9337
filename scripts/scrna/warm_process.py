"""Call the function of a step in a worker process, and send its log to the process of the rule."""

import gc
import importlib.util
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from scrna import step
from scrna.errors import report
from scrna.log import log, send_logs
from scrna.resources.host_memory import give_back_freed

_scripts: dict[Path, tuple[int, ModuleType]] = {}
_formatter = logging.Formatter()


def prepare(backend: str, config: Mapping[str, Any]) -> None:
    """Load a backend in this process and set it up, once, for all its steps.

    Parameters
    ----------
    backend
        ``gpu`` or ``cpu``.
    config
        The sections of the config that say how a process works: gpu, memory and dask.
    """
    from scrna.backend import load
    from scrna.resources import gpus, kept_matrices

    if backend == "gpu":
        gpus.remember()
        step.start_gpu(**config["gpu"])
    load(backend)
    step.configure(config)
    kept_matrices.start()


def perform(
    request: dict[str, Any],
    emit: Callable[[dict[str, Any]], None],
    trouble: Exception | None = None,
) -> dict[str, Any]:
    """Call a step's function.

    Parameters
    ----------
    request
        script, function and job, as `scrna.engine.client.perform` sends them.
    emit
        Called with what the step logs: the attributes of a log record.
    trouble
        Why this process could not be prepared, if it could not; the step fails of it.

    Returns
    -------
    ended (what `scrna.step.perform` returned), failed, and is_broken: whether the process should
    not run another step.
    """
    outcome = {"ended": None, "failed": True, "is_broken": False}
    before = list(log.handlers)
    send_logs([_Sender(emit)])
    warnings.simplefilter(
        "default", append=True
    )  # show warnings that earlier steps have shown already
    job = request["job"]
    try:
        if trouble is not None:
            raise trouble
        if job["settings"]["backend"] == "cpu" and (numba := sys.modules.get("numba")):
            numba.set_num_threads(min(job["threads"], numba.config.NUMBA_NUM_THREADS))
        function = getattr(_load(Path(request["script"])), request["function"])
        outcome |= {"ended": step.perform(function, job, "warm"), "failed": False}
    except BaseException as error:  # this process survives whatever a step raises
        outcome["is_broken"] = error is trouble or _breaks(error)
        report(error)
        for one in _chain(error):  # which hold the step's arrays
            traceback.clear_frames(one.__traceback__)
    finally:
        send_logs(before)
    return outcome


class _Sender(logging.Handler):
    """Sends log records to the rule's process, in order."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]):
        super().__init__()
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        text = record.exc_text
        if record.exc_info and not text:
            text = _formatter.formatException(record.exc_info)
        about = {key: getattr(record, key) for key in ("name", "levelno", "levelname", "created")}
        about |= {"msecs": record.msecs, "msg": record.getMessage(), "exc_text": text}
        with suppress(OSError):  # the rule's process is gone, which others find
            self._emit(about)


def _load(script: Path) -> ModuleType:
    """Load a rule's script as a module, once as long as it stays the same.

    It goes under a name that nothing imports, so that Dask sends its functions whole to other
    workers, as it does with those of a rule's own process.
    """
    written = script.stat().st_mtime_ns
    known = _scripts.get(script)
    if known is None or known[0] != written:
        spec = importlib.util.spec_from_file_location(f"scrna_step_{script.stem}", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _scripts[script] = written, module
    return _scripts[script][1]


def _breaks(error: BaseException) -> bool:
    """Return whether an error leaves a process that cannot be trusted: CUDA's, or out of memory."""
    return any(
        isinstance(one, MemoryError) or "cuda" in f"{type(one).__module__} {one}".lower()
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def free_memory() -> None:
    """Free what the last step left behind; a pool of GPU memory stays."""
    gc.collect()
    if cupy := sys.modules.get("cupy"):
        with suppress(Exception):  # a broken GPU raises here too; the step's own error tells
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
            cupy.cuda.Device().synchronize()
    give_back_freed()


def drop_matrices() -> None:
    """Hold nothing that an earlier step left: kept matrices, and Dask workers on other GPUs."""
    from scrna.data import row_blocks
    from scrna.resources import kept_matrices

    row_blocks.end_cluster()
    kept_matrices.stop()
    kept_matrices.start()
    free_memory()
