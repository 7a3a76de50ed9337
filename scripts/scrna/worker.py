"""A Dask worker's side: it runs steps one at a time, in one thread of a process that stays warm.

`dask_setup` makes a worker of the run's own cluster ready. `perform` is what a rule's process
(`scrna.remote`, `scrna.tasks`) sends to a worker, of that cluster or of one that exists.
"""

import ctypes
import gc
import importlib.util
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from threading import Timer
from types import ModuleType
from typing import Any

from scrna import ahead, backend, cache, imports, machine, remote, rule, step, tasks
from scrna.log import log, send_logs
from scrna.warmup import next_call
from scrna.watch import die_with_parent

_POLL = 0.25  # seconds between looks whether the step is still wanted
_IDLE = 0.5  # seconds until first calls are made: a step that waits for the worker goes first
#: Steps that leave the interpreter to others while the GPU works, for the longest first: beside the
#: first of them that the run has, the library is imported that the clusters need.
_QUIET = ["tsne", "umap", "neighbors"]

# Steps come in one thread: libraries keep their handles on the GPU for each.
_steps = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step")
_scripts: dict[Path, tuple[int, ModuleType]] = {}
_formatter = logging.Formatter()
#: The steps that the run will come to.
_due: list[str] = []
#: Why this worker could not be prepared, if it could not.
_trouble: Exception | None = None


def dask_setup(worker) -> None:
    """Make the worker ready for its first step, before it takes any work.

    That is the CPU's library, or the GPU's memory; RAPIDS comes while the first steps run.

    Dask calls this in each of the run's own workers as it starts (preload). Were it to raise, the
    worker would take no step and the run wait for ever: the first step raises it instead.
    """
    global _trouble
    _end_with_engine()
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s - %(message)s"))
    send_logs([own])
    settings = json.loads(os.environ[remote.WORKER_VARIABLE])
    _due[:] = settings["due"]
    try:
        _prepare(settings)
    except Exception as error:
        _trouble = error
        log.exception("the worker could not be prepared")
    imports.freeze()
    if seat := _seat_of(worker, settings):  # steps go to whichever process has it at their turn
        worker.state.total_resources[seat] = worker.state.available_resources[seat] = 1
    if not _trouble:
        _go_on(settings, seat)


def _seat_of(worker, settings: dict[str, Any]) -> str | None:
    """Tell what makes steps come to this worker; None for those on further GPUs."""
    if settings["backend"] == "cpu":
        return tasks.seat(worker.name)
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    return tasks.SEAT if own == settings["first"] else None


def _prepare(settings: dict[str, Any]) -> None:
    """Make this process one that steps run in."""
    if settings["backend"] == "gpu":
        machine.remember()
        step.start_gpu(**settings["config"]["gpu"])
    else:
        backend.load("cpu")
    step.configure(settings["config"])
    cache.start()


def _go_on(settings: dict[str, Any], seat: str | None) -> None:
    """Do in the background what steps to come will need."""
    if settings["backend"] == "cpu":
        if seat != tasks.seat(0):  # the first is wanted at once
            _warm_up("cpu")
        return
    imports.begin("rapids_singlecell", partial(_warm_up, "gpu") if seat else None)
    if seat and settings["ahead"]:
        ahead.begin(settings["ahead"], "gpu")


def _warm_up(where: str) -> None:
    """Make the libraries' first calls where no step waits."""
    timer = Timer(_IDLE, _steps.submit, [next_call, _due, where, _steps.submit])
    timer.daemon = True
    timer.start()


