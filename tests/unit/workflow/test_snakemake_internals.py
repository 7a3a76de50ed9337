"""What is used of Snakemake's own parts: with this version, and where a part is not there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scrna.workflow import records, stale
from scrna.workflow import snakemake_internals as internals
from scrna.workflow.job import Job

SCRIPTS = Path(__file__).parents[3] / "scripts"
#: Asks for everything in a run's hooks, as it is and with a part hidden.
SNAKEFILE = """
import json, sys
sys.path.append(SCRIPTS)
from scrna.workflow import snakemake_internals as internals
from scrna.workflow.job import Job


class Without:
    '''An object of Snakemake's without an attribute, given as a.b for one of its parts.'''

    def __init__(self, inner, name):
        self._inner, (self._first, _, self._rest) = inner, name.partition(".")

    def __getattr__(self, name):
        if name == self._first and not self._rest:
            raise AttributeError(f"{name} is not there")
        found = getattr(self._inner, name)
        return Without(found, self._rest) if name == self._first else found


def tell(when, hidden):
    found = {}
    for name, part in hidden.items():
        for how, given in (("is", workflow), ("without", Without(workflow, part))):
            value = getattr(internals, name)(given)
            if isinstance(value, list):
                value = [[job.label, sorted(job.outputs), sorted(job.inputs)] for job in value]
            found[f"{name} {how}"] = value
    with open(f"{when}.json", "w") as file:
        json.dump(found, file)


tell("read", READ)


rule all:
    input:
        "results/toy/b.txt",


rule a:
    output:
        "results/{dataset}/a.txt",
    log:
        "logs/{dataset}/a.log",
    benchmark:
        "benchmarks/{dataset}/a.tsv"
    shell:
        "echo > {output}"


rule b:
    input:
        "results/{dataset}/a.txt",
    output:
        "results/{dataset}/b.txt",
    shell:
        "echo > {output}; exit " + str(config.get("code", 0))


onstart:
    tell("start", START)


onsuccess:
    tell("end", END)


onerror:
    tell("end", END)
