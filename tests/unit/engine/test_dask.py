"""Steps on a Dask cluster that exists, and what keeps one from being used."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from scrna.dask_cluster import check as dask_check
from scrna.dask_cluster import tasks
from scrna.data import step_files
from scrna.errors import UserError
from scrna.processes import process_start
from tests.unit.engine.toys import (
    CONFIG,
    FOREVER,
    PID,
    SAYS,
    Ended,
    Toys,
    begin,
    eventually,
    gone,
    plain,
    processes,
    runtime,
)


@pytest.fixture(scope="module")
def existing(tmp_path_factory):
    """A Dask cluster that somebody started elsewhere: its folder and its scheduler file."""
    folder = tmp_path_factory.mktemp("existing")
    place = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", "scheduler.json"]
    with ExitStack() as stack:
        for program, more in (("scheduler", ["--port", "0"]), ("worker", ["--nthreads", "1"])):
            command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *common, *more]
            process = stack.enter_context(subprocess.Popen(command, **place))
            stack.callback(process.terminate)
            eventually((folder / "scheduler.json").exists)
        yield SimpleNamespace(folder=folder, file=str(folder / "scheduler.json"))


@pytest.fixture(scope="module")
def config(existing):
    return CONFIG | {"worker": "none", "dask": CONFIG["dask"] | {"scheduler": existing.file}}


@pytest.fixture(scope="module")
def engine(config, tmp_path_factory):
    """A run whose server is the one client of that cluster."""
    with runtime():
        found = begin(tmp_path_factory.mktemp("run"), config).wait()
        yield found
        before = processes(found)
        found.engine.close()
        assert gone(before)


@pytest.fixture
def attached(engine, config, tmp_path):
    return Toys(tmp_path, dict(engine.environment), config)


@pytest.fixture
def elsewhere(config, tmp_path):
    """A job on another machine than its run: it asks the cluster itself."""
    return Toys(tmp_path, {}, config)


@pytest.fixture
def checked(existing, tmp_path, monkeypatch):
    """Return the function that looks at the cluster, once it has a worker."""
    monkeypatch.chdir(tmp_path)

    def check(**expected):
        facts = dask_check._facts
        monkeypatch.setattr(dask_check, "_facts", lambda backend: facts(backend) | expected)
        return dask_check.check_scheduler(existing.file, "cpu")

    def has_worker():
        with suppress(UserError):
            return dask_check.check_scheduler(existing.file, "cpu")

    eventually(has_worker)
    return check


def test_a_cluster_that_exists_is_taken_by_file_or_address(checked, existing):
    assert checked() == f"worker: 1 of the cluster at {existing.file}"
    address = json.loads(Path(existing.file).read_text())["address"]
    assert dask_check.check_scheduler(address, "cpu") == f"worker: 1 of the cluster at {address}"
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("where", ["attached", "elsewhere"])
def test_a_step_in_a_cluster_that_exists_is_as_one_in_its_own_process(request, where, cold):
    attached = request.getfixturevalue(where)
    there, here = attached.run(SAYS, size=5), cold.run(SAYS, size=5)
    assert there.code == 0
    assert plain(there.stderr) == plain(here.stderr)
    assert plain(there.log) == plain(here.log)
    assert step_files.digest_of(there.out) == step_files.digest_of(here.out)
    assert step_files.provenance_of(there.out)["worker"] == "warm"
    assert not list((attached.folder / ".snakemake").iterdir())


@pytest.mark.slow  # with those like it
@pytest.mark.parametrize("where", ["attached", "elsewhere"])
def test_a_step_that_kills_its_worker_at_once_is_not_tried_again(request, where):
    """Dask's default is to try four times."""
    toys = request.getfixturevalue(where)
    body = "file = open(out.parent / 'tries', 'a'); file.write('x'); file.close(); os._exit(1)"
    ended = toys.run(body)
    assert ended.code == 1
    assert "the worker's process died while it ran this step" in ended.stderr
    assert (toys.folder / "tries").read_text() == "x"
    assert toys.run(PID).pid


