"""Score doublets, two cells in one droplet, in each sample, and predict which cells are doublets.

Purpose
    Doublets may form clusters of their own that look like cell types between two others.

Method
    Scrublet (Wolock et al. 2019), of scanpy or rapids-singlecell. Cells share a droplet only with
    cells of the same sample, so each sample is scored separately, with the same seed. Scores of a
    sample are therefore the same alone and beside others, in any order of the samples, and equal
    to those of scanpy's ``scrublet(batch_key=...)``. `scrna.methods.doublets` sets the threshold.

    The counts of a sample are in memory as a whole, since Scrublet searches for neighbors among
    all of its cells. A sample that does not fit is refused before any is scored.

Settings
    Section ``doublets``; ``seed``.

Inputs
    ``counts.zarr``.

Outputs
    A step file: obs ``doublet_score``, ``predicted_doublet``, with scanpy's names; uns
    ``doublets``, per sample the number of cells, the expected rate, the threshold and how it was
    found.

    ``doublets.csv``: the same table.
"""

if __name__ == "__main__":  # a warm worker does the step, if there is one: nothing to import here
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


import csv
from pathlib import Path
from typing import Any

import numpy as np

from scrna.atomic import replacing
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.samples import Samples, samples_of
from scrna.data.spreadsheet import escaped
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.doublets import (
    FEWEST_CELLS,
    HIGHEST_RATE,
    RATE_PER_CELL,
    call,
    rate_of,
    scores,
)
from scrna.resources.admission import decide
from scrna.resources.host_memory import gib
from scrna.step import step
from scrna.workflow.rule import run


@step
def doublets(
    counts: Path,
    out: Path,
    table: Path,
    *,
    method: str,
    by: str | None,
    expected_rate: float | None,
    seed: int,
    backend: str,
) -> None:
    """Score the doublets of each sample, and predict which cells are doublets.

    Parameters
    ----------
    counts
        ``counts.zarr``.
    out
        The step file: obs doublet_score (NaN in samples that are too small), predicted_doublet;
        uns doublets.
    table
        CSV: a row a sample, as in uns doublets.
    method
        ``scrublet``.
    by
        Column of obs with the sample of each cell; None takes all cells as one sample.
    expected_rate
        The share of doublets; None takes 0.8 % for each 1,000 cells of the sample.
    seed
        Of the simulated doublets.
    backend
        ``gpu`` or ``cpu``.

    Raises
    ------
    UserError
        If a sample does not fit in memory, or cannot be scored.
    """
    if method != "scrublet":
        msg = f"doublets.method is {method!r}; there is scrublet"
        raise UserError(msg)
    store = Counts(counts)
    samples = samples_of(store, by, "doublets.by")
    nnz = np.diff(store.indptr)
    check_memory(store.shape[1], nnz, samples, backend)
    score = np.full(store.shape[0], np.nan)
    predicted = np.zeros(store.shape[0], dtype=bool)
    rows = []
    for place, name in enumerate(samples.names):
        cells = samples.codes == place
        rows.append(row := of_sample(name, int(cells.sum()), expected_rate))
        if row["n_cells"] < FEWEST_CELLS:
            continue
        matrix = store.matrix(backend, nnz=int(nnz[cells].sum()), cells=cells)
        observed, simulated = scores(
            matrix, row["expected_rate"], sample=name, seed=seed, backend=backend
        )
        called = call(observed, simulated, row["expected_rate"])
        score[cells], predicted[cells] = observed, called.flags
        row |= {"threshold": called.threshold, "found_by": called.found_by}
        row["n_doublets"] = int(called.flags.sum())
        log.info(
            "%s: %s of %s cells are doublets (%.1f %%; expected %.1f %%), threshold %.3f by %s",
            name,
            f"{row['n_doublets']:,}",
            f"{row['n_cells']:,}",
            100 * row["n_doublets"] / row["n_cells"],
            100 * row["expected_rate"],
            called.threshold,
            called.found_by,
        )
    warn(rows, by, asked=expected_rate is not None)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    step_files.write(
        out,
        {
            "obs/doublet_score": score,
            "obs/predicted_doublet": predicted,
            "uns/doublets": {
                key: np.array(values, dtype=object if isinstance(values[0], str) else None)
                for key, values in columns.items()
            },
        },
        table=lambda: write_table(table, rows),
    )


