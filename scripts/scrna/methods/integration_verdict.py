"""Judge an integration in words, from the scores before and after it.

The unit is one of the `N_NEIGHBORS` nearest neighbors of a cell: the smallest difference that a
neighbor graph shows for a typical cell.

- Chance: the share of neighbors from the same batch if batches were assigned at random, among the
  cells of the same label where there are labels. A cell type that only one batch has counts neither
  for nor against an integration.
- *mixed*: less than one neighbor above chance. *separate*: closer to all neighbors being from the
  cell's own batch than to chance. *partly mixed*: in between.
- *better* and *worse*: a difference of at least one neighbor to the representation before. For the
  agreement of clusters and labels a difference of `ARI_STEP` counts: another seed of Leiden, or
  another library, can change the adjusted Rand index by about 0.03.

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
    """What the scores before and after an integration mean, in words."""

    mixing: str
    """mixed, partly mixed or separate after the integration; unknown if it cannot be judged."""
    biology: str
    """kept, clearer, blurred or unclear, compared with before; unknown without labels."""
    overall: str
    """better, worse, unchanged, a trade-off or unknown, compared with before."""
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
    """Compute the adjusted Rand index from a table of labels and clusters."""
    both, one, other = ((n * (n - 1) / 2).sum() for n in (table, of_labels, of_clusters))
    n = table.sum()
    by_chance, most = one * other / (n * (n - 1) / 2), (one + other) / 2
    # one cluster of each cell on both sides: the same groups
    return float((both - by_chance) / (most - by_chance)) if most != by_chance else 1.0


def _mutual_information(table: np.ndarray, of_labels: np.ndarray, of_clusters: np.ndarray) -> float:
    """Compute the mutual information, divided by the mean of the two entropies."""
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
    """Judge an integration by the scores before and after it.

    Parameters
    ----------
    before, after
        Results of `score` and `agreement`, before and after the integration.
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
        "better": "Overall, the integration improved the result.",
        "worse": "Overall, the integration made the result worse.",
        "unchanged": "Overall, little has changed.",
        "a trade-off": "This is a trade-off: "
        + ("better mixing, less clear labels." if keeps < 0 else "clearer labels, less mixing."),
        "unknown": "The integration cannot be judged.",
    }[overall]
    return Verdict(mixing, biology, overall, f"{about_mixing} {about_biology} {said}")


def _judge_mixing(before, after, batch_key: str, label_key: str | None) -> tuple[str, int, str]:
    """Return the word for the mixing, whether it rose (1) or fell (-1), and a sentence."""
    if math.isnan(after["same_batch"]):
        return "unknown", 0, f"{batch_key} has only one batch: there is nothing to mix."
    chance = N_NEIGHBORS * after["same_batch_expected"]
    if N_NEIGHBORS - chance < 1:
        of_what = f"nearly every value of {label_key} is" if label_key else "nearly all cells are"
        return (
            "unknown",
            0,
            f"The mixing of {batch_key} cannot be judged: {of_what} in one batch, so that "
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
        f"Batches ({batch_key}) are {mixing}: of the {N_NEIGHBORS} nearest neighbors of a cell "
        f"{own:.1f} are from its own batch ({own_before:.1f} before; {chance:.1f} expected by "
        f"chance{among})."
    )
    return mixing, _step(above_before - above, 1), said


def _judge_biology(before, after, label_key: str | None) -> tuple[str, int, str]:
    """Return the word for the biology, clearer (1) or blurred (-1), and a sentence."""
    if label_key is None:
        said = "Without a label_key it cannot be judged whether cell types are kept."
        return "unknown", 0, said
    if math.isnan(after["same_label"]):
        said = f"{label_key} has less than two values: it does not show if cell types are kept."
        return "unknown", 0, said
    near, near_before = (N_NEIGHBORS * row["same_label"] for row in (after, before))
    steps = {_step(near - near_before, 1), _step(after["ari"] - before["ari"], ARI_STEP)} - {0}
    biology = {1: "clearer", 0: "kept", -1: "blurred"}[sum(steps)]
    if len(steps) == 2:
        biology = "unclear"
    said = (
        f"Biology ({label_key}) is {biology}: {near:.1f} of {N_NEIGHBORS} neighbors have the label "
        f"of the cell ({near_before:.1f} before), and the adjusted Rand index of clusters and "
        f"labels is {after['ari']:.2f} ({before['ari']:.2f} before)."
    )
    return biology, sum(steps), said


def _step(difference: float, counts_from: float) -> int:
    return int(np.sign(difference)) if abs(difference) >= counts_from else 0
