"""Simulate a dataset with known cell types, batches and trajectory.

Purpose
    A dataset without a download: for the demo, tests and benchmarks of any size.

Method
    Cells have types with marker genes, four of the types lie on a branching trajectory, each batch
    shifts the genes, and some droplets are dead or empty. Counts are negative binomial, see
    `scrna.ingest.simulate`. Time grows with cells × genes, the file with the counts above zero (8
    bytes each; with 5,000 mean counts about 700 in a cell with 2,000 genes, 2,000 with 20,000).

Settings
    Section ``simulate`` of the dataset, and ``seed``. The defaults make the demo.

Inputs
    None.

Outputs
    ``h5ad``: counts as integers, CSR; genes are indexed by symbols (``MT-ND1``, ``RPS2``, ``HBA1``,
    ``MARK1-1``, ``GENE1``).

    ==============  ===================================================================
    obs             truth
    ==============  ===================================================================
    cell_type       ``type_1`` …; none for empty droplets
    batch           ``batch_1`` …
    status          ``cell``, ``dead`` (few counts, over 20 % mitochondrial) or ``empty``
    pseudotime      0 to 1 along the trajectory; none off it
    branch          ``trunk``, ``a`` or ``b``; none off the trajectory
    ==============  ===================================================================

    ==============  ===================================================================
    var
    ==============  ===================================================================
    gene_ids        invented, in the form of Ensembl's
    marker_of       the type that the gene marks; none for most genes
    ==============  ===================================================================
"""

from pathlib import Path

from scrna.ingest.simulate import Simulation
from scrna.log import log
from scrna.step import step
from scrna.workflow.rule import run


@step
def simulate(
    h5ad: Path,
    *,
    n_obs: int = Simulation.n_obs,
    n_vars: int = Simulation.n_vars,
    n_types: int = Simulation.n_types,
    n_batches: int = Simulation.n_batches,
    trajectory: bool = Simulation.trajectory,
    mean_counts: float = Simulation.mean_counts,
    depth_spread: float = Simulation.depth_spread,
    dispersion: float = Simulation.dispersion,
    markers_per_type: int = Simulation.markers_per_type,
    marker_fold: float = Simulation.marker_fold,
    batch_strength: float = Simulation.batch_strength,
    dead_share: float = Simulation.dead_share,
    empty_share: float = Simulation.empty_share,
    seed: int = Simulation.seed,
    threads: int | None = None,
) -> None:
    """Write a simulated dataset.

    Parameters
    ----------
    h5ad
        The file to write.
    threads
        Threads that draw, by default one a core; the counts do not depend on it.
    n_obs, …, seed
        All others are the parameters of `scrna.ingest.simulate.Simulation`.

    Raises
    ------
    UserError
        If a parameter is out of its bounds.
    """
    simulation = Simulation(
        n_obs=n_obs,
        n_vars=n_vars,
        n_types=n_types,
        n_batches=n_batches,
        trajectory=trajectory,
        mean_counts=mean_counts,
        depth_spread=depth_spread,
        dispersion=dispersion,
        markers_per_type=markers_per_type,
        marker_fold=marker_fold,
        batch_strength=batch_strength,
        dead_share=dead_share,
        empty_share=empty_share,
        seed=seed,
    )
    n_counts = simulation.write_h5ad(h5ad, threads=threads)
    status = simulation.obs["status"].value_counts()
    log.info(
        "simulated %s droplets × %s genes: %s cells of %s types in %s batches, %s dead, %s empty; "
        "%s counts above zero",
        *(f"{n:,}" for n in (n_obs, n_vars, status["cell"], n_types, n_batches)),
        *(f"{n:,}" for n in (status["dead"], status["empty"], n_counts)),
    )


if __name__ == "__main__":
    run(simulate, snakemake)
