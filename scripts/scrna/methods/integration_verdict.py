"""What the scores before and after an integration mean, in words.

Everything is judged by a cell's `N_NEIGHBORS` nearest cells, in one unit, the neighbor: it is the
smallest difference that a typical cell would notice, and what a neighbor graph is made of.

- By chance: the share of neighbors from the same batch where batches are dealt out anew, among the
  cells of the same label where there is one. So a cell type that only one batch has counts neither
  for nor against an integration.
- *mixed*: less than one neighbor above chance. *separate*: nearer to all neighbors being of the
  cell's own batch than to chance. *partly mixed*: in between.
- *better* and *worse*: one neighbor or more of a difference to the representation before. For the
  agreement of clusters with labels a difference of `ARI_STEP` counts: Leiden from another seed, or
  on another library, may move the adjusted Rand index by about 0.03.

The scores themselves: `scrna.methods.integration_scores`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from scrna.methods.integration_scores import N_NEIGHBORS

#: Difference of the adjusted Rand index that counts.
ARI_STEP = 0.05


class Verdict(NamedTuple):
    """What the scores before and after an integration mean."""

    mixing: str
    """mixed, partly mixed or separate, after it; unknown where that cannot be told."""
    biology: str
    """kept, clearer, blurred or unclear, against before; unknown without labels."""
    overall: str
    """better, worse, unchanged, a trade-off or unknown, against before."""
    sentence: str


def agreement(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compare clusters with labels: adjusted Rand index and normalised mutual information.

    As scikit-learn's `adjusted_rand_score` and `normalized_mutual_info_score`, which take a second
    to import.

    Parameters
    ----------
    clusters, labels
        Number of each cell's cluster and label; cells without a label (-1) are left out.

    Returns
    -------
    ari, nmi: 1 for the same groups, about 0 for unrelated ones; NaN with less than two labels.
    """
    has = labels >= 0
    clusters, labels = (np.unique(of[has], return_inverse=True)[1] for of in (clusters, labels))
    if labels.max(initial=0) < 1:
        return {"ari": math.nan, "nmi": math.nan}
    n_clusters, n_labels = clusters.max() + 1, labels.max() + 1
    table = np.bincount(labels * n_clusters + clusters, minlength=n_labels * n_clusters)
    table = table.reshape(n_labels, n_clusters).astype(float)
    sizes = table.sum(axis=1), table.sum(axis=0)
    return {"ari": _adjusted_rand(table, *sizes), "nmi": _mutual_information(table, *sizes)}


def _adjusted_rand(table: np.ndarray, of_labels: np.ndarray, of_clusters: np.ndarray) -> float:
    """Share of the pairs of cells that are together in both, less what chance gives."""
    both, one, other = ((n * (n - 1) / 2).sum() for n in (table, of_labels, of_clusters))
    n = table.sum()
    by_chance, most = one * other / (n * (n - 1) / 2), (one + other) / 2
    # one cluster of each cell on both sides: the same groups
    return float((both - by_chance) / (most - by_chance)) if most != by_chance else 1.0


def _mutual_information(table: np.ndarray, of_labels: np.ndarray, of_clusters: np.ndarray) -> float:
    """Mutual information, divided by the mean of the two entropies."""
    n = table.sum()
    there = table > 0
    shared = table[there] / n
    by_chance = np.outer(of_labels, of_clusters)[there] / n**2
    information = (shared * np.log(shared / by_chance)).sum()
    entropies = [-(sizes / n * np.log(sizes / n)).sum() for sizes in (of_labels, of_clusters)]
    return float(max(0.0, information) / np.mean(entropies))


def judge(
    before: Mapping[str, float], after: Mapping[str, float], batch_key: str, label_key: str | None
) -> Verdict:
    """Say what the scores of two representations mean.

    Parameters
    ----------
    before, after
        What `score` and `agreement` give, before and after the integration.
    batch_key, label_key
        Names of the columns, for the sentence.
    """
    mixing, mixes, about_mixing = _judge_mixing(before, after, batch_key, label_key)
    biology, keeps, about_biology = _judge_biology(before, after, label_key)
    if mixing == "unknown" and biology == "unknown":
        overall = "unknown"
    elif mixes * keeps < 0:
        overall = "a trade-off"
    else:
        overall = {1: "better", 0: "unchanged", -1: "worse"}[np.sign(mixes + keeps).item()]
    said = {
        "better": "In all it is better than before.",
        "worse": "In all it is worse than before.",
        "unchanged": "In all little has changed.",
        "a trade-off": "That is a trade-off: "
        + ("mixing for biology." if keeps < 0 else "biology for mixing."),
        "unknown": "So the integration cannot be judged.",
    }[overall]
    return Verdict(mixing, biology, overall, f"{about_mixing} {about_biology} {said}")


def _judge_mixing(before, after, batch_key: str, label_key: str | None) -> tuple[str, int, str]:
    """Give the word for the mixing, whether it rose (1) or fell (-1), and a sentence."""
    if math.isnan(after["same_batch"]):
        return "unknown", 0, f"{batch_key} has one batch: there is nothing to mix."
    chance = N_NEIGHBORS * after["same_batch_expected"]
    if N_NEIGHBORS - chance < 1:
        of_what = f"nearly every value of {label_key} lies" if label_key else "nearly all cells lie"
        return (
            "unknown",
            0,
            f"Whether {batch_key} is mixed cannot be told: {of_what} in one batch, so that "
            f"{chance:.1f} of {N_NEIGHBORS} neighbors are of a cell's own batch by chance.",
        )
    above, above_before = (
        N_NEIGHBORS * (row["same_batch"] - row["same_batch_expected"]) for row in (after, before)
    )
    mixing = "partly mixed"
    if above < 1:
        mixing = "mixed"
    elif above > (N_NEIGHBORS - chance) / 2:
        mixing = "separate"
    own, own_before = (N_NEIGHBORS * row["same_batch"] for row in (after, before))
    among = f" among cells of the same {label_key}" if label_key else ""
    said = (
        f"Batches ({batch_key}) are {mixing}: of a cell's {N_NEIGHBORS} nearest {own:.1f} are of "
        f"its own batch, {own_before:.1f} before; {chance:.1f} would be by chance{among}."
    )
    return mixing, _step(above_before - above, 1), said


def _judge_biology(before, after, label_key: str | None) -> tuple[str, int, str]:
    """Give the word for the biology, whether it is clearer (1) or blurred (-1), and a sentence."""
    if label_key is None:
        said = "Without a label_key nothing tells whether cell types are kept."
        return "unknown", 0, said
    if math.isnan(after["same_label"]):
        said = f"{label_key} has less than two values: it does not tell if cell types are kept."
        return "unknown", 0, said
    near, near_before = (N_NEIGHBORS * row["same_label"] for row in (after, before))
    steps = {_step(near - near_before, 1), _step(after["ari"] - before["ari"], ARI_STEP)} - {0}
    biology = {1: "clearer", 0: "kept", -1: "blurred"}[sum(steps)]
    if len(steps) == 2:
        biology = "unclear"
    said = (
        f"Biology ({label_key}) is {biology}: {near:.1f} of {N_NEIGHBORS} are of the cell's own "
        f"label, {near_before:.1f} before; the clusters agree with the labels at an ARI of "
        f"{after['ari']:.2f}, {before['ari']:.2f} before."
    )
    return biology, sum(steps), said


def _step(difference: float, counts_from: float) -> int:
    return int(np.sign(difference)) if abs(difference) >= counts_from else 0
