"""Compute size factors: what the counts of a cell are divided by.

Purpose
    Bring all cells to the same total. Steps divide and take log1p when they read the matrix
    (`scrna.data.block.log_normalize`).

Method
    Total counts of a cell over the kept genes, divided by ``target_sum`` (a number, or the median
    of the totals): the values of scanpy's ``normalize_total`` and ``log1p``.

Settings
    Section ``normalize``.

Inputs
    ``counts.zarr``, filter.

Outputs
    A step file: obs ``size_factor``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import arrays, to_host
from scrna.data import row_blocks, step_files
from scrna.data.block import Block
from scrna.data.counts import Counts, kept
from scrna.errors import UserError
from scrna.log import log
from scrna.step import step
from scrna.workflow.rule import run


@step
def normalize(
    counts: Path, filtered: Path, out: Path, *, target_sum: float | str, backend: str
) -> None:
    """Compute the size factor of every cell that stays.

    Parameters
    ----------
    counts, filtered
        ``counts.zarr`` and the step file of ``filter``.
    out
        The step file: obs size_factor (kept cells), float64; uns target_sum.
    target_sum
        The total that cells are brought to, or ``median``: that of the totals above 0.
    backend
        ``gpu`` or ``cpu``.

    Raises
    ------
    UserError
        If there is no count at all.
    """
    cells, genes = kept(filtered)
    totals = cell_totals(Counts(counts), cells, genes, backend)
    if not totals.any():
        msg = (
            "no kept cell has a count in the kept genes: set filter.min_genes and "
            "filter.min_cells to 1 at least, and look at what qc says of the counts"
        )
        raise UserError(msg)
    target = float(np.median(totals[totals > 0]) if target_sum == "median" else target_sum)
    if empty := int((totals == 0).sum()):
        log.warning("%s cells have no count in the kept genes; their values are 0", f"{empty:,}")
    size_factor = np.where(totals == 0, 1, totals) / target
    step_files.write(out, {"obs/size_factor": size_factor, "uns/target_sum": np.array(target)})
    log.info(
        "%s cells scaled to %s counts each; size factors %.3g to %.3g",
        f"{len(totals):,}",
        f"{target:,.0f}",
        size_factor.min(),
        size_factor.max(),
    )


def cell_totals(store: Counts, cells: np.ndarray, genes: np.ndarray, backend: str) -> np.ndarray:
    """Sum the counts of the genes taken, for each cell taken; float64, exact."""
    sums = row_blocks.each(
        block_totals, store, backend, genes, backend, rows=cells, label="normalize"
    )
    masks = (cells[slice(*span)] for span in store.ranges(cells))
    totals = [of_block[mask] for of_block, mask in zip(sums, masks, strict=True)]
    return np.concatenate(totals).astype(np.float64)


def block_totals(block: Block, genes: np.ndarray, backend: str) -> np.ndarray:
    """Sum the counts of the genes taken, for each cell of a block; int64."""
    xp = arrays(backend)
    counts = block.data
    if not genes.all():
        counts = xp.where(xp.asarray(genes)[block.indices], counts, 0)
    return to_host(block.row_sums(counts))


if __name__ == "__main__":
    run(normalize, snakemake)
