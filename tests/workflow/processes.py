"""Waiting for what other processes do, and finding those of a run."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from scrna.processes import PID_VARIABLE, process_start


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def processes_of(pid: int) -> list[int]:
    """All that a Snakemake process started, and what these started, wherever they belong now."""
    mark = f"{PID_VARIABLE}={pid}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark in (process / "environ").read_bytes()
        except OSError:
            continue
        if is_ours and int(process.name) != pid and process_start(int(process.name)):
            found.append(int(process.name))
    return found


@cache
def runtime(folder: Path) -> str:
    """Make the folder of a working directory's sockets, whose path has to be short."""
    made = tempfile.mkdtemp(prefix="scrna-run-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