"""
READ = {
    "is_main": "is_main_process",
    "has_nodes": "resource_settings",
    "uses_conda": "deployment_settings",
    "cores": "cores",
    "overlay_values": "config_settings",
}
START = {
    "is_touch": "touch",
    "runs_elsewhere": "non_local_exec",
    "due_jobs": "dag.needrun_jobs",
    "standing_jobs": "dag.jobs",
    "lift_rate_limit": "scheduler.job_rate_limiter",
}
END = {"finished_jobs": "dag.finished_jobs", "failed_jobs": "scheduler.failed"}
A = ["a toy", ["results/toy/a.txt"], []]
B = ["b toy", ["results/toy/b.txt"], ["results/toy/a.txt"]]


def run(folder: Path, *arguments: str) -> tuple[dict, str]:
    """Run Snakemake in a folder: what its hooks were told, and what it said."""
    known = {"SCRIPTS": str(SCRIPTS), "READ": READ, "START": START, "END": END}
    text = "".join(f"{name} = {value!r}\n" for name, value in known.items()) + SNAKEFILE
    (folder / "Snakefile").write_text(text)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = {}
    for when in ("read", "start", "end"):
        assert (folder / f"{when}.json").exists(), ran.stderr
        found |= json.loads((folder / f"{when}.json").read_text())
    return found, ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fresh")


@pytest.fixture(scope="module")
def fresh(folder):
    return run(folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run whose first job is done already, and whose second fails."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "results/toy").mkdir(parents=True)
    (folder / "results/toy/a.txt").touch()
    return run(folder, "--config", "code=1")


@pytest.mark.slow  # a run of Snakemake
def test_the_jobs_of_a_run_are_known_also_from_the_command_line(fresh):
    found, _ = fresh
    assert sorted(found["due_jobs is"]) == [A, B]
    made = [[label, outputs] for label, outputs, _ in sorted(found["due_jobs without"])]
    assert made == [A[:2], B[:2]]  # inputs are those of the last time, and there was none


@pytest.mark.slow  # a run of Snakemake
def test_what_stands_what_was_made_and_what_failed_is_known_or_left_out(broken, fresh):
    found, _ = broken
    assert found["due_jobs is"] == [B]
    assert found["due_jobs without"] == [[*B[:2], []]]
    assert found["standing_jobs is"] == [A]
    assert found["failed_jobs is"] == [B]
    found, _ = fresh
    assert sorted(found["finished_jobs is"]) == [A, B]
    for name in ("standing_jobs", "finished_jobs", "failed_jobs"):
        assert found[f"{name} without"] == []


@pytest.mark.slow  # a run of Snakemake
def test_what_a_run_is_comes_from_the_command_line_where_snakemake_does_not_say(fresh, broken):
    for found, values in ((fresh[0], {}), (broken[0], {"code": 1})):
        for how in ("is", "without"):
            assert found[f"is_main {how}"] is True
            for name in ("is_touch", "has_nodes", "runs_elsewhere", "uses_conda"):
                assert found[f"{name} {how}"] is False
        assert (found["cores is"], found["cores without"]) == (1, None)
        assert (found["overlay_values is"], found["overlay_values without"]) == (values, {})


@pytest.mark.slow  # a run of Snakemake
def test_each_loss_is_said_once(fresh):
    _, said = fresh
    for loss in (
        "what is due is asked of snakemake --detailed-summary",
        "the run ends up to 1 s later",
    ):
        assert said.count(loss) == 1
    assert f"This Snakemake differs from {internals.MADE_FOR} (needrun_jobs is not there)" in said


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        ("is_main", ["--mode", "subprocess"], False),
        ("is_touch", ["--touch"], True),
        ("runs_elsewhere", ["--executor=slurm"], True),
        ("has_nodes", ["--jobs", "4"], True),
        ("uses_conda", ["--sdm", "conda"], True),
    ],
)
def test_options_are_found_on_the_command_line(monkeypatch, function, options, expected):
    monkeypatch.setattr(sys, "argv", ["snakemake", *options])
    assert getattr(internals, function)(None) is expected
    monkeypatch.setattr(sys, "argv", ["snakemake", "all"])
    assert getattr(internals, function)(None) is not expected


def test_memory_that_is_not_known_yet_is_snakemakes_default_in_another_version(
    monkeypatch,
):
    assert not internals.not_known_yet()
    monkeypatch.setitem(sys.modules, "snakemake.common.tbdstring", None)
    assert internals.not_known_yet() == 1000


def test_another_version_is_said(monkeypatch):
    assert internals.version_line() is None
    monkeypatch.setattr(internals.importlib.metadata, "version", lambda _: "9.30.1")
    assert internals.version_line().startswith(
        "Snakemake 9.30.1 runs this; the workflow was tested"
    )


def test_due_jobs_are_read_from_a_summary():
    rows = """
        output_file|date|rule|log-file(s)|input-file(s)|shellcmd|status|plan
        results/toy/counts.zarr|-|convert|-|-|-|missing|update pending
        results/toy/counts.json|x|convert|a.log|a.h5ad|-|ok|update pending
        results/toy/pca/umap.h5|x|umap|-|-|-|ok|no update
        results/toy/pca/figures|x|marker_figures|-|a,b|-|ok|update pending
        resources/toy.h5ad|-|simulate|-|-|-|missing|update pending
    """
    text = "\n".join(row.strip().replace("|", "\t") for row in rows.splitlines()).strip()
    counts = frozenset(["results/toy/counts.zarr", "results/toy/counts.json"])
    assert internals.jobs_in_summary(f"said before\n{text}\n") == [
        Job("convert", ("toy",), counts, frozenset(["a.h5ad"])),
        Job(
            "marker_figures",
            ("toy", "pca"),
            frozenset(["results/toy/pca/figures"]),
            frozenset("ab"),
        ),
        Job("simulate", ("toy",), frozenset(["resources/toy.h5ad"])),
    ]
    assert internals.jobs_in_summary("Nothing to be done") == []


# ------------------------------------------------------------------------- records and rules


class Rule(SimpleNamespace):
    """What is used of a rule of Snakemake's."""

    def expand_input(self, wildcards):
        return (self.files,)


