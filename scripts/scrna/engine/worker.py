"""A worker: a process that has its libraries loaded and runs steps, one after the other.

The server (`scrna.engine.server`) starts this file as a program. It imports what leaves the GPU
alone, once, and forks a worker each time that the server asks for one. Each of the two ends with
the process that started it.
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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from scrna.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(json.loads(sys.argv[1])["server"])  # before the imports, which take seconds

from scrna import warm_process
from scrna.engine import protocol
from scrna.errors import UserError
from scrna.log import log, log_with_times
from scrna.resources import kept_matrices


def main(settings: dict[str, Any]) -> None:
    """Import the libraries, and fork a worker for each socket that the server sends."""
    log_with_times()
    try:
        _import(settings)
    except Exception:  # each worker tries again, and its steps fail with the reason
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
            try:
                Worker(socket.socket(fileno=numbers[0]), settings).serve()
            finally:
                logging.shutdown()
                os._exit(0)
        os.close(numbers[0])


def _import(settings: dict[str, Any]) -> None:
    """Import what all workers need and what does not touch the GPU, which a fork could not use."""
    start = time.perf_counter()
    importlib.import_module("distributed" if settings["scheduler"] else "scanpy")
    if settings["needs_umap"]:
        from scrna.methods.umap_compiled import import_umap

        import_umap()
    log.info("libraries imported in %.1f s", time.perf_counter() - start)


class Worker:
    """A process that runs the steps that the server sends.

    The server's messages are ``step``, with a rule's connection, and ``drop``. It is told when this
    worker is there, is ready, has done a step, or holds nothing more.
    """

    def __init__(self, server: socket.socket, settings: dict[str, Any]):
        self._server, self._settings = server, settings
        self._trouble: Exception | None = None  # why it could not be prepared: each step says so
        self._cluster = None  # Dask's client, where steps run elsewhere

    def serve(self) -> None:
        """Run steps until the server is gone, or this process has to end."""
        die_with_parent()
        self._say("here", pid=os.getpid())
        try:
            self._prepare()
        except Exception as error:
            self._trouble = error
            log.exception("the worker could not be prepared")
        gc.freeze()  # what is loaded by now is not looked through after each step
        self._say("ready")
        while True:
            said, numbers, *_ = socket.recv_fds(self._server, 4096, 1)
            if not said:
                return
            message = json.loads(said)
            if message["kind"] == "drop":
                if not self._drop():
                    return
                self._say("dropped", kept=0)
                continue
            with Connection(numbers[0]) as connection:
                is_broken = self._run_step(connection, message["waited_s"])
            if is_broken:
                return
            if self._cluster is None:
                warm_process.free_memory()

    def _prepare(self) -> None:
        """Make this process one that steps run in, or that sends them to the cluster."""
        if scheduler := self._settings["scheduler"]:
            from scrna.dask_cluster import tasks

            self._cluster = tasks.connected(scheduler)
        else:
            warm_process.prepare(self._settings["backend"], self._settings["config"])

    def _run_step(self, connection: Connection, waited_s: float) -> bool:
        """Run the step that a rule's process asks for; return whether this process has to end."""
        try:
            _, request = protocol.receive(connection)
        except (OSError, EOFError):  # it is gone
            self._say("done", is_broken=False)
            return False
        kind, answer, is_broken = "error", None, False
        try:
            outcome = self._perform(request, partial(protocol.send, connection, "record"))
            kind, answer = "outcome", outcome | {"waited_s": waited_s}
            is_broken = outcome["is_broken"]
        except UserError as error:
            answer = str(error)
        except Exception as error:
            log.exception("this step could not be taken")
            answer = f"the run's worker could not take this step: {type(error).__name__}: {error}"
            answer += f"; its log: {self._settings['log']}"
        finally:
            os.chdir("/")  # an idle worker keeps no folder busy
        if self._cluster is not None:  # the next worker connects again
            is_broken = self._cluster.status != "running"
        # before the answer: the server must not take the end of the rule's process for a step's
        self._say("done", is_broken=is_broken, kept=kept_matrices.nbytes())
        with suppress(OSError):
            protocol.send(connection, kind, answer)
        return is_broken

    def _perform(self, request: dict[str, Any], emit: Callable[[dict], None]) -> dict[str, Any]:
        if self._cluster is not None:
            from scrna.dask_cluster import tasks

            return tasks.submit(self._cluster, request, emit)
        os.chdir(request["directory"])
        return warm_process.perform(request, emit, self._trouble)

    def _drop(self) -> bool:
        """Hold nothing that an earlier step left; return whether this process can do so."""
        if self._cluster is not None:
            return True
        from scrna.resources.gpu_pool import memory_kind

        kind = self._settings["config"]["gpu"]["memory"]
        if self._settings["backend"] == "gpu" and memory_kind(kind) == "pool":
            return False  # a pool does not shrink
        warm_process.drop_matrices()
        return True

    def _say(self, kind: str, **more) -> None:
        with suppress(OSError):  # it is gone, which the next message shows
            self._server.send(json.dumps({"kind": kind, **more}).encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
