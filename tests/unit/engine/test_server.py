"""Which server a run finds, how long it stays, and what it gives back while nobody needs it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from scrna import environment
from scrna.engine import protocol, run, server
from scrna.errors import UserError
from scrna.resources.host_memory import GIB, Memory
from scrna.resources.locks import gpu_lock
from tests.unit.engine.toys import (
    CONFIG,
    PID,
    SCRIPTS,
    Toys,
    begin,
    eventually,
    gone,
    processes,
)

KEPT = CONFIG | {"worker_keep_minutes": 5}
#: A run of its own process: says which server it has, and stays until its input ends.
RUN = f"""
import json, os, sys
sys.path.append({str(SCRIPTS)!r})
from scrna import environment
from scrna.engine import protocol, run
engine = run.begin(json.loads(sys.argv[1]), "cpu", [])
protocol.send(engine._connection, "status")
print(protocol.receive(engine._connection)[1]["pid"], flush=True)
sys.stdin.read()
"""


def start_run(folder: Path, config: dict = CONFIG) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", RUN, json.dumps(config)]
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)


def end_run(process: subprocess.Popen) -> None:
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_two_runs_that_start_at_once_share_one_server(private, tmp_path):
    runs = [start_run(tmp_path) for _ in range(3)]
    pids = {int(process.stdout.readline()) for process in runs}
    assert len(pids) == 1
    everything = [psutil.Process(pids.pop())]
    for process in runs[:2]:
        end_run(process)
    assert not gone(everything, 1.5)
    end_run(runs[2])
    assert gone(everything)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_survives_a_run_that_is_killed(private, tmp_path, number):
    process = start_run(tmp_path)
    pid = int(process.stdout.readline())
    everything = eventually(lambda: len(found := processes(SimpleNamespace(pid=pid))) > 1 and found)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert gone(everything)
    assert not list(private.rglob("*.sock"))


def test_of_a_server_that_is_killed_nothing_is_left_and_the_next_run_starts_another(
    private, tmp_path
):
    first = begin(tmp_path, KEPT)
    before = processes(first)
    os.kill(first.pid, signal.SIGKILL)
    assert gone(before)
    assert first.path.exists()  # the socket that nobody listens at
    second = begin(tmp_path, KEPT)
    assert second.pid != first.pid
    assert second.path == first.path
    second.engine.close()


def test_a_worker_that_is_kept_serves_the_next_run_until_it_is_stopped(private, tmp_path):
    first = begin(tmp_path, KEPT).wait()
    toys = Toys(tmp_path / "toys", first.environment, KEPT)
    pid = toys.run(PID).pid
    assert first.engine.first_line is None
    assert first.engine.last_line() == (
        "The worker stays for 5 minutes (scanpy loaded); make stop ends it, and "
        "worker_keep_minutes: 0 keeps none"
    )
    first.engine.close()
    second = begin(tmp_path, KEPT)
    assert second.pid == first.pid
    since = second.status["since"]
    assert second.engine.first_line == f"a worker of {since} is warm: scanpy loaded"
    assert toys.run(PID).pid == pid
    everything = processes(second)
    holds = f"the worker of {since} (scanpy loaded)"
    assert run.stop() == [f"{holds} ends with the run that uses it, in {tmp_path}"]
    assert toys.run(PID).pid == pid
    assert second.engine.last_line() is None
    second.engine.close()
    assert gone(everything)
    assert run.stop() == ["no worker is there"]


def test_a_worker_that_is_kept_ends_at_once_when_it_is_stopped(private, tmp_path):
    kept = begin(tmp_path, KEPT)
    kept.engine.close()
    everything = processes(kept)
    make = subprocess.run(
        ["make", "-s", "-C", SCRIPTS.parent, "stop"], capture_output=True, text=True, check=True
    )
    assert make.stdout.startswith("the worker of ")
    assert make.stdout.endswith(" (scanpy loaded) has ended\n")
    assert gone(everything, 1)


def another_package(monkeypatch, tmp_path):
    (tmp_path / "site/new-1.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda _: str(tmp_path / "site"))


CHANGES = {
    "code": lambda patch, _: patch.setattr(run, "tree_digest", lambda _: "edited"),
    "venv": lambda patch, _: patch.setattr(sys, "executable", "/elsewhere/bin/python"),
    "package": another_package,
    "threads": lambda patch, _: patch.setenv("NUMBA_NUM_THREADS", "3"),
    "gpu": lambda *_: {"gpu": CONFIG["gpu"] | {"pool_gb": 2}},
    "memory": lambda *_: {"memory": CONFIG["memory"] | {"headroom_gb": 1}},
    "dask": lambda *_: {"dask": CONFIG["dask"] | {"threads": 3}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_worker_that_is_kept_ends_where_the_next_run_needs_another(
    private, tmp_path, monkeypatch, what
):
    kept = begin(tmp_path, KEPT)
    kept.engine.close()
    everything = processes(kept)
    config = KEPT | (CHANGES[what](monkeypatch, tmp_path) or {})
    assert begin(tmp_path, config, may_start=False) is None
    assert gone(everything, 1)


def test_what_a_worker_does_not_go_by_leaves_it(private, tmp_path, monkeypatch):
    kept = begin(tmp_path, KEPT)
    monkeypatch.setenv("SCRNA_SNAKEMAKE_PID", "1")
    (tmp_path / "other").mkdir()
    again = begin(tmp_path / "other", CONFIG | {"seed": 1}, may_start=False)
    assert again.pid == kept.pid
    kept.engine.close()
    again.engine.close()


def test_a_run_that_needs_another_worker_leaves_that_of_a_run_beside_it(
    private, tmp_path, monkeypatch
):
    first = begin(tmp_path, KEPT)
    second = begin(tmp_path, KEPT | {"memory": {"headroom_gb": 1, "wait_s": 0}})
    assert first.pid != second.pid
    assert first.status["runs"] == [str(tmp_path)]
    everything = processes(first)
    first.engine.close()
    assert gone(everything)  # whatever its run has said of how long it stays
    second.engine.close()


def test_a_script_that_is_edited_gives_another_identity(tmp_path, monkeypatch):
    import shutil

    from scrna.code_digest import _read, tree_digest

    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(protocol, "SCRIPTS", scripts)
    found = []
    for edit in ("", "\n# a comment\n", "\nx = 1\n"):
        with (scripts / "umap.py").open("a") as file:
            file.write(edit)
        tree_digest.cache_clear()
        _read.cache_clear()
        found.append(run._identity({}, {}))
    tree_digest.cache_clear()
    _read.cache_clear()
    assert found[0] == found[1] != found[2]


# --------------------------------------------------------------------------- while nothing runs


HOLDS = """
from scipy.sparse import random
from scrna.resources import kept_matrices
kept_matrices.put(("a matrix",), [random(1000, 100, 0.1, format="csr", dtype=np.float32)])
"""


class Here:
    """A server in a thread of this process, where a test can fake what it sees."""

    def __init__(self, folder: Path):
        path = folder / "here.sock"
        listener = protocol.listen(path)
        about, _ = run._settings(CONFIG, "cpu", [], 1, None)
        about |= {"path": str(path), "log": "its log", "gpus": [7], "headroom_gb": 4}
        self.server = server.Server(about, listener)
        self.server.runs[-1] = {"directory": "here", "keep_s": 0}
        self.thread = threading.Thread(target=self.server.serve)
        self.environment = {protocol.VARIABLE: f"{os.uname().nodename}:{path}"}
        self.listener = listener

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.is_over = True
        self.thread.join()
        self.server.end()
        self.listener.close()

    @property
    def kept(self) -> int:
        return self.server.status()["kept"]


def test_an_idle_worker_gives_its_matrices_back_where_others_need_the_memory(
    private, tmp_path, monkeypatch
):
    monkeypatch.setenv("SCRNA_LOCK_DIR", str(tmp_path))
    monkeypatch.setattr(server, "has_other_users", lambda: False)
    monkeypatch.setattr(server, "_SHARED", 0.0)
    memory = SimpleNamespace(available=50 * GIB)
    monkeypatch.setattr(
        server, "host_memory", lambda: Memory(64 * GIB, memory.available, "/proc/meminfo")
    )
    with Here(private) as here:
        toys = Toys(tmp_path / "toys", here.environment, CONFIG)

        def hold():
            assert toys.run(HOLDS).code == 0
            eventually(lambda: here.kept > 0, 5)

        hold()
        pid = here.server.workers[0].pid
        import time

        time.sleep(2.5)  # two looks
        assert here.kept > 0
        memory.available = 3 * GIB
        eventually(lambda: here.kept == 0, 5)
        memory.available = 50 * GIB
        hold()
        with gpu_lock("another run's step", 7):
            eventually(lambda: here.kept == 0, 10)
        hold()
        del here.server.runs[-1]
        here.server.keep_until = time.monotonic() + 60
        monkeypatch.setattr(server, "has_other_users", lambda: True)
        eventually(lambda: here.kept == 0, 5)
        assert here.server.workers[0].pid == pid  # and its libraries stay loaded
        assert "said" not in toys.run("").stderr
        here.server.keep_until = 0.0
        here.thread.join(timeout=5)
        assert not here.thread.is_alive()


def test_workers_that_die_before_they_are_ready_end_the_server(private, tmp_path, monkeypatch):
    """Else it would start them for ever."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "scanpy.py").write_text("import os\nos.register_at_fork(after_in_child=os.abort)")
    found = begin(tmp_path, KEPT)
    assert gone(processes(found), 30)
    assert "3 workers in a row died before they were ready" in found.log.read_text()
    found.engine.close()


