"""Locks between real processes: who waits, for whom, and what a killed holder leaves behind."""

import errno
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest

from scrna.errors import UserError
from scrna.resources import locks as lock_module
from scrna.resources.locks import Lock, directory_lock, gpu_lock

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
HEAD = f"""
import logging, os, subprocess, sys, time
sys.path.append({str(SCRIPTS)!r})
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
sys.stdout.reconfigure(line_buffering=True)
from scrna.resources.locks import directory_lock, gpu_lock
"""
HOLD = 'lock = gpu_lock("umap pbmc3k/pca")\nprint("held")\nsys.stdin.read()'


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts Python code beside a folder of locks; ends all at the end."""
    monkeypatch.setenv("SCRNA_LOCK_DIR", str(tmp_path))
    started = []

    def start(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + code, *map(str, arguments)], cwd=tmp_path, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        with process:  # closes its pipes
            process.wait()


@pytest.fixture
def said(caplog):
    """Return what this process has logged."""
    caplog.set_level(logging.INFO, "scrna")
    logger = logging.getLogger("scrna")
    logger.addHandler(caplog.handler)  # whether or not another test switched propagation off
    yield lambda: list(dict.fromkeys(record.getMessage() for record in caplog.records))
    logger.removeHandler(caplog.handler)


def test_second_waits_and_says_for_whom(start, tmp_path):
    holder = start(HOLD)
    assert holder.stdout.readline() == "held\n"
    waiter = start('gpu_lock("leiden demo/harmony")\nprint("mine")')
    line = waiter.stdout.readline()
    assert re.fullmatch(
        rf"GPU 0 is in use by umap pbmc3k/pca \(process {holder.pid} of \S+ on \S+, "
        rf"in {tmp_path}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\); waiting for it\n",
        line,
    )
    holder.stdin.close()
    assert re.fullmatch(r"GPU 0 is free after \d+ s\nmine\n", waiter.stdout.read())


def test_killed_holder_leaves_nothing_behind(start, tmp_path, said):
    holder = start(HOLD)
    holder.stdout.readline()
    waiter = start('gpu_lock("leiden demo/pca")\nprint("mine")\nsys.stdin.read()')
    waiter.stdout.readline()
    holder.kill()
    assert waiter.stdout.readline().startswith("GPU 0 is free")
    assert waiter.stdout.readline() == "mine\n"
    waiter.kill()
    waiter.wait()
    # The dead one's text is still there, and nobody is waited for.
    assert json.loads((tmp_path / "scrna-gpu-0.lock").read_text())["pid"] == waiter.pid
    with gpu_lock("pca") as lock:
        assert f"pca (process {os.getpid()} of " in lock.holder()
    assert said() == []
    assert (tmp_path / "scrna-gpu-0.lock").read_text() == ""


def test_four_processes_never_overlap(start, tmp_path):
    code = """
for i in range(5):
    with gpu_lock(f"job {i}"):
        begin = time.monotonic()
        time.sleep(0.02)
        end = time.monotonic()
    print("ran", begin, end)
    time.sleep(0.01)
"""
    processes = [start(code) for _ in range(4)]
    lines = "".join(process.communicate()[0] for process in processes)
    spans = sorted(
        tuple(map(float, span)) for span in re.findall(r"^ran (\S+) (\S+)$", lines, re.MULTILINE)
    )
    assert len(spans) == 20
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_gpus_have_separate_locks(start):
    with gpu_lock("a", 0):
        other = start('gpu_lock("b", 1)\nprint("mine")')
        assert other.stdout.readline() == "mine\n"


def test_waiter_reminds_every_minute(start, monkeypatch):
    assert lock_module._REMIND == 60
    holder = start(HOLD)
    holder.stdout.readline()
    lines = []

    def info(text, *values):
        lines.append(text % values)
        if len(lines) == 3:
            holder.stdin.close()

    monkeypatch.setattr(lock_module, "_REMIND", 0.2)
    monkeypatch.setattr(lock_module.log, "info", info)
    begin = time.monotonic()
    gpu_lock("leiden").release()
    assert time.monotonic() - begin >= 0.4
    assert all(line.startswith("GPU 0 is in use by umap pbmc3k/pca (") for line in lines[:3])
    assert lines[-1].startswith("GPU 0 is free after")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[1, 2]",
        "{}",
        "\xff",
        # A dead one's, its number now another process's.
        json.dumps({"pid": os.getpid(), "started": 1, "host": os.uname().nodename, "user": "eve",
                    "what": "umap", "directory": "/", "since": "then"}),
        # Another machine's (a shared folder): it cannot be asked for, but would move the cursor.
        json.dumps({"pid": 1, "started": 1, "host": "elsewhere", "user": "eve",
                    "what": "\x1b[2J", "directory": "/", "since": "then"}),
    ],
)  # fmt: skip
def test_stale_text_is_nobody(tmp_path, text):
    path = tmp_path / "lock"
    path.write_text(text, encoding="latin-1")
    assert Lock(path).holder() is None


def test_holder_without_a_name_is_waited_for(start, tmp_path):
    with (tmp_path / "scrna-gpu-0.lock").open("w") as silent:
        fcntl.flock(silent, fcntl.LOCK_EX)
        waiter = start('gpu_lock("leiden")\nprint("mine")')
        line = waiter.stdout.readline()
    assert line == "GPU 0 is in use by an unknown process; waiting for it\n"
    assert waiter.stdout.readline().startswith("GPU 0 is free")


def test_lock_on_a_removed_file_is_worth_nothing(tmp_path, monkeypatch):
    """Where a cleaner of /tmp takes the file away between its opening and its locking."""
    path = tmp_path / "lock"
    opened = []

    def open_and_remove(lock):
        opened.append(plain_open(lock))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    plain_open = Lock._open
    monkeypatch.setattr(Lock, "_open", open_and_remove)
    with Lock(path) as first:
        assert first.try_acquire("umap")
        assert len(opened) == 2
        assert not Lock(path).try_acquire("leiden")


def test_children_do_not_inherit_it(start, tmp_path):
    """The lock goes with its process though a forked and a started child live on."""
    code = """
