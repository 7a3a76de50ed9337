"""The Dask cluster of a run: started with it, gone with it, and checked where it exists already.

`start` starts this file as a program of its own, the engine. It holds the scheduler and watches
over the workers: one for each GPU (dask-cuda's, where there are several) or, on the CPU, for each
of the steps that run at a time. They import their libraries once for the whole run, and the engine
takes the rules' steps over a socket. All of it listens on this machine alone (127.0.0.1, any free
port) and asks for keys made for the run: Dask speaks TLS with a certificate that never leaves the
processes' memory, and the socket's key lies in a folder that only this user may enter. Nobody else
can run code through it. It follows its Snakemake and is gone seconds after it, however that ended.
"""

import json
import logging
import multiprocessing
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError, forkserver, util
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from queue import Empty, PriorityQueue
from threading import Thread
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from scrna import reader, remote, tasks
from scrna.code import tree_digest
from scrna.errors import UserError
from scrna.files import write_private
from scrna.machine import Gpu, gpu_problem, gpus
from scrna.watch import die_with, process_start

#: Packages that the run and the workers of a cluster that exists need in the same version.
PACKAGES = "dask distributed numpy zarr anndata scanpy".split()
GPU_PACKAGES = ["rapids-singlecell-cu13"]
#: What every worker imports that leaves the GPU alone.
LIBRARIES = ["scanpy", "distributed"]
#: Seconds after which a worker is so nearly there that waiting for it is shorter than a process of
#: one's own, and how many more where UMAP is imported, which in a new environment compiles itself.
_SOON, _UMAP = 3.0, 4.0
#: What Snakemake sets for a rule's own process: the threads of its libraries.
_THREADS = [f"{name}_NUM_THREADS" for name in "OMP OPENBLAS MKL NUMEXPR".split()]


def start(
    config: Mapping[str, Any],
    backend: str,
    due: Sequence[str] = (),
    *,
    at_once: int = 1,
    threads: int | None = None,
    ahead: Mapping[str, Any] | None = None,
) -> subprocess.Popen:
    """Start a run's cluster; its jobs learn of it by the environment. Does not wait.

    Parameters
    ----------
    config
        A `scrna.config.complete` config.
    backend
        ``gpu`` or ``cpu``.
    due
        Steps that the run will come to, in their order.
    at_once
        Steps that run at the same time, each in a worker of its own; on GPUs always one.
    threads
        CPU threads of a step; None: as many as there are cores.
    ahead
        The matrix that a step will ask for: counts, filtered and normalized (paths), execution and
        method of ``markers``.

    Returns
    -------
    The engine's process.

    Raises
    ------
    UserError
        If the workers of several GPUs are to talk by UCX, which knows no credentials.
    """
    chosen = chosen_gpus(config["gpus"]) if backend == "gpu" else []
    if config["dask"]["protocol"] == "ucx" and len(chosen) > 1:
        msg = (
            "dask.protocol is ucx, over which any user of this machine could run code through the "
            "run's worker: set worker: none, or dask.protocol: tcp"
        )
        raise UserError(msg)
    folder = Path(".snakemake/scrna", f"cluster-{os.getpid()}").absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob("cluster-*"):  # of engines that were killed
        if process_start(int(old.name.rpartition("-")[2])) is None or old == folder:
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(mode=0o700)
    log_file = remote.log_of(folder)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "snakemake": os.getpid(),
        "folder": str(folder),
        "log": str(log_file),
        "backend": backend,
        "gpus": [gpu.uuid for gpu in chosen],
        "threads": config["dask"]["threads"],
        "due": list(due),
        "ahead": ahead,
        "config": {name: config[name] for name in ("gpu", "memory", "dask")},
        "seats": [tasks.SEAT] if backend == "gpu" else [tasks.seat(i) for i in range(at_once)],
    }
    count = {} if threads is None else dict.fromkeys(_THREADS, str(threads))
    with log_file.open("w") as log:
        engine = subprocess.Popen(
            [sys.executable, "-P", __file__, json.dumps(settings)],
            env=os.environ | count,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the rules' processes first
        )
    about = {
        "pid": engine.pid,
        "started": process_start(engine.pid),
        "host": os.uname().nodename,
        "soon": time.time() + _SOON + _UMAP * _needs_umap(backend, due),
        "gpus": len(chosen),
    }
    write_private(folder / "engine.json", about)
    os.environ[remote.FOLDER_VARIABLE] = str(folder)
    return engine


def _needs_umap(backend: str, due: Sequence[str]) -> bool:
    """Tell whether steps that a run will come to need UMAP's library."""
    return backend == "cpu" and not {"neighbors", "umap"}.isdisjoint(due)


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
    found = gpus()
    if asked == "all":
        return found
    wanted = [int(number) for number in asked.split(",")] if isinstance(asked, str) else None
    chosen = found[:asked] if wanted is None else [gpu for gpu in found if gpu.index in wanted]
    if len(chosen) != (asked if wanted is None else len(set(wanted))):
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found) or "none"
        msg = f"gpus is {asked!r}, but the GPUs here are: {there}"
        raise UserError(msg)
    return chosen


