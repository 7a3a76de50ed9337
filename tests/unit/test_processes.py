"""Processes that end with another one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scrna.processes import process_start

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
HEAD = f"""
import atexit, errno, os, sys, time
sys.path.append({str(SCRIPTS)!r})
import scrna.processes
from scrna.processes import die_with
"""
NO_PIDFD = """
def refuse(pid):
    raise OSError(errno.ENOSYS, "not implemented")
os.pidfd_open = refuse
"""
JOB = """
die_with(int(os.environ["SCRNA_SNAKEMAKE_PID"]))
atexit.register(lambda: open("atexit", "w").close())
try:
    open("pid", "w").write(f"{os.getpid()} ")
    time.sleep(60)
finally:
    open("finally", "w").close()
"""


def eventually(condition, seconds=60.0):
    """Wait until `condition()` is true, and return what it gave."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)
    return result


def read_pid(path):
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith(" ") else None


@pytest.fixture
def orphan(tmp_path):
    """Return a function that runs a job under a bash under a parent, and kills the parent.

    It returns the job's pid at that moment.
    """

    def start(job):
        (tmp_path / "job.py").write_text(HEAD + job)
        parent = (
            "import os, subprocess\n"
            "os.environ['SCRNA_SNAKEMAKE_PID'] = str(os.getpid())\n"
            f"subprocess.run(['bash', '-c', '{sys.executable} job.py; true'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", parent], cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        try:
            pid = eventually(lambda: read_pid(tmp_path / "pid"))
        finally:
            process.kill()
            process.wait()
        return pid

    return start


@pytest.mark.parametrize("patch", ["", NO_PIDFD], ids=["pidfd", "polling"])
def test_job_ends_when_its_snakemake_is_killed(orphan, tmp_path, patch):
    pid = orphan(patch + JOB)
    eventually(lambda: process_start(pid) is None)
    assert (tmp_path / "finally").exists()
    assert (tmp_path / "atexit").exists()


def test_job_that_does_not_heed_sigterm_ends_after_the_grace(orphan, tmp_path):
    job = JOB.replace('"]))', '"]), grace=0.3)').replace("time.sleep(60)", "stay()")
    stubborn = """
def stay():
    while True:
        try:
            time.sleep(60)
        except SystemExit:
            open("heard", "w").close()
"""
    pid = orphan(stubborn + job)
    eventually(lambda: process_start(pid) is None)
    assert (tmp_path / "heard").exists()
    assert not (tmp_path / "finally").exists()


@pytest.mark.parametrize("patch", ["", NO_PIDFD], ids=["pidfd", "polling"])
def test_snakemake_gone_before_the_call(patch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = f"{HEAD}{patch}\ndie_with({gone.pid})\ntime.sleep(60)"
    job = subprocess.run([sys.executable, "-c", code], timeout=5, capture_output=True, text=True)
    assert job.returncode == 128 + signal.SIGTERM
    assert f"process {gone.pid}, which started this job, is gone" in job.stderr


def test_job_ends_by_itself_while_its_snakemake_lives():
    code = f"{HEAD}\ndie_with({os.getpid()})\ntime.sleep(0.2)"
    assert subprocess.run([sys.executable, "-c", code], timeout=5).returncode == 0


def test_process_start():
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process_start(child.pid) >= process_start(os.getpid()) > 0
    child.stdin.close()
    # Ended, but its number is taken until the parent asks for its result.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None
    child.wait()
    assert process_start(child.pid) is None


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    child = (
        f"{HEAD}\nscrna.processes.die_with_parent()\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        pid = int(started.stdout.readline())
        assert process_start(pid)
        started.kill()
    eventually(lambda: process_start(pid) is None)


def test_a_process_whose_parent_is_gone_already_ends_at_once():
    code = HEAD + "scrna.processes.die_with_parent(int(sys.argv[1]))\nprint('goes on')"
    for parent, status, said in ((os.getpid(), 0, "goes on\n"), (os.getpid() + 1, 137, "")):
        command = [sys.executable, "-c", code, str(parent)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (status, said)
