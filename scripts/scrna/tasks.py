"""Steps as tasks of a Dask cluster: connecting to one, sending a step, hearing from it.

For the engine of a run's own cluster, and for rules whose steps run in a cluster that exists.
"""

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scrna.errors import UserError

#: What a worker that takes steps has, in a run's own cluster: the one on the first GPU.
SEAT = "step"
_CONNECT = 10.0  # seconds to reach a scheduler
_STOP = 5.0  # seconds to see a stopped step's worker go
_POLL = 0.25  # seconds between looks whether a step is still wanted
_TRIES = 3  # times that a worker may die before it begins with the step


def seat(number: int) -> str:
    """Name what each of several workers on the CPU has."""
    return f"{SEAT}-{number}"


class StoppedError(Exception):
    """The step is not wanted any more, and has stopped."""


@contextmanager
def connected(scheduler: str) -> Iterator[Any]:
    """Connect to a cluster that exists; gives Dask's client.

    Parameters
    ----------
    scheduler
        Its address, or its scheduler file. Credentials, where it asks for any, are those of the
        user's Dask configuration.

    Raises
    ------
    UserError
        If it is not to be reached.
    """
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is raised here
    is_file = os.path.exists(scheduler)
    where = {"scheduler_file": os.path.abspath(scheduler)} if is_file else {"address": scheduler}
    try:
        client = Client(**where, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError, KeyError) as error:
        msg = (
            f"dask.scheduler: {scheduler} cannot be reached within {_CONNECT:g} s "
            f"({type(error).__name__}: {error}); start it, or set dask.scheduler: null"
        )
        raise UserError(msg) from error
    try:
        yield client
    finally:
        with suppress(Exception):
            client.close(timeout=2)


def prepare() -> Callable[[str], None]:
    """Give the function that lets a worker import this package.

    Dask sends it whole: one that lies in a module, which workers do not know, goes by name alone.
    """

    def put_on_path(scripts: str) -> None:
        import sys

        if scripts not in sys.path:
            sys.path.append(scripts)

    return put_on_path


def submit(
    client,
    request: dict[str, Any],
    emit: Callable[[dict], None],
    *,
    claims: Path,
    its_log: str,
    resources: dict[str, int] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Run a step in a worker and wait for it.

    Parameters
    ----------
    client
        Dask's.
    request
        scripts, script, function and job, as `scrna.remote.perform` has them.
    emit
        Called with what the step logs: the attributes of a log record.
    claims
        A folder that the worker sees, for a file that its first try takes away: no second follows.
    its_log
        Where the worker's log is, for messages.
    resources
        What a worker needs to have for it.
    is_wanted
        Whether the step is still waited for; asked now and then.

    Returns
    -------
    What `scrna.worker.perform` returns.

    Raises
    ------
    StoppedError
        If it was not wanted any more.
    UserError
        If its worker died.
    """
    with tempfile.NamedTemporaryFile(prefix=".claim-", dir=claims, delete=False) as file:
        claim = Path(file.name)
    try:
        for _ in range(_TRIES):
            step = _Step(client, request | {"claim": str(claim)}, emit, resources)
            try:
                outcome = step.wait(is_wanted, its_log)
            finally:
                step.forget()
            if outcome is not None:
                break
        else:
            raise UserError(f"the worker died {_TRIES} times before it began; its log: {its_log}")
    finally:
        claim.unlink(missing_ok=True)
    if outcome["is_broken"]:  # the next step gets a clean process
        with suppress(Exception):
            client.restart_workers([outcome["worker"]], timeout=60)
    return outcome


class _Step:
    """A step that was sent to a worker, and what comes from it: its beginning and its log."""

    def __init__(self, client, request: dict[str, Any], emit, resources):
        self._client, self._emit = client, emit
        self._worker: str | None = None
        self._records = 0
        self._changed = threading.Condition()
        self._topic = topic = f"scrna-step-{uuid.uuid4().hex}"
        client.subscribe_topic(topic, self._hear)
        self._future = client.submit(
            _entry(), request | {"topic": topic}, key=topic, pure=False, resources=resources
        )

    def wait(self, is_wanted: Callable[[], bool], its_log: str) -> dict[str, Any] | None:
        """Wait for the step; None if its worker died before it began."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        done = threading.Event()
        self._future.add_done_callback(lambda _: done.set())
        try:
            while not done.wait(_POLL):
                if not is_wanted():
                    raise StoppedError
            outcome = self._future.result()
        except KilledWorker:
            if self._worker is None:
                return None
            raise UserError(_death(its_log)) from None
        except CancelledError:
            msg = f"the connection to the worker's cluster was lost; its log: {its_log}"
            raise UserError(msg) from None
        except BaseException:
            self._stop()
            raise
        if outcome["is_again"]:
            raise UserError(_death(its_log))
        with self._changed:  # the log travels beside the result
            self._changed.wait_for(lambda: self._records >= outcome["records"], timeout=10)
        return outcome

    def forget(self) -> None:
        """See that Dask forgets the step: it would run it again if its worker died later."""
        with suppress(Exception):
            client, topic = self._client, self._topic
            client.unsubscribe_topic(topic)
            self._future.release()
            end = time.monotonic() + _STOP
            while client.sync(client.scheduler.who_has, keys=[topic])[topic]:
                if time.monotonic() > end:
                    break
                time.sleep(0.005)

    def _hear(self, event: tuple[float, dict]) -> None:
        """Take what the worker tells; called in the thread of Dask's client."""
        kind, content = event[1]["kind"], event[1]["content"]
        if kind == "record":
            with suppress(OSError):  # whom it is for is gone, which `is_wanted` finds
                self._emit(content)
            with self._changed:
                self._records += 1
                self._changed.notify_all()
        else:
            self._worker = content["worker"]

    def _stop(self) -> None:
        """Have the worker end, as it does when nobody waits for its step, and see it go."""
        with suppress(Exception):
            self._future.cancel()
            end = time.monotonic() + _STOP
            while self._client.status == "running" and time.monotonic() < end:
                if self._worker not in self._client.scheduler_info(n_workers=-1)["workers"]:
                    return
                time.sleep(0.05)


def _entry() -> Callable[[dict], dict]:
    """Give the function that a worker calls; sent whole, as in `prepare`."""
    put_on_path = prepare()

    def enter(request: dict) -> dict:
        put_on_path(request["scripts"])
        from scrna import worker

        return worker.perform(request)

    return enter


def _death(its_log: str) -> str:
    return (
        "the worker's process died while it ran this step: out of memory (dmesg tells), or a "
        f"library or the driver crashed. Its log: {its_log}. The next step gets a new worker"
    )
