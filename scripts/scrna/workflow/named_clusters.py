"""Clusters that a dataset's settings name: found where the clusters are, before what needs them.

The steps ``leiden`` and ``louvain`` check them as soon as they have clusters. Settings that name
other clusters later are no reason to cluster again: the start of a run looks at what stands.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scrna.config.settings import annotations, batch_keys
from scrna.damage import DamagedError
from scrna.methods.cell_types import place_of
from scrna.steps import CLUSTERINGS, clustering_of
from scrna.workflow import snakemake_internals
from scrna.workflow.targets import REPS


def named_clusters(
    dataset: Mapping[str, Any], name: str, method: str, rep: str
) -> dict[str, Any] | None:
    """List the clusters that a dataset's settings name of one clustering step.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    name
        Its name.
    method
        ``leiden`` or ``louvain``.
    rep
        The representation.

    Returns
    -------
    As `scrna.methods.cluster_names.check_named` takes them; None where there are none.
    """
    reps = REPS if batch_keys(dataset) else REPS[:1]
    found = {}
    for asked, names in annotations(dataset).items():
        of_rep, clustering = place_of(asked, reps)
        if of_rep == rep and clustering_of(clustering) == method:
            key = f"annotations.{asked}"
            found[key] = {"clustering": clustering, "clusters": list(names)}
    trajectory = dataset["trajectory"]
    if method == "leiden" and trajectory["enabled"] and "cluster" in (trajectory["root"] or {}):
        clusters = [str(trajectory["root"]["cluster"])]
        found["trajectory.root.cluster"] = {"clustering": "leiden", "clusters": clusters}
    return {"dataset": name, "rep": rep, "clusters": found} if found else None


def check_standing(workflow: Any, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse names of clusters that stand and that a run uses as they are, before it begins.

    Parameters
    ----------
    workflow
        Snakemake's object, with the jobs of the run.
    datasets
        The datasets of the run, by name.

    Raises
    ------
    UserError
        For a cluster that there is not.
    """
    if snakemake_internals.is_touch(workflow):
        return
    for job in snakemake_internals.standing_jobs(workflow):
        if job.rule in CLUSTERINGS:
            name, rep = job.place
            if named := named_clusters(datasets[name], name, job.rule, rep):
                with suppress(DamagedError):  # the first step that reads it says so
                    _check_file(Path(*job.outputs), named)


def _check_file(path: Path, named: Mapping[str, Any]) -> None:
    from scrna.data import step_files
    from scrna.methods.cluster_names import check_named

    clusterings = {wanted["clustering"] for wanted in named["clusters"].values()}
    there = {name: step_files.read(path, f"obs/{name}") for name in clusterings}
    check_named(named, {name: list(of.categories) for name, of in there.items()})
