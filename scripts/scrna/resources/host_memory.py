"""Read how much host memory is free, within the limits of the kernel and of cgroups."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Memory in bytes, and who said so.

    Parameters
    ----------
    total
        Bytes that there are.
    available
        Bytes that a new allocation may take without pushing anything out.
    source
        Where the figures come from: ``NVML``, ``/proc/meminfo`` or a cgroup's folder.
    """

    total: int
    available: int
    source: str


def host_memory(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Return how much host memory this process may use.

    The machine's memory, or what the tightest cgroup around the process (a container, a SLURM
    job) leaves of it. Page cache that a cgroup would drop first (inactive_file) is not counted
    against its limit.

    Parameters
    ----------
    proc, cgroups
        The file systems to ask; for tests.
    """
    memory = meminfo(proc)
    for folder, limit, used in _cgroup_limits(proc, cgroups):
        available = max(0, limit - used)
        if limit < memory.total:
            memory = Memory(limit, min(memory.available, available), str(folder))
        elif available < memory.available:
            memory = Memory(memory.total, available, str(folder))
    return memory


def give_back_freed() -> None:
    """Return freed memory to the system; glibc keeps 0.4 GB of it with 2 G non-zeros."""
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def has_other_users(*, proc: Path = PROC, first_uid: int = 1000, nobody: int = 65534) -> bool:
    """Return whether another person has a process on this machine.

    Parameters
    ----------
    proc
        The file system to ask; for tests.
    first_uid, nobody
        Users of services lie below the one, and at the other.
    """
    uids = set()
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            uids.add(process.stat().st_uid)
    return any(first_uid <= uid < nobody for uid in uids - {os.geteuid()})


def gib(n: int) -> str:
    """Write bytes for a person."""
    return f"{n / GIB:,.1f} GiB"


def meminfo(proc: Path = PROC) -> Memory:
    """Read what the kernel says of the whole machine's memory, from ``meminfo`` of /proc."""
    path = proc / "meminfo"
    lines = (line.split() for line in path.read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return Memory(kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024, "/proc/meminfo")


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[tuple[Path, int, int]]:
    """Memory limits on this process: each cgroup's folder, limit and use in bytes.

    Its own cgroup and every one above it count, in version 2 and version 1 of the interface. In a
    container the path may be the host's, and only the top is there.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            top, files = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = cgroups / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        below = Path(name.lstrip("/"))
        for folder in (top / below, *(top / above for above in below.parents)):
            try:
                limit, used = (int((folder / file).read_text()) for file in files[:2])
            except (OSError, ValueError):  # no memory controller here, or its limit is "max"
                continue
            yield folder, limit, used - _reclaimable(folder, files[2])


def _reclaimable(folder: Path, key: str) -> int:
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(stat.get(key, 0))
