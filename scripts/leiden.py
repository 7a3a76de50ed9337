"""Cluster the cells with Leiden.

Purpose
    Clusters, for which markers and the trajectory are computed.

Method
    Leiden (Traag et al. 2019) on the neighbor graph: cuGraph on the GPU, igraph on the CPU.

Settings
    Section ``leiden``. With a list of resolutions ``leiden`` is the first.

Inputs
    neighbors.

Outputs
    A step file: obs ``leiden`` (cluster 0 is the largest), and ``leiden_{resolution}`` for each of
    a list of resolutions; uns ``leiden``.
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
def leiden(
    neighbors: Path,
    out: Path,
    *,
    resolution: float | list[float],
    n_iterations: int | None,
    backend: str,
    seed: int,
    named: dict[str, Any] | None = None,
) -> None:
    """Cluster the cells with Leiden.

    Parameters
    ----------
    neighbors
        The step file of ``neighbors``.
    out
        The step file: obs leiden (kept cells, categories by falling size), uns leiden.
    resolution
        One, or a list; higher ones give more clusters.
    n_iterations
        Most iterations; None goes on until nothing improves (cuGraph: at most 100 levels).
    backend, seed
        Where, and from which seed.
    named
        Clusters that the config names: those that there are not are refused here, where they are
        first known.

    Raises
    ------
    UserError
        For a cluster that the config names and that there is not.
    """
    rounds = n_iterations or {"gpu": 100, "cpu": -1}[backend]

    def cluster(graph, resolution: float):
        decide("leiden", backend=backend, n_obs=graph.shape[0])
        return clustering.leiden(graph, resolution, n_iterations=rounds, backend=backend, seed=seed)

    each_resolution(neighbors, out, "leiden", resolution, cluster, named)


if __name__ == "__main__":
    run(leiden, snakemake)
