"""Check the clusterings and clusters that settings name; refuse those that cannot exist."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scrna.config.groupings import grouping_problems, groupings
from scrna.steps import CLUSTERINGS, is_clustering


def clustering_problems(
    dataset: Mapping[str, Any],
    annotations: Mapping[str, Mapping[str, str]],
    *,
    is_integrated: bool,
) -> Iterator[str]:
    """Find clusterings that are computed twice, and names of clusterings that are not computed.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    annotations
        Its names for clusters, by clustering.
    is_integrated
        Whether it has a batch_key, and so two representations.

    Yields
    ------
    A sentence for each problem.
    """
    for method in CLUSTERINGS:
        names = _resolutions(dataset, method)
        for name in sorted({name for name in names if names.count(name) > 1}):
            given = [r for r in dataset[method]["resolution"] if f"{method}_{r:g}" == name]
            yield (
                f"{method}.resolution has {' and '.join(map(str, given))}, which both make {name}: "
                "leave one of them out"
            )
    if dataset["markers"]["enabled"]:
        own = groupings(dataset)
        key = "markers.groupby is" if len(own) == 1 else "markers.groupby has"
        for groupby in filter(is_clustering, own):
            yield from _not_made(dataset, groupby, key)
        yield from grouping_problems(dataset, is_integrated=is_integrated)
    by = dataset["cell_types"]["by"]
    if dataset["cell_types"]["markers"] and is_clustering(by):
        yield from _not_made(dataset, by, "cell_types.by is")
    for clustering, names in annotations.items():
        key = "annotations names clusters of"
        if clustering.endswith("_pca") and not is_integrated:
            yield (
                f"{key} {clustering}, but without a batch_key there is one representation: "
                f"write {clustering.removesuffix('_pca')}"
            )
        yield from _not_made(dataset, clustering.removesuffix("_pca"), key)
        yield from _no_clusters(names, f"annotations.{clustering} names")
    root = dataset["trajectory"]["root"] or {}
    if "cluster" in root and dataset["trajectory"]["enabled"]:
        yield from _no_clusters([str(root["cluster"])], "trajectory.root.cluster is")


def _resolutions(dataset: Mapping[str, Any], method: str) -> list[str]:
    """List the columns that several resolutions make (`scrna.methods.cluster_names`)."""
    resolutions = dataset[method].get("resolution")
    return [f"{method}_{r:g}" for r in resolutions] if isinstance(resolutions, list) else []


def _not_made(dataset: Mapping[str, Any], clustering: str, key: str) -> Iterator[str]:
    """Check that the settings compute a clustering."""
    method, _, asked = clustering.partition("_")
    if not is_clustering(clustering):
        yield f"{key} {clustering}, which is not a clustering; there are {', '.join(CLUSTERINGS)}"
        return
    if not dataset[method].get("enabled", True):
        yield f"{key} {clustering}, but {method}.enabled is false"
    names = _resolutions(dataset, method)
    if asked and clustering not in names:
        have = ", ".join([method, *names])
        yield f"{key} {clustering}, but {method}.resolution gives {have}"


def _no_clusters(names: Iterable[str], key: str) -> Iterator[str]:
    """Find names that no cluster can have."""
    for name in names:
        if not re.fullmatch("0|[1-9][0-9]*", name):
            yield f"{key} {name!r}, which is not a cluster: they are numbered 0, 1, 2, ..."