lock = gpu_lock("umap")
started = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
forked = os.fork()
if not forked:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(started.pid, forked)
time.sleep(0.3)
os.kill(os.getpid(), 9)
"""
    parent = start(code)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        other = Lock(tmp_path / "scrna-gpu-0.lock")
        assert not other.try_acquire("leiden")
        parent.wait()
        assert other.try_acquire("leiden")
        other.release()
    finally:
        for pid in children:
            os.kill(pid, 9)


def test_new_file_is_open_to_all_users(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRNA_LOCK_DIR", str(tmp_path))
    path = tmp_path / "scrna-gpu-0.lock"
    umask = os.umask(0o077)
    try:
        with gpu_lock("umap"):
            assert path.stat().st_mode & 0o777 == 0o666
    finally:
        assert os.umask(umask) == 0o077


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_users_read_only_file_is_enough(start, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setenv("SCRNA_LOCK_DIR", folder)
        path = Path(folder, "scrna-gpu-0.lock")
        path.touch(0o644)
        holder = start("os.setuid(65534)\n" + HOLD)
        assert holder.stdout.readline() == "held\n"
        waiter = start('gpu_lock("leiden")\nprint("mine")')
        assert "an unknown process" in waiter.stdout.readline()
        holder.kill()
        assert waiter.stdout.readline().startswith("GPU 0 is free")


def test_what_is_no_lock_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRNA_LOCK_DIR", str(tmp_path))
    precious = tmp_path / "precious"
    precious.write_text("data")
    path = tmp_path / "scrna-gpu-0.lock"
    for plant in (path.symlink_to, path.hardlink_to):
        plant(precious)
        with pytest.raises(UserError, match=r"scrna-gpu-0.lock cannot serve.*SCRNA_LOCK_DIR"):
            gpu_lock("umap")
        path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot serve as the GPU's lock: Is a directory"):
        gpu_lock("umap")
    monkeypatch.setenv("SCRNA_LOCK_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="No such file or directory"):
        gpu_lock("umap")
    assert precious.read_text() == "data"


def test_second_run_in_a_directory_is_refused(start, tmp_path):
    first = start('directory_lock(".")\nprint("held")\nsys.stdin.read()')
    first.stdout.readline()
    expected = rf"another run works in {tmp_path}: Snakemake \(process {first.pid} of .* on "
    expected += rf"{os.uname().nodename}, in {tmp_path}, since 2.*Wait until it ends or stop it"
    with pytest.raises(UserError, match=expected):
        directory_lock(tmp_path)
    (tmp_path / "other").mkdir()
    directory_lock(tmp_path / "other").release()
    first.kill()
    first.wait()
    lock = directory_lock(tmp_path)
    assert lock.path == tmp_path / ".snakemake/scrna.resources.locks"
    lock.release()


def test_directory_without_locks(tmp_path, monkeypatch, said):
    def flock(fd, operation):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    directory_lock(tmp_path).release()
    assert said() == [f"{tmp_path}: its file system has no locks; start no second run there"]


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / ".snakemake").write_text("in the way")
    with pytest.raises(UserError, match=r"scrna.resources.locks cannot be written: "):
        directory_lock(tmp_path)