# ------------------------------------------------------------------------------------ other users


AS_ANOTHER = f"""
import os, socket, sys
sys.path.append({str(SCRIPTS)!r})
from scrna import environment
from scrna.engine import protocol
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    protocol.connect(sys.argv[1])
    print("let in")
except OSError as error:
    print(type(error).__name__, error)
with socket.socket(socket.AF_UNIX) as found:
    try:
        found.connect(sys.argv[1])
        print(found.recv(100))
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be another user")
def test_another_user_is_not_let_in(private, tmp_path):
    found = begin(tmp_path)

    def said() -> list[str]:
        command = [sys.executable, "-c", AS_ANOTHER, str(found.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )

    assert [mode(path) for path in (found.path.parent, found.path)] == [0o700, 0o600]
    refused = said()
    assert refused[0].startswith("PermissionError [Errno 13]")
    assert refused[1] == "PermissionError"
    for path in (private, found.path.parent.parent, found.path.parent):
        path.chmod(0o755)
    found.path.chmod(0o777)  # were the folder's rights all that there is
    refused = said()
    assert refused[0] == "PermissionError the process at the other end belongs to user 0"
    assert refused[1] in ("b''", "ConnectionResetError")
    assert found.status["pid"] == found.pid
    for path in (private, found.path.parent.parent, found.path.parent):
        path.chmod(0o700)
    found.engine.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_that_others_may_enter_is_refused(private):
    folder = protocol.folder()
    assert folder.parent.parent == private
    folder.chmod(0o750)
    with pytest.raises(UserError, match=r"may be entered by others \(mode 750\); remove it, or"):
        protocol.folder()
    folder.rmdir()
    folder.symlink_to(private)
    with pytest.raises(UserError, match=r"the folder of the worker's socket, is a link or a file"):
        protocol.folder()
    folder.unlink()


def test_without_a_private_runtime_folder_one_in_tmp_is_taken(private, monkeypatch):
    private.chmod(0o755)
    assert protocol.folder().parent == Path(f"/tmp/scrna-{os.geteuid()}")
    private.chmod(0o700)
    long = private / ("x" * 80)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert protocol.folder().parent == Path(f"/tmp/scrna-{os.geteuid()}")


# ------------------------------------------------------------------------------ how long it stays


@pytest.mark.parametrize(
    ("asked", "attended", "scheduler", "minutes"),
    [
        ("auto", True, None, 10),
        ("auto", False, None, 0),
        ("auto", True, "tcp://x:1", 0),
        (0, True, None, 0),
        (2.5, False, None, 2.5),
    ],
)
def test_a_worker_stays_where_a_person_may_need_it(
    monkeypatch, asked, attended, scheduler, minutes
):
    monkeypatch.setattr(run, "is_attended", lambda: attended)
    config = {"worker_keep_minutes": asked, "dask": {"scheduler": scheduler}}
    assert run.keep_seconds(config) == 60 * minutes
