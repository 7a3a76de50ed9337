"""A run of the workflow: its config, the backend, and what happens before and after its jobs.

Snakemake reads the Snakefile anew in every job's process. What is decided, said or looked at once
is done in the run's own process only (`Session.is_main`).
"""

import gc
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake.logging import logger

from scrna.config import datasets, samples, settings
from scrna.config.source_address import set_credentials_aside
from scrna.config.yaml_files import overruled
from scrna.data.counts import sizes_of
from scrna.errors import UserError
from scrna.log import share_terminal
from scrna.resources import gpus
from scrna.resources.admission import check_methods, configure
from scrna.resources.locks import directory_lock
from scrna.steps import SECTIONS, using
from scrna.workflow import records, snakemake_internals, stale, summary
from scrna.workflow.decisions import decided
from scrna.workflow.folders import check_writable
from scrna.workflow.named_clusters import check_standing
from scrna.workflow.named_in_data import check_converted
from scrna.workflow.rule import HOOKS_VARIABLE
from scrna.workflow.sample_rules import SampleRules

#: `worker: auto` starts one for as many steps: on a CPU it takes as long as importing scanpy does.
FEWEST_FOR_WORKER = {"gpu": 1, "cpu": 6}
#: What a person opens of a dataset's results, and how.
OPENED = {"report.html": "", "final.zarr": " (anndata.read_zarr)"}


