"""The engine's server: the one process that manages workers and hands steps to them.

`scrna.engine.run` starts this file as a program of its own, with a socket that listens already. It
imports no library and does nothing but wait for one of: a run that begins or ends, a rule's process
that asks for a step or is gone, a worker that is ready, has done its step or died. A rule's
connection is passed to the worker, which reads the request and answers; none of it comes by here.
"""

import json
import logging
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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from scrna.engine import protocol
from scrna.log import log, send_logs
from scrna.processes import process_start
from scrna.resources import locks
from scrna.resources.host_memory import GIB, has_other_users, host_memory

_TICK = 1.0  # seconds between looks at the memory and the clock
_FIRST = 5.0  # seconds that a server waits for the run that started it
_IDLE = 3.0  # seconds without a step until matrices go where another process uses the GPU
_SHARED = 120.0  # seconds without a run until matrices go on a machine that others use too
_TRIES = 3  # times in a row that a worker may die before it is ready
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@dataclass
class _Step:
    """A rule's process that waits for its step."""

    connection: Connection
    since: float


@dataclass
class _Worker:
    """A worker process, at the other end of a socket."""

    socket: socket.socket
    step: _Step | None = None
    is_ready: bool = False
    has_run: bool = False
    """Whether it may hold more memory than a new one would."""
    kept: int = 0
    """Bytes of matrices."""
    pid: int = 0
    started: int | None = None


