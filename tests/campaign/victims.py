"""Finding the processes of a run by what they do, and killing the one that is meant.

What a process is for is read from /proc alone: its command, its parents and the variable that names
the run. So it holds for any engine: the process that writes a result is either the rule's own, or a
worker; above a worker is the engine, and perhaps a process that it was forked from.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.conftest import Workflow
from tests.workflow.processes import processes_of, wait_until

STEP, WORKER, PARENT, ENGINE = "the rule's process", "worker", "parent of the worker", "engine"
SNAKEMAKE, GROUP = "Snakemake", "Ctrl-C"


@dataclass(frozen=True)
class Held:
    """A run, stopped in the process that is about to write a certain file.

    Parameters
    ----------
    run
        The process of Snakemake.
    pid
        The one that is stopped.
    output
        The file that holds what the run prints.
    """

    run: subprocess.Popen
    pid: int
    output: Path

    def roles(self) -> dict[str, int]:
        """Return the numbers of the run's processes by what they are for."""
        ours = set(processes_of(self.run.pid))
        scripts = [pid for pid in ours if re.search(r"\.snakemake/scripts/", command(pid))]
        found = {SNAKEMAKE: self.run.pid, GROUP: self.run.pid}
        if self.pid in scripts:
            return found | {STEP: self.pid}
        above = [pid for pid in parents(self.pid) if pid in ours and pid not in scripts]
        found[WORKER] = self.pid
        if above:
            found[ENGINE] = above[-1]
        if len(above) > 1:
            found[PARENT] = above[0]
        if len(scripts) == 1:
            found[STEP] = scripts[0]
        return found

    def strike(self, role: str) -> int:
        """Kill a process, which has to be there; return the run's exit status."""
        victim = self.roles()[role]
        if role == GROUP:
            os.killpg(victim, signal.SIGINT)
        else:
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: is_gone(victim) or self.run.poll() is not None, 10)
        return self.run.wait(timeout=60)


@contextmanager
def holding(
    workflow: Workflow, folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, *targets: str
) -> Iterator[Held]:
    """Start a run and stop the process that writes a file; at the end all of the run is gone.

    Parameters
    ----------
    workflow
        What is run.
    folder
        For the marks of the stopped process and for what the run prints.
    monkeypatch
        Sets the variables of the run.
    file
        The end of the path of the file.
    targets
        What the run is asked for.
    """
    hold = Path(__file__).parent / "hold"
    folder.mkdir(exist_ok=True)
    held, output = folder / "held", folder / "output.txt"
    held.unlink(missing_ok=True)
    (folder / "target").write_text(file)
    with monkeypatch.context() as patch, open(output, "w") as printed:
        patch.setenv("SCRNA_TEST_HOLD", str(folder))
        patch.setenv("PYTHONPATH", str(hold), prepend=os.pathsep)
        run = workflow.start(*targets, stdout=printed, stderr=printed)
    try:
        wait_until(lambda: held.is_symlink() or run.poll() is not None, 120)
        assert held.is_symlink(), f"nothing wrote {file}: {output.read_text()}"
        yield Held(run, int(os.readlink(held)), output)
        wait_until(lambda: not processes_of(run.pid), 30)
    finally:
        for pid in [run.pid, *processes_of(run.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.wait()
        (folder / "target").unlink()
        held.unlink(missing_ok=True)


def command(pid: int) -> str:
    """Return the command line of a process; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parents(pid: int) -> list[int]:
    """Return the parent of a process, the parent's, and so on."""
    found = []
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            break
        pid = int(stat.rsplit(")", 1)[1].split()[1])
        found.append(pid)
    return found


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1][1] in "ZX"
    except OSError:
        return True
