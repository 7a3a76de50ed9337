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

All but ari and nmi, which are of all cells with a label, come from `integration_scores`. How scores
become words: `scrna.methods.integration_verdict`.

Inputs: integration_scores, leiden of both representations. Outputs: a step file (uns integration:
batch_key, label_key, n_cells, scores of pca and harmony, mixing, biology, overall and verdict),
``integration.csv``.
"""

import csv
from pathlib import Path

from scrna.atomic import replacing
from scrna.data import step_files
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.integration_verdict import agreement, judge
from scrna.step import step
from scrna.workflow.rule import run


@step
def integration(scores: Path, leiden: list[Path], out: Path, table: Path) -> None:
    """Compare the clusters with the labels and say what became of batches and biology.

    Parameters
    ----------
    scores
        The step file of ``integration_scores``.
    leiden
        Those of ``leiden``, of pca and of harmony.
    out
        The step file: uns integration.
    table
        CSV of the scores, NaN where there is none.

    Raises
    ------
    UserError
        If the clusters are of other cells than the scores.
    """
    facts, labels = (
        step_files.read(scores, name)
        for name in ("uns/integration_scores", "obs/integration_label")
    )
    rows = {}
    for rep, path in zip(("pca", "harmony"), leiden, strict=True):
        clusters = step_files.read(path, "obs/leiden/codes")
        if len(clusters) != len(labels):
            msg = f"{path} has {len(clusters):,} cells, {scores} {len(labels):,}; run again"
            raise UserError(msg)
        rows[rep] = facts[rep] | agreement(clusters, labels)
    verdict = judge(rows["pca"], rows["harmony"], facts["batch_key"], facts.get("label_key"))
    write_table(table, rows, int(facts["n_cells"]))
    facts |= rows
    facts |= {"mixing": verdict.mixing, "biology": verdict.biology, "overall": verdict.overall}
    step_files.write(
        out, {"uns/integration": facts | {"verdict": verdict.sentence}}, table=lambda: table
    )
    log.info("%s", verdict.sentence)


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