# ---------------------------------------------------------------------- a cluster that exists


def check_scheduler(scheduler: str, backend: str) -> str:
    """Refuse a cluster whose workers cannot do a run's steps as this process would.

    Parameters
    ----------
    scheduler
        Its address, or its scheduler file.
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    A line that tells of the cluster.

    Raises
    ------
    UserError
        If it cannot be reached or has no worker; or, with the worker's address, if one does not see
        the working directory or these scripts, has other versions or another state of the code, or
        no GPU.
    """
    expected = _facts(backend)
    with tempfile.NamedTemporaryFile("w", prefix=".scrna-", dir=".") as token:
        token.write(expected["code"])
        token.flush()
        path = os.path.abspath(token.name)
        with tasks.connected(scheduler) as client:
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
            if not n_workers:
                raise UserError(f"the cluster at {scheduler}, dask.scheduler, has no worker")
            found = client.run(_question(), str(remote.SCRIPTS), backend, path, on_error="return")
    for address, facts in sorted(found.items()):
        if isinstance(facts, Exception):
            what = f"does not run this workflow's code in {remote.SCRIPTS}: {facts!r}"
            raise UserError(f"dask.scheduler: the worker {address} {what}")
        for name, value in expected.items():
            if facts[name] != value:
                raise UserError(_difference(address, name, facts[name], value))
        if facts["token"] != expected["code"]:
            msg = (
                f"dask.scheduler: the worker {address} on {facts['host']} does not see this run's "
                f"folder, {os.getcwd()}: the folder has to be shared, under the same path"
            )
            raise UserError(msg)
        if facts["gpu"]:
            msg = (
                f"dask.scheduler: the worker {address} has no GPU for backend: gpu: {facts['gpu']}"
            )
            raise UserError(msg)
    return f"worker: {n_workers} of the cluster at {scheduler}"


def _question():
    """Give the function that asks a worker for its facts; sent whole, see `tasks.prepare`."""
    put_on_path = tasks.prepare()

    def ask(scripts: str, backend: str, token: str) -> dict[str, str | None]:
        put_on_path(scripts)
        from scrna.cluster import facts

        return facts(backend, token)

    return ask


def facts(backend: str, token: str) -> dict[str, str | None]:
    """Tell what a worker has: versions, code, whether it sees a file, what its GPU lacks."""
    seen = None
    with suppress(OSError):
        seen = Path(token).read_text()
    more = {"token": seen, "host": os.uname().nodename}
    return _facts(backend) | more | {"gpu": gpu_problem() if backend == "gpu" else None}


