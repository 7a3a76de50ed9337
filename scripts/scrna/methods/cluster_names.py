"""Cluster at each resolution, and name clusters by size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scrna.data import step_files
from scrna.errors import UserError
from scrna.log import log


def each_resolution(
    neighbors: Path,
    out: Path,
    name: str,
    resolution: float | list[float],
    cluster: Callable,
    named: Mapping[str, Any] | None = None,
) -> None:
    """Cluster at each resolution and write the clusters, the largest first.

    Parameters
    ----------
    neighbors
        The step file of ``neighbors``.
    out
        The step file: ``obs/{name}``, and with a list of resolutions ``obs/{name}_{resolution}``.
    name
        ``leiden`` or ``louvain``.
    resolution
        One, or a list.
    cluster
        Called with (graph, resolution): gives the cluster of each cell, numbered from 0.
    named
        Clusters that the config names, as `check_named` takes them.
    """
    graph = step_files.read(neighbors, "obsp/connectivities")
    several = isinstance(resolution, list)
    found = {}
    for value in resolution if several else [resolution]:
        labels, sizes = by_size(cluster(graph, value))
        found[f"obs/{name}_{value:g}" if several else f"obs/{name}"] = labels
        log.info(
            "resolution %g: %s clusters of %s to %s cells",
            value,
            *(f"{n:,}" for n in (len(sizes), sizes[-1], sizes[0])),
        )
    found.setdefault(f"obs/{name}", next(iter(found.values())))
    if named:
        check_named(named, {key.removeprefix("obs/"): of.names for key, of in found.items()})
    step_files.write(out, found | {f"uns/{name}": {"params": {"resolution": np.array(resolution)}}})


def check_named(named: Mapping[str, Any], there: Mapping[str, Sequence[str]]) -> None:
    """Refuse clusters that the config names and that there are not.

    Parameters
    ----------
    named
        dataset; rep; clusters: config key → clustering and clusters, what it names.
    there
        Clustering → its clusters.

    Raises
    ------
    UserError
        For the first config key that names such a cluster.
    """
    for key, wanted in named["clusters"].items():
        known = there[wanted["clustering"]]
        if unknown := [cluster for cluster in wanted["clusters"] if cluster not in known]:
            clusters = f"{len(known)} clusters, {known[0]} to {known[-1]}"
            msg = (
                f"{named['dataset']}: {key} names {', '.join(unknown)}, but {wanted['clustering']} "
                f"of {named['rep']} has {'one cluster, 0' if len(known) == 1 else clusters}. "
                "Correct the name, or change the resolution"
            )
            raise UserError(msg)


def by_size(clusters: np.ndarray) -> tuple[step_files.Categories, np.ndarray]:
    """Rename clusters ``0, 1, ...`` by falling size, as scanpy does.

    Parameters
    ----------
    clusters
        The cluster of each cell, numbers from 0; those that no cell has are passed over.

    Returns
    -------
    labels
        The new name of each cell's cluster.
    sizes
        Cells of each cluster, the largest first.
    """
    sizes = np.bincount(clusters)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    sizes = sizes[order][: np.count_nonzero(sizes)]
    return step_files.Categories(rank[clusters], [str(i) for i in range(len(sizes))]), sizes
