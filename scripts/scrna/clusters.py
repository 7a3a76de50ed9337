"""Clusterings of the cells, one for each resolution."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scrna import slots
from scrna.graphs import open_graph
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
        Called with (AnnData with the graph, resolution, key): puts the clusters into ``obs[key]``.
    """
    adata = open_graph(neighbors)
    several = isinstance(resolution, list)
    found = {}
    for value in resolution if several else [resolution]:
        key = f"{name}_{value:g}" if several else name
        cluster(adata, value, key)
        found[f"obs/{key}"] = labels = by_size(adata.obs[key])
        sizes = labels.value_counts()
        log.info(
            "resolution %g: %s clusters of %s to %s cells",
            value,
            *(f"{n:,}" for n in (len(sizes), sizes.min(), sizes.max())),
        )
    found.setdefault(f"obs/{name}", next(iter(found.values())))
    slots.write(out, found | {f"uns/{name}": {"params": {"resolution": np.array(resolution)}}})


def by_size(labels):
    """Rename clusters ``0, 1, ...`` by falling size, as scanpy does; `pandas.Categorical`."""
    import pandas as pd

    codes = labels.astype("category").cat.codes.to_numpy()
    order = np.argsort(-np.bincount(codes), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return pd.Categorical.from_codes(rank[codes], [str(i) for i in range(len(order))])
