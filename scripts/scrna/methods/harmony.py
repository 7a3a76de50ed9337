"""Harmony: correct a representation for batches."""

import numpy as np

from scrna.backend import load
from scrna.data.unnamed import anndata_without_names


def run_harmony(
    representation: np.ndarray,
    batches,
    *,
    theta: list[float],
    sigma: float,
    lamb: float | None,
    max_iter: int,
    flavor: str,
    backend: str,
    seed: int,
    threads: int,
) -> np.ndarray:
    """Correct a representation for batches with Harmony.

    rapids-singlecell's `harmony_integrate` on the GPU, harmonypy on the CPU; both implement
    Harmony 2 (Patikas et al. 2026), the GPU also Harmony 1 (Korsunsky et al. 2019).

    Parameters
    ----------
    representation
        Cells × components, float32.
    batches
        DataFrame, a categorical column for each batch variable.
    theta
        Diversity penalty for each batch variable.
    sigma
        Width of the soft clusters.
    lamb
        Ridge penalty, for ``harmony1``; Harmony 2 estimates it.
    max_iter
        Most rounds of clustering and correction.
    flavor
        ``harmony2`` or ``harmony1``.
    backend, seed
        Where, and from which seed.
    threads
        CPU threads.

    Returns
    -------
    The corrected representation, cells × components, float32.
    """
    if backend == "gpu":
        adata = anndata_without_names(len(batches), obs=batches, obsm={"X_pca": representation})
        load("gpu").pp.harmony_integrate(
            adata,
            list(batches.columns),
            theta=theta,
            sigma=sigma,
            max_iter_harmony=max_iter,
            flavor=flavor,
            dtype=np.float32,
            rng=seed,
            **({"ridge_lambda": lamb} if lamb is not None else {}),
        )
        return adata.obsm["X_pca_harmony"]
    import harmonypy

    if flavor != "harmony2":
        msg = f"harmonypy has no flavor {flavor!r}"
        raise NotImplementedError(msg)
    result = harmonypy.run_harmony(
        representation.T.astype(np.float64),  # components × cells, were there as many of both
        batches,
        list(batches.columns),
        theta=theta,
        sigma=sigma,
        max_iter_harmony=max_iter,
        random_state=seed,
        ncores=threads,
        verbose=False,
    )
    return np.asarray(result.Z_corr, dtype=np.float32)
