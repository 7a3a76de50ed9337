"""The end of a run: which steps failed, why, what to do, and what the others took.

`failure` finds the most likely cause in the log of a failed step and in that of Snakemake,
`failure_lines` describes it. An error that the user can fix (`scrna.errors.UserError`) says all
this itself.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from scrna.data.benchmarks import Usage, table, usage_of
from scrna.steps import MATRIX_STEPS
from scrna.workflow.job import Job
from scrna.workflow.snakemake_internals import how_it_ended

#: Lines of a log that are shown where it has no error.
_LAST_LINES = 5
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) ", re.MULTILINE)
_TRACEBACK = "the traceback, for developers"

#: What an error's text tells of its cause: the first that is found in it counts. A full GPU also
#: raises std::bad_alloc, and a driver that is missing may say that memory could not be had.
_SIGNS = {
    "stopped": r"\Astopped by Ctrl-C",
    "worker": r"worker's process died|the run's worker (is gone|ended|did not start)|worker died",
    "disk": r"No space left on device|\bENOSPC\b|Disk quota exceeded|errno = 28\b",
    "file size": r"\bEFBIG\b|errno = 27\b|[Ff]ile too large",
    "rights": r"\bPermissionError\b|Permission denied|Read-only file system|errno = (13|30)\b",
    "no GPU": r"cudaErrorNoDevice|no CUDA-capable device|cudaErrorInsufficientDriver"
    r"|driver version is insufficient|cudaErrorSystemDriverMismatch|libcuda\.so.*cannot open",
    "GPU memory": r"cudaErrorMemoryAllocation|CUDA.*out of memory|out_of_memory: CUDA"
    r"|cupy\S*OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|Maximum (memory )?pool size exceeded",
    "threads": r"can't start new thread|Thread creation failed|Resource temporarily unavailable",
    "memory": r"\bMemoryError\b|std::bad_alloc|Unable to allocate|Cannot allocate memory"
    r"|failed to map segment",
}
#: The same where a step had no time to say anything: what Snakemake or SLURM say of its process.
_ENDS = {
    "time": r"\bTIMEOUT\b",
    "killed": r"SIGKILL|exit (status|code) 137|\bKilled\b|OUT_OF_MEMORY|OUT_OF_ME\+",
    "crashed": r"SIG(SEGV|ABRT|BUS|ILL|FPE)|exit (status|code) (134|135|136|139)",
    "stopped": r"SIG(INT|TERM|HUP)|exit (status|code) (130|143)",
}

_LESS_MEMORY = "Close other programs, and run one step at a time (--cores 1)"


@dataclass(frozen=True)
class Failure:
    """Why a step failed.

    Parameters
    ----------
    job
        The step.
    said
        The last that its log says: the error without its traceback, or its last lines.
    cause
        A key of what `advice` knows; ``user`` where the message itself says what to do.
    """

    job: Job
    said: str
    cause: str


def failure(job: Job, snakemake_log: str = "", *, since: float = 0) -> Failure:
    """Find out why a step failed.

    Parameters
    ----------
    job
        The step.
    snakemake_log
        The text of Snakemake's log of the run: how the step's process ended.
    since
        When the run began: an older log is of a run before. Seconds since 1970.

    Returns
    -------
    The failure, its cause ``unknown`` where nothing tells.
    """
    text = ""
    if job.log and job.log.exists() and job.log.stat().st_mtime >= since:
        text = job.log.read_text(errors="replace")
    errors = _errors(text)
    if not errors:
        said = "\n".join(text.rstrip().splitlines()[-_LAST_LINES:])
        ended = how_it_ended(job, snakemake_log)
        return Failure(job, said, _first(_ENDS, ended) or _first(_SIGNS, said) or "unknown")
    said = "\n".join(errors)
    cause = _first({key: _SIGNS[key] for key in ("stopped", "worker")}, said)
    if cause is None and re.search(r"^(scrna\.\w+\.)?(User|Damaged)Error: ", text, re.MULTILINE):
        cause = "user"
    # A C++ error may tell its kind in the traceback alone; the first sign that fits is the cause.
    return Failure(job, said, cause or _first(_SIGNS, said) or _first(_SIGNS, text) or "unknown")


def advice(cause: str, rule: str) -> str:
    """Return what most likely happened and what to do about it.

    Parameters
    ----------
    cause
        `Failure.cause`.
    rule
        The step's rule, since only some can work in blocks.

    Returns
    -------
    Sentences; empty where the message has said it all.
    """
    more = "keep fewer cells"
    if rule in MATRIX_STEPS:
        more = "set execution: blocks, or raise memory.headroom_gb"
    known = {
        "killed": "Most likely the computer ran out of memory, and the system killed this step. "
        f"{_LESS_MEMORY}. If that is not enough, {more}, or take a machine with "
        "more memory; under SLURM give the job more (--set-resources mem_mb)",
        "memory": f"The computer ran out of memory. {_LESS_MEMORY}. If that is not enough, {more}, "
        "or take a machine with more memory",
        "GPU memory": "The GPU's memory was full. End other programs on the GPU (nvidia-smi lists "
        f"them); where gpu.limit_gb is set, raise it. If that is not enough, {more}, or set "
        "backend: cpu",
        "worker": "Its log says why; if it does not, most likely memory ran out. "
        f"{_LESS_MEMORY}. If that is not enough, "
        f"{more}; worker: none runs each step in a process of its own",
        "no GPU": "The GPU cannot be used: there is none here, or its driver is missing or too old "
        "(see nvidia-smi). Fix that, or set backend: cpu",
        "disk": "The disk is full. Make room where results/, resources/ and the temporary folder "
        "($TMPDIR, else /tmp) lie: df -h . /tmp shows how much is free",
        "file size": "A file grew larger than is allowed here: ulimit -f shows the shell's limit, "
        "and some file systems have one of their own. Raise it, or work in another folder",
        "rights": "A file or folder may not be read or written by you: ls -l shows whose it is. "
        "Get permission for it, or work in a folder of your own",
        "threads": "The system lets you start no more threads. End other programs of yours, run "
        "one step at a time (--cores 1), or raise the limit (ulimit -u and -v; a container has its "
        "own)",
        "time": "The cluster ended this step because its time limit was reached. Give it more "
        "minutes (--set-resources runtime)",
        "crashed": "A library or the GPU's driver crashed. Run the same command again. If it "
        f"crashes again, suspect the memory first. {_LESS_MEMORY}",
        "unknown": "The workflow does not know this error. If it comes again, report it with the "
        "log, which has the details",
    }
    return known.get(cause, "")


def failure_lines(
    failed: Iterable[Job],
    left: Iterable[Job] = (),
    snakemake_log: str = "",
    *,
    since: float = 0,
) -> list[str]:
    """Describe why each failed step failed and what to do; then the steps that wait for it.

    Parameters
    ----------
    failed
        The steps that failed.
    left
        The steps that were not begun.
    snakemake_log
        The text of Snakemake's log of the run.
    since
        When the run began, in seconds since 1970.

    Returns
    -------
    Lines; none where steps were only stopped.
    """
    found = [failure(job, snakemake_log, since=since) for job in failed]
    found = sorted((one for one in found if one.cause != "stopped"), key=lambda f: f.job.label)
    lines = []
    for one in found:
        lines += ["", f"{one.job.label} failed:"]
        lines += [f"    {line}" for line in one.said.splitlines()]
        lines += [f"  → {said}." for said in [advice(one.cause, one.job.rule)] if said]
        lines += [f"  its log: {one.job.log}"] if one.job.log else []
    if found:
        waiting = sorted(job.label for job in left)
        shown = ", ".join(waiting[:5])
        if len(waiting) > 5:
            shown = f"{len(waiting):,} steps: {shown} …"
        lines += ["", f"Left to do: {shown}."] if waiting else [""]
        lines += ["Finished results are kept. Fix this and run the same command again to continue."]
    return lines


def usage_lines(finished: Iterable[Job]) -> list[str]:
    """Format time and memory of the finished steps of this run.

    Parameters
    ----------
    finished
        The steps that this run did; those without a benchmark are passed over.

    Returns
    -------
    The lines of `scrna.data.benchmarks.table`.
    """
    return table([usage for job in finished if (usage := _usage(job))])


def _usage(job: Job) -> Usage | None:
    try:
        return usage_of(job.benchmark, job.label) if job.benchmark else None
    except (OSError, ValueError, KeyError):  # what a run says at its end must not fail it
        return None


def _errors(text: str) -> list[str]:
    """Read the error messages of a step's log, without their tracebacks."""
    starts = [*_RECORD.finditer(text)]
    ends = [*(match.start() for match in starts), len(text)][1:]
    records = [
        (match[1], text[match.end() : end].strip()) for match, end in zip(starts, ends, strict=True)
    ]
    return [said for level, said in records if level == "ERROR" and not said.startswith(_TRACEBACK)]


def _first(signs: dict[str, str], text: str) -> str | None:
    """Return the first cause whose pattern is in a text."""
    return next((cause for cause, sign in signs.items() if re.search(sign, text)), None)
