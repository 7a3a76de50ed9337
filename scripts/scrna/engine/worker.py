"""A worker: a process that has its libraries loaded and runs steps, one after the other.

The server (`scrna.engine.server`) starts this file as a program of its own. It imports what leaves
the GPU alone, once, and forks a worker each time that the server asks for one. Each of the two ends
with the process that started it.
"""

import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from scrna.engine import protocol
from scrna.log import log, send_logs
from scrna.processes import die_with_parent

#: Why the libraries could not be imported, if they could not: each step says so.
_trouble: Exception | None = None


def main(settings: dict[str, Any]) -> None:
    """Import the libraries, and fork a worker for each socket that the server sends."""
    global _trouble
    die_with_parent()
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s - %(message)s"))
    send_logs([own])
    gc.disable()  # what an import makes stays: looking for garbage in it takes an eighth longer
    try:
        _import(settings)
    except Exception as error:
        _trouble = error
        log.exception("the libraries could not be imported")
    gc.freeze()  # so that a worker's first collection does not copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the server sees a worker end by its socket
    control = socket.socket(fileno=settings["control"])
    while True:
        said, numbers, *_ = socket.recv_fds(control, 16, 1)
        if not said:
            return
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            gc.enable()
            try:
                serve(socket.socket(fileno=numbers[0]), settings)
            finally:
                logging.shutdown()
                os._exit(0)
        os.close(numbers[0])


def _import(settings: dict[str, Any]) -> None:
    """Import what all workers need and what does not touch the GPU, which a fork could not use."""
    start = time.perf_counter()
    if settings["scheduler"]:
        importlib.import_module("scrna.engine.dask_tasks")
        importlib.import_module("distributed")
    else:
        importlib.import_module("scanpy")
        importlib.import_module("scrna.warm_process")
    if settings["needs_umap"]:
        from scrna.methods.umap_compiled import import_umap

        import_umap()
    log.info("libraries imported in %.1f s", time.perf_counter() - start)


def serve(server: socket.socket, settings: dict[str, Any]) -> None:
    """Run the steps that the server sends, until it is gone.

    Parameters
    ----------
    server
        Messages: ``step``, with a rule's connection, or ``drop``. It is told when this worker is
        there, ready, done with a step, or holds nothing more.
    settings
        Of `scrna.engine.run`.
    """
    die_with_parent()
    say = partial(_say, server)
    say("here", pid=os.getpid())
    trouble, client = _trouble, None
    try:
        if trouble is None:
            client = _prepare(settings)
    except Exception as error:
        trouble = error
        log.exception("the worker could not be prepared")
    gc.freeze()  # what is loaded by now is not looked through after each step
    say("ready")
    while True:
        said, numbers, *_ = socket.recv_fds(server, 4096, 1)
        if not said:
            return
        message = json.loads(said)
        if message["kind"] == "drop":
            if _has_pool(settings):  # which gives nothing back: the process has to end
                return
            _drop()
            say("dropped", kept=0)
            continue
        with Connection(numbers[0]) as connection:
            is_broken = _step(connection, message["waited_s"], say, settings, trouble, client)
        if is_broken:
            return
        if not settings["scheduler"]:
            from scrna.warm_process import free_memory

            free_memory()


def _prepare(settings: dict[str, Any]):
    """Make this process one that steps run in; return Dask's client where they run elsewhere."""
    if settings["scheduler"]:
        from scrna.engine import dask_tasks

        return dask_tasks.connected(settings["scheduler"])
    from scrna import backend, step
    from scrna.resources import gpus, kept_matrices

    if settings["backend"] == "gpu":
        gpus.remember()
        step.start_gpu(**settings["config"]["gpu"])
    backend.load(settings["backend"])
    step.configure(settings["config"])
    kept_matrices.start()
    return None


def _step(connection, waited_s: float, say, settings, trouble, client) -> bool:
    """Run the step that a rule's process asks for; return whether this process has to end."""
    try:
        _, request = protocol.receive(connection)
    except (OSError, EOFError):  # it is gone
        say("done", is_broken=False)
        return False
    emit = partial(protocol.send, connection, "record")
    kind, outcome = "outcome", {"is_broken": False}
    try:
        if client is not None:
            from scrna.engine import dask_tasks

            outcome = dask_tasks.submit(client, request, emit)
            outcome["is_broken"] = client.status != "running"
        else:
            from scrna.warm_process import perform

            os.chdir(request["directory"])
            outcome = perform(request, emit, trouble)
    except protocol.UserError as error:
        kind, outcome = "error", outcome | {"text": str(error)}
    except Exception as error:
        log.exception("this step could not be taken")
        what = f"{type(error).__name__}: {error}; its log: {settings['log']}"
        kind = "error"
        outcome |= {"text": f"the run's worker could not take this step: {what}"}
    finally:
        os.chdir("/")  # an idle worker keeps no folder busy
    # before the answer: the server must not take the end of the rule's process for a step's
    say("done", is_broken=outcome["is_broken"], kept=_kept())
    with suppress(OSError):
        content = outcome["text"] if kind == "error" else outcome | {"waited_s": waited_s}
        protocol.send(connection, kind, content)
    return outcome["is_broken"]


def _say(server: socket.socket, kind: str, **more) -> None:
    with suppress(OSError):  # it is gone, which the next message shows
        server.send(json.dumps({"kind": kind, **more}).encode())


def _kept() -> int:
    """Return the bytes of the matrices that are kept here."""
    kept_matrices = sys.modules.get("scrna.resources.kept_matrices")
    return kept_matrices.nbytes() if kept_matrices else 0


def _has_pool(settings: dict[str, Any]) -> bool:
    """Return whether memory on the GPU comes from a pool, which does not shrink."""
    if settings["backend"] != "gpu" or settings["scheduler"]:
        return False
    from scrna.resources.gpu_pool import memory_kind

    return memory_kind(settings["config"]["gpu"]["memory"]) == "pool"


def _drop() -> None:
    """Hold nothing that an earlier step left."""
    if "scrna.data.matrix" in sys.modules:
        from scrna.data import row_blocks
        from scrna.resources import kept_matrices
        from scrna.warm_process import free_memory

        row_blocks.end_cluster()
        kept_matrices.stop()
        kept_matrices.start()
        free_memory()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
