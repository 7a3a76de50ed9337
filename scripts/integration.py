"""How well the integration did: scores before and after Harmony, and a sentence on what they mean.

For datasets with a ``batch_key``. ``integration.csv`` has a row for ``pca`` and one for
``harmony``:

| column | what it is | good |
|---|---|---|
| same_batch | share of a cell's 15 nearest that are of its own batch | as expected |
| same_batch_expected | the same by chance | |
| ilisi | effective number of batches around a cell | as expected, or a little less |
| ilisi_expected | the same if each neighborhood were as the whole | |
| silhouette_batch | silhouette of the batches | about 0 |
| same_label | share of a cell's 15 nearest of its own label | 1 |
| clisi | effective number of labels around a cell | 1 |
| silhouette_label | silhouette of the labels | high |
| ari, nmi | agreement of the Leiden clusters with the labels | 1 |

Those of labels need the dataset's ``label_key`` and leave cells without a label out, which
``label_missing`` tells. All but ari
and nmi are computed on a sample of ``n_cells`` cells, drawn plainly with the config's seed, whose
neighbors are sought within the sample; by Euclidean distance, on the components that the neighbor
graph uses. Of several batch columns the first is scored; a missing batch is a batch. How scores
become words: `scrna.integration`.

Settings: section ``integration``, the dataset's ``batch_key``, ``label_key`` and
``label_missing``, ``n_pcs`` of
``neighbors``. Inputs: ``counts.zarr``, filter, pca, harmony, leiden of both. Outputs: a step file
(uns integration: batch_key, n_cells, scores of pca and harmony, mixing, biology, overall and
verdict), ``integration.csv``.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scrna import slots
from scrna.counts import Counts, kept
from scrna.errors import UserError
from scrna.files import replacing
from scrna.integration import agreement, judge, score
from scrna.labels import numbered_labels
from scrna.log import log
from scrna.step import run, step


@step
def integration(
    counts: Path,
    filtered: Path,
    pca: Path,
    harmony: Path,
    leiden: list[Path],
    out: Path,
    table: Path,
    *,
    batch_key: list[str],
    label_key: str | None,
    n_cells: int,
    n_pcs: int,
    seed: int,
    label_missing: Sequence[str] = (),
) -> None:
    """Score both representations and say what became of batches and biology.

    Parameters
    ----------
    counts, filtered, pca, harmony
        ``counts.zarr`` and the step files of ``filter``, ``pca`` and ``harmony``.
    leiden
        Those of ``leiden``, of pca and of harmony.
    out
        The step file: uns integration.
    table
        CSV of the scores, NaN where there is none.
    batch_key, label_key
        obs columns: batches, of which the first is scored, and known cell types or None.
    label_missing
        Values of `label_key` that mean none.
    n_cells
        Most cells that are sampled.
    n_pcs
        Components that are used, the first ones.
    seed
        Of the sample and of chance.

    Raises
    ------
    UserError
        If the representations are of other cells than the filter keeps.
    """
    cells, _ = kept(filtered)
    obs = Counts(counts).obs(list(dict.fromkeys(filter(None, [batch_key[0], label_key]))))
    obs = obs.loc[cells]
    batches = numbered(obs[batch_key[0]])
    labels = numbered_labels(obs[label_key], label_missing) if label_key else None
    if labels is not None and not (labels >= 0).any():
        log.warning("no kept cell has a %s: nothing is scored by it", label_key)
    chosen = sample(len(obs), n_cells, seed)
    log.info("scored on %s of %s cells", f"{len(chosen):,}", f"{len(obs):,}")
    if len(batch_key) > 1:
        log.info("of %s the first is scored", ", ".join(batch_key))
    rows = {}
    for rep, path, clusters in zip(("pca", "harmony"), (pca, harmony), leiden, strict=True):
        points = slots.read(path, "obsm/X_pca" + ("_harmony" if rep == "harmony" else ""))
        if len(points) != len(obs):
            msg = f"{path} has {len(points):,} cells, but the filter keeps {len(obs):,}; run again"
            raise UserError(msg)
        part = None if labels is None else labels[chosen]
        rows[rep] = score(points[chosen, :n_pcs], batches[chosen], part, seed=seed)
        found = slots.read(clusters, "obs/leiden").codes
        unlabelled = np.full(len(found), -1)
        rows[rep] |= agreement(found, unlabelled if labels is None else labels)
    verdict = judge(rows["pca"], rows["harmony"], batch_key[0], label_key)
    write_table(table, rows, len(chosen))
    facts = {"batch_key": batch_key[0], "n_cells": len(chosen), **rows}
    facts |= {"label_key": label_key} if label_key else {}
    facts |= {"mixing": verdict.mixing, "biology": verdict.biology, "overall": verdict.overall}
    slots.write(
        out, {"uns/integration": facts | {"verdict": verdict.sentence}}, table=lambda: table
    )
    log.info("%s", verdict.sentence)


def numbered(column) -> np.ndarray:
    """Give each value of an obs column a number, -1 for missing ones; int (cells)."""
    import pandas as pd

    return pd.factorize(column)[0]


def sample(n_obs: int, n_cells: int, seed: int) -> np.ndarray:
    """Draw cells without replacement: their numbers, ascending; all if there are no more."""
    if n_obs <= n_cells:
        return np.arange(n_obs)
    return np.sort(np.random.default_rng(seed).choice(n_obs, n_cells, replace=False))


def write_table(path: Path, rows: dict[str, dict[str, float]], n_cells: int) -> None:
    """Write the scores, a row a representation."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["representation", "n_cells", *rows["pca"]])
        writer.writeheader()
        for rep, scores in rows.items():
            rounded = {name: f"{value:.6g}" for name, value in scores.items()}
            writer.writerow({"representation": rep, "n_cells": n_cells, **rounded})


if __name__ == "__main__":
    run(integration, snakemake)
