"""The genes that the sections ``scores`` and ``cell_types`` name, and what is wrong with them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from scrna.config.gene_set_files import check_name, read_cell_cycle, read_markers, read_sets
from scrna.errors import UserError, did_you_mean
from scrna.steps import CLUSTERINGS, is_made

#: The name of a cluster that no marker set fits well enough.
UNSURE = "unsure"
#: Each set is a column of obs and a picture: of a whole collection a person names some.
_MOST_SETS = 60
#: Columns of obs that the steps make.
_OWN_COLUMNS = re.compile(
    r"keep|filter_reason|size_factor|sample|batch|phase|S_score|G2M_score|dpt_pseudotime"
    r"|(doublet|predicted_doublet|cell_type|integration).*|(log1p_)?(total|pct)_counts.*"
    rf"|(log1p_)?n_genes.*|({'|'.join(CLUSTERINGS)})(_.*)?"
)


def scored_sets(dataset: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the genes of each set that is scored, in the order of the config.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.

    Raises
    ------
    UserError
        If a file is not there or not as it should be, or lacks the set.
    """
    given = dataset["scores"]["sets"]
    if isinstance(given, str):
        return read_sets(given, "scores.sets")
    return {
        name: list(genes) if isinstance(genes, list) else _of_file(name, genes)
        for name, genes in given.items()
    }


def cell_cycle(dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the genes of the phases: ``S``, ``G2M`` and ``formerly``; None where not asked for."""
    species = dataset["scores"]["cell_cycle"]
    if species == "none":
        return None
    sets, formerly = read_cell_cycle(species)
    return sets | {"formerly": formerly}


def marker_sets(dataset: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return the ``positive`` and ``negative`` genes of each cell type; empty without a file."""
    given = dataset["cell_types"]["markers"]
    return read_markers(given, "cell_types.markers") if given else {}


def gene_set_problems(dataset: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a dataset's gene sets and marker files.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.

    Yields
    ------
    A sentence for each problem.
    """
    try:
        sets = scored_sets(dataset)
        for name in sets:
            check_name(name, "a set of scores.sets")
    except UserError as error:
        yield str(error)
        sets = {}
    if len(sets) > _MOST_SETS:
        yield (
            f"scores.sets has {len(sets):,} sets, more than {_MOST_SETS}: take those that you "
            "need, each as name: file"
        )
    for name in sets:
        if _OWN_COLUMNS.fullmatch(name):
            yield (
                f"scores.sets names a set {name!r}, which is a column of obs that a step makes: "
                f"call it {name}_genes, for instance"
            )
    try:
        types = marker_sets(dataset)
    except UserError as error:
        yield str(error)
        types = {}
    if UNSURE in types:
        yield f"cell_types.markers has a cell type {UNSURE!r}, the name of clusters without one"


def named_genes(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """List the genes that have to be in a dataset's data, for the checks of the conversion.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.

    Returns
    -------
    scores
        Config key → genes, of which a few have to be there.
    formerly
        Symbol → an older one.
    columns
        Names of sets, which obs must not have.
    markers
        Genes of all cell types, of which one has to be there.
    """
    found: dict[str, Any] = {"scores": {}, "formerly": {}, "columns": [], "markers": []}
    if is_made(dataset, "scores"):
        sets = scored_sets(dataset)
        found["columns"] = list(sets)
        found["scores"] = {f"scores.sets.{name}": genes for name, genes in sets.items()}
        if phases := cell_cycle(dataset):
            species = dataset["scores"]["cell_cycle"]
            found["formerly"] = phases.pop("formerly")
            of_phase = {f"scores.cell_cycle {species}, {p}": own for p, own in phases.items()}
            found["scores"] |= of_phase
    own = marker_sets(dataset).values()
    found["markers"] = [gene for signs in own for genes in signs.values() for gene in genes]
    return found


def _of_file(name: str, given: str) -> list[str]:
    """Take a set from a file: the one of this name, or the only one."""
    key = f"scores.sets.{name}"
    sets = read_sets(given, key)
    if name in sets:
        return sets[name]
    if len(sets) == 1:
        return next(iter(sets.values()))
    some = did_you_mean(name, sets) or f"it begins with {', '.join(list(sets)[:3])}"
    raise UserError(f"{key}: {given} has {len(sets):,} sets, none of them {name!r}; {some}")
