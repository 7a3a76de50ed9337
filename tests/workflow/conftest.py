"""Real Snakemake runs, on a copy of the workflow's code, which an edit meanwhile does not disturb.

`done` is one complete small run that the tests share; a test that changes something takes a copy.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from tests.workflow.processes import runtime

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "configs"
#: What the shared run does for the dataset `plain`, beside what it does for `toy`.
FEATURES = "seurat_v3 scaled tsne resolutions labels h5ad doublets scores".split()
CODE = ["Snakefile", "rules", "scripts", "config", "profiles", "envs"]
CODE += ["cpu", "slurm", "spark", "workstation"]


@dataclass(frozen=True)
class Workflow:
    """The workflow: its code in one folder, its working directory another.

    Parameters
    ----------
    code, folder
        The two folders.
    config
        Config files, each laid over those before it.
    output
        What the run that made the folder printed.
    profile
        The one to run with.
    """

    code: Path
    folder: Path
    config: tuple[Path, ...] = ()
    output: str = ""
    profile: str = "cpu"

    def over(self, *settings: str) -> "Workflow":
        """Lay settings over the config: a file of `configs`, or YAML as text."""
        return replace(self, config=self.config + tuple(map(self._file, settings)))

    def at(self, folder: Path) -> "Workflow":
        """Copy the working directory, its times included, as cp -a does."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return replace(self, folder=folder)

    def clone(self, folder: Path) -> "Workflow":
        """Copy the code, which thereby is as new as from a fresh clone; the folder stays."""
        return replace(self, code=clone(self.code, folder))

    def start(self, *targets: str, options: tuple[str, ...] = (), **popen) -> subprocess.Popen:
        """Start Snakemake in a process group of its own, as a terminal does."""
        command = [sys.executable, "-m", "snakemake", *self._arguments(*options), "--", *targets]
        return subprocess.Popen(
            command, env=environment(self.folder), text=True, process_group=0, **popen
        )

    def run(
        self,
        *targets: str,
        options: tuple[str, ...] = (),
        fails: bool = False,
        timeout: float = 180,
    ) -> str:
        """Run Snakemake to its end; return what it printed."""
        process = self.start(
            *targets, options=options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"still running: {process.communicate(timeout=60)[0]}") from None
        assert process.returncode == int(fails), output
        return output

    def due(self, *targets: str) -> set[str]:
        """List the jobs that a run would do: the rule, and where its files lie in results/."""
        return self.plans(self, targets=targets)[0]

    @staticmethod
    def plans(*workflows: "Workflow", targets: tuple[str, ...] = ()) -> list[set[str]]:
        """List the jobs that are `due` in each of several workflows."""
        return [_jobs(output) for _, output in _calls(workflows, targets, "--summary")]

    @staticmethod
    def runs(*workflows: "Workflow", options: tuple[str, ...] = ()) -> list[tuple[int, str]]:
        """Run several workflows, as many at a time as there are cores; exit status and output."""
        return _calls(workflows, (), "--cores", "1", *options)

    def _arguments(self, *options: str) -> list[str]:
        options += ("--snakefile", f"{self.code}/Snakefile", "--directory", str(self.folder))
        options += ("--profile", f"{self.code}/profiles/{self.profile}")
        if self.config:
            options += ("--configfile", *map(str, self.config))
        return list(options)

    def _file(self, setting: str) -> Path:
        if setting.endswith(".yaml"):
            return CONFIGS / setting
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder.parent, suffix=".yaml", delete=False
        ) as file:
            file.write(setting)
        return Path(file.name)


def _calls(workflows, targets: tuple[str, ...], *options: str) -> list[tuple[int, str]]:
    """Call Snakemake for several workflows, imported once; exit status and output of each."""
    with tempfile.TemporaryDirectory() as folder:
        answers = [f"{folder}/{number}" for number in range(len(workflows))]
        commands = [[*w._arguments(*options), "--", *targets] for w in workflows]
        subprocess.run(
            [sys.executable, Path(__file__).with_name("plans.py")],
            input=json.dumps(list(zip(commands, answers, strict=True))),
            env=environment(),
            text=True,
            check=True,
        )
        return [(int(Path(f"{a}.status").read_text()), Path(a).read_text()) for a in answers]


def _jobs(summary: str) -> set[str]:
    """Read which jobs are due from what `snakemake --summary` prints: a line for each file."""
    assert "\noutput_file\t" in summary, summary
    jobs = set()
    for line in summary.split("\noutput_file\t")[1].splitlines()[1:]:
        name, _, rule, *_, plan = line.split("\t")
        file = Path(name)
        place = file.parent if file.parts[0] == "results" else Path("results", file.stem)
        place = file if place.name == "figures" else place  # a folder a topic
        if plan != "no update":
            jobs.add(f"{rule} {place.relative_to('results')}")
    return jobs


def clone(code: Path, folder: Path) -> Path:
    """Copy the workflow's code, the times of its files apart."""
    folder.mkdir()
    for source in (code / name for name in CODE):
        if source.is_dir() and not source.is_symlink():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / source.name, copy_function=shutil.copy, ignore=ignore)
        else:
            shutil.copy(source, folder, follow_symlinks=False)
    return folder


def environment(folder: Path | None = None) -> dict[str, str]:
    """Return the variables of a run in a folder.

    numba compiles for longer than all steps take here, and changes nothing of what is shown. Each
    folder has workers of its own.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
    own = {"XDG_RUNTIME_DIR": runtime(folder)} if folder else {}
    return kept | {"NUMBA_DISABLE_JIT": "1", "SCRNA_TEST_CONFIGS": str(CONFIGS)} | own


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder by its name, in one process of pytest-xdist; the others wait and have it too.

    While it is made it has another name, and a process that dies lets the next one make it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / name
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                begun = shared / f"{name}-{os.getpid()}"
                make(begun)
                begun.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def code(once) -> Path:
    """The workflow's code as it is now, in a folder of its own."""
    return once("code", partial(clone, ROOT))


@pytest.fixture
def fresh(code, tmp_path) -> Workflow:
    """The workflow in an empty working directory."""
    (tmp_path / "work").mkdir()
    return Workflow(code, tmp_path / "work")


@pytest.fixture(scope="session")
def done(code, once, tmp_path_factory) -> Workflow:
    """The workflow after a complete run, with every feature. Take a copy to change its folder.

    Each process has a copy itself, so that it sees nothing of what Snakemake does in another's.
    """
    workflow = Workflow(code, Path()).over("base.yaml", *(f"{name}.yaml" for name in FEATURES))

    def complete(folder: Path) -> None:
        work = folder / "work"
        work.mkdir(parents=True)
        try:
            (folder / "output.txt").write_text(replace(workflow, folder=work).run(timeout=400))
        except AssertionError as error:  # for all processes, each of which would fail as well
            (folder / "error.txt").write_text(str(error))

    made = once("done", complete)
    error = made / "error.txt"
    assert not error.exists(), error.read_text()
    copy = replace(workflow, folder=made / "work", output=(made / "output.txt").read_text())
    return copy.at(tmp_path_factory.mktemp("done") / "work")
