"""Steps in the worker of a run's own cluster, in one of a cluster that exists, and neither."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client as Socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests

from scrna import cluster, remote, slots
from scrna.errors import UserError
from scrna.watch import process_start

SCRIPTS = Path(cluster.__file__).parents[1]
CONFIG = {
    "worker": "warm",
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
    from scrna.rule import hand_over

    hand_over(__file__, snakemake)

import os, sys, time, warnings
import numpy as np
from scrna import slots
from scrna.errors import UserError
from scrna.log import log
from scrna.step import note, run, step

@step
def toy(out, *, backend, size=1):
"""
TAIL = """

if __name__ == "__main__":
    run(toy, snakemake)
"""
PID = "slots.write(out, {'obs/pid': np.array([os.getpid()])})"
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
        return int(slots.read(self.out, "obs/pid")[0])

    @property
    def modules(self) -> list[str]:
        return json.loads(self.stdout)


class Toys:
    """Rules of one step each, in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str], config: dict):
        self.folder, self.environment, self.config = folder, environment, config
        (folder / ".snakemake").mkdir(exist_ok=True)

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
def running(folder, **options):
    """A run's own cluster on the CPU: its folder, and what engine.json says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(remote.FOLDER_VARIABLE, "")
        process = cluster.start(CONFIG, "cpu", **options)
        folder = Path(os.environ[remote.FOLDER_VARIABLE])
    about = json.loads((folder / "engine.json").read_text())
    eventually((folder / "cluster.json").exists, 60)
    yield SimpleNamespace(folder=folder, log=str(remote.log_of(folder)), **about)
    children = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert not folder.exists()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with running(tmp_path_factory.mktemp("run")) as engine:
        yield engine


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One with two workers, for two steps at a time; Dask's own ports are somebody else's."""
    with ExitStack() as stack:
        for port in (8786, 8787):
            taken = stack.enter_context(socket.socket())
            with suppress(OSError):  # by somebody else already
                taken.bind(("127.0.0.1", port))
                taken.listen()
        folder = tmp_path_factory.mktemp("pair")
        yield stack.enter_context(running(folder, at_once=2, threads=1))


@pytest.fixture
def warm(engine, tmp_path):
    return Toys(tmp_path, {remote.FOLDER_VARIABLE: str(engine.folder)}, CONFIG)


@pytest.fixture
def cold(tmp_path):
    (tmp_path / "cold").mkdir()
    return Toys(tmp_path / "cold", {}, CONFIG | {"worker": "none"})


def plain(text: str) -> str:
    """Leave out of a log what differs between two runs: times, and where the files lie."""
    text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d s", "… s", text)


SAYS = """
for n in range(300):
    log.info("%d cells", n)
