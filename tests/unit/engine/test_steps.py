"""Steps in a worker: as in a process of their own, and every way in which one may end."""

import json
import os
import re
import signal
import socket
import time

import pytest

from scrna.data import step_files
from scrna.engine import client, protocol
from scrna.errors import UserError
from scrna.processes import process_start
from tests.unit.engine.toys import (
    CONFIG,
    FOREVER,
    PID,
    SAYS,
    Ended,
    Toys,
    eventually,
    plain,
    running,
)


def test_a_step_in_the_worker_is_as_one_in_its_own_process(warm, cold):
    there, here = warm.run(SAYS, size=5), cold.run(SAYS, size=5)
    assert there.code == here.code == 0, there.stderr
    assert plain(there.stderr) == plain(here.stderr)
    assert plain(there.log) == plain(here.log)
    assert plain(there.stderr).count("\n") == 304
    assert "[toy pbmc3k] graph is not connected (RuntimeWarning in toy.py:" in there.stderr
    assert step_files.digest_of(there.out) == step_files.digest_of(here.out)
    ours, theirs = step_files.provenance_of(there.out), step_files.provenance_of(here.out)
    assert (ours["worker"], theirs["worker"]) == ("warm", "own process")
    assert ours["parameters"] == theirs["parameters"] == {"size": 5}
    assert ours["recall"] == theirs["recall"] == 0.97


@pytest.mark.parametrize("library", ["distributed", "none"])
def test_a_rules_own_process_ends_at_once_but_its_log_is_whole(cold, library):
    body = """
    import atexit, types
    atexit.register(print, "farewell")
    print("said", end="")
    step_files.write(out, {"obs/a": np.arange(3)})
    if size == 1:
        sys.modules["distributed"] = types.ModuleType("distributed")
    """
    ended = cold.run(body, size=1 if library == "distributed" else 2)
    assert ended.code == 0
    assert "s since the process started" in ended.log.splitlines()[-1]
    assert step_files.read(ended.out, "obs/a").tolist() == [0, 1, 2]
    assert ended.stdout.startswith("said")
    assert ("farewell" in ended.stdout) is (library == "distributed")


def test_a_warning_is_given_by_each_step(warm):
    body = "warnings.warn('graph is not connected', RuntimeWarning)"
    for _ in range(2):
        assert warm.run(body).log.count("graph is not connected") == 1


def test_steps_share_a_process_that_is_not_the_rules(warm, engine):
    pids = {warm.run(PID).pid for _ in range(2)}
    assert pids == {worker.pid for worker in engine.workers}


def test_a_step_finds_the_folder_and_the_libraries_of_its_run(warm, engine):
    body = """
    log.info("in %s, scanpy: %s", os.getcwd(), "scanpy" in sys.modules)
    step_files.write(out, {"obs/a": np.arange(1)})
    """
    assert f"in {warm.folder}, scanpy: True" in warm.run(body).log
    assert {worker.cwd() for worker in engine.workers} == {"/"}


def test_a_rules_process_is_light_and_quick(warm):
    before = os.times()
    ended = warm.run(PID)
    after = os.times()
    assert ended.pid
    heavy = "anndata cupy dask distributed h5py numba numpy pandas rapids_singlecell scanpy zarr"
    assert not {*heavy.split()} & {*ended.modules}
    spent = sum(after[2:4]) - sum(before[2:4])  # processor time: the clock's is the machine's too
    assert spent < 1


def test_a_step_that_raises_fails_with_its_message(warm):
    before = warm.run(PID).pid
    ended = warm.run("raise UserError('no cells are left')")
    assert ended.code == 1
    assert ended.stderr == "[toy pbmc3k] no cells are left\n"
    ended = warm.run("{}['total_counts']")
    assert ended.code == 1
    assert ended.stderr == "[toy pbmc3k] KeyError: 'total_counts'\n"
    assert "Traceback (most recent call last):" in ended.log
    assert warm.run("sys.exit('enough')").code == 1
    assert warm.run(PID).pid == before