class Session:
    """A run of the workflow, or one of its jobs.

    Parameters
    ----------
    workflow
        Snakemake's object.
    config
        As Snakemake merged it from its files.
    config_files
        The config files by name, each laid over those before it.
    is_module
        Whether another workflow imports this one.

    Raises
    ------
    UserError
        If the config, a folder or the machine is not as the run needs it.
    """

    def __init__(
        self,
        workflow: Any,
        config: dict[str, Any],
        config_files: Sequence[tuple[str, dict[str, Any]]],
        is_module: bool = False,
    ):
        self.workflow, self.is_main = workflow, snakemake_internals.is_main(workflow)
        stale.check_hooks(workflow)
        if self.is_main:
            check_writable()
        lines = [snakemake_internals.version_line()]
        if config.get("run") == "auto":
            config["run"], line = decided("run", lambda: _picked(config), is_main=self.is_main)
            lines.append(line)
        self.config = settings.complete(config)
        defined = self.config["datasets"]
        self.sheets = samples.read_sheets({name: defined[name] for name in self.config["run"]})
        self.config["datasets"] = set_credentials_aside(
            samples.with_sheets(defined, self.sheets), samples.addresses(self.sheets)
        )
        self.scheduler = self.config["dask"]["scheduler"]
        # With --jobs the jobs, and with a scheduler the steps, run on other machines.
        self.is_elsewhere = bool(
            snakemake_internals.has_nodes(workflow) or self.scheduler is not None
        )
        self.backend, line = decided("backend", self._resolve_backend, is_main=self.is_main)
        settings.check(self.config | {"backend": self.backend})
        self.datasets = {name: self.config["datasets"][name] for name in self.config["run"]}
        self.samples = SampleRules(self.datasets, self.sheets)
        self.sources = datasets.sources(self.datasets) | self.samples.sources()
        if self.is_main:
            seen_by = {"backend": self.backend, "seed": self.config["seed"]}
            check_converted(self.datasets, self.sources, "results", **seen_by)
            lines += [line, *overruled(config_files, self.datasets, SECTIONS)]
            lines += self.samples.lines("results")
            if not self.is_elsewhere:
                lines += plan_lines(self.config, self.backend, "results")
            share_terminal(logger)
            for line in filter(None, lines):
                logger.info(line)
        if is_module and self.is_main:
            os.environ[HOOKS_VARIABLE] = "1"
        self.engine = self._lock = None
        self._began = time.time()

    # ------------------------------------------------------------------------ what a rule asks for

    @property
    def gpu(self) -> int:
        """How many GPUs a GPU step asks for."""
        return int(self.backend == "gpu")

    @property
    def cores(self) -> int:
        """The cores of the run; in a job's process those of the job."""
        return snakemake_internals.cores(self.workflow) or 1

    @property
    def threads(self) -> int:
        """The threads of a rule.

        Two rules run at once, each with half of the cores: the two representations keep each other
        company, and much of a small step is one thread that imports. A job elsewhere has its cores
        to itself.
        """
        return max(1, self.cores // 2) if self.is_main else self.cores

    @property
    def step_threads(self) -> int:
        """The threads of a step with a backend.

        The profiles let two GPU steps start. One computes, as the worker and the GPU's lock have
        it, and the next one waits for its turn, with half of a rule's cores each: the other rules
        keep theirs.
        """
        next_may_wait = self.gpu and self.cores >= 4 and self.is_main and not self.is_elsewhere
        return self.threads // 2 if next_may_wait else self.threads

    def environment(self, wildcards: Any = None) -> str | None:
        """Return the conda environment of a rule where ``--sdm conda`` asks for one.

        Snakemake would otherwise write all of it, with the pins, into the metadata of every output.
        """
        wanted = snakemake_internals.uses_conda(self.workflow)
        return f"../envs/{self.backend}.yaml" if wanted else None

    # --------------------------------------------------------------------------- before and after

    def check_records(self) -> None:
        """Look at results that Snakemake has no record of, once all rules are read."""
        if self.is_main:
            for line in records.mark_unknown(self.workflow, self.datasets):
                logger.warning(line)

    def begin(self) -> None:
        """Prepare the run, before its first job.

        Keep a second run out of this working directory: the kernel lets go of the lock when this
        process ends. Find or start the worker that steps run in, or look at the cluster that is
        there for them. Remove what the run will make again, and what follows from it. Before that,
        refuse names of clusters that there are not, and samples that cannot be merged.

        Raises
        ------
        UserError
            If the directory is taken, the worker or the cluster cannot be had, or a cluster is
            named that there is not.
        """
        self._began = time.time()
        os.environ.pop(HOOKS_VARIABLE, None)
        if not snakemake_internals.runs_elsewhere(self.workflow):
            snakemake_internals.lift_rate_limit(self.workflow)
        self._lock = directory_lock(os.getcwd())
        for line in self.samples.check(snakemake_internals.due_jobs(self.workflow)):
            logger.warning(line)
        check_standing(self.workflow, self.datasets)
        due, may_start = self._steps_for_worker()
        if self.scheduler:
            from scrna.dask_cluster.check import check_scheduler

            logger.info(check_scheduler(self.scheduler, self.backend))
        if due:
            from scrna.engine import run

            at_once = 1 if self.gpu else self.cores // self.threads
            about = {"at_once": at_once, "threads": self.threads, "may_start": may_start}
            self.engine = run.begin(self.config, self.backend, due, **about)
            if self.engine and self.engine.first_line:
                logger.info(self.engine.first_line)
        for line in stale.clear(self.workflow, self.datasets, is_elsewhere=self.is_elsewhere):
            logger.info(line)

    def end(self, logs: Iterable[str] | None = None) -> None:
        """Say what failed and what to do, what the steps took, and where the results lie.

        Parameters
        ----------
        logs
            Snakemake's logs of a run that failed; None where it did not.
        """
        finished = snakemake_internals.finished_jobs(self.workflow)
        if logs is not None:
            failed = snakemake_internals.failed_jobs(self.workflow)
            left = [j for j in snakemake_internals.due_jobs(self.workflow) if j not in failed]
            text = "".join(Path(log).read_text(errors="replace") for log in logs)
            if said := summary.failure_lines(failed, left, text, since=self._began - 2):
                logger.error("\n".join(said))
        is_touch = snakemake_internals.is_touch(self.workflow)
        if not is_touch and (lines := summary.usage_lines(finished)):
            logger.info("\n".join(["", *lines, ""]))
        done = {job.label for job in finished}
        for name in self.datasets:
            is_new = logs is None or f"final {name}" in done
            if is_new and (there := _opened(f"results/{name}")):
                logger.info(f"{name}: " + ", ".join(there))
        if self.engine and (line := self.engine.last_line()):
            logger.info(line)
        gc.freeze()  # else Python looks through all that Snakemake made once more before it ends

    # ------------------------------------------------------------------------------------- within

    def _resolve_backend(self) -> tuple[str, str]:
        """Choose the backend of the run; return it and the line that says so.

        Where jobs or steps run on other machines, `gpu` is taken at its word: a GPU step checks
        its machine.
        """
        asked = self.config["backend"]
        if self.is_elsewhere and asked == "gpu":
            return "gpu", "backend: gpu (as the config asks, wherever the steps run)"
        backend, line = gpus.resolve_backend(asked)
        if self.is_elsewhere and (asked, backend) == ("auto", "cpu"):
            line += "; set backend: gpu for machines that have one"
        return backend, line

    def _steps_for_worker(self) -> tuple[list[str], bool]:
        """List the steps of this run that go to a worker, and whether one may be started.

        Where a start does not pay, a worker that is there is used.
        """
        asked = self.config["worker"]
        jobs = [job.rule for job in snakemake_internals.due_jobs(self.workflow)]
        due = [step for step in using("backend") if step in jobs]
        is_away = snakemake_internals.runs_elsewhere(self.workflow) or self.environment()
        if snakemake_internals.is_touch(self.workflow) or (asked == "none" and not self.scheduler):
            return [], False
        if due and is_away and asked == "warm" and not self.scheduler:
            message = (
                "worker: warm is for steps on this machine, in the environment that Snakemake "
                "runs in; for jobs elsewhere or in conda's environments set worker: none"
            )
            raise UserError(message)
        if is_away:
            return [], False
        n_jobs = sum(job in due for job in jobs)
        pays = asked == "warm" or self.scheduler or n_jobs >= FEWEST_FOR_WORKER[self.backend]
        return due, bool(pays)


def plan_lines(config: Mapping[str, Any], backend: str, results: Path | str) -> list[str]:
    """Choose for every dataset of a run whose counts are converted: in memory or in blocks.

    Parameters
    ----------
    config
        A `scrna.config.settings.complete` config.
    backend
        ``gpu`` or ``cpu``.
    results
        The folder with a folder for each dataset.

    Returns
    -------
    Lines for the terminal.

    Raises
    ------
    UserError
        As `scrna.resources.plan.plan_steps` does.
    """
    configure(**config["memory"], limit_gb=config["gpu"]["limit_gb"])
    lines = []
    for name in config["run"]:
        if sizes := sizes_of(Path(results, name)):
            choices = check_methods(name, config["datasets"][name], sizes, backend)
            lines += [f"{name}: {choice}" for choice in choices]
    return lines


def _picked(config: Mapping[str, Any]) -> tuple[str, str]:
    """Pick the dataset of `run: auto` for this machine; return it and the line that says so."""
    picked, line = settings.pick_run(config, gpus.gpu_memory)
    return picked["run"], line


def _opened(folder: str) -> list[str]:
    """List what a person opens of a dataset's results; a run may have been asked for less."""
    return [
        f"{folder}/{file}{how}"
        for file, how in OPENED.items()
        if os.path.exists(f"{folder}/{file}")
    ]
