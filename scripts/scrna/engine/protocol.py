"""How the engine's processes find each other and talk: JSON messages over Unix sockets.

The sockets of a checkout lie in a folder that only its user may enter. Each side also asks the
kernel whose process the other one is. Nothing here imports more than the standard library.
"""

import hashlib
import json
import os
import socket
import stat
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrna.errors import UserError

#: The environment variable that names the run's engine to its jobs: ``host:socket``.
VARIABLE = "SCRNA_ENGINE"
SCRIPTS = Path(__file__).parents[2]
_LONGEST_PATH = 100  # bytes; the kernel takes 107
_CREDENTIALS = "iII"  # pid, uid and gid


class StepFailedError(Exception):
    """The step failed in its worker; why is in the log already."""


def folder() -> Path:
    """Return the folder of this checkout's sockets, made where it is missing.

    It lies in XDG_RUNTIME_DIR, which is local and private, or in /tmp where there is none.

    An error says where another user could enter it, or it is not a folder.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not (runtime and _problem(Path(runtime)) is None):
        runtime = "/tmp"
    checkout = hashlib.sha256(str(SCRIPTS.resolve()).encode()).hexdigest()[:12]
    own = Path(runtime, f"scrna-{os.geteuid()}")
    if len(os.fsencode(own)) + 40 > _LONGEST_PATH:
        own = Path("/tmp", own.name)
    for path in (own, own / checkout):
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}; {_ADVICE}") from error
        if problem := _problem(path):
            raise UserError(f"{path}, the folder of the worker's socket, {problem}; {_ADVICE}")
    return own / checkout


_ADVICE = "remove it, or set worker: none"


def _problem(path: Path) -> str | None:
    """Say why a folder is not this user's alone; None where it is."""
    try:
        found = path.lstat()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return "is a link or a file"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"may be entered by others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def connect(path: Path | str) -> Connection:
    """Connect to a server; OSError where none of this user's listens there."""
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(str(path))
        return checked(found)


def listen(path: Path) -> socket.socket:
    """Listen at a path, in place of a socket that a killed server left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener


def stamp(path: Path) -> list[int]:
    """Return what tells a socket's file from a later one of the same name."""
    found = path.lstat()
    return [found.st_ino, found.st_mtime_ns]


def checked(found: socket.socket) -> Connection:
    """Make a socket a connection; PermissionError if the other side is another user's process."""
    size = struct.calcsize(_CREDENTIALS)
    credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack(_CREDENTIALS, credentials)
    if uid != os.geteuid():
        raise PermissionError(f"the process at the other end belongs to user {uid}")
    return Connection(found.detach())


def send(connection: Connection, kind: str, content: Any = None) -> None:
    """Send a message."""
    connection.send_bytes(json.dumps([kind, content]).encode())


def receive(connection: Connection, *, timeout: float | None = None) -> tuple[str, Any]:
    """Receive a message; EOFError or OSError if the other side is gone, or silent for too long."""
    if timeout is not None and not connection.poll(timeout):
        raise TimeoutError(f"no answer within {timeout:g} s")
    try:
        kind, content = json.loads(connection.recv_bytes())
    except (ValueError, TypeError) as error:  # the last words of a process that was killed
        raise EOFError(f"half a message: {error}") from error
    return kind, content


def died(its_log: str) -> str:
    """Say that a worker died in the middle of a step."""
    return (
        "the worker's process died while it ran this step: out of memory (dmesg tells), or a "
        f"library or the driver crashed. Its log: {its_log}. The next step gets a new worker"
    )


def scheduler_of(config: Mapping[str, Any]) -> str | None:
    """Return the Dask scheduler of a cluster that exists, where the config names one."""
    return config.get("dask", {}).get("scheduler")
