"""All that this workflow uses of Snakemake and that Snakemake does not document.

Each function names the public way that was looked for. Where the installed Snakemake has a part no
more, the function does without it, and a warning says once what that costs: time, or lines at the
end of a run. No result depends on it. Documented, and so used elsewhere as well, are the object
``snakemake`` of a script, the hooks, ``workflow.basedir``, `snakemake.utils`,
`snakemake.exceptions.WorkflowError` and `snakemake.logging.logger`.
"""

import functools
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrna.workflow.job import Job

#: The version that all of this was read in.
MADE_FOR = "9.27"
_logger = logging.getLogger("snakemake.logging")  # Snakemake's own
_said: set[str] = set()


def version_line() -> str | None:
    """Return a line for the start of a run where another minor version than `MADE_FOR` is there."""
    found = importlib.metadata.version("snakemake")
    if found.split(".")[:2] == MADE_FOR.split("."):
        return None
    return (
        f"Snakemake {found} runs this; the workflow was tested with {MADE_FOR}. Where it misses "
        "something, a warning says so"
    )


def _or_else(loss: str, otherwise: Callable[..., Any]) -> Callable:
    """Make a function's callers get something else where a part of Snakemake is missing.

    Parameters
    ----------
    loss
        What the run does without, for the warning.
    otherwise
        Called with the same arguments; its value is returned then.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except (AttributeError, ImportError, TypeError) as error:
                if loss not in _said:
                    _said.add(loss)
                    _logger.warning(f"This Snakemake differs from {MADE_FOR} ({error}): {loss}.")
                return otherwise(*args, **kwargs)

        return guarded

    return decorate


def _nothing(*_: Any, **__: Any) -> list:
    return []


def _has_option(*names: str) -> bool:
    """Return whether the command line has an option, also with its value in one word."""
    return any(arg.partition("=")[0] in names for arg in sys.argv[1:])


# ----------------------------------------------------------------------------------- what a run is


@_or_else("jobs are known by --mode", lambda _: not _has_option("--mode"))
def is_main(workflow: Any) -> bool:
    """Return whether this is the run's own process, not that of one of its jobs.

    Snakefiles are read in both; nothing documented tells them apart.
    """
    return workflow.is_main_process


@_or_else("--touch is seen on the command line only", lambda _: _has_option("--touch", "-t"))
def is_touch(workflow: Any) -> bool:
    """Return whether a run that starts only touches files; a profile may ask for it as well."""
    return workflow.touch


@_or_else("cores are all that this machine has", lambda _: None)
def cores(workflow: Any) -> int | None:
    """Return the cores of the run, or of the job. ``workflow.cores`` fails where none are set."""
    return workflow.cores


@_or_else(
    "executors are seen on the command line only",
    lambda _: _has_option("--executor", "-e", "--jobs", "-j"),
)
def has_nodes(workflow: Any) -> bool:
    """Return whether ``--jobs`` asks for jobs on other machines; a profile may do so as well."""
    return workflow.resource_settings.nodes is not None


@_or_else("executors are seen on the command line only", lambda _: _has_option("--executor", "-e"))
def runs_elsewhere(workflow: Any) -> bool:
    """Return whether the jobs of a run that starts run on other machines."""
    return workflow.non_local_exec


@_or_else(
    "--sdm is seen on the command line only",
    lambda _: _has_option("--sdm", "--software-deployment-method", "--use-conda"),
)
def uses_conda(workflow: Any) -> bool:
    """Return whether rules run in conda environments of their own."""
    from snakemake.settings.types import DeploymentMethod

    return DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method


@_or_else("config files of the command line are not checked for typing errors", _nothing)
def overlay_files(workflow: Any) -> list[str]:
    """List the config files of ``--configfile`` and of profiles, each laid over those before."""
    return [str(file) for file in workflow.overwrite_configfiles]


@_or_else("--config is not checked for what it overrules", lambda _: {})
def overlay_values(workflow: Any) -> dict[str, Any]:
    """Return the values of ``--config``; the merged ``config`` does not say where one is from."""
    return dict(workflow.config_settings.config)


def _usual_memory() -> int:
    return 1000  # MB: Snakemake's own default


@_or_else("memory of steps is not known before the counts are converted", _usual_memory)
def not_known_yet() -> Any:
    """Return the value of a resource that is asked for again when the job's inputs are there."""
    from snakemake.common.tbdstring import TBDString

    return TBDString()