warnings.warn("graph is not connected", RuntimeWarning)
note("recall", 0.97)
slots.write(out, {"obs/a": np.arange(size)})
log.error("after it")
"""


def test_a_step_in_the_worker_is_as_one_in_its_own_process(warm, cold):
    there, here = warm.run(SAYS, size=5), cold.run(SAYS, size=5)
    assert there.code == here.code == 0, there.stderr
    assert plain(there.stderr) == plain(here.stderr)
    assert plain(there.log) == plain(here.log)
    assert plain(there.stderr).count("\n") == 304
    assert "[toy pbmc3k] graph is not connected (RuntimeWarning in toy.py:" in there.stderr
    assert slots.digest_of(there.out) == slots.digest_of(here.out)
    ours, theirs = slots.provenance_of(there.out), slots.provenance_of(here.out)
    assert (ours["worker"], theirs["worker"]) == ("warm", "own process")
    assert ours["parameters"] == theirs["parameters"] == {"size": 5}
    assert ours["recall"] == theirs["recall"] == 0.97


@pytest.mark.parametrize("library", ["distributed", "none"])
def test_a_rules_own_process_ends_at_once_but_its_log_is_whole(cold, library):
    body = """
    import atexit, types
    atexit.register(print, "farewell")
    print("said", end="")
    slots.write(out, {"obs/a": np.arange(3)})
    if size == 1:
        sys.modules["distributed"] = types.ModuleType("distributed")
    """
    ended = cold.run(body, size=1 if library == "distributed" else 2)
    assert ended.code == 0
    assert "s since the process started" in ended.log.splitlines()[-1]
    assert slots.read(ended.out, "obs/a").tolist() == [0, 1, 2]
    assert ended.stdout.startswith("said")
    assert ("farewell" in ended.stdout) is (library == "distributed")


def test_a_warning_is_given_by_each_step(warm):
    body = "warnings.warn('graph is not connected', RuntimeWarning)"
    for _ in range(2):
        assert warm.run(body).log.count("graph is not connected") == 1


def test_steps_share_a_process_that_is_not_the_rules(warm, engine):
    pids = {warm.run(PID).pid for _ in range(2)}
    assert pids == {child.pid for child in workers(engine)}


def workers(engine) -> list[psutil.Process]:
    children = psutil.Process(engine.pid).children()
    (server,) = (child for child in children if "forkserver" in " ".join(child.cmdline()))
    return server.children()


def test_workers_look_for_garbage_but_not_while_they_import(warm):
    body = """
    import gc, sys
    log.info("looks: %s, kept out: %d", gc.isenabled(), gc.get_freeze_count())
    log.info("imported without: %s", "without_gc" in sys.modules)
    slots.write(out, {"obs/a": np.arange(1)})
    """
    said = warm.run(body).log
    assert "looks: True" in said
    assert "imported without: True" in said
    assert int(re.search(r"kept out: (\d+)", said)[1]) > 100_000


@pytest.mark.parametrize(
    ("backend", "due", "is_there"),
    [("cpu", ["pca", "umap"], True), ("cpu", ["pca"], False), ("gpu", ["neighbors"], False)],
)
def test_what_compiles_as_it_is_imported_is_imported_once(monkeypatch, backend, due, is_there):
    libraries = []
    monkeypatch.setattr(cluster.forkserver, "set_forkserver_preload", libraries.extend)
    monkeypatch.setattr(cluster.forkserver, "ensure_running", lambda: None)
    for name in (remote.WORKER_VARIABLE, "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    settings = {"backend": backend, "config": {}, "due": due, "ahead": None, "gpus": []}
    cluster._start_fork_server(settings)
    assert libraries == ["without_gc", *cluster.LIBRARIES, *["umap_compiled"] * is_there]


def test_a_rules_process_is_light_and_quick(warm):
    before = os.times()
    ended = warm.run(PID)
    after = os.times()
    assert ended.pid
    heavy = "anndata cupy dask distributed h5py numba numpy pandas rapids_singlecell scanpy zarr"
    assert not {*heavy.split()} & {*ended.modules}
    spent = sum(after[2:4]) - sum(before[2:4])  # processor time: the clock's is the machine's too
    assert spent < 1


def test_an_edited_script_is_loaded_anew(warm):
    said = [warm.run(f"log.info('version {n}')").log for n in (1, 2)]
    assert ["version 1" in said[0], "version 2" in said[1]] == [True, True]


def test_a_users_error_is_its_message_and_the_log_has_the_traceback(warm, cold):
    body = "raise UserError('no gene is left:\\n lower min_cells')"
    there, here = warm.run(body), cold.run(body)
    assert there.code == here.code == 1
    assert there.stderr == here.stderr == "[toy pbmc3k] no gene is left:\n lower min_cells\n"
    assert re.search(r'File ".*/toy.py", line \d+, in toy\n', there.log)
    assert there.log.rstrip().endswith("scrna.errors.UserError: no gene is left:\n lower min_cells")


def test_another_error_is_named_and_the_worker_stays(warm):
    before = warm.run(PID).pid
    ended = warm.run("{}['total_counts']")
    assert ended.code == 1
    assert ended.stderr == "[toy pbmc3k] KeyError: 'total_counts'\n"
    assert "Traceback (most recent call last):" in ended.log
    assert warm.run("sys.exit('enough')").code == 1
    assert warm.run(PID).pid == before


@pytest.mark.slow  # with those like it
@pytest.mark.parametrize(
    "body", ["raise MemoryError('std::bad_alloc: out_of_memory')", "raise RuntimeError('CUDA 700')"]
)
def test_after_an_error_that_leaves_a_process_broken_the_next_step_gets_another(warm, body):
    before = warm.run(PID).pid
    ended = warm.run(body)
    assert ended.code == 1
    assert re.search(r"\] (MemoryError: std::bad_alloc|RuntimeError: CUDA)", ended.stderr)
    assert warm.run(PID).pid != before


@pytest.mark.slow  # with those like it
def test_a_worker_that_dies_fails_its_step_and_is_replaced(warm, engine):
    before = warm.run(PID).pid
    ended = warm.run("log.info('here'); time.sleep(0.1); os._exit(137)")
    assert ended.code == 1
    assert "[toy pbmc3k] here" in ended.stderr
    assert "worker's process died while it ran this step: out of memory (dmesg" in ended.stderr
    assert engine.log in ended.stderr
    assert warm.run(PID).pid not in (before, None)


@pytest.mark.slow  # with those like it
def test_a_worker_that_cannot_be_prepared_says_why(tmp_path, monkeypatch):
    """Here scanpy cannot be imported; on a GPU machine RAPIDS may not fit the driver."""
    for name in ("broken", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/scanpy.py").write_text("raise ImportError('no such driver')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with running(tmp_path) as engine:
        toys = Toys(tmp_path / "run", {remote.FOLDER_VARIABLE: str(engine.folder)}, CONFIG)
        for _ in range(2):  # the next worker says the same
            ended = toys.run(PID)
            assert ended.code == 1
            assert "ImportError: no such driver" in ended.stderr


@pytest.mark.slow  # with those like it
def test_a_step_that_waits_for_its_turn_is_not_harmed_by_one_that_kills_the_worker(warm, cold):
    other = Toys(cold.folder, warm.environment, warm.config)
    first = warm.start("(out.parent / 'pid').touch(); time.sleep(1); os._exit(1)")
    eventually((warm.folder / "pid").exists)
    second = other.start(PID)
    assert Ended(first, warm.folder).code == 1
    assert Ended(second, cold.folder).pid


def test_what_a_step_waits_for_another_is_told(warm, cold):
    other = Toys(cold.folder, warm.environment, warm.config)
    first = warm.start("(out.parent / 'pid').touch(); time.sleep(1)\n" + PID)
    eventually((warm.folder / "pid").exists)
    second = other.run(PID)
    assert Ended(first, warm.folder).pid == second.pid
    told = json.loads((other.folder / "benchmarks/toy.memory.json").read_text())
    assert 0.3 < told["waited_s"] < 2
    assert f", {told['waited_s']:.1f} s of it until the worker had time" in second.log
    assert not (warm.folder / "benchmarks/toy.memory.json").exists()


@pytest.mark.slow  # with those like it
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


#: Says its process, and waits for another step to say its own.
MEETS = """
(out.parent.parent / f"{out.parent.name}.here").touch()
end = time.monotonic() + 60
while len(list(out.parent.parent.glob("*.here"))) < 2:
    assert time.monotonic() < end, "nobody came"
    time.sleep(0.02)
