"""End a job when its Snakemake ends.

If Snakemake is killed by SIGKILL, its jobs keep running and would write into the same files as the
jobs of the next run.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from scrna.log import log

#: The environment variable that names the Snakemake process to a job.
PID_VARIABLE = "SCRNA_SNAKEMAKE_PID"
_POLL = 0.25  # seconds between looks where the kernel has no pidfd
_PR_SET_PDEATHSIG = 1


def process_start(pid: int) -> int | None:
    """Return when a process started, which identifies it better than its number, which is reused.

    Returns
    -------
    Clock ticks since the machine started; None where the process is gone, or ended and only not
    yet collected by its parent.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *numbers = stat.rsplit(")", 1)[1].split()  # the name before it may hold anything
    return None if state in "ZX" else int(numbers[18])


def announce() -> None:
    """Record this process as the run's Snakemake, for the jobs that it will start."""
    os.environ[PID_VARIABLE] = str(os.getpid())


def die_with_parent(parent: int | None = None) -> None:
    """End this process at once with the one that started it.

    The kernel does it, since Python may be in a long call.

    Parameters
    ----------
    parent
        The number of that process, for a process that may be asking when it is already gone.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def die_with(pid: int, *, grace: float = 10.0) -> None:
    """End this process when another one is gone, at once if it already is.

    A daemon thread waits for the other's end and sends SIGTERM here. Called in the main thread,
    and with no handler of SIGTERM set, that becomes a SystemExit, so `finally` and `atexit` clean
    up; the lock of a GPU goes with the process.

    Parameters
    ----------
    pid
        A process on this machine, in this process's pid namespace.
    grace
        Seconds until the process ends without cleaning up, should SIGTERM not end it (a long call
        into a library, say).
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    pidfd, start = None, None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pass  # already gone
    except OSError:  # an old kernel, or a sandbox that forbids the call
        start = process_start(pid)
    threading.Thread(target=_follow, args=(pid, pidfd, start, grace), daemon=True).start()


def _follow(pid: int, pidfd: int | None, start: int | None, grace: float) -> None:
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
    else:
        while start is not None and process_start(pid) == start:
            time.sleep(_POLL)
    # Before the log line: writing it blocks where nobody reads the terminal's pipe any more.
    last_resort = threading.Timer(grace, os._exit, [128 + signal.SIGTERM])
    last_resort.daemon = True
    last_resort.start()
    log.error("process %d, which started this job, is gone: the job ends", pid)
    os.kill(os.getpid(), signal.SIGTERM)