def _end_with_engine() -> None:
    """End with Python's fork server, which goes when the engine, who alone holds its pipe, does."""
    if (pipe := forkserver._forkserver._forkserver_alive_fd) is not None:
        os.close(pipe)
        forkserver._forkserver._forkserver_alive_fd = None
    die_with_parent()


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Run a step; the function of a Dask task.

    Parameters
    ----------
    request
        topic (the task's key, and where the log goes), claim (a file that the first try removes),
        scripts, script, function and job, as `scrna.remote.perform` sends them.

    Returns
    -------
    ended (what `scrna.step.perform` returned), failed, is_broken (whether the process should not
    run another step), is_again (whether it was tried before and so not done), worker (the address)
    and records (how many log records were sent).
    """
    from distributed import get_worker, secede

    worker = get_worker()
    secede()  # the step's own blocks may need the place
    running = _steps.submit(copy_context().run, _perform, worker, request)
    while not wait([running], timeout=_POLL).done:
        if not _is_wanted(worker, request["topic"]):
            _stop(worker, running)
    _steps.submit(free_memory)  # before the next step, but nobody waits for it
    return running.result()


def _perform(worker, request: dict[str, Any]) -> dict[str, Any]:
    outcome = {"ended": None, "failed": True, "is_broken": False, "is_again": False, "records": 0}
    outcome["worker"] = worker.address
    if not _is_first(Path(request["claim"])):
        return outcome | {"is_again": True}
    sender = _Sender(worker, request["topic"])
    sender.send("start", {"worker": worker.address})
    sender.addFilter(lambda record: not _is_of_worker(record))
    before = list(log.handlers)
    send_logs([sender, *map(_of_worker_alone, before)])
    warnings.simplefilter("default", append=True)  # forgets which warnings earlier steps have given
    job = request["job"]
    if job["settings"]["backend"] == "cpu" and (numba := sys.modules.get("numba")):
        numba.set_num_threads(min(job["threads"], numba.config.NUMBA_NUM_THREADS))
    try:
        if _trouble is not None:
            raise _trouble
        function = getattr(_load(Path(request["script"])), request["function"])
        quiet = next((step for step in _QUIET if step in _due), None)
        if request["function"] == quiet and job["settings"]["backend"] == "gpu":
            imports.begin("pylibcugraph", is_first=False)
        outcome |= {"ended": step.perform(function, job, "warm"), "failed": False}
    except BaseException as error:  # a worker's thread survives whatever a step raises
        outcome["is_broken"] = error is _trouble or _breaks(error)
        rule.report(error)
        for one in _chain(error):  # which hold the step's arrays
            traceback.clear_frames(one.__traceback__)
    finally:
        for handler in before:
            handler.removeFilter(_is_of_worker)
        send_logs(before)
    return outcome | {"records": sender.records}


def _is_of_worker(record: logging.LogRecord) -> bool:
    """Tell what the worker itself says from what its step does."""
    return record.threadName == imports.THREAD


def _of_worker_alone(handler: logging.Handler) -> logging.Handler:
    handler.addFilter(_is_of_worker)
    return handler


def _is_first(claim: Path) -> bool:
    """Tell whether this is a step's first try: the one that finds the file, and takes it.

    A cluster that exists tries a task again whose worker died, and of a worker that dies at once
    nobody hears that it had begun.
    """
    try:
        claim.unlink()
    except FileNotFoundError:
        return False
    return True


class _Sender(logging.Handler):
    """Sends log records to the rule's process, in order, over the connection that Dask has."""

    def __init__(self, worker, topic: str):
        super().__init__()
        self.records = 0
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        text = record.exc_text
        if record.exc_info and not text:
            text = _formatter.formatException(record.exc_info)
        about = {key: getattr(record, key) for key in ("name", "levelno", "levelname", "created")}
        about |= {"msecs": record.msecs, "msg": record.getMessage(), "exc_text": text}
        self.records += 1
        self.send("record", about)

    def send(self, kind: str, content: dict[str, Any]) -> None:
        self._worker.log_event(self._topic, {"kind": kind, "content": content})


def _is_wanted(worker, key: str) -> bool:
    """Tell whether a rule's process still waits for a task: Dask drops it when its client goes."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def _stop(worker, running: Future) -> None:
    """Stop a step that nobody waits for: a Python function ends with its process alone."""
    if running.cancel():  # it has not begun
        return
    if worker.nanny is None:
        wait([running])  # nobody would start this worker again
        return
    print("the step's rule is gone: this worker ends, and another takes its place", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


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
    """Tell whether an error leaves a process that cannot be trusted: CUDA's, or out of memory."""
    return any(
        isinstance(one, MemoryError) or "cuda" in f"{type(one).__module__} {one}".lower()
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def free_memory() -> None:
    """Give back what the last step left behind; a pool of memory on the GPU stays.

    What is alive afterwards, modules above all, is kept out of the collection after the next step.
    """
    gc.collect()
    gc.freeze()
    if cupy := sys.modules.get("cupy"):
        with suppress(Exception):  # a broken GPU raises here too; the step's own error tells
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
            cupy.cuda.Device().synchronize()
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
