"""A run's side of the engine: find the checkout's server or start one, and say how it stands.

A server is one of a state of the code, of the environment and of the settings that make a process
what it is. A run that finds another one has it end, at once or with the run that still uses it.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrna.attended import is_attended
from scrna.code_digest import tree_digest
from scrna.dask_cluster import scheduler_of
from scrna.engine import protocol
from scrna.environment import environment_digest
from scrna.errors import UserError
from scrna.processes import process_start
from scrna.resources import gpus

#: Minutes that a worker stays where a person sits at a terminal (``worker_keep_minutes: auto``).
KEEP_MINUTES = 10
_ANSWER = 10.0  # seconds in which a server answers
#: What Snakemake sets for a rule's own process: the threads of its libraries.
_THREADS = [f"{name}_NUM_THREADS" for name in "OMP OPENBLAS MKL NUMEXPR".split()]
#: The servers that this process has started; one may outlive it.
_servers: list[subprocess.Popen] = []


class Engine:
    """A run's connection to its server, for which the run lasts as long as the connection."""

    def __init__(self, connection: Connection, status: dict[str, Any], path: Path, keep_s: float):
        self._connection, self._path = connection, path
        self._first, self._keep_s = status, keep_s
        os.environ[protocol.VARIABLE] = f"{os.uname().nodename}:{path}"

    @property
    def first_line(self) -> str | None:
        """What to say at the run's start of a worker that was there before."""
        line = f"a worker of {self._first['since']} is warm: {_holds(self._first)}"
        return line if self._first["is_ready"] else None

    def last_line(self) -> str | None:
        """Return what to say at the run's end of a worker that stays."""
        if not self._keep_s:
            return None
        try:
            protocol.send(self._connection, "status")
            _, status = protocol.receive(self._connection, timeout=2)
        except (OSError, EOFError):
            return None
        line = (
            f"The worker stays for {self._keep_s / 60:g} minutes ({_holds(status)}); make stop "
            "ends it, and worker_keep_minutes: 0 keeps none"
        )
        return None if status["is_stopping"] else line

    def close(self) -> None:
        """End the run for the server."""
        self._connection.close()


def begin(
    config: Mapping[str, Any],
    backend: str,
    due: Sequence[str],
    *,
    at_once: int = 1,
    threads: int | None = None,
    may_start: bool = True,
) -> Engine | None:
    """Find the server for a run or start one; does not wait for its workers.

    Parameters
    ----------
    config
        A `scrna.config.settings.complete` config.
    backend
        ``gpu`` or ``cpu``.
    due
        Steps that the run will come to.
    at_once, threads
        Steps that run at the same time, on GPUs always one, and the CPU threads of each; None: as
        many as there are cores.
    may_start
        Whether a server may be started; else only one that is there is used.

    Returns
    -------
    The connection; None where there is no server and none may be started.

    Raises
    ------
    UserError
        If there can be none, as with several GPUs by UCX, which knows no credentials.
    """
    settings, environment = _settings(config, backend, due, at_once, threads)
    folder = protocol.folder()
    path = folder / f"{_identity(settings, environment)}.sock"
    about = {"directory": os.getcwd(), "keep_s": keep_seconds(config)}
    with _alone(folder):
        for other in folder.glob("*.sock"):
            if other != path:
                _stop(other)
        found = _ask(path, "attach", about)
        if found is None and may_start:
            log_file = _start(path, settings, environment)
            found = _ask(path, "attach", about)
            if found is None:
                raise UserError(f"the run's worker did not start; its log says why: {log_file}")
    return Engine(*found, path, about["keep_s"]) if found else None


def keep_seconds(config: Mapping[str, Any]) -> float:
    """Return how long a worker stays after a run (``worker_keep_minutes``)."""
    asked = config.get("worker_keep_minutes", "auto")
    if asked == "auto":
        asked = 0 if scheduler_of(config) or not is_attended() else KEEP_MINUTES
    return 60.0 * float(asked)


def stop() -> list[str]:
    """End the workers of this checkout; return a line for each."""
    lines = []
    folder = protocol.folder()
    with _alone(folder):
        for path in sorted(folder.glob("*.sock")):
            if status := _stop(path):
                what = f"the worker of {status['since']} ({_holds(status)})"
                users = ", ".join(status["runs"])
                ends = f"ends with the run that uses it, in {users}" if users else "has ended"
                lines.append(f"{what} {ends}")
    return lines or ["no worker is there"]


