"""Score both representations, as far as the scores do not depend on the clusters.

Purpose
    Scores for `integration`, computed while the clusters are not there yet. A new resolution does
    not compute them again.

Method
    Scores of scIB (Luecken et al. 2022) on a random sample of ``n_cells`` cells. Neighbors are
    searched within the sample, by Euclidean distance, on the components that the neighbor graph
    uses. Cells without a label are left out of label scores. Of several batch columns the first is
    scored; a missing batch counts as a batch.

Settings
    Section ``integration``; ``batch_key``, ``label_key`` and ``label_missing`` of the dataset;
    ``neighbors.n_pcs``.

Inputs
    ``counts.zarr`` (obs), filter, pca, harmony.

Outputs
    A step file: uns ``integration_scores`` (batch_key, label_key, n_cells, scores of pca and
    harmony), obs ``integration_label`` (number of the label of each kept cell, -1 for none).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.labels import numbered_labels
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.integration_scores import score
from scrna.step import step
from scrna.workflow.rule import run


@step
def integration_scores(
    counts: Path,
    filtered: Path,
    pca: Path,
    harmony: Path,
    out: Path,
    *,
    batch_key: list[str],
    label_key: str | None,
    n_cells: int,
    n_pcs: int,
    seed: int,
    threads: int,
    label_missing: Sequence[str] = (),
) -> None:
    """Score both representations.

    Parameters
    ----------
    counts, filtered, pca, harmony
        ``counts.zarr`` and the step files of ``filter``, ``pca`` and ``harmony``.
    out
        The step file: uns integration_scores, obs integration_label.
    batch_key, label_key
        obs columns: batches, of which the first is scored, and known cell types or None.
    n_cells
        Most cells that are sampled.
    n_pcs
        Components that are used, the first ones.
    seed
        Of the sample and of chance.
    threads
        How many.
    label_missing
        Values of `label_key` that mean none.

    Raises
    ------
    UserError
        If the representations are of other cells than the filter keeps.
    """
    cells, _ = kept(filtered)
    obs = Counts(counts).obs(list(dict.fromkeys(filter(None, [batch_key[0], label_key]))))
    obs = obs.loc[cells]
    batches = numbered(obs[batch_key[0]])
    none = np.full(len(obs), -1)
    labels = numbered_labels(obs[label_key], label_missing) if label_key else none
    if label_key and not (labels >= 0).any():
        log.warning("no kept cell has a %s: label scores are left out", label_key)
    chosen = sample(len(obs), n_cells, seed)
    log.info("scored on %s of %s cells", f"{len(chosen):,}", f"{len(obs):,}")
    if len(batch_key) > 1:
        log.info("of the batch columns %s the first is scored", ", ".join(batch_key))
    facts = {"batch_key": batch_key[0], "n_cells": len(chosen)}
    facts |= {"label_key": label_key} if label_key else {}
    for rep, path in (("pca", pca), ("harmony", harmony)):
        points = step_files.read(path, "obsm/X_pca" + ("_harmony" if rep == "harmony" else ""))
        if len(points) != len(obs):
            msg = f"{path} has {len(points):,} cells, but the filter keeps {len(obs):,}; run again"
            raise UserError(msg)
        part = labels[chosen] if label_key else None
        points = points[chosen, :n_pcs]
        facts[rep] = score(points, batches[chosen], part, seed=seed, threads=threads)
    step_files.write(out, {"uns/integration_scores": facts, "obs/integration_label": labels})


def numbered(column) -> np.ndarray:
    """Return a number for each value of an obs column, -1 for missing ones; int (cells)."""
    import pandas as pd

    return pd.factorize(column)[0]


def sample(n_obs: int, n_cells: int, seed: int) -> np.ndarray:
    """Draw cells without replacement: their numbers, ascending; all if there are no more."""
    if n_obs <= n_cells:
        return np.arange(n_obs)
    return np.sort(np.random.default_rng(seed).choice(n_obs, n_cells, replace=False))


if __name__ == "__main__":
    run(integration_scores, snakemake)
