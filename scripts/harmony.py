"""Integration of batches with Harmony: principal components, corrected.

``obsm/X_pca_harmony``, rapids-singlecell's Harmony on the GPU and harmonypy's on the CPU. Cells
without a batch are refused, or are one batch more where ``missing_batch`` says so. Cells of batches
smaller than ``min_batch_cells`` keep their uncorrected coordinates.

Settings: section ``harmony`` and the dataset's ``batch_key``. Inputs: ``counts.zarr``, filter, pca.
Output: a step file.
"""

if __name__ == "__main__":  # a warm worker does the step, if there is one: nothing to import here
    from scrna.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna import backend as backends
from scrna import slots
from scrna.counts import Counts, kept
from scrna.errors import UserError
from scrna.execution import decide
from scrna.log import log
from scrna.step import run, step

#: Harmony makes one soft cluster of this many cells.
FEWEST_CELLS = 30


@step
def harmony(
    counts: Path,
    filtered: Path,
    pca: Path,
    out: Path,
    *,
    batch_key: list[str],
    theta: float | list[float],
    sigma: float,
    ridge_lambda: float | None,
    max_iter: int,
    flavor: str,
    missing_batch: str,
    min_batch_cells: int,
    backend: str,
    seed: int,
    threads: int = 1,
) -> None:
    """Correct the principal components for batches.

    Parameters
    ----------
    counts, filtered, pca
        ``counts.zarr`` and the step files of ``filter`` and ``pca``.
    out
        The step file: obsm X_pca_harmony (kept cells × components, float32).
    batch_key
        obs columns with batches.
    theta, sigma, ridge_lambda, max_iter, flavor
        Harmony's own, see `scrna.backend.harmony`.
    missing_batch
        ``refuse`` cells without a batch, or make them ``own_batch``.
    min_batch_cells
        Cells of smaller batches are left as they are.
    backend, seed
        Where, and from which seed.
    threads
        CPU threads.

    Raises
    ------
    UserError
        If cells have no batch, or too few cells or fewer than two batches are left.
    """
    cells, _ = kept(filtered)
    batches = complete_batches(Counts(counts).obs(batch_key).loc[cells], missing_batch)
    large = in_large_batches(batches, min_batch_cells)
    if large.sum() < FEWEST_CELLS:
        msg = (
            f"harmony has {large.sum()} cells to integrate, fewer than {FEWEST_CELLS}. Set the "
            "dataset's batch_key to null, or loosen the filter"
        )
        raise UserError(msg)
    batches = batches.loc[large].apply(lambda column: column.cat.remove_unused_categories())
    for name in batch_key:
        sizes = batches[name].value_counts()
        if len(sizes) < 2:
            msg = (
                f"batch_key {name!r} has {len(sizes)} batch(es) of {min_batch_cells} cells or more "
                f"after the filter ({', '.join(map(str, sizes.index))}): there is nothing to "
                "integrate. Set the dataset's batch_key to null, or to another column"
            )
            raise UserError(msg)
        log.info("%s: %s", name, ", ".join(f"{batch} {n:,}" for batch, n in sizes.items()))
    before = slots.read(pca, "obsm/X_pca")
    decide("harmony", backend=backend, n_obs=len(before), n_comps=before.shape[1])
    after = before.copy()
    after[large] = backends.harmony(
        before[large],
        batches,
        theta=theta if isinstance(theta, list) else [theta] * len(batch_key),
        sigma=sigma,
        lamb=ridge_lambda,
        max_iter=max_iter,
        flavor=flavor,
        backend=backend,
        seed=seed,
        threads=threads,
    )
    if not np.isfinite(after).all():
        msg = "Harmony returned values that are not finite; try a smaller theta or another seed"
        raise ArithmeticError(msg)
    slots.write(out, {"obsm/X_pca_harmony": after})
    some = slice(None, None, max(1, len(after) // 10_000))
    before, moved = before[some], after[some] - before[some]
    shares = np.linalg.norm(moved, axis=1) / np.linalg.norm(before, axis=1)
    log.info(
        "%s cells, moved by %.0f %% of their distance from the centre (median)",
        f"{len(after):,}",
        100 * np.median(shares),
    )


def complete_batches(batches, missing_batch: str):
    """Give every cell a batch, or refuse.

    Parameters
    ----------
    batches
        DataFrame, a column for each batch variable.
    missing_batch
        ``refuse`` or ``own_batch``.

    Returns
    -------
    DataFrame of categories without missing values.

    Raises
    ------
    UserError
        If values are missing and are to be refused.
    """
    batches = batches.copy()
    for name in batches:
        missing = batches[name].isna()
        if missing.any() and missing_batch == "refuse":
            msg = (
                f"batch_key {name!r} has no value in {int(missing.sum()):,} of {len(batches):,} "
                "cells. Fill them in, or set harmony.missing_batch to own_batch"
            )
            raise UserError(msg)
        batches[name] = _as_text(batches[name], "missing")
        if missing.any():
            log.warning(
                "%s cells have no %s: they are the batch 'missing'", f"{missing.sum():,}", name
            )
    return batches


def _as_text(column, missing: str):
    """Turn a column into categories of text in the order of the alphabet, its gaps into one."""
    import pandas as pd

    codes, values = pd.factorize(column)  # few values stand for all cells; a gap's code is -1
    texts, place = np.unique([*map(str, values), missing], return_inverse=True)
    labels = pd.Series(pd.Categorical.from_codes(place[codes], texts), index=column.index)
    return labels.cat.remove_unused_categories()


def in_large_batches(batches, min_batch_cells: int) -> np.ndarray:
    """Flag the cells whose batches all have at least ``min_batch_cells`` cells; bool (cells)."""
    large = np.ones(len(batches), dtype=bool)
    for name in batches:
        sizes = batches[name].value_counts()
        small = sizes[(sizes < min_batch_cells) & (sizes > 0)]
        if len(small):
            log.warning(
                "%s: %s have under %d cells; their %s cells keep their uncorrected coordinates",
                name,
                ", ".join(map(str, small.index[:10])),
                min_batch_cells,
                f"{small.sum():,}",
            )
            large &= ~batches[name].isin(small.index).to_numpy()
    return large


if __name__ == "__main__":
    run(harmony, snakemake)
