"""What markers are of: ``markers.groupby`` is one grouping of the cells, or a list of them.

The first has the plain names (``markers.h5``, ``markers.csv``, the folder ``figures``). Those of a
further one have its name in theirs: ``markers_cell_type.h5``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from scrna.steps import is_clustering

#: What the wildcard ``grouping`` matches: nothing, or an underscore and a name. That of a grouping
#: which the config does not list, or no longer lists, can still be made, and is looked after.
PATTERN = "(?:_[^/]+)?"
#: Characters of a grouping's name that stand in the names of files.
LONGEST_NAME = 60


def groupings(dataset: Mapping[str, Any]) -> list[str]:
    """List what a dataset's markers are of: clusterings and columns of obs."""
    given = dataset["markers"]["groupby"]
    return [given] if isinstance(given, str) else list(given)


def file_name(groupby: str) -> str:
    """Return a grouping's name as it stands in the names of files and of uns."""
    return re.sub(r"[^\w.-]+", "_", groupby)[:LONGEST_NAME]


def by_suffix(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Return the groupings by what their files' names end with: nothing for the first."""
    first, *further = groupings(dataset)
    return {"": first} | {f"_{file_name(name)}": name for name in further}


def grouping_of(dataset: Mapping[str, Any], suffix: str) -> str:
    """Return the grouping whose files' names end with a suffix.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    suffix
        Nothing, or ``_NAME``. Of a grouping that the config does not list it is the name.
    """
    return by_suffix(dataset).get(suffix, suffix.removeprefix("_"))


def suffixes(dataset: Mapping[str, Any], *, is_last: bool) -> list[str]:
    """List the groupings whose markers a representation gets, by the suffix of their files.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    is_last
        Whether it is the dataset's last representation, the one after integration where there are
        two. Markers of a column of obs are the same in both, so those of further columns are made
        once.
    """
    return [
        suffix
        for suffix, groupby in by_suffix(dataset).items()
        if is_last or not suffix or is_clustering(groupby)
    ]


def grouping_problems(dataset: Mapping[str, Any], *, is_integrated: bool) -> Iterator[str]:
    """Find groupings whose results would have the same name.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    is_integrated
        Whether it has a batch_key, and so two representations; names in final.zarr then end in
        ``_pca`` for the one before.

    Yields
    ------
    A sentence for each problem.
    """
    named: dict[str, str] = {}
    for groupby in groupings(dataset)[1:]:
        name = file_name(groupby)
        if name in named:
            yield (
                f"markers.groupby has {named[name]!r} and {groupby!r}, whose results would both be "
                f"named markers_{name}: rename one of the columns"
            )
        named[name] = groupby
        if is_integrated and (name == "pca" or name.endswith("_pca")):
            yield (
                f"markers.groupby has {groupby!r}: names that end in pca are those of the results "
                "before integration. Put it first in the list, or rename the column"
            )