@pytest.mark.parametrize(
    "body", ["raise MemoryError('std::bad_alloc: out_of_memory')", "raise RuntimeError('CUDA 700')"]
)
def test_after_an_error_that_leaves_a_process_broken_the_next_step_gets_another(warm, body):
    before = warm.run(PID).pid
    ended = warm.run(body)
    assert ended.code == 1
    assert re.search(r"\] (MemoryError: std::bad_alloc|RuntimeError: CUDA)", ended.stderr)
    assert warm.run(PID).pid != before


@pytest.mark.parametrize("body", ["os._exit(137)", "os.kill(os.getpid(), 9)"])
def test_a_worker_that_dies_fails_its_step_once_and_is_replaced(warm, engine, body):
    before = warm.run(PID).pid
    tries = "file = open(out.parent / 'tries', 'a'); file.write('x'); file.close()"
    ended = warm.run(f"log.info('here'); {tries}; {body}")
    assert ended.code == 1
    assert "[toy pbmc3k] here" in ended.stderr
    assert "worker's process died while it ran this step: out of memory (dmesg" in ended.stderr
    assert str(engine.log) in ended.stderr
    assert (warm.folder / "tries").read_text() == "x"
    assert warm.run(PID).pid not in (before, None)


@pytest.mark.slow  # with those like it
def test_a_worker_that_cannot_be_prepared_says_why(tmp_path, monkeypatch):
    """Here scanpy cannot be imported; on a GPU machine RAPIDS may not fit the driver."""
    for name in ("broken", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/scanpy.py").write_text("raise ImportError('no such driver')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with running(tmp_path) as engine:
        toys = Toys(tmp_path / "run", engine.environment, CONFIG)
        for _ in range(2):  # the next worker says the same
            ended = toys.run(PID)
            assert ended.code == 1
            assert "ImportError: no such driver" in ended.stderr


def test_a_step_that_waits_for_its_turn_is_not_harmed_by_one_that_kills_the_worker(warm, cold):
    other = Toys(cold.folder, warm.environment, warm.config)
    first = warm.start("(out.parent / 'pid').touch(); time.sleep(1); os._exit(1)")
    eventually((warm.folder / "pid").exists)
    second = other.start(PID)
    assert Ended(first, warm.folder).code == 1
    assert Ended(second, cold.folder).pid


def test_what_a_step_waits_for_another_is_noted(warm, cold):
    other = Toys(cold.folder, warm.environment, warm.config)
    first = warm.start("(out.parent / 'pid').touch(); time.sleep(2)\n" + PID)
    eventually((warm.folder / "pid").exists)
    begun = time.monotonic()
    second = other.run(PID)
    took = time.monotonic() - begun
    assert Ended(first, warm.folder).pid == second.pid
    known = json.loads((other.folder / "benchmarks/toy.memory.json").read_text())
    assert 0.1 < known["waited_s"] < took
    assert f", {known['waited_s']:.1f} s of it waiting for the worker" in second.log
    assert not (warm.folder / "benchmarks/toy.memory.json").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_step_whose_rule_is_stopped_stops(warm, number, code):
    warm.environment["SCRNA_SNAKEMAKE_PID"] = str(os.getpid())  # which makes SIGTERM an exit
    process = warm.start(FOREVER)
    file = warm.folder / "pid"
    eventually(lambda: file.exists() and file.read_text().endswith(" "))
    pid = int(file.read_text())
    process.send_signal(number)
    ended = Ended(process, warm.folder)
    assert ended.code == code
    if number == signal.SIGKILL:
        eventually(lambda: process_start(pid) is None, 5)
    assert process_start(pid) is None
    if number == signal.SIGINT:
        assert ended.stderr == "[toy pbmc3k] stopped by Ctrl-C\n"
    assert warm.run(PID).pid != pid


def test_a_step_that_is_stopped_while_it_waits_for_its_turn_is_not_run(warm, cold):
    other = Toys(cold.folder, warm.environment, warm.config)
    first = warm.start("(out.parent / 'pid').touch(); time.sleep(2)\n" + PID)
    eventually((warm.folder / "pid").exists)
    second = other.start("(out.parent / 'ran').touch()")
    time.sleep(0.5)
    second.send_signal(signal.SIGINT)
    assert Ended(second, other.folder).code == 130
    before = Ended(first, warm.folder).pid
    assert warm.run(PID).pid == before
    assert not (other.folder / "ran").exists()


#: Says its process, and waits for another step to say its own.
MEETS = """
(out.parent.parent / f"{out.parent.name}.here").touch()
end = time.monotonic() + 60
while len(list(out.parent.parent.glob("*.here"))) < 2:
    assert time.monotonic() < end, "nobody came"
    time.sleep(0.02)
assert os.environ["OMP_NUM_THREADS"] == "1"
"""


@pytest.mark.slow  # with those like it
def test_two_steps_run_at_a_time_each_in_a_process_of_its_own(tmp_path):
    with running(tmp_path, at_once=2, threads=1) as pair:
        one, two = (Toys(tmp_path / name, pair.environment, CONFIG) for name in ("one", "two"))
        started = [toy.start(MEETS + PID) for toy in (one, two)]
        pids = [Ended(p, toy.folder).pid for p, toy in zip(started, (one, two), strict=True)]
        assert pids[0] != pids[1]
        for file in tmp_path.glob("*.here"):
            file.unlink()
        first, second = one.start(MEETS + "os._exit(1)"), two.start(MEETS + "time.sleep(1)\n" + PID)
        assert Ended(first, one.folder).code == 1
        assert Ended(second, two.folder).pid in pids  # one that dies does not harm the other


def test_who_stalls_keeps_nobody_waiting(warm, engine):
    with socket.socket(socket.AF_UNIX) as silent, protocol.connect(engine.path) as half:
        silent.connect(str(engine.path))
        protocol.send(half, "step")  # and no request follows
        protocol.receive(half)
        half.close()
        assert warm.run(PID).pid


def test_what_is_no_message_harms_nobody(warm, engine):
    for sent in (b"", b"\x00\x00\x00\x03abc", b"\xff\xff\xff\xff", b"\x00\x00\x00\x04null"):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(engine.path))
            other.sendall(sent)
    assert warm.run(PID).pid
    assert engine.status["pid"] == engine.pid


