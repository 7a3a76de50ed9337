"""Results that a run will make again: removed before it starts, with all that follows from them.

Snakemake removes the output of a job when it starts the job. If the job fails, the files further
down stay, and the next run takes them for current: they are newer than all their other inputs. So
a run removes them first, those furthest down first: whatever fails or is killed afterwards, what
is still there follows from what stands.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import psutil

from scrna.atomic import SET_ASIDE
from scrna.damage import DamagedError, read_summary, set_aside
from scrna.errors import UserError
from scrna.workflow import snakemake_internals
from scrna.workflow.job import Job
from scrna.workflow.snakemake_internals import Place

#: Where results lie in the folder of a dataset: its own, of a representation, of a sample.
DEPTHS = ("*", "*/*", "samples/*/*")


def following(due: Iterable[Job], there: Iterable[Job], kept: Iterable[Job] = ()) -> list[Job]:
    """Find what follows from the jobs of a run, in the order in which it may be removed.

    Parameters
    ----------
    due
        What the run will make.
    there
        What else there is, whether the run knows of it or not.
    kept
        What the run needs as it is.

    Returns
    -------
    The due ones, and of the others those that are made from them, however indirectly. Each comes
    before what it is made from.
    """
    due, kept = set(due), {file for made in kept for file in made.outputs}
    others = {made for made in there if not made.outputs & kept} - due
    found, files = due, {file for made in due for file in made.outputs}
    while new := {made for made in others - found if made.inputs & files}:
        found |= new
        files |= {file for made in new for file in made.outputs}
    maker = {file: made for made in found for file in made.outputs}
    order = TopologicalSorter(
        {made: {maker[file] for file in made.inputs if file in maker} - {made} for made in found}
    )
    return [*order.static_order()][::-1]


def clear(workflow: Any, datasets: Iterable[str], *, is_elsewhere: bool) -> list[str]:
    """Remove, at the start of a run, what must not stand while it makes things again.

    Parameters
    ----------
    workflow
        Snakemake's object, with the jobs of the run.
    datasets
        The datasets of the run; what belongs to others stays.
    is_elsewhere
        Whether steps run on other machines, where a process cannot be looked for.

    Returns
    -------
    Lines that say what was removed and why.
    """
    if snakemake_internals.is_touch(workflow) or not snakemake_internals.is_main(workflow):
        return []
    datasets = list(datasets)
    if not is_elsewhere:
        remove_leftovers(datasets)
    return _set_aside_damaged_counts(workflow, datasets) + _remove_followers(workflow, datasets)


def check_hooks(workflow: Any) -> None:
    """Refuse ``--no-hooks``, with which Snakemake would leave out what happens before a run."""
    # Snakemake sets the option on its object only after it has read the Snakefile.
    is_main = snakemake_internals.is_main(workflow)
    if is_main and any(arg.startswith("--no-ho") for arg in sys.argv):
        msg = (
            "--no-hooks: this workflow needs its hooks, which keep a second run out of the "
            "directory and remove results that no longer hold. Leave the option away"
        )
        raise UserError(msg)


def _set_aside_damaged_counts(workflow: Any, datasets: Iterable[str]) -> list[str]:
    """Rename counts whose summary is damaged, which the run converts again."""
    lines = []
    jobs = snakemake_internals.due_jobs(workflow)
    due = {job.dataset for job in jobs if job.rule == "convert"}
    for summary in (Path("results", name, "counts.json") for name in datasets if name in due):
        try:
            if summary.exists():
                read_summary(summary)
        except DamagedError as error:
            set_aside(error)
            lines.append(
                f"{error.found}: the counts are set aside as counts.zarr{SET_ASIDE} and "
                f"counts.json{SET_ASIDE} and converted again"
            )
    return lines


def _remove_followers(workflow: Any, datasets: Iterable[str]) -> list[str]:
    """Remove what a run will make again and all that follows from it; say what and why."""
    due = [job for job in snakemake_internals.due_jobs(workflow) if job.outputs]
    standing = snakemake_internals.standing_jobs(workflow)
    removed = Counter()
    followers = following(due, made_by_rules(workflow, datasets), standing)
    names = set(datasets)
    ours = {job for job in followers if job.dataset in names}
    # of a workflow that imports this one: what it makes from our results, however indirectly
    for job in following(ours, set(followers) - ours):
        if job not in ours:
            for file in job.outputs:
                remove(file)
    for job in (job for job in followers if job in ours):
        files = [file for file in sorted(job.outputs) if file.startswith("results/")]
        removed[job.dataset] += sum(map(remove, files))
    return [
        f"{name}: {_first(due, name)} made again; {count} earlier "
        f"{'result was' if count == 1 else 'results were'} removed, so that none is taken for new"
        for name, count in sorted(removed.items())
        if count
    ]


def places(workflow: Any, datasets: Iterable[str]) -> list[Place]:
    """List what there is of datasets, by the rules that make it.

    Parameters
    ----------
    workflow
        Snakemake's object.
    datasets
        The datasets.
    """
    patterns = [("results", f"{name}/{depth}") for name in datasets for depth in DEPTHS]
    patterns += [("resources", f"{name}{of}") for name in datasets for of in (".*", "/*")]
    files = [str(path) for folder, pattern in patterns for path in Path(folder).glob(pattern)]
    return snakemake_internals.places(workflow, files)


def made_by_rules(workflow: Any, datasets: Iterable[str]) -> list[Job]:
    """List what there is of datasets and what it is made from.

    The inputs of a file are those of its rule as the config is now, and those that Snakemake
    recorded when it was made: one that is no longer asked for was used all the same.
    """
    found = []
    for place in places(workflow, datasets):
        inputs = set(map(str, place.inputs()))
        for output in place.outputs:
            inputs |= snakemake_internals.recorded_inputs(workflow, output)
        where = tuple(place.wildcards.values())
        found.append(Job(place.rule, where, frozenset(place.outputs), frozenset(inputs)))
    return found


def remove(path: str | Path) -> bool:
    """Remove a file or a folder, a folder at once; return whether it was there."""
    path = Path(path)
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return True
    # A folder that is half removed must not be taken for a result.
    gone = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def remove_leftovers(datasets: Iterable[str]) -> int:
    """Remove what killed processes left half written; return how many files and folders.

    Parameters
    ----------
    datasets
        The datasets of the run. The directory is this run's alone, and its jobs run on this
        machine: a temporary name whose process is gone has nobody who writes to it.
    """
    patterns = [
        pattern
        for name in datasets
        for pattern in (
            f"results/{name}/.*.tmp-*",
            f"results/{name}/*/.*.tmp-*",
            f"results/{name}/samples/*/.*.tmp-*",
            f"resources/.{name}.*.tmp-*",
            f"resources/{name}/.*.tmp-*",
            f"benchmarks/{name}/.*.tmp-*",
            f"benchmarks/{name}/*/.*.tmp-*",
            f"benchmarks/{name}/samples/*/.*.tmp-*",
        )
    ]
    leftovers = [path for pattern in patterns for path in Path().glob(pattern)]
    leftovers = [path for path in leftovers if not _is_being_written(path)]
    return sum(remove(path) for path in leftovers)


def _is_being_written(path: Path) -> bool:
    """Return whether the process that a temporary name ends with is there, and old enough."""
    try:
        started = psutil.Process(int(path.name.rpartition("-")[2])).create_time()
        return started <= path.lstat().st_mtime + 1  # a later process may have the same number
    except (psutil.Error, ValueError, OSError):
        return False


def _first(due: Iterable[Job], dataset: str) -> str:
    """Name the steps of a dataset that are due and follow from no other that is."""
    files = {file for job in due for file in job.outputs}
    of_dataset = [job for job in due if job.dataset == dataset]
    first = [job for job in of_dataset if not job.inputs & files]
    names = " and ".join(sorted({job.rule for job in first or of_dataset}))
    if not names:  # another dataset's file is its source
        return "its source is"
    if len(first) < len(of_dataset):
        return f"{names} and what follows are"
    return f"{names} {'is' if ' and ' not in names else 'are'}"
