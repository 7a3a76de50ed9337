"""Name clusters as ``annotations`` in the config say."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scrna.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def place_of(clustering: str, reps: Sequence[str]) -> tuple[str, str]:
    """Find the representation and clustering that a column of the final AnnData comes from.

    Parameters
    ----------
    clustering
        Its name in ``final``: the plain one is of the last representation, that after integration;
        ``leiden_pca`` is the one before it.
    reps
        The representations, ``pca`` first.

    Returns
    -------
    Representation, and the clustering's name in its step file.
    """
    if len(reps) > 1 and clustering.endswith("_pca"):
        return reps[0], clustering.removesuffix("_pca")
    return reps[-1], clustering


def cell_types(
    clusters: "pd.Categorical", clustering: str, names: Mapping[str, str]
) -> "pd.Categorical":
    """Name clusters, as ``obs/cell_type`` of ``final`` does.

    Parameters
    ----------
    clusters
        The cluster of each cell.
    clustering
        The name of the clustering.
    names
        Cluster → name; several may have one name.

    Returns
    -------
    The type of each cell, in the clusters' order; a cluster without a name is ``leiden 7``.

    Raises
    ------
    UserError
        If a cluster is named that there is not.
    """
    import pandas as pd

    known = list(clusters.categories)
    if unknown := sorted(set(names) - set(known)):
        msg = (
            f"annotations.{clustering} names {', '.join(unknown)}, which {clustering} does not "
            f"have; there are {', '.join(known)}"
        )
        raise UserError(msg)
    called = [names.get(cluster, f"{clustering} {cluster}") for cluster in known]
    types = list(dict.fromkeys(called))
    codes = pd.Index(types).get_indexer(called)
    return pd.Categorical.from_codes(pd.Series(codes).reindex(clusters.codes, fill_value=-1), types)
