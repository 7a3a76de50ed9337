"""CI, container, citation and release files say what the repository does."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from envs import try_dockerfile
from envs.compile import requirements

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
WORKFLOWS = {p.name: yaml.safe_load(p.read_text()) for p in (ROOT / ".github").glob("workflows/*")}
JOBS = {f"{file}:{name}": job for file, w in WORKFLOWS.items() for name, job in w["jobs"].items()}
IMAGE = (ROOT / "Dockerfile").read_text()
APPTAINER = (ROOT / "envs/scrna.def").read_text()


# ---------------------------------------------------------------- the version


def test_the_version_is_the_same_everywhere():
    assert CITATION["version"] == PROJECT["version"]
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    if released:
        assert released[0] == (PROJECT["version"], str(CITATION["date-released"]))


def test_the_citation_has_what_the_format_asks_for():
    assert str(CITATION["cff-version"]) == "1.2.0"
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == [{"name": PROJECT["authors"][0]["name"]}]
    for text in (CITATION["title"], CITATION["message"], CITATION["abstract"]):
        assert isinstance(text, str)
        assert text
    for work in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= work.keys()
        assert re.fullmatch(r"10\.\d{4,9}/\S+", work["doi"])
        assert all({"family-names", "given-names"} == author.keys() for author in work["authors"])


# ---------------------------------------------------------------- CI


def commands() -> list[str]:
    """Return every command of the jobs, once for each value of a job's matrix."""
    found = {}
    for job in JOBS.values():
        values = job.get("strategy", {}).get("matrix", {}).get("python", [""])
        runs = [step["run"] for step in job["steps"] if "run" in step]
        found |= {run.replace("${{ matrix.python }}", v): None for run in runs for v in values}
    return list(found)


def test_ci_does_what_it_should():
    assert {c for c in commands() if c.startswith("make")} == {
        "make lint",
        "make test PYTHON=python3.12",
        "make test PYTHON=python3.13",
        "make run",
        "make test ARGS=\"-m 'not slow'\"",
        "make dry-runs",
    }
    machines = {job["runs-on"] for job in JOBS.values()}
    assert machines == {"ubuntu-24.04", "ubuntu-24.04-arm"}  # as DGX OS, and its processor


