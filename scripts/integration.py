"""Compare the representations before and after Harmony, in scores and a sentence.

Purpose
    Show whether Harmony mixed the batches and kept the cell types.

Method
    The scores of `integration_scores`, and the agreement of Leiden clusters with labels, of all
    cells with a label. `scrna.methods.integration_verdict` turns scores into a sentence.

Settings
    None of its own; the dataset needs a ``batch_key``.

Inputs
    integration_scores, leiden of both representations.

Outputs
    A step file: uns ``integration`` (batch_key, label_key, n_cells, scores of pca and harmony,
    mixing, biology, overall, verdict).

    ``integration.csv``, a row for ``pca`` and one for ``harmony``:

    ===================  ==================================================  ====================
    column               meaning                                             good
    ===================  ==================================================  ====================
    same_batch           share of the 15 nearest cells of the same batch     as expected
    same_batch_expected  the same by chance
    ilisi                effective number of batches around a cell           near ilisi_expected
    ilisi_expected       ilisi if all neighborhoods had the same mix
    silhouette_batch     silhouette of batches                               about 0
    same_label           share of the 15 nearest cells of the same label     1
    clisi                effective number of labels around a cell            1
    silhouette_label     silhouette of labels                                high
    ari, nmi             agreement of Leiden clusters with labels            1
    ===================  ==================================================  ====================
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
    """Compare clusters with labels and judge the integration.

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
    """Write the scores, a row per representation."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["representation", "n_cells", *rows["pca"]])
        writer.writeheader()
        for rep, scores in rows.items():
            rounded = {name: f"{value:.6g}" for name, value in scores.items()}
            writer.writerow({"representation": rep, "n_cells": n_cells, **rounded})


if __name__ == "__main__":
    run(integration, snakemake)
