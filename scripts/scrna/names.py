"""Names that the config and the results share."""

import re


def is_clustering(groupby: str) -> bool:
    """Tell whether cells are grouped by a clustering of ours rather than by a column of obs."""
    return re.fullmatch(r"(leiden|louvain)(_[0-9.]+)?", groupby) is not None
