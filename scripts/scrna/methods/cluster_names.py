"""Cluster at each resolution, and name clusters by size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.log import log


def each_resolution(
    neighbors: Path,
    out: Path,
    name: str,
    resolution: float | list[float],
    cluster: Callable,
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
    step_files.write(out, found | {f"uns/{name}": {"params": {"resolution": np.array(resolution)}}})


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
