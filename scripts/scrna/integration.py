"""How well batches are mixed and cell types kept in a representation: scores, and what they mean.

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

The scores are those of the scIB benchmark (Luecken et al. 2022), computed with scikit-learn and
with harmonypy's LISI (Korsunsky et al. 2019). scib-metrics has them all, but brings JAX along:
several hundred MB and a compilation at each start, for what takes seconds here.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

#: Nearest cells that are looked at, the cell itself not among them: as in scanpy's graph.
N_NEIGHBORS = 15
#: Difference of the adjusted Rand index that counts.
ARI_STEP = 0.05
#: LISI's own default: the effective number of neighbors; it looks at three times as many.
PERPLEXITY = 30
_DEALS = 5  # times that batches are dealt out


class Verdict(NamedTuple):
    """What the scores before and after an integration mean."""

    mixing: str
    """mixed, partly mixed or separate, after it; unknown where that cannot be told."""
    biology: str
    """kept, clearer, blurred or unclear, against before; unknown without labels."""
    overall: str
    """better, worse, unchanged, a trade-off or unknown, against before."""
    sentence: str


def score(
    points: np.ndarray, batches: np.ndarray, labels: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Score one representation.

    Parameters
    ----------
    points
        Cells × components.
    batches
        Number of each cell's batch.
    labels
        Number of each cell's label, -1 for none; None without labels. Scores of labels are those
        of the labelled cells among themselves.
    seed
        Of the chance that batches are compared with.

    Returns
    -------
    same_batch, same_batch_expected
        Share of a cell's nearest from its own batch (0 to 1), and the same by chance.
    ilisi, ilisi_expected
        Integration LISI, the effective number of batches around a cell (1 to all of them; Korsunsky
        et al. 2019), and what it would be if each neighborhood were as the whole: the inverse
        Simpson index of the batches, of each label where there are labels. Batches that are mixed
        have a little less, as a neighborhood is a small sample.
    silhouette_batch
        Silhouette of the batches (-1 to 1): about 0 where they lie over each other.
    same_label, clisi, silhouette_label
        Likewise for labels: high shares and silhouettes and a cLISI of 1 are good.

    What cannot be computed, for there is one batch, one label or no label, is NaN.
    """
    batches = np.unique(batches, return_inverse=True)[1]
    strata = np.zeros_like(batches) if labels is None else labels
    found = dict.fromkeys(
        "same_batch same_batch_expected ilisi ilisi_expected silhouette_batch "
        "same_label clisi silhouette_label".split(),
        math.nan,
    )
    if batches.max(initial=0) > 0:
        near = _nearest(points)
        found["same_batch"] = _same(near, batches)
        found["same_batch_expected"] = _expected(near, batches, strata, seed)
        found["ilisi"] = _lisi(points, batches)
        found["ilisi_expected"] = _expected_lisi(batches, strata)
        found["silhouette_batch"] = _silhouette(points, batches)
    if labels is not None:
        has = labels >= 0
        points, labels = points[has], np.unique(labels[has], return_inverse=True)[1]
        if labels.max(initial=0) > 0:
            found["same_label"] = _same(_nearest(points), labels)
            found["clisi"] = _lisi(points, labels)
            found["silhouette_label"] = _silhouette(points, labels)
    return {name: float(value) for name, value in found.items()}


def agreement(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compare clusters with labels: adjusted Rand index and normalised mutual information.

    Parameters
    ----------
    clusters, labels
        Number of each cell's cluster and label; cells without a label (-1) are left out.

    Returns
    -------
    ari, nmi: 1 for the same groups, about 0 for unrelated ones; NaN with less than two labels.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    has = labels >= 0
    clusters, labels = clusters[has], labels[has]
    if len(np.unique(labels)) < 2:
        return {"ari": math.nan, "nmi": math.nan}
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
    }


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


def _nearest(points: np.ndarray) -> np.ndarray:
    """Find the nearest cells of each, without itself; cells × neighbors."""
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(N_NEIGHBORS, len(points) - 1)
    return NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors(return_distance=False)


def _same(near: np.ndarray, groups: np.ndarray) -> float:
    return (groups[near] == groups[:, None]).mean()


def _expected(near: np.ndarray, batches: np.ndarray, strata: np.ndarray, seed: int) -> float:
    """Mean share of the same batch where batches are dealt out anew within each stratum."""
    rng = np.random.default_rng(seed)
    by_stratum = np.argsort(strata, kind="stable")
    shares = []
    for _ in range(_DEALS):
        dealt = np.empty_like(batches)
        mixed = np.lexsort((rng.random(len(batches)), strata))
        dealt[by_stratum] = batches[mixed]
        shares.append(_same(near, dealt))
    return np.mean(shares)


def _expected_lisi(batches: np.ndarray, strata: np.ndarray) -> float:
    """Mean over the cells of the inverse Simpson index of the batches in their stratum."""
    table = np.zeros((strata.max() + 2, batches.max() + 1))
    np.add.at(table, (strata, batches), 1)  # cells without a label are the last row
    sizes = table.sum(axis=1)
    there = sizes > 0
    simpson = ((table[there] / sizes[there, None]) ** 2).sum(axis=1)
    return np.average(1 / simpson, weights=sizes[there])


def _lisi(points: np.ndarray, groups: np.ndarray) -> float:
    """Mean of the local inverse Simpson index."""
    import pandas as pd
    from harmonypy import compute_lisi

    perplexity = max(1, min(PERPLEXITY, (len(points) - 1) // 3))
    table = pd.DataFrame({"group": groups})
    return compute_lisi(points, table, ["group"], perplexity=perplexity).mean()


def _silhouette(points: np.ndarray, groups: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    return silhouette_score(points, groups) if groups.max() < len(points) - 1 else math.nan