@pytest.mark.slow  # with those like it
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_step_in_such_a_cluster_stops_with_its_rule(attached, number):
    process = attached.start(FOREVER)
    file = attached.folder / "pid"
    eventually(lambda: file.exists() and file.read_text().endswith(" "))
    process.send_signal(number)
    Ended(process, attached.folder)
    eventually(lambda: process_start(int(file.read_text())) is None, 5)


def test_other_versions_are_refused(checked):
    found = r"the worker tcp:.* has numpy 2\..*, this run has 1\.2\.3: start the workers from"
    with pytest.raises(UserError, match=found):
        checked(numpy="1.2.3")


def test_another_state_of_the_code_is_refused(checked):
    with pytest.raises(UserError, match=r"the worker tcp:.*another state of this workflow's code"):
        checked(code="0123456789abcdef")


def test_a_folder_that_the_workers_do_not_see_is_refused(checked, existing, monkeypatch):
    token = nullcontext(SimpleNamespace(name="/elsewhere/x", write=len, flush=list))
    monkeypatch.setattr(dask_check.tempfile, "NamedTemporaryFile", lambda *_, **__: token)
    with pytest.raises(UserError, match=r"worker tcp:.* on .* does not see this run's folder, /"):
        dask_check.check_scheduler(existing.file, "cpu")


def test_workers_without_a_gpu_are_refused(checked, existing, monkeypatch):
    monkeypatch.setattr(dask_check, "GPU_PACKAGES", ["numpy"])
    facts = dask_check._facts("cpu") | {"rapids-singlecell-cu13": None}
    monkeypatch.setattr(dask_check, "_facts", lambda backend: facts)
    with pytest.raises(UserError, match=r"has no GPU for backend: gpu: no NVIDIA driver found"):
        dask_check.check_scheduler(existing.file, "gpu")


@pytest.mark.slow  # with those like it
def test_a_scheduler_that_is_not_there_is_refused(attached):
    dask = attached.config["dask"] | {"scheduler": "tcp://127.0.0.1:1"}
    ended = Toys(attached.folder, {}, attached.config | {"dask": dask}).run(PID)
    assert ended.code == 1
    assert "dask.scheduler: tcp://127.0.0.1:1 cannot be reached within 10 s" in ended.stderr


def test_a_rules_process_leaves_dask_to_the_engine(attached):
    assert attached.run(PID).pid
    modules = attached.run(PID).modules
    assert not {"distributed", "numpy", "scanpy"} & {*modules}


HOLDS = """
from scipy.sparse import random
from scrna.resources import kept_matrices
log.info("kept before: %s", kept_matrices.nbytes() > 0)
kept_matrices.put(("a matrix",), [random(1000, 100, 0.1, format="csr", dtype=np.float32)])
step_files.write(out, {'obs/a': np.array([1])})
"""


def test_a_workers_matrix_is_kept_for_the_next_step_and_no_longer(attached, existing):
    """By the scheduler's choice the next step may come to the other process of a restart."""
    assert attached.run(HOLDS).code == 0
    assert "kept before: True" in attached.run(HOLDS).log

    def shorter() -> None:
        from scrna.dask_cluster import tasks

        tasks._KEPT = 0.2

    with tasks.connected(existing.file) as client:
        client.run(shorter)
    assert attached.run(HOLDS).code == 0
    body = f"""
    from scrna.resources import kept_matrices
    log.info('kept: %s', kept_matrices.nbytes() > 0)
    {PID}
    """
    eventually(lambda: "kept: False" in attached.run(body).log, 20)


@pytest.mark.parametrize(
    ("state", "wanted"), [("executing", True), ("long-running", True), ("released", False)]
)
def test_whether_a_step_is_wanted_is_what_its_worker_knows(state, wanted):
    task = SimpleNamespace(state=state)
    worker = SimpleNamespace(state=SimpleNamespace(tasks={"a step": task}))
    assert tasks._is_wanted(worker, "a step") is wanted
    assert not tasks._is_wanted(worker, "one that was cancelled")


def test_where_a_worker_does_not_know_it_a_step_runs_to_its_end():
    """Dask has no public way to ask; where its worker is another, a step is not stopped."""
    worker = SimpleNamespace()
    assert tasks._is_wanted(worker, "a step")
    running = ThreadPoolExecutor().submit(time.sleep, 0.3)
    eventually(running.running, 5)
    tasks._stop(worker, running)
    assert running.done()
