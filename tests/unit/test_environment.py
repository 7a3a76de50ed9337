"""pyproject.toml, the pins, the conda environments and the set-up script hold together."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from envs.compile import conda_environment, requirements

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHON = (ROOT / ".python-version").read_text().strip()

BASE = PROJECT["project"]["dependencies"]
GPU = PROJECT["project"]["optional-dependencies"]["gpu"]
DEV = PROJECT["dependency-groups"]["dev"]

# What comes with the extra `gpu` and is imported by name; not installed without a GPU.
GPU_MODULES = {"cudf", "cugraph", "cuml", "cupy", "cupyx", "pylibcugraph", "rmm"}
GPU_MODULES |= {"dask", "dask_cuda", "distributed", "rapids_singlecell"}


def read_pins(name: str) -> dict[str, Requirement]:
    """The pins of envs/{name}.txt by package."""
    pins = [
        Requirement(pin.split(" --hash")[0])
        for pin in requirements((ENVS / f"{name}.txt").read_text())
    ]
    return {canonicalize_name(pin.name): pin for pin in pins}


def version_of(pin: Requirement) -> Version:
    """The one version that a pin allows."""
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return Version(specifier.version)


def names(dependencies: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in dependencies}


# ---------------------------------------------------------------- pins


@pytest.mark.parametrize(("name", "declared"), [("cpu", BASE + DEV), ("gpu", BASE + GPU + DEV)])
def test_every_dependency_is_pinned_within_its_bounds(name, declared):
    pins = read_pins(name)
    for text in declared:
        dependency = Requirement(text)
        pin = pins.get(canonicalize_name(dependency.name))
        assert pin, f"{dependency.name} is not in envs/{name}.txt: run `make pins`"
        assert version_of(pin) in dependency.specifier, f"{pin} against {text}: run `make pins`"


def test_the_gpu_extra_is_in_the_gpu_pins_alone():
    gpu_only = read_pins("gpu").keys() - read_pins("cpu").keys()
    assert names(GPU) <= gpu_only
    assert not [name for name in read_pins("cpu") if re.search(r"-cu1\d|cuda|^nvidia-(?!ml)", name)]


def test_shared_packages_have_one_version():
    cpu, gpu = read_pins("cpu"), read_pins("gpu")
    assert cpu.keys() <= gpu.keys()
    assert {n: str(pin.specifier) for n, pin in cpu.items()} == {
        n: str(gpu[n].specifier) for n in cpu
    }


@pytest.mark.parametrize("name", ["cpu", "gpu", "uv"])
def test_every_pin_is_exact_and_hashed(name):
    for line in requirements((ENVS / f"{name}.txt").read_text()):
        pin, *hashes = line.split(" --hash=")
        assert version_of(Requirement(pin))
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), pin


@pytest.mark.parametrize("name", ["cpu", "gpu", "uv"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pin_is_installed_on_both_machines(name, machine):
    here = {"sys_platform": "linux", "platform_machine": machine, "python_version": PYTHON}
    left_out = [
        str(p) for p in read_pins(name).values() if p.marker and not p.marker.evaluate(here)
    ]
    assert not left_out


@pytest.mark.parametrize("file", sorted(f.name for f in ENVS.glob("*.*") if f.suffix != ".py"))
def test_no_file_names_a_host_or_a_path_of_a_machine(file):
    text = (ENVS / file).read_text()
    assert not re.search(r"://|index-url|find-links| @ |(^|[\s'\"])/(root|home|tmp|opt)\b", text)


# ---------------------------------------------------------------- conda and Python


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_conda_environments_are_in_step_with_the_pins(name):
    text = (ENVS / f"{name}.yaml").read_text()
    pins = (ENVS / f"{name}.txt").read_text()
    assert text == conda_environment(pins), f"envs/{name}.yaml is out of step: run `make pins`"
    environment = yaml.safe_load(text)
    assert environment["dependencies"] == [f"python={PYTHON}", "pip", {"pip": requirements(pins)}]


def test_python_versions_agree():
    assert PROJECT["project"]["requires-python"] == f">={PYTHON}"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHON.replace(".", "")
    assert f"sys.version_info < ({PYTHON.replace('.', ', ')})" in (ENVS / "setup").read_text()


# ---------------------------------------------------------------- imports


def imported(folder: str) -> dict[str, Path]:
    """The modules from elsewhere that the Python files of a folder import, each with one file."""
    own = {path.stem for path in (ROOT / "scripts").iterdir()} | {
        "scripts",
        "tests",
        "envs",
        "docs",
        "bench",
    }
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            found |= {module.split(".")[0]: path.relative_to(ROOT) for module in modules}
    return {m: path for m, path in found.items() if m not in sys.stdlib_module_names | own}


@pytest.mark.parametrize(("folder", "declared"), [("scripts", BASE), ("tests", BASE + DEV)])
def test_every_import_is_a_declared_dependency(folder, declared):
    installed = packages_distributions()
    missing = {
        module: str(path)
        for module, path in imported(folder).items()
        if module not in GPU_MODULES
        and not names(declared) & {canonicalize_name(d) for d in installed.get(module, [module])}
    }
    assert not missing, "name these in pyproject.toml and run `make pins`"


# ---------------------------------------------------------------- set-up


class Clone:
    """A folder with the set-up script and a PATH of its own, on which only stand-ins are found."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        (folder / "envs").mkdir()
        self.bin.mkdir()
        shutil.copy(ENVS / "setup", folder / "envs")
        self.pins.write_text("scanpy==1.12.4 --hash=sha256:0\n")
        for tool in ["sh", "cmp", "cp", "dirname", "grep", "mkdir", "mv", "rm", "uname"]:
            (self.bin / tool).symlink_to(shutil.which(tool))

    @property
    def pins(self) -> Path:
        return self.folder / "envs/cpu.txt"

    @property
    def stamp(self) -> Path:
        return self.folder / ".venv/installed.txt"

    def add(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.folder / "envs/setup", "cpu"],
            env={"PATH": str(self.bin), "HOME": str(self.folder), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


PYTHON_SHIM = f"exec '{sys.executable}' \"$@\""

# Stands for uv: notes each call, makes the folder of the environment, fails while `broken` exists.
UV = """
echo "$*" >> calls
case "$*" in
    venv*) mkdir -p .venv/bin; cp "$(dirname "$0")/python3.12" .venv/bin/python ;;
    pip*) [ ! -e broken ] ;;
esac
"""


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


def test_setup_says_that_there_is_no_python_and_how_to_get_one(clone):
    clone.add("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    clone.add("python3", "exit 1")
    done = clone.setup()
    assert done.returncode == 1
    assert "No Python 3.12 or newer found" in done.stderr
    assert "pyenv install 3.12" in done.stderr
    assert done.stderr.count("\n") == 7


def test_setup_refuses_a_python_that_was_asked_for_and_does_not_run(clone):
    clone.add("python3.12", PYTHON_SHIM)
    done = clone.setup(PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "PYTHON=/nowhere/python is no Python 3.12 or newer that runs" in done.stderr


@pytest.mark.parametrize(
    "place", ["bin/python3.13", ".pyenv/versions/3.12.1/bin/python", "bin/python3"]
)
def test_setup_finds_python_in_the_usual_places(clone, place):
    clone.add("uv", 'echo "$*" >> calls')
    (clone.folder / place).parent.mkdir(parents=True, exist_ok=True)
    clone.add("given", PYTHON_SHIM)
    (clone.bin / "given").rename(clone.folder / place)
    (clone.folder / ".venv").mkdir()
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    assert f"--python {Path(sys.executable).resolve()} " in (clone.folder / "calls").read_text()


def test_setup_says_that_there_is_nothing_to_install_with(clone):
    clone.add("python3.12", 'case "$*" in *pip*) exit 1;; *) echo "$0";; esac')
    clone.add("uv", "echo 'pyenv: uv: command not found' >&2; exit 127")
    done = clone.setup()
    assert done.returncode == 1
    assert "Neither uv nor pip found" in done.stderr


def test_setup_installs_once_and_again_when_the_pins_change(clone):
    clone.add("python3.12", PYTHON_SHIM)
    clone.add("uv", UV)
    calls = clone.folder / "calls"

    assert "Setting up .venv from envs/cpu.txt" in clone.setup().stdout
    assert "--require-hashes" in calls.read_text()
    assert clone.stamp.read_text() == clone.pins.read_text()

    calls.unlink()
    done = clone.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not calls.exists()

    clone.pins.write_text("scanpy==1.12.5 --hash=sha256:0\n")
    assert clone.setup().returncode == 0
    assert "pip sync" in calls.read_text()
    assert "venv" not in calls.read_text().replace(".venv", "")
    assert clone.stamp.read_text() == clone.pins.read_text()


def test_an_interrupted_install_is_not_taken_for_done(clone):
    clone.add("python3.12", PYTHON_SHIM)
    clone.add("uv", UV)
    (clone.folder / "broken").touch()
    assert clone.setup().returncode != 0
    assert not clone.stamp.exists()
    (clone.folder / "broken").unlink()
    assert clone.setup().returncode == 0
    assert clone.stamp.exists()
    assert (clone.folder / "calls").read_text().count("--clear") == 2
