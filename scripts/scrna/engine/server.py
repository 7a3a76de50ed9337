"""The engine's server: the one process that manages workers and hands steps to them.

`scrna.engine.run` starts this file as a program, with a socket that listens already. It imports no
library and waits for one of: a run that begins or ends, a rule's process that asks for a step or is
gone, a worker that is ready, has done its step or died. A rule's connection is passed to the
worker, which reads the request and answers; none of it comes by here.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from scrna.engine import protocol
from scrna.errors import worker_died
from scrna.log import log, log_with_times
from scrna.processes import process_start
from scrna.resources import locks
from scrna.resources.host_memory import GIB, has_other_users, host_memory

#: Seconds in which workers start: a light step that comes before runs in its own process.
_START = 3.0
_TICK = 1.0  # seconds between looks at the memory and the clock
_FIRST = 5.0  # seconds that a server waits for the run that started it
_IDLE = 3.0  # seconds without a step until matrices go where another process uses the GPU
_SHARED = 120.0  # seconds without a run until matrices go on a machine that others use too
_END = 5.0  # seconds to see killed workers gone
_TRIES = 3  # times in a row that a worker may die before it is ready
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@dataclass(eq=False)
class _Step:
    """A rule's process that waits for its step."""

    connection: Connection
    since: float


@dataclass(eq=False)
class _Worker:
    """A worker process, at the other end of a socket."""

    socket: socket.socket
    state: str = "starting"  # then "ready", and "broken" after a step whose process has to end
    step: _Step | None = None
    may_hold_memory: bool = False  # more than a new one
    kept: int = 0  # bytes of matrices
    pid: int = 0
    started: int | None = None