def _facts(backend: str) -> dict[str, str | None]:
    """Versions and code; of a worker, the code as it was when loaded there."""
    import importlib.metadata  # as long as all else that the engine imports before it begins

    packages = PACKAGES + (GPU_PACKAGES if backend == "gpu" else [])
    known: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        known[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known | {"code": tree_digest(remote.SCRIPTS)}


def _difference(address: str, name: str, found: str | None, expected: str | None) -> str:
    where = f"dask.scheduler: the worker {address}"
    if name == "code":
        return (
            f"{where} has loaded another state of this workflow's code ({found}) than this run's "
            f"({expected}): restart the cluster's workers"
        )
    return (
        f"{where} has {name} {found or 'not installed'}, this run has {expected or 'none'}: "
        "start the workers from the environment that this run is started from"
    )


# --------------------------------------------------------------------------------- the engine


def main(settings: dict[str, Any]) -> None:
    """Run the engine until its Snakemake is gone."""
    folder = Path(settings["folder"])
    others = []
    try:
        die_with(settings["snakemake"])
        if len(settings["gpus"]) == 1:  # for several, dask-cuda tells each worker which is its own
            os.environ["CUDA_VISIBLE_DEVICES"] = settings["gpus"][0]
            others += _start_reader(settings)
        _start_fork_server(settings)
        # The fork server's socket lies there. If this process is killed, the next run removes it.
        (folder / "temporary").symlink_to(util.get_temp_dir())
        client = _start_cluster(settings, folder)
        key = secrets.token_bytes(32)
        seats = PriorityQueue()  # the first that is free: the others prepare for what is to come
        for seat in settings["seats"]:
            seats.put(seat)
        with Listener(("127.0.0.1", 0)) as listener:
            write_private(folder / "cluster.json", {"address": listener.address, "key": key.hex()})
            while True:
                # whoever it is, and however long they take to answer, the next one is let in
                who = listener.accept()
                Thread(target=_serve, args=(who, key, client, seats, settings), daemon=True).start()
    finally:
        # At once: what workers hold is worth nothing now, and one may be in a long call.
        for child in [*multiprocessing.active_children(), *others]:
            child.kill()
        for temporary in (util.get_temp_dir(), folder):
            shutil.rmtree(temporary, ignore_errors=True)
        logging.shutdown()
        sys.stderr.flush()
        os._exit(1 if sys.exc_info()[0] not in (None, SystemExit) else 0)


def _start_reader(settings: dict[str, Any]) -> list[subprocess.Popen]:
    """Have a process of its own read the matrix that a step will ask for; tell the worker of it."""
    if not (wanted := settings["ahead"]):
        return []
    process, about = reader.start(wanted, settings["config"], Path(settings["folder"]))
    settings["ahead"] = {**wanted, "reader": about}
    return [process] if process else []


def _start_fork_server(settings: dict[str, Any]) -> None:
    """Have Python's fork server import what workers need, while this process imports Dask.

    Workers are forked from it. Nothing there may touch the GPU, which a fork could not use then.
    """
    about = {key: settings[key] for key in ("backend", "config", "due", "ahead")}
    about["first"] = next(iter(settings["gpus"]), "")
    os.environ[remote.WORKER_VARIABLE] = json.dumps(about)
    also = ["umap_compiled"] if _needs_umap(settings["backend"], settings["due"]) else []
    # all that it imports comes by name, and from where Python looks when it starts
    forkserver.set_forkserver_preload(["without_gc", *LIBRARIES, *also])
    paths = [str(Path(__file__).with_name("fork_server")), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    forkserver.ensure_running()


def _serve(
    connection: Connection, key: bytes, client, seats: PriorityQueue, settings: dict[str, Any]
) -> None:
    """Run the step that a rule's process asks for, if it knows the key."""
    with connection, suppress(OSError, EOFError, AuthenticationError):
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        _, request = remote.receive(connection)

        def is_wanted() -> bool:
            return not connection.poll()  # a process that waits says nothing

        begun = time.monotonic()
        try:
            with _turn(seats, is_wanted) as seat:
                waited = time.monotonic() - begun
                outcome = tasks.submit(
                    client,
                    request,
                    lambda about: remote.send(connection, "record", about),
                    claims=Path(settings["folder"]),
                    its_log=settings["log"],
                    resources={seat: 1},
                    is_wanted=is_wanted,
                )
        except (UserError, tasks.StoppedError) as error:
            remote.send(connection, "error", str(error))
        except (OSError, EOFError):  # the rule's process is gone
            raise
        except Exception as error:
            traceback.print_exc()  # into the engine's log
            what = f"{type(error).__name__}: {error}; its log: {settings['log']}"
            remote.send(connection, "error", f"the run's worker could not take this step: {what}")
        else:
            remote.send(connection, "outcome", outcome | {"waited_s": waited})


@contextmanager
def _turn(seats: PriorityQueue, is_wanted: Callable[[], bool]) -> Iterator[str]:
    """Wait for a worker's seat: one that dies shall take one step with it, not the next as well.

    Dask by itself would queue a step behind another's, since steps leave its threads alone.
    """
    while True:
        try:
            seat = seats.get(timeout=0.25)
            break
        except Empty:
            if not is_wanted():
                raise tasks.StoppedError from None
    try:
        yield seat
    finally:
        seats.put(seat)


def _start_cluster(settings: dict[str, Any], folder: Path):
    """Start scheduler and workers; give a client."""
    import dask
    from distributed import Client
    from distributed.security import Security

    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 0,  # a step that killed its worker has failed
            "distributed.scheduler.worker-ttl": None,  # a worker in a long call gives no sign
            "distributed.deploy.lost-worker-timeout": "365d",  # its nanny brings it back
            "distributed.worker.multiprocessing-method": "forkserver",
            "distributed.nanny.pre-spawn-environ": {},  # threads as in a process of one's own
            # Dask always opens a web server, which asks for no credentials: it serves nothing.
            "distributed.scheduler.http.routes": [],
            "distributed.worker.http.routes": [],
        }
    )
    common = {
        "host": "127.0.0.1",
        "protocol": "tls",
        "security": Security.temporary(),
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        "local_directory": str(folder / "dask"),
        "preload": ["scrna.worker"],
        "memory_limit": 0,  # as much as a process of one's own may take
        "silence_logs": False,
    }
    if len(settings["gpus"]) > 1:
        from dask_cuda import LocalCUDACluster

        cluster = LocalCUDACluster(
            settings["gpus"], threads_per_worker=settings["threads"], **common
        )
    else:
        from distributed import LocalCluster

        cluster = LocalCluster(n_workers=len(settings["seats"]), threads_per_worker=1, **common)
    return Client(cluster, set_as_default=False)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
