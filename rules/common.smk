"""What the rules share: the checked config, the backend, and what a rule asks for."""

import gc
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

from snakemake.common.tbdstring import TBDString
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

from scrna.config import settings as checks
from scrna.config import datasets, step_parameters
from scrna.resources import gpus
from scrna.workflow import records, session, snakemake_internals, stale, summary
from scrna.code_digest import code_digest, page_digest
from scrna.config.yaml_files import overruled
from scrna.workflow.decisions import decided
from scrna.damage import whole_summary
from scrna.errors import UserError
from scrna.workflow.folders import check_writable
from scrna.resources.locks import directory_lock
from scrna.log import share_terminal
from scrna.workflow.named_in_data import check_converted, named_in_data
from scrna.names import is_clustering
from scrna.resources.estimates import memory_mb
from scrna.config.source_address import set_credentials_aside
from scrna.processes import announce

announce()  # a job ends with the run that started it, were that one killed outright


def resolve_backend(asked, scheduler):
    """The backend of a run and the line that says so. Where the jobs run on other machines (--jobs),
    or their steps in another cluster, `gpu` is taken at its word; a GPU step checks its machine.
    """
    if is_elsewhere(scheduler) and asked == "gpu":
        return "gpu", "backend: gpu (as the config asks, wherever the steps run)"
    backend, line = gpus.resolve_backend(asked)
    if is_elsewhere(scheduler) and (asked, backend) == ("auto", "cpu"):
        line += "; set backend: gpu for machines that have one"
    return backend, line


def is_elsewhere(scheduler):
    """Whether steps run on other machines than this one."""
    return workflow.resource_settings.nodes is not None or scheduler is not None


def pick_dataset():
    """What `run: auto` picks on this machine, and the line that says so."""
    picked, line = checks.pick_run(config, gpus.gpu_memory)
    return picked["run"], line


try:
    stale.check_hooks(workflow)
    is_main = workflow.is_main_process
    if is_main:
        check_writable()
    picked_line = None
    if config.get("run") == "auto":
        config["run"], picked_line = decided("run", pick_dataset, is_main=is_main)
    config = checks.complete(config)
    config["datasets"] = set_credentials_aside(config["datasets"])
    SCHEDULER = config["dask"]["scheduler"]
    BACKEND, backend_line = decided(
        "backend",
        lambda: resolve_backend(config["backend"], SCHEDULER),
        is_main=is_main,
    )
    checks.check(config | {"backend": BACKEND})
    DATASETS = {name: config["datasets"][name] for name in config["run"]}
    SOURCES = datasets.sources(DATASETS)
    if is_main:
        seen_by = {"backend": BACKEND, "seed": config["seed"]}
        check_converted(DATASETS, SOURCES, "results", **seen_by)
    lines = [line for line in (picked_line, backend_line) if line]
    lines += overruled(CONFIG_FILES, DATASETS, checks.SECTIONS)
    if workflow.is_main_process and not is_elsewhere(SCHEDULER):
        lines += session.before_run(config, BACKEND, "results")
except UserError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process:
    share_terminal(logger)
    for line in lines:
        logger.info(line)