@pytest.mark.parametrize("command", commands())
def test_a_command_of_ci_can_be_run(command):
    subprocess.run(["bash", "-n", "-c", command], check=True, timeout=60)
    assert "${{" not in command
    program, *words = command.split()
    if program != "make":
        assert shutil.which(program)
        return
    # make itself says whether it knows the target and what it would do for it
    done = subprocess.run(
        ["bash", "-c", command.replace("make", "make --dry-run", 1)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tool = {"lint": "ruff check", "test": "pytest", "run": "snakemake --profile"}
    assert tool.get(words[0], ".ci/dry_runs.py") in done.stdout
    if "ARGS" in command:
        assert "-m 'not slow'" in done.stdout


def test_dry_runs_are_of_every_config_that_ships():
    done = subprocess.run(
        [sys.executable, ".ci/dry_runs.py", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    datasets = yaml.safe_load((ROOT / "config/config.yaml").read_text())["datasets"]
    expected = [f"dataset {name}" for name in datasets]
    expected += [f"preset {p.name}" for p in sorted((ROOT / "config").glob("presets/*.yaml"))]
    expected += [f"profile {p.name}" for p in sorted((ROOT / "profiles").iterdir())]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("given", [["--config", "run=big"], ["--configfile", "big.yaml"]])
def test_a_dry_run_without_gpu_changes_only_what_was_refused(given):
    dry_runs = runpy.run_path(str(ROOT / ".ci/dry_runs.py"))
    markers, neighbors = dry_runs["ON_CPU"]
    refusal = f"The config has errors:\n  - datasets.big: {markers}; on the CPU use t-test"
    both = f"{refusal}\n  - datasets.big: {neighbors}; on the CPU use auto"
    search = yaml.safe_load(dry_runs["without_gpu"](given, both)[-1].partition("=")[2])
    assert search["big"] == {"markers": {"method": "t-test"}, "neighbors": {"algorithm": "auto"}}
    *kept, own = dry_runs["without_gpu"](given, refusal)
    assert kept == [*given, "--config"][: 2 if "--config" in given else 3]
    name, _, value = own.partition("=")
    assert (name, yaml.safe_load(value)) == ("datasets", {"big": {"markers": {"method": "t-test"}}})


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_no_more_rights_than_it_needs(name):
    job = JOBS[name]
    assert "permissions" not in job  # the workflow's hold
    assert 0 < job["timeout-minutes"] <= 60
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # what a pull request can choose must not become part of a command
        assert "github." not in step.get("run", "")


@pytest.mark.parametrize("file", WORKFLOWS)
def test_a_workflow_may_only_read(file):
    workflow = WORKFLOWS[file]
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    text = (ROOT / ".github/workflows" / file).read_text()
    versions = re.findall(r"uses: (\S+)@([0-9a-f]{40}) # v(\d+\.\d+\.\d+)$", text, re.MULTILINE)
    assert len(versions) == text.count("uses:")
    assert len(set(versions)) == len({action for action, *_ in versions})  # one version of each


# ---------------------------------------------------------------- JupyterLab


def pins(name: str) -> dict[str, list[str]]:
    lines = [
        line.split(" --hash=") for line in requirements((ROOT / f"envs/{name}.txt").read_text())
    ]
    return {Requirement(pin).name: [str(Requirement(pin).specifier), *h] for pin, *h in lines}


def test_jupyterlab_goes_on_top_of_either_environment():
    notebook = pins("notebook")
    for text in PROJECT["optional-dependencies"]["notebook"]:
        wanted = Requirement(text)
        version = notebook[wanted.name][0].removeprefix("==")
        assert version in wanted.specifier
    for name, (specifier, *hashes) in notebook.items():
        assert specifier.startswith("=="), name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), name
    for other in ("cpu", "gpu"):
        shared = {n: pin[0] for n, pin in pins(other).items() if n in notebook}
        assert shared == {name: notebook[name][0] for name in shared}
        assert "jupyterlab" not in shared


def test_jupyterlab_listens_on_this_machine_alone():
    done = subprocess.run(
        ["make", "--dry-run", "notebook"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("jupyter")]
    assert "--ip 127.0.0.1 " in line
    assert "token" not in line  # Jupyter's default: a random one for each start


# ---------------------------------------------------------------- containers


def instructions(name: str) -> list[str]:
    return [rest for found, rest in try_dockerfile.instructions(IMAGE) if found == name]


def test_both_images_are_made_by_the_same_commands():
    (base,) = instructions("FROM")
    assert f"\nFrom: {base}\n" in APPTAINER
    section = re.search(r"^%post\n(.*?)^%", APPTAINER, re.DOTALL | re.MULTILINE)[1]
    commands = [line.strip() for line in re.sub(r"\\\n\s*", "", section).splitlines()]
    # the last RUN makes a user and folders that can be written to, which Apptainer needs not
    assert instructions("RUN")[:-1] == [c for c in commands if c][-3:]
    assert {c for c in commands if "{{" in c} == {"PINS='{{ PINS }}'", "NOTEBOOK='{{ NOTEBOOK }}'"}
    defaults = re.search(r"^%arguments\n(.*?)^%", APPTAINER, re.DOTALL | re.MULTILINE)[1]
    assert defaults.split() == instructions("ARG")


def test_the_trial_without_an_engine_knows_every_instruction():
    for name, _ in try_dockerfile.instructions(IMAGE):
        known = name in try_dockerfile.WITHOUT_EFFECT or hasattr(
            try_dockerfile.Image, f"_{name.lower()}"
        )
        assert known, name


def test_the_trial_does_what_an_engine_would(tmp_path):
    image = try_dockerfile.Image(tmp_path, {"PINS": "cpu"})
    lines = ["ARG PINS=gpu", "ENV PINS=$PINS", "ARG OTHER=a-$PINS", "WORKDIR /workflow"]
    lines += ["# a comment", "COPY envs/setup envs/uv.txt \\", "    envs/"]
    for name, rest in try_dockerfile.instructions("\n".join(lines)):
        image.do(name, rest)
    assert image.variables["PINS"] == "cpu"
    assert image.declared == {"PINS": "cpu", "OTHER": "a-cpu"}
    folder = tmp_path / "workflow"
    assert sorted(p.name for p in (folder / "envs").iterdir()) == ["setup", "uv.txt"]
    with pytest.raises(SystemExit, match="HEALTHCHECK is not known here"):
        image.do("HEALTHCHECK", "NONE")


def test_what_apptainer_copies_is_there():
    section = re.search(r"^%files\n(.*?)^%", APPTAINER, re.DOTALL | re.MULTILINE)[1]
    sources = [line.split()[0] for line in section.splitlines() if line.strip()]
    assert {"Snakefile", "rules", "scripts", "config", "profiles", "envs"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_holds_no_results_and_runs_as_nobody_special():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    for line in (ROOT / ".gitignore").read_text().splitlines():
        if line and not line.startswith("#"):
            name = line.strip("/")
            assert {name, f"**/{name}"} & set(ignored), line
    assert ".git" in ignored
    assert instructions("USER") == ["1000"]
    for folder in ("/data", "/workflow/resources", "/workflow/results"):
        assert f'"{folder}"' in instructions("VOLUME")[0]
    for source in instructions("COPY")[0].split()[:-1]:
        assert (ROOT / source).is_file()


def test_apptainer_runs_the_profile_of_the_machine(tmp_path):
    """The script that `apptainer run` starts, with a stand-in for Snakemake."""
    script = re.search(r"^%runscript\n(.*?)^%", APPTAINER, re.DOTALL | re.MULTILINE)[1]
    for name, text in {"snakemake": 'printf "%s\\n" "$@"', "nvidia-smi": "echo GPU 0: one"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(**own: str) -> list[str]:
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | own
        command = ["sh", "-c", script, "sh", "-n", "a b"]
        done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    common = ["--snakefile", "/workflow/Snakefile", "--profile"]
    assert run() == [*common, "/workflow/profiles/spark", "-n", "a b"]
    assert run(PROFILE="cpu") == [*common, "/workflow/profiles/cpu", "-n", "a b"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert run() == [*common, "/workflow/profiles/cpu", "-n", "a b"]


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_a_form_for_issues_is_complete(form):
    content = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert {"name", "description", "body"} <= content.keys()
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
