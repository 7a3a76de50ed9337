"""Names of cell types for groups of cells, from marker genes.

Each marker's mean expression in the groups is brought to a z-score: how many standard deviations
of the groups' means a group lies above their average. A type's score in a group is the mean z of
its positive genes less half of the mean z of its negative ones, for that a gene is not seen says
less than that it is. A group gets the name of the type with the highest score, if it is far enough
above the next one's and above 0.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: Added to the standard deviation of the groups' means, in units of log-normalised expression: the
#: noise of a gene that hardly any group has does not look like a marker.
SPREAD = 0.1
#: What the negative genes count beside the positive ones.
NEGATIVE = 0.5


def z_scores(means: np.ndarray) -> np.ndarray:
    """Compare each gene's mean expression between groups.

    Parameters
    ----------
    means
        Mean log-normalised expression, groups × genes.

    Returns
    -------
    float64 (groups × genes): the distance from the groups' average, in standard deviations of the
    groups' means and `SPREAD`. 0 where there is one group.
    """
    return (means - means.mean(axis=0)) / (means.std(axis=0) + SPREAD)


def type_scores(z: np.ndarray, types: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Score every cell type in every group.

    Parameters
    ----------
    z
        What `z_scores` returned.
    types
        Cell type → columns of its positive genes, at least one, and of its negative ones.

    Returns
    -------
    float64 (groups × types).
    """
    found = np.zeros((len(z), len(types)))
    for column, (positive, negative) in enumerate(types.values()):
        found[:, column] = z[:, positive].mean(axis=1)
        if len(negative):
            found[:, column] -= NEGATIVE * z[:, negative].mean(axis=1)
    return found


def best_types(
    scores: np.ndarray, types: list[str], *, min_margin: float, unsure: str
) -> "pd.DataFrame":
    """Name each group by the type with the highest score.

    Parameters
    ----------
    scores
        What `type_scores` returned.
    types
        The names of its columns.
    min_margin
        How far the highest score is above the next one, and above 0, for a name.
    unsure
        The name of a group that is not so.

    Returns
    -------
    A row a group: ``cell_type`` (the name), ``best`` and ``score``, ``second`` and
    ``second_score`` (empty and NaN where there is one type), ``margin``.
    """
    import pandas as pd

    rows = np.arange(len(scores))
    order = np.argsort(-scores, axis=1, kind="stable")
    names = np.array(types, dtype=object)
    best, score = names[order[:, 0]], scores[rows, order[:, 0]]
    if len(types) > 1:
        second, second_score = names[order[:, 1]], scores[rows, order[:, 1]]
    else:
        second, second_score = np.full(len(rows), "", dtype=object), np.full(len(rows), np.nan)
    margin = score - np.fmax(second_score, 0)
    is_named = (margin >= min_margin) & (score > 0)
    return pd.DataFrame(
        {
            "cell_type": np.where(is_named, best, unsure),
            "best": best,
            "score": score,
            "second": second,
            "second_score": second_score,
            "margin": margin,
        }
    )
