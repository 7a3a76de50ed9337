"""Integrate batches with Harmony.

Purpose
    Principal components corrected for batches: the representation after integration.

Method
    Harmony (Korsunsky et al. 2019) of rapids-singlecell on the GPU, harmonypy on the CPU. Cells
    without a batch are refused, or are one more batch with ``missing_batch: own_batch``. Cells of
    batches smaller than ``min_batch_cells`` keep their uncorrected coordinates.

Settings
    Section ``harmony``; ``batch_key`` of the dataset.

Inputs
    ``counts.zarr`` (obs), filter, pca.

Outputs
    A step file: obsm ``X_pca_harmony``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.data.batches import complete_batches, in_large_batches, warn_of_small
from scrna.data.counts import Counts, kept
from scrna.log import log
from scrna.methods.harmony import run_harmony
from scrna.resources.admission import decide
from scrna.step import step
from scrna.workflow.rule import run


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
        Harmony's own, see `scrna.methods.harmony.run_harmony`.
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
    obs = Counts(counts).obs(batch_key).loc[cells]
    batches = complete_batches(obs, missing_batch)
    for name, n in obs.isna().sum().items():
        if n:
            log.warning("%s cells have no %s: they form the batch 'missing'", f"{n:,}", name)
    large = in_large_batches(batches, min_batch_cells)
    warn_of_small(batches, min_batch_cells)
    batches = batches.loc[large].apply(lambda column: column.cat.remove_unused_categories())
    for name in batch_key:
        sizes = batches[name].value_counts()
        log.info("%s: %s", name, ", ".join(f"{batch} {n:,}" for batch, n in sizes.items()))
    before = step_files.read(pca, "obsm/X_pca")
    decide("harmony", backend=backend, n_obs=len(before), n_comps=before.shape[1])
    after = before.copy()
    after[large] = run_harmony(
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
    step_files.write(out, {"obsm/X_pca_harmony": after})
    some = slice(None, None, max(1, len(after) // 10_000))
    before, moved = before[some], after[some] - before[some]
    shares = np.linalg.norm(moved, axis=1) / np.linalg.norm(before, axis=1)
    log.info(
        "%s cells corrected, by %.0f %% of their distance from the centre (median)",
        f"{len(after):,}",
        100 * np.median(shares),
    )


if __name__ == "__main__":
    run(harmony, snakemake)
