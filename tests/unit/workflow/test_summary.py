"""What a run says at its end: causes, advice and the table of steps."""

import json
import os

import pytest

from scrna.damage import DamagedError
from scrna.data import step_files
from scrna.data.benchmarks import Usage, table, usage_of
from scrna.errors import UserError
from scrna.log import log, send_logs, start_logging
from scrna.step import step
from scrna.workflow import summary
from scrna.workflow.job import Job
from scrna.workflow.rule import report
from scrna.workflow.summary import advice, failure, failure_lines, usage_lines
from tests.unit.steps import reseal


@pytest.fixture
def job(tmp_path) -> Job:
    folder = tmp_path / "logs/toy/pca"
    folder.mkdir(parents=True)
    files = {"log": folder / "umap.log", "benchmark": tmp_path / "benchmarks/toy/pca/umap.tsv"}
    return Job("umap", ("toy", "pca"), **files)


def fail(job: Job, error: Exception) -> None:
    """Write the log of a step that fails, as a step writes it."""
    handlers, propagate = log.handlers, log.propagate
    start_logging(job.log, job.label)
    log.info("200 cells")
    try:
        raise error
    except Exception as caught:
        report(caught)
    for handler in log.handlers:
        handler.close()
    send_logs(handlers)
    log.propagate = propagate


def ended(job: Job, how: str, message: str = "None", script: str = "umap") -> str:
    """Snakemake's log of a step whose process ended so."""
    return (
        'RuleException:\nCalledProcessError in file "rules/embed.smk", line 50:\n'
        f"Command 'set -euo pipefail;  python /w/.snakemake/scripts/tmpx.{script}.py' {how}.\n"
        f"[Sat Nov 21 14:01:24 2026]\nError in rule {job.rule}:\n    message: {message}\n"
        f"    jobid: 1\n    log: {job.log} (check log file(s) for error details)\n"
    )


# -------------------------------------------------------------------------------------- the causes


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError("Unable to allocate 12.0 GiB for an array"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (MemoryError("std::bad_alloc: out_of_memory: CUDA error at: cuda.hpp:90"), "GPU memory"),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), "GPU memory"),
        (RuntimeError("CUDA out of memory"), "GPU memory"),
        (RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"), "no GPU"),
        (RuntimeError("CUDA driver version is insufficient for CUDA runtime version"), "no GPU"),
        (OSError(28, "No space left on device"), "disk"),
        (OSError(122, "Disk quota exceeded"), "disk"),
        (OSError(27, "File too large"), "file size"),
        (OSError("Unable to extend file (errno = 27, error message = '')"), "file size"),
        (PermissionError(13, "Permission denied", "counts.zarr"), "rights"),
        (OSError(30, "Read-only file system"), "rights"),
        (RuntimeError("can't start new thread"), "threads"),
        (ImportError("_trlib.so: failed to map segment from shared object"), "memory"),
        (UserError("toy: no cell is left. Lower filter.min_genes"), "user"),
        (UserError("toy: 3 GB are missing: No space left on device"), "user"),
        (UserError("the worker's process died while it ran this step: out of memory"), "worker"),
        (UserError("the run's worker is gone (EOFError()); its log: x"), "worker"),
        (DamagedError("qc.h5", "qc.h5 is empty", advice="Run the same command again"), "user"),
        (IndexError("list index out of range"), "unknown"),
    ],
)
def test_the_cause_of_an_error(job, error, cause):
    fail(job, error)
    found = failure(job, ended(job, "returned non-zero exit status 1"))
    assert found.cause == cause
    assert str(error) in found.said
    assert "Traceback" not in found.said
    assert "200 cells" not in found.said
    assert (advice(found.cause, "umap") == "") == (cause == "user")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("died with <Signals.SIGKILL: 9>", "killed"),
        ("returned non-zero exit status 137", "killed"),
        ("died with <Signals.SIGSEGV: 11>", "crashed"),
        ("died with <Signals.SIGTERM: 15>", "stopped"),
        ("returned non-zero exit status 1", "unknown"),
    ],
)
def test_the_cause_of_an_end_without_a_word(job, how, cause):
    job.log.write_text("2026-11-21 14:01:24,035 INFO 200 cells\n")
    found = failure(job, ended(job, how))
    assert found.cause == cause
    assert found.said.endswith("INFO 200 cells")
    other = Job("tsne", ("toy", "pca"), log=job.log.with_name("tsne.log"))
    assert failure(other, ended(job, how)).cause == "unknown"  # it is another step's end


@pytest.mark.parametrize(
    ("state", "cause"), [("OUT_OF_MEMORY", "killed"), ("OUT_OF_ME+", "killed"), ("TIMEOUT", "time")]
)
def test_what_a_cluster_says_of_a_job(job, state, cause):
    said = f"SLURM-job '7' failed, SLURM status is: '{state}'."
    text = ended(job, "was sent", said)
    assert failure(job, text).cause == cause
    assert failure(Job("umap", ("toy", "harmony"), log=job.log.with_name("b.log")), text).cause == (
        "unknown"
    )


def test_the_log_of_a_run_before_tells_nothing(job):
    fail(job, MemoryError("then"))
    os.utime(job.log, (1, 1))
    assert failure(job, ended(job, "died with <Signals.SIGKILL: 9>"), since=2).said == ""
    assert failure(job, ended(job, "died with <Signals.SIGKILL: 9>"), since=2).cause == "killed"