@pytest.fixture
def place(tmp_path, monkeypatch) -> internals.Place:
    """A result that lies in a working directory with its input, newer than that."""
    monkeypatch.chdir(tmp_path)
    Path("results/toy").mkdir(parents=True)
    for time, name in ((1000, "results/toy/a.h5"), (2000, "results/toy/b.h5")):
        Path(name).touch()
        os.utime(name, (time, time))
    files = type("Files", (dict,), {"__iter__": lambda self: iter(self.values())})(
        a="results/toy/a.h5"
    )
    rule = Rule(name="b", files=files, params={"settings": lambda _: {}})
    return internals.Place("b", {"dataset": "toy"}, ["results/toy/b.h5"], rule)


def opened() -> internals.Records:
    """Snakemake's records, as a run opens them."""
    asked = SimpleNamespace(persistence_backend=None, persistence_backend_db_url=None)
    return internals.open_records(SimpleNamespace(workflow_settings=asked))


def test_a_record_is_written_that_fits_nothing(place):
    assert opened().read("results/toy/b.h5") is None
    assert records._mark(opened(), place, "results/toy/b.h5", "no record")
    assert opened().read("results/toy/b.h5").params == ["unknown (no record)"]
    assert not records._mark(opened(), place, "results/toy/b.h5", "no record")


def test_where_no_record_can_be_written_a_result_is_made_older_than_its_input(place, monkeypatch):
    from snakemake.persistence import PersistenceBase
    from snakemake.persistence.file import FilePersistence

    for kind in (FilePersistence, PersistenceBase):
        monkeypatch.delattr(kind, "_write_record")
    assert records._mark(opened(), place, "results/toy/b.h5", "no record")
    assert Path("results/toy/b.h5").stat().st_mtime < 1000
    place.snakemake_rule.files.clear()
    with pytest.raises(records.UserError, match=r"b\.h5: no record, and that cannot be written"):
        records._mark(opened(), place, "results/toy/b.h5", "no record")


@pytest.mark.slow  # a run of Snakemake
def test_snakemake_makes_a_result_again_that_is_older_than_its_input(fresh, folder):
    shutil.rmtree(folder / ".snakemake/metadata")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--detailed-summary"]

    def planned() -> list[str]:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return [job.label for job in internals.jobs_in_summary(ran.stdout)]

    assert planned() == []
    rule = Rule(files=[str(folder / "results/toy/a.txt")])
    place = internals.Place("b", {"dataset": "toy"}, [], rule)
    assert records._make_older(place, str(folder / "results/toy/b.txt"))
    assert planned() == ["b toy"]


def test_where_records_cannot_be_read_results_are_taken_as_they_are(place, monkeypatch):
    workflow = SimpleNamespace(rules=[])
    found = internals.open_records(workflow)  # without workflow_settings
    assert found.read("results/toy/b.h5").params == []
    assert records._lost_input(found, ["results/toy/b.h5"]) is None
    monkeypatch.setattr(records, "places", lambda *_: [place])
    assert records.mark_unknown(workflow, ["toy"]) == []


def test_where_rules_do_not_say_what_they_make_nothing_is_compared(place):
    assert stale.made_by_rules(SimpleNamespace(), ["toy"]) == []
    assert records.mark_unknown(SimpleNamespace(), ["toy"]) == []
    silent = internals.Place("b", {}, place.outputs, SimpleNamespace())
    assert silent.params == {}
    assert [*silent.inputs()] == []
    assert internals.recorded_inputs(SimpleNamespace(), "results/toy/b.h5") == set()