def check_memory(n_vars: int, nnz: np.ndarray, samples: Samples, backend: str) -> None:
    """Refuse a sample that does not fit, and on the GPU wait for the memory of the largest.

    Parameters
    ----------
    n_vars
        Genes.
    nnz
        Non-zeros of each cell.
    samples
        The sample of each cell.
    backend
        ``gpu`` or ``cpu``.

    Raises
    ------
    UserError
        If the largest sample needs more memory than there is.
    """
    sizes = samples.sizes()
    largest = int(np.argmax(sizes))
    own = int(nnz[samples.codes == largest].sum())
    choice = decide("doublets", backend=backend, n_obs=int(sizes[largest]), n_vars=n_vars, nnz=own)
    if choice.needed > choice.available:
        msg = (
            f"doublets: sample {samples.names[largest]!r} has {sizes[largest]:,} cells, for "
            f"which scrublet needs at most {gib(choice.needed)} of {gib(choice.available)}. Set "
            "doublets.by to the column that tells the samples apart, or doublets.method: none"
        )
        raise UserError(msg)


def of_sample(name: str, n_cells: int, asked: float | None) -> dict[str, Any]:
    """Return the row of a sample that is not yet scored."""
    return {
        "sample": name,
        "n_cells": n_cells,
        "expected_rate": rate_of(n_cells, asked),
        "threshold": np.nan,
        "found_by": "too few cells" if n_cells < FEWEST_CELLS else "",
        "n_doublets": 0,
    }


def warn(rows: list[dict[str, Any]], by: str | None, *, asked: bool) -> None:
    """Warn of samples whose doublets are less sure than others, or not known."""
    of = f"samples of {by}" if by else "sample"
    found = {
        f"are not scored, with under {FEWEST_CELLS} cells: no doublet is predicted there": [
            row for row in rows if row["found_by"] == "too few cells"
        ],
        "have scores that do not fall into two groups: the cells with the highest scores count as "
        "doublets, as many as are expected (doublets.expected_rate)": [
            row for row in rows if row["found_by"] == "expected_rate"
        ],
        "have far fewer or far more predicted doublets than expected: look at the scores on the "
        "UMAP before removing them": [row for row in rows if is_unlikely(row)],
        f"have so many cells that {100 * HIGHEST_RATE:g} % doublets and more would be expected: "
        "set doublets.by to the column that tells samples apart, or doublets.expected_rate": [
            row for row in rows if not asked and row["n_cells"] * RATE_PER_CELL >= HIGHEST_RATE
        ],
    }
    for what, those in found.items():
        if those:
            names = ", ".join(row["sample"] for row in those[:10])
            more = f" and {len(those) - 10:,} more" if len(those) > 10 else ""
            log.warning("%s %s (%s%s) %s", f"{len(those):,}", of, names, more, what)


def is_unlikely(row: dict[str, Any]) -> bool:
    """Return whether a threshold calls under a quarter, or over four times, of what is expected.

    Five doublets more are allowed, since in small samples less than one is expected.
    """
    expected = row["expected_rate"] * row["n_cells"]
    is_within = expected / 4 <= row["n_doublets"] <= 4 * expected + 5
    return row["found_by"] == "minimum" and not is_within


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the table of the samples."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            known = {key: "" if value != value else value for key, value in row.items()}
            writer.writerow(known | {"sample": escaped(row["sample"])})
    return path


if __name__ == "__main__":
    run(doublets, snakemake)