def _settings(
    config: Mapping[str, Any], backend: str, due: Sequence[str], at_once: int, threads: int | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Gather what makes a worker what it is, and the environment of its process."""
    scheduler = scheduler_of(config)
    on_gpu, on_cpu = (backend == where and not scheduler for where in ("gpu", "cpu"))
    chosen = gpus.chosen_gpus(config["gpus"]) if on_gpu else []
    if config["dask"]["protocol"] == "ucx" and len(chosen) > 1:
        msg = (
            "dask.protocol is ucx, over which any user of this machine could run code through the "
            "run's worker: set worker: none, or dask.protocol: tcp"
        )
        raise UserError(msg)
    settings = {
        "backend": backend,
        "scheduler": os.path.abspath(scheduler) if os.path.exists(scheduler or "") else scheduler,
        "gpus": [gpu.index for gpu in chosen],
        "count": 1 if on_gpu else at_once,
        "headroom_gb": config["memory"]["headroom_gb"],
        "is_host": not on_gpu or any(gpu.unified for gpu in chosen),  # where matrices are kept
        "config": {name: config[name] for name in ("gpu", "memory", "dask")},
        "needs_umap": on_cpu and not {"neighbors", "umap"}.isdisjoint(due),
    }
    environment = {} if threads is None else dict.fromkeys(_THREADS, str(threads))
    if chosen:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in chosen)
    return settings, {**os.environ, **environment}


def _identity(settings: dict[str, Any], environment: Mapping[str, str]) -> str:
    """Digest what a process of the server's has loaded and goes by: code, packages, settings."""
    own = {key: value for key, value in settings.items() if key != "needs_umap"}
    about = [tree_digest(protocol.SCRIPTS), environment_digest(environment), own]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time look for servers and start one."""
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ask(path: Path, kind: str, content: Any = None) -> tuple[Connection, dict[str, Any]] | None:
    """Connect to a server and ask it; None where it is gone, or about to go."""
    try:
        connection = protocol.connect(path)
    except OSError:
        return None
    try:
        protocol.send(connection, kind, content)
        return connection, protocol.receive(connection, timeout=_ANSWER)[1]
    except (OSError, EOFError) as error:
        connection.close()
        if not isinstance(error, TimeoutError):
            return None
        msg = f"the worker at {path} does not answer ({error}): end its process, or try again"
        raise UserError(msg) from error


def _stop(path: Path) -> dict[str, Any] | None:
    """Have a server end, and see it go where no run uses it; remove what a killed one left."""
    found = _ask(path, "stop")
    if found is None:
        path.unlink(missing_ok=True)
        return None
    connection, status = found
    end = time.monotonic() + _ANSWER
    if not status["runs"]:
        with suppress(OSError, EOFError):  # the server closes it as it ends, after its workers
            protocol.receive(connection, timeout=_ANSWER)
        while process_start(status["pid"]) and time.monotonic() < end:
            time.sleep(0.01)
        path.unlink(missing_ok=True)
    connection.close()
    return status


def _start(path: Path, settings: dict[str, Any], environment: Mapping[str, str]) -> Path:
    """Start a server, which listens already, so that nobody has to wait for it; return its log."""
    log_file = Path(".snakemake/log/worker.log").absolute()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.unlink(missing_ok=True)  # another server may still write into the old one
    with protocol.listen(path) as listener, log_file.open("a") as log:
        about = {"path": str(path), "listener": listener.fileno(), "log": str(log_file)}
        script = str(Path(__file__).with_name("server.py"))
        server = subprocess.Popen(
            [sys.executable, "-P", script, json.dumps(settings | about)],
            env=environment,
            cwd="/",
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the rules' processes first
        )
    _servers.append(server)
    return log_file


def _holds(status: Mapping[str, Any]) -> str:
    """Return the words for what a worker holds."""
    library = "RAPIDS" if status["backend"] == "gpu" else "scanpy"
    kept = f", {status['kept'] / 1e9:.1f} GB of matrices" if status["kept"] > 5e7 else ""
    return f"{library} loaded{kept}"
