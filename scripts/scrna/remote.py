"""A rule's process as a thin client: its step runs in a worker that is warm, and it waits.

The worker is one of the run's own cluster (`scrna.cluster`), which is asked over a socket of this
machine, since importing Dask takes longer than many a step; or one of a cluster that exists
(``dask.scheduler``), which is asked through Dask (`scrna.tasks`). What the step logs comes back the
same way and goes to the rule's log file and terminal as if it ran here. Nothing here imports
RAPIDS, scanpy, pandas or anndata.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, NamedTuple

from scrna.errors import UserError
from scrna.log import log
from scrna.watch import process_start

#: The environment variable that names the folder of the run's own cluster to its jobs.
FOLDER_VARIABLE = "SCRNA_CLUSTER"
#: That of the settings of the run's own workers, JSON: backend, config, the steps that are due, the
#: matrix to read ahead, and the first GPU, whose worker takes the steps.
WORKER_VARIABLE = "SCRNA_WORKER"
SCRIPTS = Path(__file__).parents[1]
#: Steps that import little: CuPy or NumPy is enough for them, or cuGraph's own library.
LIGHT = {"cpu": {"qc", "normalize"}, "gpu": {"qc", "normalize", "leiden", "louvain"}}
_START = 300.0  # seconds that the run's own cluster may take to start
_STOP = 5.0  # seconds to see a stopped step end


class StepFailedError(Exception):
    """The step failed in its worker; why is in the log already."""


class Cluster(NamedTuple):
    """A cluster to run steps on: the run's own by its folder, or another by its scheduler."""

    folder: Path | None
    scheduler: str | None = None


def cluster_of(job: Mapping[str, Any], step: str = "") -> Cluster | None:
    """Tell where a job's step runs.

    Parameters
    ----------
    job
        What `scrna.rule.begin` made of the rule.
    step
        The step's function.

    Returns
    -------
    None: in the rule's own process. Steps without a backend do, all where the run has no cluster on
    this machine, and those of `LIGHT` where the cluster has only begun to start.
    """
    if "backend" not in job["settings"]:
        return None
    if scheduler := job["config"].get("dask", {}).get("scheduler"):
        return Cluster(None, scheduler)
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or job["config"].get("worker") not in ("warm", "auto"):
        return None
    cluster = Cluster(Path(folder))
    engine = _engine(cluster)
    if engine["host"] != os.uname().nodename:
        return None
    # on several GPUs a step's blocks may need the cluster
    can_do_without = engine["gpus"] < 2 and step in LIGHT[job["settings"]["backend"]]
    is_early = not _file(cluster).exists() and time.time() < engine["soon"]
    return None if can_do_without and is_early else cluster


def perform(cluster: Cluster, script: Path, function: str, job: Mapping[str, Any]) -> dict:
    """Run a step in a cluster's worker and wait for it; what it logs is logged here.

    A step that is no longer waited for stops: its worker's process ends and another takes its
    place, since nothing else interrupts a Python function.

    Parameters
    ----------
    cluster
        Where.
    script, function
        The rule's script and the name of its step's function, which `scrna.step.step` marks.
    job
        What `scrna.rule.begin` made of the rule.

    Returns
    -------
    What `scrna.step.perform` returns, and ``waited_s``: seconds that the step waited for its turn.

    Raises
    ------
    StepFailedError
        If the step failed, once its log is here.
    UserError
        If there is no worker, or it died.
    """
    files = {name: _absolute(value) for name, value in job["files"].items()}
    request = {
        "scripts": str(SCRIPTS),
        "script": str(script),
        "function": function,
        "job": {**job, "files": files},
    }
    if cluster.folder:
        outcome = _ask_engine(cluster, request)
    else:
        from scrna import tasks

        with tasks.connected(cluster.scheduler) as client:
            client.run(tasks.prepare(), str(SCRIPTS))  # workers may have come since the run began
            its_log = f"that of the workers of {cluster.scheduler}"
            claims = Path(".snakemake").absolute()
            outcome = tasks.submit(client, request, log_record, claims=claims, its_log=its_log)
    if outcome["failed"]:
        raise StepFailedError
    return outcome["ended"] | {"waited_s": outcome.get("waited_s", 0.0)}


def log_record(about: Mapping[str, Any]) -> None:
    """Log what a step logged in its worker."""
    if log.isEnabledFor(about["levelno"]):
        log.handle(logging.makeLogRecord(about))


def send(connection: Connection, kind: str, content: Any) -> None:
    """Send a message over a socket between a rule's process and the engine."""
    connection.send_bytes(json.dumps([kind, content]).encode())


def receive(connection: Connection) -> tuple[str, Any]:
    """Receive a message; EOFError where the other side is gone."""
    return tuple(json.loads(connection.recv_bytes()))


def _ask_engine(cluster: Cluster, request: dict[str, Any]) -> dict[str, Any]:
    """Have the engine of the run's own cluster run a step."""
    ready = _ready(cluster)
    try:
        with Client(tuple(ready["address"]), authkey=bytes.fromhex(ready["key"])) as connection:
            send(connection, "step", request)
            try:
                while (message := receive(connection))[0] == "record":
                    log_record(message[1])
            except (KeyboardInterrupt, SystemExit):
                with suppress(OSError, EOFError):
                    send(connection, "stop", None)
                    _await_end(connection)
                raise
    except (OSError, EOFError, AuthenticationError) as error:
        raise UserError(
            f"the run's worker is gone ({error!r}); its log: {log_of(cluster.folder)}"
        ) from error
    kind, content = message
    if kind == "error":
        raise UserError(content)
    return content


def _await_end(connection: Connection) -> None:
    """Wait until a step that is to stop has stopped, passing its last words over."""
    end = time.monotonic() + _STOP
    while connection.poll(max(0, end - time.monotonic())) and receive(connection)[0] == "record":
        pass


def _ready(cluster: Cluster) -> dict[str, Any]:
    """Wait until the run's own cluster is ready; give what its connection file says."""
    file, engine = _file(cluster), _engine(cluster)
    start, is_said = time.monotonic(), False
    while not file.exists():
        waited = time.monotonic() - start
        if process_start(engine["pid"]) != engine["started"] or waited > _START:
            state = f"is not ready after {waited:.0f} s" if waited > _START else "did not start"
            raise UserError(_gone(cluster, state))
        if waited > 1 and not is_said:
            is_said = True
            log.info("waiting for the worker to start")
        time.sleep(0.02)
    return json.loads(file.read_text())


def _file(cluster: Cluster) -> Path:
    """Name the file that the engine writes when its workers are there."""
    return cluster.folder / "cluster.json"


def _engine(cluster: Cluster) -> dict[str, Any]:
    """Read which process the engine is, and on which host; its folder goes with it."""
    try:
        return json.loads((cluster.folder / "engine.json").read_text())
    except FileNotFoundError:
        raise UserError(_gone(cluster, "ended")) from None


def _gone(cluster: Cluster, state: str) -> str:
    log_file = log_of(cluster.folder)
    return f"the run's worker {state}; its log says why: {log_file}. worker: none does without it"


def log_of(folder: Path) -> Path:
    """Tell where the engine logs whose folder this is."""
    return folder.parents[1] / "log" / "cluster.log"


def _absolute(value: str | list[str]) -> str | list[str]:
    """Make paths absolute: a worker's working directory is another."""
    return list(map(os.path.abspath, value)) if isinstance(value, list) else os.path.abspath(value)
