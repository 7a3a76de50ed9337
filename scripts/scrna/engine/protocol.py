"""How the engine's processes find each other and talk: JSON messages over Unix sockets.

The sockets of a checkout lie in a folder that only its user may enter, and each side asks the
kernel for the other's user. Nothing here imports more than the standard library.
"""

import hashlib
import json
import os
import socket
import stat
import struct
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrna.code_digest import SCRIPTS
from scrna.errors import UserError

#: The environment variable that names the run's engine to its jobs: ``host:socket``.
VARIABLE = "SCRNA_ENGINE"
_LONGEST_PATH = 100  # bytes; the kernel takes 107
_ADVICE = "remove it, or set worker: none"


class StepFailedError(Exception):
    """The step failed in its worker; the log has the reason already."""


def folder() -> Path:
    """Return the folder of this checkout's sockets; make it where it is missing.

    It lies in XDG_RUNTIME_DIR if that is private and short enough, else in /tmp.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime or _problem(Path(runtime)):
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


def _problem(path: Path) -> str | None:
    """Return why a folder is not this user's alone; None where it is."""
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


def checked(found: socket.socket) -> Connection:
    """Make a socket a connection; PermissionError if the other side is another user's process."""
    _, uid, _ = struct.unpack("iII", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
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
    except (ValueError, TypeError) as error:  # its process was killed while it wrote
        raise EOFError(f"half a message: {error}") from error
    return kind, content