REPS = ["pca", "harmony"]
GPU = int(BACKEND == "gpu")
# Two rules at once, each with half of the cores: the two representations keep each other company,
# and much of a small step is one thread that imports. A job elsewhere has its cores to itself.
CORES = workflow.cores or 1
THREADS = max(1, CORES // 2) if workflow.is_main_process else CORES
# The profiles let two GPU steps start. One computes, as the worker and the GPU's lock have it, and the next
# one waits for its turn, with half of a rule's cores each: the other rules keep theirs.
NEXT_MAY_WAIT = bool(
    GPU and CORES >= 4 and workflow.is_main_process and not is_elsewhere(SCHEDULER)
)
STEP_THREADS = THREADS // 2 if NEXT_MAY_WAIT else THREADS
# Where cores are few, what others wait for goes before the pictures, which only the report waits for.
BEFORE_PICTURES = 1
# `worker: auto` starts one for as many steps: on a CPU it takes as long as importing scanpy does.
FEWEST_FOR_WORKER = {"gpu": 1, "cpu": 6}


wildcard_constraints:
    dataset="|".join(map(re.escape, DATASETS)),
    rep="|".join(REPS),
    topic="genes|clusters|tsne|trajectory",


def settings(step):
    """A step's parameters: its section of the dataset's config, and no more than it depends on."""

    def of(wildcards):
        return step_parameters.of_step(
            step,
            DATASETS[wildcards.dataset],
            backend=BACKEND,
            seed=config["seed"],
            rep=getattr(wildcards, "rep", None),
            topic=getattr(wildcards, "topic", None),
        )

    return of


def reading(wildcards):
    """How a dataset's source is read: the parameters of its conversion."""
    return {key: DATASETS[wildcards.dataset][key] for key in datasets.READING}


def required_columns(wildcards, input):
    """What later steps need of the data. Asking for `input` keeps Snakemake from tracking it:
    another batch_key is no reason to convert again (check_converted looks at what is there).
    """
    name = wildcards.dataset
    columns = datasets.required_obs(DATASETS[name], name)
    return {"dataset": name, "required_obs": columns} | needed(wildcards, input)


def needed(wildcards, input):
    """The cells, genes, labels and batches that a dataset's settings name; likewise not tracked."""
    name = wildcards.dataset
    return {"named": named_in_data(DATASETS[name], name, config["seed"])}


def in_memory_or_blocks(wildcards, input):
    """How a step works on the matrix. Asking for `input` keeps Snakemake from tracking it: the
    results are the same.
    """
    return {"execution": DATASETS[wildcards.dataset]["execution"]}


def checksum(wildcards, output):
    """The digest of a download. Asking for `output` keeps Snakemake from tracking it: `convert` checks
    a digest that comes later, without fetching the file again.
    """
    name = wildcards.dataset
    return {"dataset": name, "sha256": DATASETS[name]["sha256"]}


def as_used(wildcards, input):
    """What a report shows of a dataset's run. Asking for `input` keeps Snakemake from tracking it:
    a setting that changes what there is to show changes what the report is made from.
    """
    name = wildcards.dataset
    shown = {"dataset": name, "config": DATASETS[name]}
    return shown | {"benchmarks": f"benchmarks/{name}"}


def code(script):
    """A digest of a rule's script and of the shared modules that it uses."""
    return code_digest(f"{SCRIPTS}/{script}.py")


def environment(wildcards):
    """The conda environment, where one is asked for: Snakemake would otherwise write the whole of
    it, all the pins, into the metadata of every output."""
    wanted = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    return f"../envs/{BACKEND}.yaml" if wanted else None


def memory(step):
    """The MB that a step needs, from the sizes in counts.json once it is there."""

    def of(wildcards, attempt):
        summary = f"results/{wildcards.dataset}/counts.json"
        if whole_summary(Path(summary)) is None:
            return TBDString()  # asked again once the counts are converted
        dataset = DATASETS[wildcards.dataset]
        is_dense = dataset["pca"]["scale"] or dataset["pca"]["regress_out"]
        dense_genes = dataset["hvg"]["n_top_genes"] if is_dense else 0
        mode = "blocks" if dataset["execution"] == "blocks" else "memory"
        return memory_mb(summary, step, dense_genes=dense_genes, mode=mode) * attempt

    return of


def source_files(wildcards):
    """The files that hold a dataset's counts."""
    return SOURCES[wildcards.dataset].files


def representation(wildcards):
    """The step file of a representation."""
    return f"results/{wildcards.dataset}/{wildcards.rep}/{wildcards.rep}.h5"


def marker_groups(wildcards):
    """The clustering that markers are computed for; none for a column of obs."""
    groupby = DATASETS[wildcards.dataset]["markers"]["groupby"]
    if not is_clustering(groupby):
        return []
    return f"results/{wildcards.dataset}/{wildcards.rep}/{groupby.split('_')[0]}.h5"


def step_files(wildcards):
    """All step files of a dataset that `final` gathers, beside the filter and the normalisation."""
    dataset = DATASETS[wildcards.dataset]
    steps = ["neighbors", "umap", "leiden"]
    steps += [
        s for s in ("tsne", "louvain", "markers", "trajectory") if dataset[s]["enabled"]
    ]
    reps = REPS if checks.batch_keys(dataset) else REPS[:1]
    files = ["qc.h5", "hvg.h5"] + [
        f"{rep}/{step}.h5" for rep in reps for step in [rep, *steps]
    ]
    if len(reps) > 1 and dataset["integration"]["enabled"]:
        files += ["integration_scores.h5", "integration.h5"]
    return [f"results/{wildcards.dataset}/{file}" for file in files]


def figure_files(wildcards):
    """The step files of a dataset's representations that the pictures of a topic are drawn from."""
    shown = {
        "genes": ["pca"],
        "clusters": ["leiden", "umap"],
        "tsne": ["leiden", "tsne"],
        "trajectory": ["leiden", "umap", "trajectory"],
    }[wildcards.topic]
    named = checks.annotations(DATASETS[wildcards.dataset])
    if wildcards.topic in step_parameters.TOPICS_BY_CELL and any(
        "louvain" in n for n in named
    ):
        shown = [*shown, "louvain"]
    files = map(Path, step_files(wildcards))
    return [str(f) for f in files if f.parent.name in REPS and f.stem in shown]


def marker_tables(wildcards):
    """The tables of markers of a dataset."""
    files = map(Path, step_files(wildcards))
    return [str(f.with_suffix(".csv")) for f in files if f.stem == "markers"]


def figure_folders(wildcards):
    """The folders of a dataset's figures."""
    if not DATASETS[wildcards.dataset]["figures"]["enabled"]:
        return []
    dataset, folder = DATASETS[wildcards.dataset], Path("results", wildcards.dataset)
    topics = ["genes", "clusters"]
    topics += [name for name in ("tsne", "trajectory") if dataset[name]["enabled"]]
    of_reps = [Path(table).parent for table in marker_tables(wildcards)]
    folders = [folder / "figures" / topic for topic in topics]
    return list(
        map(str, folders + [each / "figures" for each in [folder / "qc", *of_reps]])
    )


def targets(wildcards):
    """What a run makes."""
    objects = [f"results/{name}/final.zarr" for name in DATASETS]
    wanted = [name for name, dataset in DATASETS.items() if dataset["final"]["h5ad"]]
    for name, dataset in DATASETS.items():
        objects += figure_folders(SimpleNamespace(dataset=name))
        if dataset["report"]["enabled"]:
            objects.append(f"results/{name}/report.html")
    return objects + [f"results/{name}/final.h5ad" for name in wanted]


def named(datasets):
    """A wildcard constraint: one of these datasets, or none."""
    return "|".join(map(re.escape, datasets)) or "(?!)"


def check_records():
    """Look at results that Snakemake has no record of, once all rules are read."""
    if not workflow.is_main_process:
        return
    try:
        for line in records.mark_unknown(workflow, DATASETS):
            logger.warning(line)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def begin_run():
    """Keep a second run out of this working directory; the kernel lets go when this one ends.
    Then find or start the worker that steps run in, or look at the cluster that is there for them.
    """
    global run_lock, engine, begun
    begun, engine = time.time(), None
    if not workflow.non_local_exec:
        snakemake_internals.lift_rate_limit(workflow.scheduler)
    try:
        run_lock = directory_lock(os.getcwd())
        due, may_start = steps_for_worker()
        if SCHEDULER:
            from scrna.engine.dask_check import check_scheduler

            logger.info(check_scheduler(SCHEDULER, BACKEND))
        if due:
            from scrna.engine import run

            at_once = 1 if GPU else CORES // THREADS
            about = {"at_once": at_once, "threads": THREADS, "may_start": may_start}
            engine = run.begin(config, BACKEND, due, **about)
            if engine and engine.first_line:
                logger.info(engine.first_line)
        for line in stale.clear(
            workflow, DATASETS, is_elsewhere=is_elsewhere(SCHEDULER)
        ):
            logger.info(line)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def steps_for_worker():
    """The steps of this run that go to a worker, in their order, and whether one may be started:
    where that does not pay, one that is there is used.
    """
    asked = config["worker"]
    jobs = [job.rule.name for job in workflow.dag.needrun_jobs()]
    due = [step for step in step_parameters.USES_BACKEND if step in jobs]
    is_away = workflow.non_local_exec or environment(None)
    if workflow.touch or (asked == "none" and not SCHEDULER):
        return [], False
    if due and is_away and asked == "warm" and not SCHEDULER:
        message = (
            "worker: warm is for steps on this machine, in the environment that Snakemake runs in; "
            "for jobs elsewhere or in conda's environments set worker: none"
        )
        raise UserError(message)
    if is_away:
        return [], False
    n_jobs = sum(job in due for job in jobs)
    pays = asked == "warm" or SCHEDULER or n_jobs >= FEWEST_FOR_WORKER[BACKEND]
    return due, bool(pays)


def end_run(logs=None):
    """Say what failed and what to do (where Snakemake gives the logs of a run that failed), what the
    steps took, and where the results lie.
    """
    finished = steps_among(workflow.dag.finished_jobs)
    if logs is not None:
        failed = getattr(workflow.scheduler, "failed", [])
        left = [job for job in workflow.dag.needrun_jobs() if job not in failed]
        text = "".join(Path(log).read_text(errors="replace") for log in logs)
        said = summary.failure_lines(
            steps_among(failed), steps_among(left), text, since=begun - 2
        )
        if said:
            logger.error("\n".join(said))
    if not workflow.touch and (lines := summary.usage_lines(finished)):
        logger.info("\n".join(["", *lines, ""]))
    done = {step.label for step in finished}
    for name in DATASETS:
        folder = f"results/{name}"
        is_new = logs is None or f"final {name}" in done
        if is_new and (there := results_in(folder)):
            logger.info(f"{name}: " + ", ".join(there))
    if engine and (line := engine.last_line()):
        logger.info(line)
    gc.freeze()  # else Python looks through all that Snakemake made once more before it ends


def results_in(folder):
    """What a person opens of a dataset's results; a run may have been asked for less."""
    about = {"report.html": "", "final.zarr": " (anndata.read_zarr)"}
    return [
        f"{folder}/{file}{how}"
        for file, how in about.items()
        if os.path.exists(f"{folder}/{file}")
    ]


def steps_among(jobs):
    """What the end of a run tells of jobs, the target rule apart."""
    found = []
    for job in [one for job in jobs for one in (job.jobs if job.is_group() else [job])]:
        name = job.rule.name
        label = f"{name} {'/'.join(map(str, job.wildcards))}".strip()
        files = [
            Path(file) if file else None
            for file in (next(iter(job.log), None), job.benchmark)
        ]
        if name != "all":
            found.append(summary.Job(name, label, *files))
    return found