def test_a_run_whose_engine_is_gone_says_so(cold, tmp_path):
    warm = Toys(cold.folder, {protocol.VARIABLE: f"{os.uname().nodename}:{tmp_path}/x"}, CONFIG)
    ended = warm.run(PID)
    assert ended.code == 1
    assert "[toy pbmc3k] the run's worker is gone (FileNotFoundError" in ended.stderr
    assert ended.stderr.endswith("; worker: none does without it\n")
    warm.environment[protocol.VARIABLE] = f"elsewhere:{tmp_path}/x"  # a SLURM job's machine
    assert warm.run(PID).pid


def test_a_step_that_the_worker_cannot_take_says_so(engine, tmp_path):
    job = {"settings": {}}
    request = {"script": "toy.py", "function": "toy", "job": job}
    with pytest.raises(UserError, match="could not take this step: KeyError: 'directory'; its log"):
        client._ask(str(engine.path), request, is_light=False)


@pytest.mark.parametrize(
    ("step", "backend", "waits"),
    [
        ("qc", "cpu", False),
        ("umap", "cpu", True),
        ("leiden", "cpu", True),  # scanpy's
        ("leiden", "gpu", False),  # cuGraph's
        ("markers", "gpu", True),
    ],
)
def test_a_light_step_does_not_wait_for_a_worker_that_starts(monkeypatch, step, backend, waits):
    asked = []
    monkeypatch.setattr(client, "_ask", lambda _, __, *, is_light: asked.append(is_light))
    monkeypatch.setenv(protocol.VARIABLE, f"{os.uname().nodename}:/x")
    job = {"settings": {"backend": backend}, "config": CONFIG, "files": {}}
    assert client.perform("x.py", step, job) is None
    assert asked == [not waits]