def test_advice_names_blocks_where_a_step_can_work_in_them():
    assert "execution: blocks" in advice("GPU memory", "pca")
    assert "memory.headroom_gb" in advice("killed", "hvg")
    assert "gpu.limit_gb" in advice("GPU memory", "umap")
    assert "execution: blocks" not in advice("killed", "umap")


def test_lines_of_what_failed_and_what_is_left(job):
    fail(job, UserError("toy: no cell is left.\nLower filter.min_genes"))
    stopped = Job("tsne", ("toy", "pca"), log=job.log.with_name("tsne.log"))
    fail(stopped, RuntimeError("x"))
    stopped.log.write_text("2026-11-21 14:01:24,035 ERROR stopped by Ctrl-C\n")
    left = [Job("final", (f"toy{i}",)) for i in range(7)]
    assert failure_lines([stopped, job], left) == [
        "",
        "umap toy/pca failed:",
        "    toy: no cell is left.",
        "    Lower filter.min_genes",
        f"  its log: {job.log}",
        "",
        "Left to do: 7 steps: final toy0, final toy1, final toy2, final toy3, final toy4 ….",
        "Finished results are kept. Fix this and run the same command again to continue.",
    ]
    assert failure_lines([stopped], left) == []


# --------------------------------------------------------------------------------------- the table


def benchmark(job: Job, seconds: float, rss: str = "500.00") -> None:
    job.benchmark.parent.mkdir(parents=True, exist_ok=True)
    job.benchmark.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t{rss}\n")


def result(job: Job, **record) -> None:
    """Write the step's file, its provenance with these facts."""

    @step
    def umap(out, *, backend):
        step_files.write(out, {})

    parts = list(job.benchmark.parts)
    parts[parts.index("benchmarks")] = "results"
    path = job.benchmark.__class__(*parts).with_suffix(".h5")
    path.parent.mkdir(parents=True)
    umap(path, backend="cpu")
    import h5py

    with h5py.File(path, "a") as file:
        known = json.loads(file.attrs["provenance"])
        file.attrs["provenance"] = json.dumps(known | record)
    reseal(path)


def test_usage_on_the_cpu(job):
    benchmark(job, 12.5)
    os.utime(job.benchmark, (1000, 1000))
    result(job)
    facts = job.benchmark.with_suffix(".memory.json")
    facts.write_text('{"peak_bytes": 9}')  # of a run on the GPU before this one
    found = usage_of(job.benchmark, "umap toy/pca")
    assert (found.started, found.seconds, found.device) == (987.5, 12.5, "CPU")
    assert (found.rss_bytes, found.gpu_bytes) == (500 * 1024**2, None)
    assert found.memory == "524 MB"


def test_usage_on_a_gpu_in_a_warm_worker(job):
    benchmark(job, 3)
    result(job, backend="gpu", device="NVIDIA GB10", worker="warm")
    job.benchmark.with_suffix(".memory.json").write_text('{"peak_bytes": 12340000000}')
    found = usage_of(job.benchmark, "umap toy/pca")
    assert (found.device, found.memory, found.rss_bytes) == ("NVIDIA GB10", "12.3 GB", None)


def test_what_a_step_waited_for_the_worker_is_not_counted(job):
    benchmark(job, 12.5)
    os.utime(job.benchmark, (1000, 1000))
    result(job, backend="gpu", device="NVIDIA GB10", worker="warm")
    beside = job.benchmark.with_suffix(".memory.json")
    beside.write_text('{"peak_bytes": 12340000000, "waited_s": 2.5}')
    found = usage_of(job.benchmark, "umap toy/pca")
    assert (found.started, found.seconds, found.memory) == (990, 10, "12.3 GB")


@pytest.mark.parametrize("rss", ["NA", "", "-", "0.00"])
def test_a_step_too_short_to_be_looked_at(job, rss):
    benchmark(job, 0.1, rss)
    assert usage_of(job.benchmark, "x").memory == "-"


def test_benchmarks_that_cannot_be_read_are_passed_over(job):
    benchmark(job, 2)
    broken = Job("a", ("toy",), benchmark=job.benchmark.with_name("a.tsv"))
    broken.benchmark.write_text("")
    missing = Job("b", ("toy",), benchmark=job.benchmark.with_name("b.tsv"))
    lines = usage_lines([broken, job, missing, Job("c")])
    assert [line.split()[0] for line in lines] == ["step", "umap", "sum,"]
    assert usage_lines([]) == []


def test_the_table_is_in_order_and_adds_up():
    steps = [Usage("b", 110.0, 300.0, None, None, {}), Usage("a", 100.0, 9.96, 10**9, None, {})]
    assert table(steps) == [
        "step                           time  memory  device",
        "a                            10.0 s  1.0 GB  CPU",
        "b                        5 min 00 s       -  CPU",
        "sum, done in 5 min 10 s  5 min 10 s",
    ]


def test_a_long_table_keeps_the_longest_steps():
    steps = [Usage(f"s{i}", 1000.0 - i, float(i), None, None, {}) for i in range(1, 61)]
    lines = table(steps)
    assert len(lines) == 40
    assert [line.split()[0] for line in lines[1:38]] == [f"s{i}" for i in range(60, 23, -1)]
    assert lines[38].split() == ["23", "shorter", "steps", "4", "min", "36", "s"]
    assert len(table(steps[:38])) == 40
    assert table(steps[:38])[1].startswith("s38")


def test_every_cause_but_a_stop_has_advice():
    causes = {*summary._SIGNS, *summary._ENDS, "unknown"}
    assert {cause for cause in causes if not advice(cause, "pca")} == {"stopped"}