class Server:
    """The server, with what `scrna.engine.run` gathers and a socket that listens."""

    def __init__(self, settings: dict[str, Any], listener: socket.socket):
        self.settings, self.listener = settings, listener
        self.runs: dict[int, dict[str, Any]] = {}
        self.waiting: deque[_Step] = deque()
        self.workers: list[_Worker] = []
        self.is_stopping = False  # with its last run, however long that wanted it to stay
        self.is_over = False
        self._begun = self._last_step = self._last_run = time.monotonic()
        self._since = time.strftime("%H:%M")
        self.keep_until = self._begun + _FIRST
        self._failures = 0
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def serve(self) -> None:
        """Serve until the last run has ended and its worker need not be kept."""
        self._start_parent()
        self._watch(self.listener, self._greet)
        for _ in range(self.settings["count"]):
            self._start_worker()
        while not self.is_over:
            events = self._poll.poll(1000 * _TICK)
            # a worker's last word before the end of the rule's process that it answered
            events.sort(key=lambda event: bool(event[1] & _GONE))
            for number, _ in events:
                if handler := self._handlers.get(number):
                    handler()
            self._look_after()

    def end(self) -> None:
        """End all workers at once: the kernel kills them with the process they are forked from."""
        self.is_over = True
        self._parent.kill()
        self._parent.wait()
        end = time.monotonic() + _END
        while any(map(_is_there, self.workers)) and time.monotonic() < end:
            time.sleep(0.01)
        for opened in (self._control, *(worker.socket for worker in self.workers)):
            opened.close()

    def status(self) -> dict[str, Any]:
        """Return what runs, rules and ``make stop`` ask for."""
        is_ready = any(worker.state == "ready" for worker in self.workers)
        return {
            "pid": os.getpid(),
            "since": self._since,
            "is_ready": is_ready,
            "has_just_begun": not is_ready and time.monotonic() < self._begun + _START,
            "kept": sum(worker.kept for worker in self.workers),
            "backend": self.settings["backend"],
            "runs": [run["directory"] for run in self.runs.values()],
            "is_stopping": self.is_stopping,
            "log": self.settings["log"],
        }

    def _greet(self) -> None:
        """Take a new connection."""
        found, _ = self.listener.accept()
        try:
            connection = protocol.checked(found)
            self._watch(connection, lambda: self._answer(connection))
        except OSError as error:
            found.close()
            log.warning("a connection is refused: %s", error)

    def _answer(self, connection: Connection) -> None:
        """Answer a message of a new connection: a run's, a rule's, or a question."""
        if not connection.poll():  # the event was of a connection that had this number before
            return
        try:
            kind, content = protocol.receive(connection)
        except (OSError, EOFError):
            self._close(connection)
            return
        if kind == "attach":
            self.runs[connection.fileno()] = content
            self._watch(connection, lambda: self._hear_run(connection))
        elif kind == "step":
            step = _Step(connection, time.monotonic())
            self.waiting.append(step)
            self._watch(connection, lambda: self._forget(step), select.POLLRDHUP)
        elif kind == "stop":
            self.keep_until, self.is_stopping = 0.0, True
        with suppress(OSError):  # it is gone, which comes as the next event
            protocol.send(connection, "status", self.status())
        self._assign()

    def _hear_run(self, connection: Connection) -> None:
        """Return the status to a run; keep the worker for a while where the run has ended."""
        try:
            protocol.receive(connection)
            protocol.send(connection, "status", self.status())
        except (OSError, EOFError):
            keep_s = self.runs.pop(connection.fileno())["keep_s"]
            self._close(connection)
            if not self.is_stopping:
                self.keep_until = max(self.keep_until, time.monotonic() + keep_s)

    def _forget(self, step: _Step) -> None:
        """Stop a step whose rule's process is gone: a Python function ends with its process."""
        if step in self.waiting:
            self.waiting.remove(step)
        for worker in [worker for worker in self.workers if worker.step is step]:
            log.info("the step's rule is gone: its worker ends, and another takes its place")
            self._replace(worker)
        self._close(step.connection)  # which a process that waits for the end sees

    def _assign(self) -> None:
        """Hand the steps that wait to workers that are free, first to one that keeps a matrix."""
        for worker in sorted(self.workers, key=lambda worker: -worker.kept):
            if self.waiting and worker.state == "ready" and worker.step is None:
                step = self.waiting.popleft()
                worker.step, worker.may_hold_memory = step, True
                waited = time.monotonic() - step.since
                self._tell(worker, {"kind": "step", "waited_s": waited}, step.connection.fileno())

    def _start_parent(self) -> None:
        """Start the process that imports the libraries and forks workers."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            about = {"control": theirs.fileno(), "server": os.getpid()}
            settings = json.dumps(self.settings | about)
            script = str(Path(__file__).with_name("worker.py"))
            self._parent = subprocess.Popen(
                [sys.executable, "-P", script, settings],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._watch(self._control, self._parent_is_gone)

    def _parent_is_gone(self) -> None:
        log.error("the process that workers are forked from died")
        self.is_over = True

    def _start_worker(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker = _Worker(ours)
        self.workers.append(worker)
        self._watch(ours, lambda: self._hear_worker(worker))
        with theirs, suppress(OSError):  # the parent is gone, which ends the server
            socket.send_fds(self._control, [b"fork"], [theirs.fileno()])

    def _hear_worker(self, worker: _Worker) -> None:
        """Take what a worker says: that it is there, is ready, has done its step; or nothing."""
        try:
            said = worker.socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the event was of a socket that had this number before
            return
        except OSError:
            said = b""
        if not said:
            self._bury(worker)
            return
        about = json.loads(said)
        worker.kept = about.get("kept", worker.kept)
        if about["kind"] == "here":
            worker.pid, worker.started = about["pid"], process_start(about["pid"])
        elif about["kind"] == "ready":
            worker.state, self._failures = "ready", 0
        elif about["kind"] == "done" and worker.step:
            self._close(worker.step.connection)
            worker.step = None
            worker.state = "broken" if about["is_broken"] else "ready"
        self._assign()

    def _bury(self, worker: _Worker) -> None:
        """Say to its rule that a worker died, and start another in its place."""
        self._failures += worker.state == "starting"
        if worker.step:
            with suppress(OSError):
                text = str(worker_died(self.settings["log"]))
                protocol.send(worker.step.connection, "error", text)
            self._close(worker.step.connection)
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        """End a worker and start another in its place."""
        if _is_there(worker):
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        self.workers.remove(worker)
        self._close(worker.socket)
        if self._failures >= _TRIES:
            log.error("%d workers in a row died before they were ready", _TRIES)
            self.is_over = True
        else:
            self._start_worker()

    def _look_after(self) -> None:
        """End where nobody wants the workers; give memory back where others need it."""
        now = time.monotonic()
        if self.runs:
            self._last_run = now
        elif now >= self.keep_until:
            self.is_over = True
        if self.waiting or any(worker.step for worker in self.workers):
            self._last_step = now
            return
        holding = [w for w in self.workers if w.may_hold_memory and w.state == "ready"]
        if holding and (why := self._why_drop(now)):
            log.info("idle workers give their memory back: %s", why)
            for worker in holding:
                worker.may_hold_memory = False
                self._tell(worker, {"kind": "drop"})

    def _why_drop(self, now: float) -> str | None:
        """Return why idle workers should hold nothing; None where they may."""
        memory = host_memory()
        headroom = min(self.settings["headroom_gb"] * GIB, memory.total // 4)
        if self.settings["is_host"] and memory.available < headroom:
            return "memory is short"
        if now - self._last_step > _IDLE and any(map(locks.is_gpu_in_use, self.settings["gpus"])):
            return "another process uses the GPU"
        if now - self._last_run > _SHARED and has_other_users():
            return "other people use this machine"
        return None

    def _tell(self, worker: _Worker, message: dict[str, Any], *numbers: int) -> None:
        """Send a worker a message and descriptors; of one that died its socket's end says so."""
        with suppress(OSError):
            socket.send_fds(worker.socket, [json.dumps(message).encode()], numbers)

    def _watch(self, opened, handler: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call a function when a connection or socket has something to read, or has ended."""
        self._handlers[opened.fileno()] = handler
        self._poll.register(opened.fileno(), events)

    def _close(self, opened) -> None:
        """Watch a connection or socket no longer, and close it."""
        if self._handlers.pop(opened.fileno(), None):
            self._poll.unregister(opened.fileno())
        opened.close()


def _is_there(worker: _Worker) -> bool:
    """Return whether a worker's process runs; its number may be another process's by now."""
    return worker.started is not None and process_start(worker.pid) == worker.started


def main(settings: dict[str, Any]) -> None:
    """Run the server, and leave nothing behind."""
    log_with_times()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    path = Path(settings["path"])
    own = path.lstat()
    server = Server(settings, socket.socket(fileno=settings["listener"]))
    try:
        server.serve()
    finally:
        server.end()
        with locks.Lock(path.with_name("lock")) as guard, suppress(OSError):
            is_free = guard.try_acquire("the end of a worker")  # else a run that starts removes it
            if is_free and os.path.samestat(own, path.lstat()):  # not a later server's
                path.unlink()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