assert os.environ["OMP_NUM_THREADS"] == "1"
"""


def toys(pair, folder) -> list[Toys]:
    found = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        found.append(Toys(folder / name, {remote.FOLDER_VARIABLE: str(pair.folder)}, CONFIG))
    return found


@pytest.mark.slow  # with those like it
def test_two_steps_run_at_a_time_each_in_a_process_of_its_own(pair, tmp_path):
    both = toys(pair, tmp_path)
    started = [toy.start(MEETS + PID) for toy in both]
    pids = [Ended(process, toy.folder).pid for process, toy in zip(started, both, strict=True)]
    assert pids[0] != pids[1]


@pytest.mark.slow  # with those like it
def test_a_worker_that_dies_does_not_harm_the_other(pair, tmp_path):
    one, two = toys(pair, tmp_path)
    first, second = one.start(MEETS + "os._exit(1)"), two.start(MEETS + "time.sleep(1)\n" + PID)
    assert Ended(first, one.folder).code == 1
    other = Ended(second, two.folder).pid
    for file in tmp_path.glob("*.here"):
        file.unlink()
    started = [toy.start(MEETS + PID) for toy in (one, two)]
    pids = [Ended(p, toy.folder).pid for p, toy in zip(started, (one, two), strict=True)]
    assert other in pids
    assert pids[0] != pids[1]


def test_all_of_it_listens_on_this_machine_alone(engine):
    processes = [psutil.Process(engine.pid), *workers(engine)]
    listening = [c.laddr for p in processes for c in p.net_connections() if c.status == "LISTEN"]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert 8787 not in {address.port for address in listening}


def test_what_answers_without_a_key_tells_nothing(engine):
    """Dask's web servers."""
    answers = []
    for process in [psutil.Process(engine.pid), *workers(engine)]:
        for connection in process.net_connections():
            if connection.status == "LISTEN":
                for page in ("health", "info/main/workers.html", "json/identity.json", "metrics"):
                    address = f"http://127.0.0.1:{connection.laddr.port}/{page}"
                    with suppress(requests.RequestException):
                        answers.append(requests.get(address, timeout=1).status_code)
    assert {*answers} == {404}