@dataclass
class Server:
    """The server.

    Parameters
    ----------
    settings
        Of `scrna.engine.run`: path, log, backend, gpus (numbers), count (of workers), soon_s,
        headroom_gb, is_host (whether matrices are kept in the host's memory), and what
        `scrna.engine.worker` needs.
    listener
        The socket that listens at the path.
    """

    settings: dict[str, Any]
    listener: socket.socket
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    waiting: deque[_Step] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    keep_until: float = 0.0
    is_stopping: bool = False
    is_over: bool = False

    def __post_init__(self):
        self._begun = time.monotonic()
        self._since = time.strftime("%H:%M")
        self._last_step = self._last_run = self._begun
        self._failures = 0
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self.keep_until = self._begun + _FIRST

    def serve(self) -> None:
        """Serve until the last run has ended and its worker need not be kept."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._parent = self._start_parent(theirs.fileno())
        self._control = control
        self._watch(control.fileno(), self._parent_is_gone)
        self._watch(self.listener.fileno(), self._greet)
        for _ in range(self.settings["count"]):
            self._start_worker()
        while not self.is_over:
            events = self._poll.poll(1000 * _TICK)
            # a worker's last word before the end of the rule's process that it answered
            events.sort(key=lambda event: bool(event[1] & _GONE))
            for number, event in events:
                if number in self._handlers:
                    self._handlers[number](event)
            self._look_after()

    def end(self) -> None:
        """End all workers at once: what they hold is worth nothing now."""
        self.is_over = True
        for worker in self.workers:
            self._kill(worker)
            worker.socket.close()
        self._control.close()
        self._parent.kill()
        self._parent.wait()

    def status(self) -> dict[str, Any]:
        """Return what a run or a person asks for."""
        return {
            "pid": os.getpid(),
            "since": self._since,
            "is_ready": any(worker.is_ready for worker in self.workers),
            "age_s": time.monotonic() - self._begun,
            "soon_s": self.settings["soon_s"],
            "kept": sum(worker.kept for worker in self.workers),
            "backend": self.settings["backend"],
            "runs": [run["directory"] for run in self.runs.values()],
            "is_stopping": self.is_stopping,
            "log": self.settings["log"],
        }

    # ------------------------------------------------------------------ runs and rules

    def _greet(self, _: int) -> None:
        """Take what a new connection asks for."""
        found, _address = self.listener.accept()
        try:
            connection = protocol.checked(found)
            self._watch(connection.fileno(), lambda _: self._answer(connection))
        except OSError as error:
            found.close()
            log.warning("a connection is refused: %s", error)

    def _answer(self, connection: Connection) -> None:
        """Answer the first message of a connection."""
        number = connection.fileno()
        if not connection.poll():  # the event was of a connection that had this number before
            return
        try:
            kind, content = protocol.receive(connection)
            if kind == "attach":
                self.runs[number] = content
                self._watch(number, lambda _: self._hear_run(connection))
            elif kind == "step":
                step = _Step(connection, time.monotonic())
                self.waiting.append(step)
                self._watch(number, lambda _: self._forget(step), select.POLLRDHUP)
            elif kind == "stop":  # with the last run, were there one
                self.keep_until, self.is_stopping = 0.0, True
            protocol.send(connection, "status", self.status())
        except (OSError, EOFError):
            kind = "nothing"
        if kind not in ("attach", "step"):
            self._close(connection)
        elif kind == "step":
            self._assign()

    def _hear_run(self, connection: Connection) -> None:
        """Tell a run how things stand; keep the worker for a while where the run has ended."""
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
        self._close(step.connection, and_file=False)
        if step in self.waiting:
            self.waiting.remove(step)
            step.connection.close()
        for worker in [worker for worker in self.workers if worker.step is step]:
            log.info("the step's rule is gone: its worker ends, and another takes its place")
            self._replace(worker)
            step.connection.close()  # which tells a process that waits for it

    def _assign(self) -> None:
        """Hand the steps that wait to workers that are free."""
        for worker in self.workers:
            if self.waiting and worker.is_ready and worker.step is None:
                step = self.waiting.popleft()
                turn = {"kind": "step", "waited_s": time.monotonic() - step.since}
                worker.step, worker.has_run = step, True
                connections = [step.connection.fileno()]
                socket.send_fds(worker.socket, [json.dumps(turn).encode()], connections)

    # ------------------------------------------------------------------ workers

    def _start_parent(self, control: int) -> subprocess.Popen:
        """Start the process that imports the libraries and forks workers."""
        settings = json.dumps({**self.settings, "control": control})
        script = Path(__file__).with_name("worker.py")
        command = [sys.executable, "-P", str(script), settings]
        return subprocess.Popen(command, pass_fds=[control], stdin=subprocess.DEVNULL)

    def _parent_is_gone(self, _: int) -> None:
        log.error("the process that workers are forked from died")
        self.is_over = True

    def _start_worker(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker = _Worker(ours)
        self.workers.append(worker)
        self._watch(ours.fileno(), lambda _: self._hear_worker(worker))
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
            self._replace(worker, is_dead=True)
            return
        about = json.loads(said)
        worker.kept = about.get("kept", worker.kept)
        if about["kind"] == "here":
            worker.pid, worker.started = about["pid"], process_start(about["pid"])
        elif about["kind"] == "ready":
            worker.is_ready, self._failures = True, 0
        elif about["kind"] == "dropped":
            worker.has_run = False
        elif about["kind"] == "done" and worker.step:
            self._close(worker.step.connection)
            worker.step = None
            worker.is_ready = not about["is_broken"]  # such a worker ends by itself
        self._assign()

    def _replace(self, worker: _Worker, *, is_dead: bool = False) -> None:
        """Start a worker in the place of one that died, or that has to go."""
        if is_dead and not worker.is_ready and worker.step is None and not worker.has_run:
            self._failures += 1
        self._kill(worker)
        self.workers.remove(worker)
        del self._handlers[worker.socket.fileno()]
        self._poll.unregister(worker.socket)
        worker.socket.close()
        if is_dead and worker.step:
            with suppress(OSError):
                protocol.send(worker.step.connection, "error", protocol.died(self.settings["log"]))
            self._close(worker.step.connection)
        if self._failures >= _TRIES:
            log.error("%d workers in a row died before they were ready", _TRIES)
            self.is_over = True
        else:
            self._start_worker()

    def _kill(self, worker: _Worker) -> None:
        """Kill a worker, unless its number is another process's by now."""
        if worker.started is not None and process_start(worker.pid) == worker.started:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    # ------------------------------------------------------------------ while nothing runs

    def _look_after(self) -> None:
        """End where nobody wants the workers; give memory back where others need it."""
        now = time.monotonic()
        if not self.runs and now >= self.keep_until:
            self.is_over = True
        if self.runs:
            self._last_run = now
        if self.waiting or any(worker.step for worker in self.workers):
            self._last_step = now
            return
        if any(worker.has_run for worker in self.workers) and (why := self._why_drop(now)):
            log.info("idle workers give their memory back: %s", why)
            for worker in self.workers:
                if worker.has_run and worker.is_ready:
                    worker.has_run = False
                    with suppress(OSError):  # it died, which comes as its next word
                        worker.socket.send(json.dumps({"kind": "drop"}).encode())

    def _why_drop(self, now: float) -> str | None:
        """Say why idle workers should hold nothing; None where they may."""
        memory = host_memory()
        headroom = min(self.settings["headroom_gb"] * GIB, memory.total // 4)
        if self.settings["is_host"] and memory.available < headroom:
            return "memory is short"
        is_idle = now - self._last_step > _IDLE
        if is_idle and any(locks.is_gpu_in_use(index) for index in self.settings["gpus"]):
            return "another process uses the GPU"
        if now - self._last_run > _SHARED and has_other_users():
            return "other people use this machine"
        return None

    def _watch(
        self, number: int, handler: Callable[[int], None], events: int = select.POLLIN
    ) -> None:
        self._handlers[number] = handler
        self._poll.register(number, events)

    def _close(self, connection: Connection, *, and_file: bool = True) -> None:
        """Watch a connection no longer, and close it."""
        if self._handlers.pop(connection.fileno(), None):
            self._poll.unregister(connection.fileno())
        if and_file:
            connection.close()


def main(settings: dict[str, Any]) -> None:
    """Run the server, and leave nothing behind."""
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s - %(message)s"))
    send_logs([own])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    path = Path(settings["path"])
    server = Server(settings, socket.socket(fileno=settings["listener"]))
    try:
        server.serve()
    finally:
        server.end()
        with locks.Lock(path.with_name("lock")) as guard, suppress(OSError):
            is_free = guard.try_acquire("the end of a worker")  # else a run that starts removes it
            if is_free and protocol.stamp(path) == settings["stamp"]:
                path.unlink()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
