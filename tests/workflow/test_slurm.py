"""The workflow on a cluster: Debian's SLURM on this machine, as one node that claims a GPU.

It installs packages and starts daemons, so it runs only where SCRNA_TEST_SLURM=1 asks for it, as
root on Debian or Ubuntu: ``SCRNA_TEST_SLURM=1 make test ARGS="-m slurm"``. The profile's file has
tests that need no SLURM in test_running.py.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import anndata as ad
import pytest

from tests.conftest import has_gpu
from tests.workflow.conftest import Workflow
from tests.workflow.processes import wait_until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("SCRNA_TEST_SLURM") != "1", reason="SCRNA_TEST_SLURM=1 is not set"
    ),
]

SYSTEM_CONF = Path("/etc/slurm/slurm.conf")  # the one place where srun in a job looks
CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/socket/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobCompType=jobcomp/none
MinJobAge=3600
GresTypes=gpu
NodeName={host} CPUs=32 RealMemory=200000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# One dataset with one batch, on the CPU, without the steps that add nothing here.
SETTINGS = """
run: plain
datasets: {plain: {label_key: null}}
markers: {enabled: false}
trajectory: {enabled: false}
"""
UMAP = "results/plain/pca/umap.h5"
ENDLESS = "umap: {max_iter: 1000000}"  # until it is stopped
OPTIONS = (
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--latency-wait", "5"),
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node, 32 cores, 200 GB and a GPU if one believes it; gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if SYSTEM_CONF.exists() or SYSTEM_CONF.is_symlink():
        pytest.skip(f"this machine has a SLURM already: {SYSTEM_CONF}")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        if shutil.which("apt-get") is None:
            pytest.skip("needs apt-get to install slurm-wlm and munge")
        for command in ("update", "install -y --no-install-recommends slurm-wlm munge"):
            subprocess.run(["apt-get", *command.split()], check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        _start(folder)
        yield folder
    finally:
        SYSTEM_CONF.unlink(missing_ok=True)
        for daemon in ("slurmd", "slurmctld", "munged"):
            _stop(folder / f"{daemon}.pid")


def _start(folder: Path) -> None:
    for name in ("state", "spool", "socket"):
        (folder / name).mkdir()
    for above in (folder, *folder.parents[:2]):  # munged wants its socket in reach of everyone
        above.chmod(above.stat().st_mode | 0o111)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    controller, daemon = _free_ports(2)
    host = socket.gethostname()
    conf = CONF.format(folder=folder, host=host, controller=controller, daemon=daemon)
    (folder / "slurm.conf").write_text(conf)
    # A GPU needs a device file or is not believed in; this one every machine has.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    SYSTEM_CONF.parent.mkdir(exist_ok=True)
    SYSTEM_CONF.symlink_to(folder / "slurm.conf")
    munge = {"key-file": "key", "socket": "socket/munge", "log-file": "munged.log"}
    munge |= {"pid-file": "munged.pid", "seed-file": "seed"}
    _run("munged", *(f"--{option}={folder}/{file}" for option, file in munge.items()))
    _run("slurmctld", "-f", f"{folder}/slurm.conf", "-c")
    _run("slurmd", "-f", f"{folder}/slurm.conf")
    wait_until(lambda: "idle" in _run("sinfo", "-h", "-o", "%t"), seconds=60)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def queue() -> str:
    """The states of the jobs that wait or run."""
    return _run("squeue", "-h", "-o", "%T").strip()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _stop(pid_file: Path) -> None:
    """End the daemon that wrote a pid file, and wait until it is gone."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _is_alive(pid), seconds=20)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def jobs() -> dict[str, dict[str, str]]:
    """What each job asked for, as SLURM has it: {rule: {field: value}}."""
    found = {}
    for line in _run("scontrol", "show", "job", "-o").splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if rule := re.match(r"rule_([^_]+)", fields.get("Comment", "")):
            found[rule[1]] = fields
    return found


@pytest.fixture(scope="module")
def ran(slurm, code, tmp_path_factory) -> Workflow:
    """A complete run on the cluster."""
    folder = tmp_path_factory.mktemp("run") / "work"
    folder.mkdir()
    workflow = Workflow(code, folder, profile="slurm").over("base.yaml", SETTINGS)
    return replace(workflow, output=workflow.run(options=OPTIONS, timeout=600))


def test_every_step_is_a_job_and_the_result_opens(ran):
    steps = "simulate convert qc filter normalize matrix hvg pca neighbors umap leiden final"
    assert {*(done := jobs())} == {*steps.split()}
    assert {job["JobState"] for job in done.values()} == {"COMPLETED"}, ran.output
    result = ad.read_zarr(ran.folder / "results/plain/final.zarr")
    assert {"X_pca", "X_umap"} <= {*result.obsm}
    assert "leiden" in result.obs


def test_a_job_asks_for_what_its_rule_says(ran):
    asked = jobs()
    assert [asked[rule]["NumCPUs"] for rule in ("filter", "qc", "matrix")] == ["1", "16", "16"]
    assert [asked[rule]["MinMemoryNode"] for rule in ("simulate", "convert")] == ["4000M", "3000M"]
    assert int(asked["pca"]["MinMemoryNode"].removesuffix("M")) >= 1000
    limits = [asked[rule]["TimeLimit"] for rule in ("filter", "qc", "convert", "umap")]
    assert limits == ["01:00:00", "01:00:00", "04:00:00", "04:00:00"]
    assert not any("gpu" in job.get("TresPerJob", "") for job in asked.values())


def test_a_gpu_job_asks_for_a_gpu_and_checks_its_machine(ran, tmp_path):
    """The login node takes `backend: gpu` at its word, as do the jobs that need no GPU."""
    if has_gpu():
        pytest.skip("the GPU would be used")
    workflow = ran.at(tmp_path / "work").over("backend: gpu")
    options = (*OPTIONS, "--retries", "0")
    output = workflow.run("results/plain/qc.h5", options=options, fails=True)
    assert "backend: gpu (as the config asks" in output
    qc = jobs()["qc"]
    assert qc["TresPerJob"] == "gres:gpu:1"
    assert qc["NumCPUs"] == "16"
    assert qc["JobState"] == "FAILED"
    assert "backend: gpu is not possible: " in output  # the failed job's log


def test_ctrl_c_cancels_the_jobs(ran, tmp_path):
    workflow = ran.at(tmp_path / "work").over(ENDLESS)
    process = workflow.start(UMAP, options=OPTIONS)
    wait_until(lambda: "RUNNING" in queue(), seconds=30)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    wait_until(lambda: not queue(), seconds=30)
    assert workflow.due(UMAP) == {"umap plain/pca"}


def test_jobs_that_outlive_their_snakemake_keep_a_second_run_out(ran, tmp_path):
    workflow = ran.at(tmp_path / "work").over(ENDLESS)
    process = workflow.start(UMAP, options=OPTIONS)
    wait_until(lambda: "RUNNING" in queue(), seconds=30)
    process.kill()
    process.wait()
    assert "--unlock" in workflow.run(UMAP, options=OPTIONS, fails=True)
    assert "RUNNING" in queue()
    _run("scancel", "--state", "RUNNING", "--user", "root")
    wait_until(lambda: not queue(), seconds=30)
    workflow.run(options=("--unlock",))
    assert workflow.due(UMAP) == {"umap plain/pca"}