# -------------------------------------------------------------------------------- the jobs of a run


@_or_else("the run ends up to 1 s later", lambda _: None)
def lift_rate_limit(workflow: Any) -> None:
    """Take away the limit of 100 jobs a second, in a run that starts on this machine.

    It starts a timer of 1 s with every job, and for the last one's Snakemake waits before it ends.
    ``--max-jobs-per-timespan`` sets another limit and timer, but none cannot be asked for.
    """
    if workflow.scheduler.job_rate_limiter is not None:
        workflow.scheduler.job_rate_limiter = None


def _due_by_summary(_: Any) -> list[Job]:
    """Ask Snakemake's command line what the same command would make."""
    command = [sys.executable, "-m", "snakemake", "--detailed-summary", *sys.argv[1:]]
    start = os.environ.get("PWD") if _has_option("--directory", "-d") else None
    said = subprocess.run(command, cwd=start, capture_output=True, text=True, check=False)
    if said.returncode:
        _logger.warning(
            "snakemake --detailed-summary fails, so that earlier results that follow from what "
            f"this run makes again are not removed. Its last lines: {said.stderr.strip()[-500:]}"
        )
    return jobs_in_summary(said.stdout)


def jobs_in_summary(text: str) -> list[Job]:
    """Read the jobs that are due in what ``snakemake --detailed-summary`` prints: a line a file.

    Their inputs are those of the last time, and their places follow from where their files lie.
    """
    files: dict[tuple[str, tuple[str, ...]], tuple[set[str], set[str]]] = {}
    _, _, table = text.rpartition("output_file\t")
    for row in (line.split("\t") for line in table.splitlines()[1:]):
        file, rule, inputs, plan = row[0], row[2], row[4], row[-1]
        if plan == "no update":
            continue
        folder, *place = Path(file).parts[:-1]
        place = place if folder == "results" else [Path(file).name.partition(".")[0]]
        outputs, known = files.setdefault((rule, tuple(place)), (set(), set()))
        outputs.add(file)
        known |= set() if inputs == "-" else set(inputs.split(","))
    return [Job(*key, frozenset(out), frozenset(known)) for key, (out, known) in files.items()]


@_or_else("what is due is asked of snakemake --detailed-summary", _due_by_summary)
def due_jobs(workflow: Any) -> list[Job]:
    """List what a run that starts will make, or one that ends has not made.

    Hooks are told nothing of the jobs; the log handler plugins hear of a job when it starts.
    """
    return _jobs(workflow.dag.needrun_jobs())


@_or_else("what a run needs as it is, is not known", _nothing)
def standing_jobs(workflow: Any) -> list[Job]:
    """List the jobs of a run that starts whose outputs are there and stay."""
    due = set(workflow.dag.needrun_jobs())
    return _jobs(job for job in workflow.dag.jobs if job not in due)


@_or_else("the end of the run does not say what its steps took", _nothing)
def finished_jobs(workflow: Any) -> list[Job]:
    """List what a run that ends has made."""
    return _jobs(workflow.dag.finished_jobs)


@_or_else("which steps failed is in Snakemake's log only", _nothing)
def failed_jobs(workflow: Any) -> list[Job]:
    """List the jobs that failed, in ``onerror``, which is given the log alone."""
    return _jobs(workflow.scheduler.failed)


def _jobs(jobs: Iterable[Any]) -> list[Job]:
    """Make them jobs of ours: groups taken apart, the target rule left out."""
    one_by_one = (one for job in jobs for one in (job.jobs if job.is_group() else [job]))
    return [_job(job) for job in one_by_one if job.rule.name != "all"]


def _job(job: Any) -> Job:
    files = (Path(f) if f else None for f in (next(iter(job.log), None), job.benchmark))
    place = tuple(map(str, job.wildcards_dict.values()))
    return Job(
        job.rule.name,
        place,
        frozenset(map(str, job.output)),
        frozenset(map(str, job.input)),
        *files,
    )


