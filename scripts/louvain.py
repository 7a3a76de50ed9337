"""Louvain clusters of the neighbor graph (Blondel et al. 2008): ``obs/louvain``.

With a list of resolutions each is kept as ``obs/louvain_{resolution}``, and ``louvain`` is the
first. Off by default: Leiden's clusters are connected, Louvain's need not be.

Settings: section ``louvain``. Input: neighbors. Output: a step file.
"""

if __name__ == "__main__":  # a warm worker does the step, if there is one: nothing to import here
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

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
    """

    def cluster(graph, resolution: float):
        decide("louvain", backend=backend, n_obs=graph.shape[0])
        return clustering.louvain(graph, resolution, backend=backend, seed=seed)

    each_resolution(neighbors, out, "louvain", resolution, cluster)


if __name__ == "__main__":
    run(louvain, snakemake)
