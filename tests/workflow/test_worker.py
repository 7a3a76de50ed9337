"""Runs whose steps share a worker: the same results, and every way in which that may go wrong."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from scrna.data import step_files
from scrna.processes import process_start
from tests.workflow.processes import processes_of, runtime, wait_until

WARM = "run: plain\nworker: warm"
UMAP = "results/plain/pca/umap.h5"
#: Has begun, and goes on.
FOREVER = "open(f'{out}.begun', 'w').close(); import time; time.sleep(120)"


def copied(done, folder: Path):
    """The complete run, which had workers; what a copy's server logs is its own."""
    workflow = done.at(folder)
    (workflow.folder / ".snakemake/log/worker.log").unlink()
    return workflow


def due_umap(done, tmp_path, line: str, name: str = "work"):
    """The complete run, with a line put at the beginning of the step umap, so that it is due."""
    workflow = copied(done, tmp_path / name).clone(tmp_path / f"{name}-code").over(WARM)
    script = workflow.code / "scripts/umap.py"
    lines = script.read_text().splitlines()
    function = next(
        node for node in ast.parse("\n".join(lines)).body if getattr(node, "name", "") == "umap"
    )
    lines.insert(function.body[1].lineno - 1, f"    {line}")
    script.write_text("\n".join(lines) + "\n")
    return workflow


def begun(workflow) -> Path:
    return workflow.folder / f"{UMAP}.begun"


def left(workflow) -> list[Path]:
    """What a worker has left: its socket."""
    return [*Path(runtime(workflow.folder)).rglob("*.sock")]


def engine_log(workflow) -> str:
    file = workflow.folder / ".snakemake/log/worker.log"
    return file.read_text() if file.exists() else ""


@pytest.mark.long
def test_the_same_results_from_a_worker_and_without(done, tmp_path):
    """The shared run has one, for its many steps; light ones may have begun before it was there."""
    workflow = copied(done, tmp_path / "work").over("run: plain\nworker: none")
    files = [f"results/plain/{step}.h5" for step in ("hvg", "pca/umap", "pca/leiden")]
    for file in files:
        (workflow.folder / file).unlink()
    workflow.run(*files)
    for file in files:
        alone, warm = (run.folder / file for run in (workflow, done))
        assert step_files.digest_of(alone) == step_files.digest_of(warm)
        how = [step_files.provenance_of(each)["worker"] for each in (alone, warm)]
        assert how == ["own process", "warm"]
    for step, says in (("qc", r"\d+ cells: median"), ("hvg", r"\d+ of \d+ genes are")):
        log = (done.folder / f"logs/plain/{step}.log").read_text()
        assert re.search(rf"^\[{step} plain\] {says}", done.output, re.MULTILINE)
        assert re.search(rf"INFO {step} done in [\d.]+ s on the CPU$", log, re.MULTILINE)
    for worker in ("none", "auto", "warm"):  # no reason to run again
        assert workflow.over(f"worker: {worker}").due(*files) == set()


@pytest.mark.slow
def test_nothing_is_left_of_a_worker(done, tmp_path):
    assert left(done) == []
    workflow = copied(done, tmp_path / "work").over(WARM)
    file = workflow.folder / UMAP
    file.unlink()
    with open(tmp_path / "output.txt", "w") as output:
        process = workflow.start(UMAP, stdout=output, stderr=output)
        assert process.wait(timeout=120) == 0
    wait_until(lambda: not processes_of(process.pid), 10)
    assert step_files.provenance_of(file)["worker"] == "warm"
    assert left(workflow) == []


@pytest.mark.slow
def test_a_run_of_few_steps_starts_no_worker_by_itself(done, tmp_path):
    workflow = copied(done, tmp_path / "work").over("run: plain")
    file = workflow.folder / "results/plain/qc.h5"
    file.unlink()
    workflow.run("results/plain/qc.h5")
    assert step_files.provenance_of(file)["worker"] == "own process"
    assert engine_log(workflow) == ""


@pytest.mark.slow
def test_no_worker_where_nothing_needs_one(done, tmp_path):
    workflow = copied(done, tmp_path / "work").over(WARM)
    (workflow.folder / UMAP).unlink()
    workflow.run(UMAP, options=("-n",))
    workflow.run("results/plain/qc.h5")  # nothing to be done
    (workflow.folder / "results/plain/filter.h5").unlink()
    workflow.run("results/plain/filter.h5")  # a step on tables
    assert engine_log(workflow) == ""
    assert left(workflow) == []


