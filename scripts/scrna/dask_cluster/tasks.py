"""Steps on a Dask cluster that exists (``dask.scheduler``): a whole step is one plain task.

`submit` sends a step and waits for it, in a process that stays connected: a worker of the engine.
`perform` is the task; it runs in one of the cluster's workers, which keeps matrices for the next.
"""

import logging
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

from scrna.code_digest import SCRIPTS
from scrna.dask_cluster import scheduler_of
from scrna.errors import UserError, worker_died

_CONNECT = 10.0  # seconds to reach a scheduler
_POLL = 0.25  # seconds between looks whether a step is still wanted
_KEPT = 120.0  # seconds without a step until a worker drops its matrices

# ------------------------------------------------------------------------ where a step is sent


def connected(scheduler: str):
    """Connect to a cluster by its address or scheduler file; return Dask's client.

    Credentials, where it asks for any, are those of the user's Dask configuration.

    Raises
    ------
    UserError
        If it cannot be reached.
    """
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is raised here
    is_file = os.path.exists(scheduler)
    where = {"scheduler_file": os.path.abspath(scheduler)} if is_file else {"address": scheduler}
    try:
        return Client(**where, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError, KeyError) as error:
        msg = (
            f"dask.scheduler: {scheduler} cannot be reached within {_CONNECT:g} s "
            f"({type(error).__name__}: {error}); start it, or set dask.scheduler: null"
        )
        raise UserError(msg) from error


def path_setup() -> Callable[[str], None]:
    """Return the function that lets a worker import this package.

    It is nested on purpose: Dask sends a nested function by value, one of a module by its name,
    and this module is what the workers cannot import yet.
    """

    def put_on_path(scripts: str) -> None:
        import sys

        if scripts not in sys.path:
            sys.path.append(scripts)

    return put_on_path


def submit(client, request: dict[str, Any], emit: Callable[[dict], None]) -> dict[str, Any]:
    """Run a step in a worker of a cluster and wait for it.

    Parameters
    ----------
    client
        Dask's.
    request
        As `scrna.engine.client.perform` makes it.
    emit
        Called with what the step logs: the attributes of a log record.

    Returns
    -------
    What `scrna.warm_process.perform` returns.

    Raises
    ------
    UserError
        If its worker died, or there is none.
    """
    from distributed import KilledWorker

    its_log = f"that of the workers of {scheduler_of(request['job']['config'])}"
    client.run(path_setup(), str(SCRIPTS))  # workers may have come since the last step
    topic = f"scrna-step-{uuid.uuid4().hex}"
    heard = threading.Semaphore(0)

    def hear(event: tuple[float, dict]) -> None:
        with suppress(OSError):  # the rule's process is gone, which the server finds
            emit(event[1])
        heard.release()

    where = {}
    if request["job"]["settings"]["backend"] == "gpu":  # the one that keeps the matrix
        first = sorted(client.scheduler_info(n_workers=-1)["workers"])[:1]
        where = {"workers": first, "allow_other_workers": True}
    client.subscribe_topic(topic, hear)
    folder = Path(request["directory"], ".snakemake")
    with tempfile.NamedTemporaryFile(prefix=".claim-", dir=folder, delete=False) as claim:
        about = request | {"scripts": str(SCRIPTS), "topic": topic, "claim": claim.name}
    future = client.submit(_entry(), about, key=topic, pure=False, **where)
    try:
        outcome = future.result()
    except KilledWorker:
        raise worker_died(its_log) from None
    except CancelledError:
        msg = f"the connection to the worker's cluster was lost; its log: {its_log}"
        raise UserError(msg) from None
    finally:  # also where this is interrupted: then the worker ends, see `_stop`
        with suppress(Exception):
            future.cancel()
        Path(claim.name).unlink(missing_ok=True)
    if outcome["is_again"]:
        raise worker_died(its_log)
    for _ in range(outcome["records"]):  # the log travels beside the result
        heard.acquire(timeout=10)
    client.unsubscribe_topic(topic)
    if outcome["is_broken"]:  # the next step gets a clean process
        with suppress(Exception):
            client.restart_workers([outcome["worker"]], timeout=60)
    return outcome


def _entry() -> Callable[[dict], dict]:
    """Return the function that a worker calls; nested on purpose, as in `path_setup`."""
    put_on_path = path_setup()

    def enter(request: dict) -> dict:
        put_on_path(request["scripts"])
        from scrna.dask_cluster import tasks

        return tasks.perform(request)

    return enter


# ------------------------------------------------------------------------------ where it runs

# Steps come in one thread: libraries keep their handles on the GPU for each.
_steps = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step")
_dropping: threading.Timer | None = None


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Run a step; the function of a Dask task.

    Parameters
    ----------
    request
        As `submit` has it, and scripts (their folder), topic (the task's key, and where the log
        goes) and claim (a file that the first try removes).

    Returns
    -------
    What `scrna.warm_process.perform` returns, and is_again (whether it was tried before and so
    not done), worker (the address) and records (how many log records were sent).
    """
    from distributed import get_worker, secede

    worker = get_worker()
    secede()  # the step's own blocks may need the place
    running = _steps.submit(copy_context().run, _perform, worker, request)
    while not wait([running], timeout=_POLL).done:
        if not _is_wanted(worker, request["topic"]):
            _stop(worker, running)
    return running.result()


def _perform(worker, request: dict[str, Any]) -> dict[str, Any]:
    """Run a step in the thread of the steps."""
    global _dropping
    from scrna import warm_process
    from scrna.resources import kept_matrices

    outcome = {"worker": worker.address, "records": 0, "is_broken": False, "is_again": True}
    try:
        Path(request["claim"]).unlink()
    except FileNotFoundError:  # Dask tries a task again whose worker died
        return outcome

    def emit(record: dict[str, Any]) -> None:
        outcome["records"] += 1
        worker.log_event(request["topic"], record)

    if _dropping is not None:
        _dropping.cancel()
    kept_matrices.start()
    outcome |= warm_process.perform(request, emit) | {"is_again": False}
    _steps.submit(warm_process.free_memory)  # before the next step, but nobody waits for it
    _dropping = threading.Timer(_KEPT, _steps.submit, [warm_process.drop_matrices])
    _dropping.daemon = True
    _dropping.start()
    return outcome


def _is_wanted(worker, key: str) -> bool:
    """Return whether the step is still waited for: Dask drops a task when its client goes.

    There is no public way to ask. Where the worker's state does not answer, a step whose rule is
    gone runs to its end.
    """
    try:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in ("executing", "long-running")
    except AttributeError:
        return True


def _stop(worker, running: Future) -> None:
    """Stop a step that nobody waits for: a Python function ends with its process alone."""
    if running.cancel():  # it has not begun
        return
    if getattr(worker, "nanny", None) is None:
        wait([running])  # nobody would start this worker again
        return
    print("the step's rule is gone: this worker ends, and another takes its place", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