def test_who_stalls_keeps_nobody_waiting(warm, engine):
    ready = json.loads((engine.folder / "cluster.json").read_text())
    with socket.create_connection(tuple(ready["address"])):
        assert warm.run(PID).pid


def test_only_who_has_the_keys_gets_in(engine):
    from distributed import Client

    assert engine.folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in engine.folder.glob("*.json")} == {0o600}
    ready = json.loads((engine.folder / "cluster.json").read_text())
    with pytest.raises(AuthenticationError):
        Socket(tuple(ready["address"]), authkey=b"guess")
    scheduler = re.search(r"Scheduler at: +tls://(\S+)", Path(engine.log).read_text())[1]
    for address, security in ((f"tcp://{scheduler}", None), (f"tls://{scheduler}", temporary())):
        with pytest.raises(OSError, match=r"[Tt]imed out|reset by peer|certificate"):
            Client(address, security=security, timeout=1).close()


def temporary():
    from distributed.security import Security

    return Security.temporary()


def test_a_run_whose_engine_is_gone_says_where_its_log_is(cold):
    folder = cold.folder / ".snakemake/scrna/cluster-1"
    folder.mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    about = {"pid": gone.pid, "started": 1, "host": os.uname().nodename, "gpus": 0}
    about["soon"] = time.time() + 3
    engine = folder / "engine.json"
    engine.write_text(json.dumps(about))
    warm = Toys(cold.folder, {remote.FOLDER_VARIABLE: str(folder)}, CONFIG)
    log = cold.folder / ".snakemake/log/cluster.log"
    said = f"its log says why: {log}. worker: none does without it"
    assert f"[toy pbmc3k] the run's worker did not start; {said}" in warm.run(PID).stderr
    engine.write_text(json.dumps(about | {"host": "elsewhere"}))  # a SLURM job's machine
    assert warm.run(PID).pid
    engine.unlink()
    assert f"[toy pbmc3k] the run's worker ended; {said}" in warm.run(PID).stderr


def test_a_step_that_the_worker_cannot_take_says_so(engine, tmp_path):
    there = remote.Cluster(engine.folder)
    request = {"scripts": str(SCRIPTS), "script": "toy.py", "function": "toy", "job": {}}
    with pytest.raises(UserError, match="could not take this step: KeyError: 'settings'; its log"):
        remote._ask_engine(there, request)


