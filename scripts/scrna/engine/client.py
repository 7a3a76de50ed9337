"""A rule's side of the engine: send a step to a worker, show what it logs, end as it ended.

Nothing here imports numpy, scanpy or RAPIDS: the rule's process has only this to do.
"""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrna.dask_cluster import scheduler_of
from scrna.engine import protocol
from scrna.engine.protocol import StepFailedError
from scrna.errors import UserError
from scrna.log import log
from scrna.steps import is_light

_PATIENCE = 1.0  # seconds until a line says that the step waits for the worker to start
_STOP = 5.0  # seconds to see a stopped step end


def perform(script: Path, function: str, job: Mapping[str, Any]) -> dict | None:
    """Run a step in a worker and wait for it; what it logs is logged here.

    Parameters
    ----------
    script, function
        The rule's script and the name of its step's function, which `scrna.step.step` marks.
    job
        What `scrna.workflow.rule.begin` made of the rule.

    Returns
    -------
    What `scrna.step.perform` returns, and ``waited_s``: seconds that the step waited for its turn.
    None where the step is for this process: it has no backend, the run has no engine on this
    machine, or the step is light and the worker has only begun to start.

    Raises
    ------
    StepFailedError
        If the step failed, once its log is here.
    UserError
        If there is no worker, or it died.
    """
    if "backend" not in job["settings"]:
        return None
    scheduler = scheduler_of(job["config"])
    host, _, path = os.environ.get(protocol.VARIABLE, "").partition(":")
    is_here = host == os.uname().nodename
    if not scheduler and (not is_here or job["config"].get("worker") not in ("warm", "auto")):
        return None
    files = {  # absolute: a worker's working directory is another
        name: [*map(os.path.abspath, f)] if isinstance(f, list) else os.path.abspath(f)
        for name, f in job["files"].items()
    }
    request = {
        "script": str(script),
        "function": function,
        "directory": os.getcwd(),
        "job": {**job, "files": files},
    }
    if is_here:
        light = not scheduler and is_light(function, job["settings"]["backend"])
        outcome = _ask(path, request, is_light=light)
    else:  # a job on another machine than the run, for a cluster that exists
        from scrna.dask_cluster import tasks

        with tasks.connected(scheduler) as client:
            outcome = tasks.submit(client, request, log_record)
    if outcome is None:
        return None
    if outcome["failed"]:
        raise StepFailedError
    return outcome["ended"] | {"waited_s": outcome.get("waited_s", 0.0)}


def _ask(path: str, request: dict[str, Any], *, is_light: bool) -> dict[str, Any] | None:
    """Have a worker of the engine run a step; None where a light step need not wait for one."""
    advice = "worker: none does without it"
    try:
        with protocol.connect(path) as connection:
            protocol.send(connection, "step")
            _, server = protocol.receive(connection)
            advice = f"its log says why: {server['log']}. {advice}"
            if is_light and server["has_just_begun"]:
                return None
            protocol.send(connection, "request", request)
            try:
                if not server["is_ready"] and not connection.poll(_PATIENCE):
                    log.info("waiting for the worker to start")
                while (message := protocol.receive(connection))[0] == "record":
                    log_record(message[1])
            except (KeyboardInterrupt, SystemExit):
                _stop(connection)
                raise
    except (OSError, EOFError) as error:
        raise UserError(f"the run's worker is gone ({error!r}); {advice}") from error
    kind, content = message
    if kind == "error":
        raise UserError(content)
    return content


def _stop(connection: Connection) -> None:
    """Have the server stop the step, and wait until it has."""
    with suppress(OSError, EOFError):
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
        while protocol.receive(connection, timeout=_STOP):
            pass


def log_record(about: Mapping[str, Any]) -> None:
    """Log what a step logged in its worker."""
    if log.isEnabledFor(about["levelno"]):
        log.handle(logging.makeLogRecord(about))
