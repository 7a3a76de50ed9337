"""Names that the config and the results share."""

import re

#: Steps that import little: NumPy or CuPy is enough for them, or cuGraph's own library. They do
#: not wait for a worker that has only begun to start.
LIGHT = {"cpu": {"qc", "normalize"}, "gpu": {"qc", "normalize", "leiden", "louvain"}}


def is_clustering(groupby: str) -> bool:
    """Tell whether cells are grouped by a clustering of ours rather than by a column of obs."""
    return re.fullmatch(r"(leiden|louvain)(_[0-9.]+)?", groupby) is not None
