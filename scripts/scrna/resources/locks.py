"""Locks between runs: one GPU job at a time on a machine, one run at a time in a directory.

The kernel holds a lock (flock) and releases it when the process ends, however it ends. The text in
the file of a lock only names the holder.
"""

import errno
import fcntl
import json
import os
import pwd
import stat
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from scrna.errors import UserError
from scrna.log import log
from scrna.processes import process_start
from scrna.progress import duration

_POLL = 0.1  # seconds between tries
_REMIND = 60.0  # seconds between lines of a waiting process
_PATIENCE = 1.0  # seconds to wait for the name of the holder before the first line
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


# A forked child shares the lock and would keep it beyond its parent's end; exec closes it anyway.
os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """A lock that a process holds on a file; also a context manager that releases it.

    It lasts until `release` or the process's end, whatever becomes of this object. Children do
    not inherit it: neither started programs nor forks by `os.fork`. It is not reentrant.

    Parameters
    ----------
    path
        The lock's file, made if it is not there and never removed.
    mode
        Permissions of a new file, whatever the umask.
    """

    def __init__(self, path: Path, *, mode: int = 0o644):
        self.path = path
        self._mode = mode
        self._fd: int | None = None

    def try_acquire(self, what: str) -> bool:
        """Acquire the lock if it is free, and write the holder into the file.

        Parameters
        ----------
        what
            What the lock is taken for, in words.

        Raises
        ------
        OSError
            The file cannot be opened or its file system has no locks.
        """
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = _same_file(fd, self.path)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            os.close(fd)
            raise
        if not is_current:  # removed meanwhile, as cleaners of /tmp do: others lock the new file
            os.close(fd)
            return self.try_acquire(what)
        self._fd = fd
        _held.add(fd)
        with suppress(OSError):  # open for reading only, or a full disk: held all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_about_me(what)).encode(), 0)
        return True

    def holder(self) -> str | None:
        """Return who holds the lock; None if the file does not name a living process."""
        try:
            with self.path.open() as file:
                about = json.loads(file.read(4096))
            pid, started, host = int(about["pid"]), about["started"], about["host"]
            if host == os.uname().nodename and process_start(pid) != started:
                return None
            text = (
                f"{about['what']} (process {pid} of {about['user']} on {host}, "
                f"in {about['directory']}, since {about['since']})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return text if text.isprintable() else None  # anyone may write into the file

    def release(self) -> None:
        """Release the lock; does nothing where it is not held, as in a forked child."""
        if self._fd in _held:
            _held.remove(self._fd)
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _open(self) -> int:
        """Open the file, which may be another user's.

        It is created only where it is missing: in a folder like /tmp the kernel refuses O_CREAT
        on another user's file (fs.protected_regular), even to root.
        """
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | flags)
            except PermissionError:
                fd = os.open(self.path, os.O_RDONLY | flags)  # enough for a lock
            except FileNotFoundError:
                umask = os.umask(0)
                try:
                    fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, self._mode)
                except FileExistsError:  # another process was quicker
                    continue
                finally:
                    os.umask(umask)
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
                return fd
            os.close(fd)
            # Writing into it could destroy what someone else made it point to.
            raise OSError(errno.EINVAL, "not a file of its own", str(self.path))


def gpu_lock(who: str, gpu_index: int = 0) -> Lock:
    """Wait until no other job on this machine uses a GPU, then hold it.

    Waiting is logged, with the holder's name, at first and every minute. The lock is
    `/tmp/scrna-gpu-N.lock` for all users, wherever their TMPDIR is; SCRNA_LOCK_DIR names another
    folder (containers that share a GPU need one in common).

    Parameters
    ----------
    who
        What the GPU is wanted for: rule and dataset.
    gpu_index
        The GPU's number as `scrna.resources.gpus.Gpu.index` counts.

    Returns
    -------
    The lock, held: ``with gpu_lock(...):`` releases it at the block's end, without ``with`` the
    process's end does.

    Raises
    ------
    UserError
        The lock's file cannot be used.
    """
    lock = Lock(_gpu_file(gpu_index), mode=0o666)
    try:
        _wait(lock, who, f"GPU {gpu_index}")
    except OSError as error:
        message = (
            f"{lock.path} cannot serve as the GPU's lock: {error.strerror}. Remove it, or set "
            "SCRNA_LOCK_DIR to a folder in which every user of this machine may write"
        )
        raise UserError(message) from error
    return lock


def is_gpu_in_use(gpu_index: int) -> bool:
    """Return whether a job holds a GPU's lock; this does not take it, nor write into its file."""
    try:
        file = os.open(_gpu_file(gpu_index), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # nobody has used it so far, or nobody can
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def directory_lock(path: Path | str) -> Lock:
    """Refuse a second run in a working directory, else keep others out.

    Parameters
    ----------
    path
        The working directory; the lock is `.snakemake/scrna.resources.locks` in it.

    Returns
    -------
    The lock, held until the process ends. Where the file system has no locks, not held, and a
    warning says so.

    Raises
    ------
    UserError
        Another run holds it, or the directory cannot be written.
    """
    path = Path(path).absolute()
    lock = Lock(path / ".snakemake" / "scrna.resources.locks")
    try:
        lock.path.parent.mkdir(exist_ok=True)
        is_ours = lock.try_acquire("Snakemake")
    except OSError as error:
        if error.errno in _NO_LOCKS:
            log.warning("%s: its file system has no locks; start no second run there", path)
            return lock
        message = f"{lock.path} cannot be written: {error.strerror}"
        raise UserError(message) from error
    if not is_ours:
        message = (
            f"another run works in {path}: {lock.holder() or 'an unknown process'}. "
            "Wait until it ends or stop it: two runs would overwrite each other's results"
        )
        raise UserError(message)
    return lock


def _gpu_file(gpu_index: int) -> Path:
    folder = os.environ.get("SCRNA_LOCK_DIR") or "/tmp"
    return Path(folder) / f"scrna-gpu-{gpu_index}.lock"


def _wait(lock: Lock, who: str, thing: str) -> None:
    start = time.monotonic()
    next_line, has_logged = start, False
    while not lock.try_acquire(who):
        now = time.monotonic()
        holder = lock.holder()
        if now >= next_line and (holder or now - start > _PATIENCE):
            next_line, has_logged = now + _REMIND, True
            holder = holder or "an unknown process"
            log.info("%s is in use by %s; waiting for it", thing, holder)
        time.sleep(_POLL)
    if has_logged:
        log.info("%s is free after %s", thing, duration(time.monotonic() - start))


def _about_me(what: str) -> dict[str, str | int | None]:
    pid, uid = os.getpid(), os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # containers run users that have no name
        user = str(uid)
    return {
        "pid": pid,
        "started": process_start(pid),
        "host": os.uname().nodename,
        "user": user,
        "what": what,
        "directory": os.getcwd(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