@pytest.mark.slow
def test_snakemake_killed_in_the_middle_of_a_step(done, tmp_path):
    workflow = due_umap(done, tmp_path, FOREVER)
    with open(tmp_path / "output.txt", "w") as output:
        process = workflow.start(UMAP, stdout=output, stderr=output)
        wait_until(begun(workflow).exists)
        assert (
            len(processes_of(process.pid)) >= 4
        )  # the rule's, the server, the worker and its parent
        process.kill()
        process.wait()
    wait_until(lambda: not processes_of(process.pid), 10)
    assert left(workflow) == []


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_step(done, tmp_path):
    workflow = due_umap(done, tmp_path, FOREVER)
    with open(tmp_path / "output.txt", "w") as output:
        process = workflow.start(UMAP, stdout=output, stderr=output)
        wait_until(begun(workflow).exists)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 1
    wait_until(lambda: not processes_of(process.pid), 10)
    assert "[umap plain/pca] stopped by Ctrl-C" in (tmp_path / "output.txt").read_text()


@pytest.mark.slow
def test_a_step_that_kills_its_worker_fails_and_those_after_it_get_another(done, tmp_path):
    workflow = due_umap(done, tmp_path, "import os; os._exit(137)")
    workflow = workflow.over("datasets: {plain: {tsne: {perplexity: 20}}}")
    output = workflow.run(fails=True)
    assert "[umap plain/pca] the worker's process died while it ran this step" in output
    tsne = workflow.folder / "results/plain/pca/tsne.h5"
    assert step_files.provenance_of(tsne)["parameters"]["perplexity"] == 20
    assert step_files.provenance_of(tsne)["worker"] == "warm"
    assert workflow.due() == {"umap plain/pca", "final plain", "h5ad plain"}


@pytest.mark.slow
def test_a_step_that_raises_is_told_as_ever(done, tmp_path):
    line = "raise UserError('too few cells')"
    workflow = due_umap(done, tmp_path, f"from scrna.errors import UserError; {line}")
    output = workflow.run(UMAP, fails=True)
    assert "\n[umap plain/pca] too few cells\n" in output
    log = (workflow.folder / "logs/plain/pca/umap.log").read_text()
    assert re.search(r"scripts/umap.py\", line \d+, in umap\n", log)
    assert f"    from scrna.errors import UserError; {line}\n" in log