def how_it_ended(job: Job, snakemake_log: str) -> str:
    """Find what Snakemake's log says of a failed job's end; nothing where it words it otherwise.

    That is the block ``Error in rule``, where a cluster's executor gives its reason, and the line
    before about the script's process, which is named as the script.
    """
    rule = re.escape(job.rule)
    blocks = re.findall(rf"^Error in rule {rule}:\n((?: {{4}}.*\n?)*)", snakemake_log, re.MULTILINE)
    own = [block for block in blocks if job.log is None or f"log: {job.log} " in block]
    ended = rf"^Command .*\.{rule}\.py.*(?:died with|returned).*$"
    return "\n".join([*own, *re.findall(ended, snakemake_log, re.MULTILINE)])


# --------------------------------------------------------------------------- what rules would make


@dataclass(frozen=True)
class Place:
    """A rule at one place, of which there is something.

    Parameters
    ----------
    rule
        The rule's name.
    wildcards
        The values of its wildcards.
    outputs
        All its outputs, there or not.
    snakemake_rule
        Snakemake's own object.
    """

    rule: str
    wildcards: dict[str, str]
    outputs: list[str]
    snakemake_rule: Any

    @property
    def params(self) -> dict[str, Any]:
        """The rule's parameters by name; functions are not called."""
        return _params(self.snakemake_rule)

    def inputs(self) -> Any:
        """Return its input files as the config is now; ``items()`` of it has them by name."""
        return _inputs(self.snakemake_rule, self.wildcards)


@_or_else("results without a record are not compared with the config", _nothing)
def places(workflow: Any, files: Iterable[str]) -> list[Place]:
    """List the places of rules that make files. Its command line tells of files in the DAG only."""
    rules = [rule for rule in workflow.rules if rule.output]
    found = {}
    for rule, file in ((rule, file) for file in files for rule in rules if rule.is_producer(file)):
        wildcards = rule.get_wildcards(file)
        outputs = [str(output.apply_wildcards(wildcards)) for output in rule.output]
        found.setdefault((rule.name, *outputs), Place(rule.name, wildcards, outputs, rule))
    return [*found.values()]


@_or_else("results without a record are not compared with the config", lambda _: {})
def _params(rule: Any) -> dict[str, Any]:
    return dict(rule.params.items())


@_or_else("what results were made from is not known", lambda *_: {})
def _inputs(rule: Any, wildcards: Mapping[str, str]) -> Any:
    return rule.expand_input(wildcards)[0]


# ------------------------------------------------------------ what Snakemake has written of results


class Records:
    """What Snakemake keeps of results, looked at before it opens it itself.

    ``snakemake --summary`` tells no more than whether there is a record.
    """

    def __init__(self, kept: Any):
        self._kept = kept

    def read(self, file: str) -> Any:
        """Return the record of a file, with ``input`` and ``params``; None where there is none."""
        from snakemake.io import IOFile

        return self._kept.metadata(IOFile(file))

    def write(self, rule: str, file: str, params: list[str]) -> None:
        """Write a record; nothing documented does. OSError where that cannot be done."""
        from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord

        record = MetadataRecord(
            rule=rule, params=params, record_format_version=RECORD_FORMAT_VERSION, incomplete=False
        )
        self._kept._write_record(file, record)


class NoRecords(Records):
    """What takes the place of records that cannot be read: nothing is known to be missing."""

    def __init__(self, *_: Any):
        super().__init__(None)

    def read(self, file: str) -> Any:
        """Return a record that says nothing."""
        from types import SimpleNamespace

        return SimpleNamespace(input=[], params=[])


@_or_else("results without a record are taken as they are", NoRecords)
def open_records(workflow: Any) -> Records:
    """Open Snakemake's records as a run's own settings have them."""
    from snakemake.settings.enums import PersistenceBackend

    asked = workflow.workflow_settings
    if asked.persistence_backend == PersistenceBackend.DB:
        from snakemake.persistence.db import DbPersistence

        url = asked.persistence_backend_db_url
        kept = DbPersistence(**({"db_url": url} if url else {}))
    else:
        from snakemake.persistence.file import FilePersistence

        kept = FilePersistence()
    _ = kept.metadata
    return Records(kept)


@_or_else("what results were made from by earlier settings is not known", lambda *_: set())
def recorded_inputs(workflow: Any, file: str) -> set[str]:
    """Return the inputs that a file was made from, as a run that starts has them recorded."""
    from snakemake.io import IOFile

    return set(workflow.persistence.input(IOFile(file)) or [])
