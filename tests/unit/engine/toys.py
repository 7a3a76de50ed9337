"""Rules of one small step each, run as Snakemake runs them, with an engine or without."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scrna.data import step_files
from scrna.engine import protocol, run

SCRIPTS = protocol.SCRIPTS
CONFIG = {
    "worker": "warm",
    "worker_keep_minutes": 0,
    "gpus": "all",
    "gpu": {"memory": "pool", "pool_gb": 1, "limit_gb": None},
    "memory": {"headroom_gb": 0, "wait_s": 0},
    "dask": {"scheduler": None, "protocol": "tcp", "threads": 2},
}
#: What Snakemake does: a script run as a program, with `snakemake` in it.
DRIVER = """
import atexit, json, runpy, sys
from types import SimpleNamespace
sys.path.append(sys.argv[1])
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
rule = SimpleNamespace(**json.loads(sys.argv[3]))
runpy.run_path(sys.argv[2], {"snakemake": rule}, "__main__")
"""
HEAD = """
if __name__ == "__main__":
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)

import os, sys, time, warnings
import numpy as np
from scrna.data import step_files
from scrna.errors import UserError
from scrna.log import log
from scrna.provenance import note
from scrna.step import step
from scrna.workflow.rule import run

@step
def toy(out, *, backend, size=1):
"""
TAIL = """

if __name__ == "__main__":
    run(toy, snakemake)
"""
PID = "step_files.write(out, {'obs/pid': np.array([os.getpid()])})"
#: Ticks as long as it runs, having said in which process.
FOREVER = """
(out.parent / "pid").write_text(f"{os.getpid()} ")
while True:
    (out.parent / "tick").write_text(str(time.monotonic()))
    time.sleep(0.02)
"""


def eventually(condition, seconds=120.0):
    """Wait until `condition()` is true, and return what it gave."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)
    return result


class Ended:
    """A rule's process: what it said, and what it left."""

    def __init__(self, process, folder):
        self.stdout, self.stderr = process.communicate(timeout=240)
        self.code = process.returncode
        self.log = (folder / "logs/toy.log").read_text()
        self.out = folder / "out.h5"

    @property
    def pid(self) -> int:
        """The process that the step ran in, of a step that is `PID`."""
        assert self.code == 0, self.stderr
        return int(step_files.read(self.out, "obs/pid")[0])

    @property
    def modules(self) -> list[str]:
        return json.loads(self.stdout)


class Toys:
    """Rules of one step each, in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str], config: dict):
        self.folder, self.environment, self.config = folder, environment, config
        (folder / ".snakemake").mkdir(exist_ok=True, parents=True)

    def start(self, body: str, **settings) -> subprocess.Popen:
        script = self.folder / "toy.py"
        script.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    ") + TAIL)
        rule = {
            "rule": "toy",
            "wildcards": ["pbmc3k"],
            "input": {},
            "output": {"out": "out.h5"},
            "params": {"settings": {"backend": "cpu"} | settings},
            "log": ["logs/toy.log"],
            "threads": 1,
            "config": self.config,
        }
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(SCRIPTS), str(script), json.dumps(rule)],
            cwd=self.folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, body: str, **settings) -> Ended:
        return Ended(self.start(body, **settings), self.folder)


@contextmanager
def runtime() -> Iterator[Path]:
    """A private folder for the sockets of engines, with a short path, and none of anybody else's.

    What is left there at the end is ended.
    """
    folder = Path(tempfile.mkdtemp(prefix="scrna-test-"))
    before = len(run._servers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        try:
            yield folder
        finally:
            run.stop()
            while len(run._servers) > before:
                run._servers.pop().wait(timeout=20)
            shutil.rmtree(folder)


class Running:
    """An engine, and the run that is attached to it."""

    def __init__(self, engine: run.Engine, variable: str):
        self.engine = engine
        self.environment = {protocol.VARIABLE: variable}
        self.path = Path(variable.partition(":")[2])
        self.pid = engine._first["pid"]
        self.log = Path(engine._first["log"])

    @property
    def status(self) -> dict:
        connection, status = run._ask(self.path, "status")
        connection.close()
        return status

    @property
    def workers(self) -> list[psutil.Process]:
        (parent,) = psutil.Process(self.pid).children()
        return parent.children()

    def wait(self) -> "Running":
        eventually(lambda: self.status["is_ready"], 60)
        return self


def begin(folder: Path, config: dict = CONFIG, **options) -> Running | None:
    """Attach a run in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(protocol.VARIABLE, "")
        engine = run.begin(config, "cpu", [], **options)
        return Running(engine, os.environ[protocol.VARIABLE]) if engine else None


def processes(running: Running) -> list[psutil.Process]:
    """The server and all that it has started."""
    server = psutil.Process(running.pid)
    return [server, *server.children(recursive=True)]


def gone(all_of_them: list[psutil.Process], seconds: float = 10) -> bool:
    """Whether processes end in time."""
    return psutil.wait_procs(all_of_them, timeout=seconds)[1] == []


@contextmanager
def running(folder: Path, **options) -> Iterator[Running]:
    """An engine on the CPU as long as a run; nothing is left of it after."""
    with runtime():
        found = begin(folder, **options).wait()
        yield found
        before = processes(found)
        found.engine.close()
        assert gone(before)
        assert not found.path.exists()


def plain(text: str) -> str:
    """Leave out of a log what differs between two runs: times, and where the files lie."""
    import re

    text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d s", "… s", text)


SAYS = """
for n in range(300):
    log.info("%d cells", n)
warnings.warn("graph is not connected", RuntimeWarning)
note("recall", 0.97)
step_files.write(out, {"obs/a": np.arange(size)})
log.error("after it")
"""
