"""Score gene sets and the phases of the cell cycle in every cell.

Purpose
    How strongly a cell expresses a set of genes, and whether it divides.

Method
    ``score_genes`` and ``score_genes_cell_cycle`` of scanpy (Tirosh et al. 2016) on log-normalised
    values of the kept genes: the mean of the genes of a set minus the mean of control genes with a
    similar mean expression, drawn with the seed of the run. Computed on blocks of cells, with the
    values of scanpy on both backends. Genes that are not in the data, or that the filter removed,
    are left out, with a warning.

Settings
    Section ``scores``, and the seed.

Inputs
    ``counts.zarr``, filter, normalize.

Outputs
    A step file: obs column of each set, under its name; with ``cell_cycle`` obs ``S_score``,
    ``G2M_score`` and ``phase`` (G1, S or G2M); uns ``scores`` with the genes that were used.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path
from typing import Any

import numpy as np

from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.gene_lists import FEWEST_GENES, find_known, warn_of_missing
from scrna.data.matrix import open_matrix
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.gene_scores import PHASES, control_genes, gene_means, phases, set_scores
from scrna.step import step
from scrna.workflow.rule import run


@step
def scores(
    counts: Path,
    filtered: Path,
    normalized: Path,
    out: Path,
    *,
    sets: dict[str, list[str]],
    cell_cycle: dict[str, Any] | None,
    ctrl_size: int,
    n_bins: int,
    backend: str,
    seed: int,
    execution: str = "auto",
) -> None:
    """Score gene sets and the cell cycle.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    out
        The step file: obs columns of the kept cells, uns scores.
    sets
        Name → genes by symbol or id.
    cell_cycle
        ``S`` and ``G2M``, symbols of each phase, and ``formerly``, older symbols of some; None for
        no cell cycle.
    ctrl_size, n_bins
        Control genes from each bin of mean expression, and bins. The cell cycle takes as many
        control genes as its shorter list has genes, as in scanpy.
    backend, seed
        Where, and from which seed each set draws its control genes.
    execution
        ``memory`` or ``blocks``, or ``auto`` for what the size asks for.

    Raises
    ------
    UserError
        If too few genes of a set are there, or its bins have no control genes.
    """
    cycle = dict(cell_cycle or {})
    formerly = cycle.pop("formerly", {})
    asked = {name: (genes, ctrl_size, {}) for name, genes in sets.items()}
    size = min(map(len, cycle.values()), default=0)
    asked |= {f"{name}_score": (genes, size, formerly) for name, genes in cycle.items()}
    if not asked:
        msg = "nothing is to be scored: set scores.sets or scores.cell_cycle"
        raise UserError(msg)
    symbols, places = _genes_of(counts, filtered, asked)
    with open_matrix(
        "scores", counts, filtered, normalized, backend=backend, asked=execution
    ) as matrix:
        means = gene_means(matrix, backend)
        chosen = {
            name: (own, _controls(name, means, own, asked[name][1], n_bins, seed))
            for name, own in places.items()
        }
        found = set_scores(matrix, chosen, backend)
    slots: dict[str, Any] = {f"obs/{name}": values for name, values in found.items()}
    if cycle:
        codes = phases(found["S_score"], found["G2M_score"])
        slots["obs/phase"] = step_files.Categories(codes, PHASES)
        _tell_phases(codes)
    genes = {name: symbols[own].astype(object) for name, own in places.items()}
    used = {"ctrl_size": ctrl_size, "n_bins": n_bins, "seed": seed}
    step_files.write(out, slots | {"uns/scores": {"genes": genes, "params": used}})
    for name, (own, controls) in chosen.items():
        log.info("%s: %d genes, %d control genes", name, len(own), len(controls))


def _genes_of(
    counts: Path, filtered: Path, asked: dict[str, tuple]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Find the genes of each set among the kept ones, and warn of the others.

    Returns
    -------
    The symbols of the kept genes, and name → places among them.
    """
    store, keep = Counts(counts), kept(filtered)[1]
    symbols, number = store.genes(), np.cumsum(keep) - 1
    places = {}
    for name, (genes, _, formerly) in asked.items():
        found, missing = find_known(genes, symbols, store.gene_ids, formerly=formerly)
        stay = [place for place in found.values() if keep[place]]
        removed = [gene for gene, place in found.items() if not keep[place]]
        warn_of_missing(name, missing, removed, len(genes))
        if len(stay) < FEWEST_GENES:  # the filter has refused it, where the workflow runs the steps
            msg = f"{name}: {len(stay)} of its {len(genes)} genes are there; a score needs "
            raise UserError(f"{msg}{FEWEST_GENES}")
        places[name] = number[stay]
    return symbols[keep], places


def _controls(
    name: str, means: np.ndarray, genes: np.ndarray, ctrl_size: int, n_bins: int, seed: int
) -> np.ndarray:
    """Draw the control genes of a set, of which there must be some."""
    found = control_genes(means, genes, ctrl_size=ctrl_size, n_bins=n_bins, seed=seed)
    if len(found) == 0:
        msg = (
            f"{name}: no gene is left as a control, for the set has all kept genes of its bins of "
            "mean expression. Take a smaller set, or lower scores.n_bins"
        )
        raise UserError(msg)
    return found


def _tell_phases(codes: np.ndarray) -> None:
    shares = np.bincount(codes, minlength=len(PHASES)) / max(1, len(codes))
    said = [f"{phase} {share:.1%}" for phase, share in zip(PHASES, shares, strict=True)]
    log.info("phases: %s", ", ".join(said))


if __name__ == "__main__":
    run(scores, snakemake)
