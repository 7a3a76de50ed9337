"""Cluster the cells with Louvain.

Purpose
    Clusters as of older analyses. Off by default: the clusters of Louvain, unlike those of Leiden,
    need not be connected.

Method
    Louvain (Blondel et al. 2008) on the neighbor graph: cuGraph on the GPU, igraph on the CPU.

Settings
    Section ``louvain``. With a list of resolutions ``louvain`` is the first.

Inputs
    neighbors.

Outputs
    A step file: obs ``louvain`` (cluster 0 is the largest), and ``louvain_{resolution}`` for each
    of a list of resolutions; uns ``louvain``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path
from typing import Any

from scrna.methods import clustering
from scrna.methods.cluster_names import each_resolution
from scrna.resources.admission import decide
from scrna.step import step
from scrna.workflow.rule import run


@step
def louvain(
    neighbors: Path,
    out: Path,
    *,
    resolution: float | list[float],
    backend: str,
    seed: int,
    named: dict[str, Any] | None = None,
) -> None:
    """Cluster the cells with Louvain.

    Parameters
    ----------
    neighbors
        The step file of ``neighbors``.
    out
        The step file: obs louvain (kept cells, categories by falling size), uns louvain.
    resolution
        One, or a list; higher ones give more clusters.
    backend, seed
        Where, and from which seed (cuGraph's Louvain draws nothing).
    named
        Clusters that the config names, as for ``leiden``.

    Raises
    ------
    UserError
        For a cluster that the config names and that there is not.
    """

    def cluster(graph, resolution: float):
        decide("louvain", backend=backend, n_obs=graph.shape[0])
        return clustering.louvain(graph, resolution, backend=backend, seed=seed)

    each_resolution(neighbors, out, "louvain", resolution, cluster, named)


if __name__ == "__main__":
    run(louvain, snakemake)