@pytest.mark.slow
def test_two_runs_at_once_in_two_folders(done, tmp_path):
    line = "import time; from scrna.log import log; log.info('here'); time.sleep(1)"
    workflows = [due_umap(done, tmp_path, line, name) for name in ("one", "two")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    runs = [workflow.start(UMAP, **pipes) for workflow in workflows]
    for workflow, process in zip(workflows, runs, strict=True):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        assert output.count("[umap plain/pca] here\n") == 1
        assert "libraries imported in" in engine_log(workflow)
    digests = {step_files.digest_of(workflow.folder / UMAP) for workflow in workflows}
    assert digests == {step_files.digest_of(done.folder / UMAP)}


@pytest.mark.slow
def test_a_worker_stays_for_the_next_run_which_is_quick(done, tmp_path):
    """After a changed parameter that run finds the libraries, the matrix and the process."""
    workflow = copied(done, tmp_path / "work").over(f"{WARM}\nworker_keep_minutes: 3")
    markers = "results/plain/pca/markers.h5"
    (workflow.folder / markers).unlink()
    said = workflow.run(markers)
    assert "The worker stays for 3 minutes (scanpy loaded" in said
    assert "make stop ends it" in said
    pids = processes_of_worker(workflow)
    workflow = workflow.over("datasets: {plain: {markers: {corr_method: bonferroni}}}")
    said = workflow.run(markers)
    assert re.search(r"^a worker of \d\d:\d\d is warm: scanpy loaded", said, re.MULTILINE)
    assert "[markers plain/pca] the matrix is in memory from an earlier step" in said
    assert processes_of_worker(workflow) == pids
    stop = [sys.executable, "-P", workflow.code / "scripts/scrna/engine/__main__.py"]
    place = os.environ | {"XDG_RUNTIME_DIR": runtime(workflow.folder)}
    ended = subprocess.run(stop, env=place, capture_output=True, text=True, check=True)
    assert ended.stdout.endswith(" has ended\n")
    assert processes_of_worker(workflow) == set()
    assert left(workflow) == []


def processes_of_worker(workflow) -> set[int]:
    """The server of a run's folder and what it started, found by the log that they write."""
    log = workflow.folder / ".snakemake/log/worker.log"
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd/2").resolve() == log:
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_next_run_after_an_edited_script_has_another_worker(done, tmp_path):
    workflow = due_umap(done, tmp_path, "pass  # one").over("worker_keep_minutes: 3")
    workflow.run(UMAP)
    first = processes_of_worker(workflow)
    script = workflow.code / "scripts/umap.py"
    script.write_text(script.read_text().replace("pass  # one", "assert min_dist > 0"))
    said = workflow.over("worker_keep_minutes: 0").run(UMAP)
    assert "is warm" not in said
    assert step_files.provenance_of(workflow.folder / UMAP)["worker"] == "warm"
    wait_until(lambda: not processes_of_worker(workflow), 10)
    assert not {pid for pid in first if process_start(pid)}


@pytest.mark.slow
def test_a_worker_for_jobs_elsewhere_is_refused(done, tmp_path):
    workflow = due_umap(done, tmp_path, "pass  # due")
    output = workflow.run(UMAP, options=("--executor", "slurm", "--jobs", "1"), fails=True)
    assert "worker: warm is for steps on this machine" in output
    assert engine_log(workflow) == ""


@pytest.mark.long
def test_steps_go_to_a_cluster_that_exists(done, tmp_path):
    workflow = due_umap(done, tmp_path, "pass  # due")
    (tmp_path / "dask").mkdir()
    file = tmp_path / "dask/scheduler.json"
    attached = workflow.over(f"worker: none\ndask: {{scheduler: '{file}'}}")
    variables = os.environ | {"NUMBA_DISABLE_JIT": "1"}  # as the run that made `done` had
    place = {"cwd": tmp_path / "dask", "stderr": subprocess.DEVNULL, "env": variables}
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    with ExitStack() as stack:
        for program, more in (("scheduler", ["--port", "0"]), ("worker", ["--nthreads", "1"])):
            if program == "worker":
                refused = attached.run(UMAP, fails=True)
                assert f"the cluster at {file}, dask.scheduler, has no worker" in refused
                assert "UMAP" not in refused.partition("Execute")[2]
            command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *common, *more]
            process = stack.enter_context(subprocess.Popen(command, **place))
            stack.callback(process.terminate)
            wait_until(file.exists)
        wait_until(lambda: worker_is_there(file))
        output = attached.run(UMAP)
        wait_until(lambda: left(workflow) == [], 10)
    assert f"worker: 1 of the cluster at {file}" in output
    assert step_files.provenance_of(workflow.folder / UMAP)["worker"] == "warm"
    assert step_files.digest_of(workflow.folder / UMAP) == step_files.digest_of(done.folder / UMAP)
    shutil.rmtree(tmp_path / "dask")
    assert "cannot be reached within 10 s" in attached.over("seed: 1").run(UMAP, fails=True)


def worker_is_there(file: Path) -> bool:
    from distributed import Client

    with Client(scheduler_file=str(file), set_as_default=False) as client:
        return bool(client.scheduler_info()["workers"])


SHOW = """
configfile: "own.yaml"
rule all:
    output: "x"
    shell: "echo worker is {config[worker]} > {output}"
"""


@pytest.mark.parametrize("profile", ["spark", "workstation"])
@pytest.mark.parametrize(
    ("more", "worker"),
    [([], "warm"), (["--configfile", "user.yaml"], "warm"), (["--config", "seed=1"], "auto")],
)
def test_a_profile_with_gpus_asks_for_the_worker(code, tmp_path, profile, more, worker):
    """Its config stands above files; --config on the command line replaces it."""
    (tmp_path / "Snakefile").write_text(SHOW)
    (tmp_path / "own.yaml").write_text("worker: auto\n")
    (tmp_path / "user.yaml").write_text("run: toy\n")
    command = [sys.executable, "-m", "snakemake", "--profile", code / f"profiles/{profile}"]
    subprocess.run([*command, *more], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "x").read_text() == f"worker is {worker}\n"
