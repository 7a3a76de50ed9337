"""Draw when the rules of a finished run worked: python bench/timeline.py --out timeline.png.

Works in the current directory, from what Snakemake notes of every output (``.snakemake/metadata``):
which rule made it from what, when the job began and ended. A bar a job; before it, pale, how long
all its inputs were there while it waited for its turn. The critical path is in red: from the job
that ended last back to the input that it waited for longest, and so on to the start. What is on it
is what a person waits for. By default the last run is shown, which began with the last file in
``.snakemake/log``; ``--all`` shows every job on record.
"""

import argparse
import json
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

CRITICAL, OTHER, WAITING = "#c0392b", "#7f9fbf", "#d8dfe6"


@dataclass
class Job:
    """A job that is done."""

    label: str
    start: float
    end: float
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)


def jobs_of(folder: Path, since: float = 0) -> list[Job]:
    """Read the finished jobs of a working directory, in the order in which they started.

    Parameters
    ----------
    folder
        Where Snakemake ran.
    since
        Jobs that started earlier are left out; seconds since 1970.
    """
    found: dict[tuple, Job] = {}
    metadata = folder / ".snakemake/metadata"
    for file in metadata.rglob("*"):
        if not file.is_file():
            continue
        record = json.loads(file.read_text())
        start, end = record.get("starttime"), record.get("endtime")
        if record.get("incomplete") or not (start and end) or start < since:
            continue
        # a long name is cut into folders
        output = b64decode("".join(file.relative_to(metadata).parts).replace("@", "")).decode()
        key = record["rule"], tuple(record["log"])
        where = Path(record["log"][0]).parts[1:-1] if record["log"] else [output]
        label = f"{record['rule']} {'/'.join(where)}"
        job = found.setdefault(key, Job(label, start, end))
        job.start, job.end = min(job.start, start), max(job.end, end)
        job.inputs |= set(record["input"])
        job.outputs.add(output)
    return sorted(found.values(), key=lambda job: (job.start, job.end))


def last_run(folder: Path) -> float:
    """Return when the last run began, by the name of its log; seconds since 1970."""
    logs = sorted((folder / ".snakemake/log").glob("*.snakemake.log"))
    if not logs:
        return 0.0
    return datetime.strptime(logs[-1].name.split(".")[0], "%Y-%m-%dT%H%M%S").timestamp()


def before(job: Job, jobs: list[Job]) -> Job | None:
    """Return the last to end of the jobs whose outputs a job reads; None where it reads none."""
    needed = [other for other in jobs if other is not job and other.outputs & job.inputs]
    return max(needed, key=lambda other: other.end, default=None)


def critical_path(jobs: list[Job]) -> list[Job]:
    """List the jobs that the end of a run waited for, the first one first."""
    path: list[Job] = []
    job = max(jobs, key=lambda one: one.end, default=None)
    while job is not None and job not in path:
        path.append(job)
        job = before(job, jobs)
    return path[::-1]


def waited(job: Job, jobs: list[Job], begin: float) -> float:
    """Return the seconds between a job's last input, or the begin of the run, and its start."""
    needed = before(job, jobs)
    return max(0.0, job.start - (needed.end if needed else begin))


def draw(jobs: list[Job], begin: float) -> Figure:
    """Draw a bar a job, those of the critical path in red."""
    path = critical_path(jobs)
    figure = Figure(figsize=(10, 1.2 + 0.22 * len(jobs)), layout="constrained")
    ax = figure.subplots()
    for row, job in enumerate(jobs):
        is_critical = any(job is one for one in path)
        wait = waited(job, jobs, begin)
        ax.barh(row, wait, left=job.start - wait - begin, height=0.25, color=WAITING)
        colour = CRITICAL if is_critical else OTHER
        ax.barh(row, job.end - job.start, left=job.start - begin, height=0.8, color=colour)
        seconds = f" {job.end - job.start:.1f} s"
        ax.text(job.end - begin, row, seconds, va="center", fontsize=7)
    ax.set_yticks(range(len(jobs)), [job.label for job in jobs], fontsize=7)
    ax.invert_yaxis()
    ax.margins(x=0.06, y=0.01)
    ax.set_xlim(left=0)
    ax.set_xlabel("seconds; red: the critical path, pale: ready, waiting for its turn")
    ax.spines[["top", "right"]].set_visible(False)
    last = max(job.end for job in jobs)
    ax.set_title(f"{len(jobs)} jobs in {last - begin:.1f} s", loc="left")
    return figure


def main() -> None:
    """Draw, and print the critical path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("timeline.png"))
    parser.add_argument("--all", action="store_true", help="all jobs on record, not the last run's")
    options = parser.parse_args()
    since = 0.0 if options.all else last_run(Path())
    jobs = jobs_of(Path(), since)
    if not jobs:
        parser.error("no finished job on record here; run in the folder where Snakemake ran")
    begin = since or jobs[0].start
    draw(jobs, begin).savefig(options.out, dpi=130)
    print(f"{options.out}: {len(jobs)} jobs in {max(job.end for job in jobs) - begin:.1f} s")
    print("\n| critical path | waited s | worked s | ended at s |\n|---|---|---|---|")
    for job in critical_path(jobs):
        cells = waited(job, jobs, begin), job.end - job.start, job.end - begin
        print(f"| {job.label} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