@pytest.mark.parametrize(
    ("step", "backend", "gpus", "waits"),
    [
        ("qc", "cpu", 0, False),
        ("umap", "cpu", 0, True),
        ("leiden", "cpu", 0, True),  # scanpy's
        ("leiden", "gpu", 1, False),  # cuGraph's
        ("markers", "gpu", 1, True),
        ("qc", "gpu", 2, True),  # its blocks may need both
    ],
)
def test_a_light_step_does_not_wait_for_a_worker_that_starts(
    tmp_path, monkeypatch, step, backend, gpus, waits
):
    monkeypatch.setenv(remote.FOLDER_VARIABLE, str(tmp_path))
    engine, now = tmp_path / "engine.json", time.time()
    about = {"host": os.uname().nodename, "gpus": gpus}
    job = {"settings": {"backend": backend}, "config": CONFIG}
    there = remote.Cluster(tmp_path)
    engine.write_text(json.dumps(about | {"soon": now + 60}))
    assert remote.cluster_of(job, step) == (there if waits else None)
    engine.write_text(json.dumps(about | {"soon": now}))  # it is about to be there
    assert remote.cluster_of(job, step) == there
    engine.write_text(json.dumps(about | {"soon": now + 60}))
    (tmp_path / "cluster.json").touch()
    assert remote.cluster_of(job, step) == there


# ------------------------------------------------------------------------- a cluster that exists


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


@pytest.fixture
def attached(existing, tmp_path):
    config = CONFIG | {"worker": "none", "dask": CONFIG["dask"] | {"scheduler": existing.file}}
    return Toys(tmp_path, {}, config)


@pytest.fixture
def checked(existing, tmp_path, monkeypatch):
    """Return the function that looks at the cluster, once it has a worker."""
    monkeypatch.chdir(tmp_path)

    def check(**expected):
        facts = cluster._facts
        monkeypatch.setattr(cluster, "_facts", lambda backend: facts(backend) | expected)
        return cluster.check_scheduler(existing.file, "cpu")

    def has_worker():
        with suppress(UserError):
            return cluster.check_scheduler(existing.file, "cpu")

    eventually(has_worker)
    return check


def test_a_cluster_that_exists_is_taken_by_file_or_address(checked, existing):
    assert checked() == f"worker: 1 of the cluster at {existing.file}"
    address = json.loads(Path(existing.file).read_text())["address"]
    assert cluster.check_scheduler(address, "cpu") == f"worker: 1 of the cluster at {address}"
    assert not list(Path.cwd().iterdir())


def test_a_step_in_a_cluster_that_exists_is_as_one_in_its_own_process(attached, cold):
    there, here = attached.run(SAYS, size=5), cold.run(SAYS, size=5)
    assert there.code == 0
    assert plain(there.stderr) == plain(here.stderr)
    assert plain(there.log) == plain(here.log)
    assert slots.digest_of(there.out) == slots.digest_of(here.out)
    assert slots.provenance_of(there.out)["worker"] == "warm"
    assert not list((attached.folder / ".snakemake").iterdir())


@pytest.mark.slow  # with those like it
@pytest.mark.parametrize("where", ["attached", "warm"])
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
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
    monkeypatch.setattr(cluster.tempfile, "NamedTemporaryFile", lambda *_, **__: token)
    with pytest.raises(UserError, match=r"worker tcp:.* on .* does not see this run's folder, /"):
        cluster.check_scheduler(existing.file, "cpu")


def test_workers_without_a_gpu_are_refused(checked, existing, monkeypatch):
    monkeypatch.setattr(cluster, "GPU_PACKAGES", ["numpy"])
    facts = cluster._facts("cpu") | {"rapids-singlecell-cu13": None}
    monkeypatch.setattr(cluster, "_facts", lambda backend: facts)
    with pytest.raises(UserError, match=r"has no GPU for backend: gpu: no NVIDIA driver found"):
        cluster.check_scheduler(existing.file, "gpu")


@pytest.mark.slow  # with those like it
def test_a_scheduler_that_is_not_there_is_refused(attached):
    attached.config["dask"]["scheduler"] = "tcp://127.0.0.1:1"
    ended = attached.run(PID)
    assert ended.code == 1
    assert "dask.scheduler: tcp://127.0.0.1:1 cannot be reached within 10 s" in ended.stderr
