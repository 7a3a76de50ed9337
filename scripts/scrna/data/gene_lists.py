"""Lists of genes of which the data may have some: those that are there, and checks of the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scrna.errors import UserError
from scrna.log import log

#: A set of fewer genes says more about these than about what the set stands for.
FEWEST_GENES = 3
#: Genes that a message lists.
_MOST_LISTED = 20


def find_known(
    genes: Iterable[str],
    symbols: Sequence[str],
    ids: Callable[[], Sequence[str]],
    *,
    formerly: Mapping[str, str] | None = None,
    ignore_case: bool = False,
) -> tuple[dict[str, int], list[str]]:
    """Find the genes of a list that the data have.

    Parameters
    ----------
    genes
        Symbols or ids; a symbol goes first.
    symbols
        The symbols of all genes, unique.
    ids
        Called for the ids of all genes, where one is no symbol; may return none.
    formerly
        Symbol → an older one, looked for where the first is not there.
    ignore_case
        Whether a symbol that is not there as it is written may be there in another case. One that
        is there in several is not found.

    Returns
    -------
    found
        Gene as listed → its place; a place comes once.
    missing
        The others.
    """
    known = {name: place for place, name in enumerate(symbols)}
    folded: dict[str, list[int]] = {}
    if ignore_case:
        for name, place in known.items():
            folded.setdefault(name.casefold(), []).append(place)
    by_id: dict[str, int] | None = None
    found: dict[str, int] = {}
    taken: set[int] = set()
    missing = []
    for gene in genes:
        place = known.get(gene)
        if place is None and formerly:
            place = known.get(formerly.get(gene, ""))
        if place is None:
            if by_id is None:
                by_id = {name: number for number, name in enumerate(ids())}
            place = by_id.get(gene)
        if place is None and len(same := folded.get(gene.casefold(), [])) == 1:
            place = same[0]
        if place is None:
            missing.append(gene)
        elif place not in taken:
            found[gene] = place
            taken.add(place)
    return found, missing


def check_gene_lists(
    named: Mapping[str, Any],
    symbols: Sequence[str],
    ids: Callable[[], Sequence[str]],
    keep: np.ndarray | None = None,
) -> None:
    """Refuse sets of which too few genes are there to be scored, and markers of which none is.

    Parameters
    ----------
    named
        What `scrna.config.gene_sets.named_genes` returned.
    symbols, ids
        As in `find_known`.
    keep
        Whether the filter keeps a gene, for each; None before the filter.

    Raises
    ------
    UserError
        For the first such set.
    """
    for key, genes in named["scores"].items():
        found, missing = find_known(genes, symbols, ids, formerly=named["formerly"])
        stay = [gene for gene, place in found.items() if keep is None or keep[place]]
        if len(stay) >= FEWEST_GENES:
            continue
        gone = "" if keep is None else ", the filter keeps"
        msg = (
            f"{key} has {len(genes)} genes, of which the data have {len(found)}{gone}"
            f"{'' if keep is None else f' {len(stay)}'}; a score needs {FEWEST_GENES}. "
            f"{_why(missing, symbols, ids)}"
        )
        raise UserError(msg)
    if (markers := named["markers"]) and not find_known(markers, symbols, ids, ignore_case=True)[0]:
        msg = (
            f"cell_types.markers: none of its {len(set(markers))} genes is in the data. "
            f"{_why(markers, symbols, ids)}"
        )
        raise UserError(msg)


def warn_of_missing(key: str, missing: Sequence[str], removed: Sequence[str], n_genes: int) -> None:
    """Warn of the genes of a list that the data do not have, or that the filter removed."""
    for genes, what in ((missing, "are not in the data"), (removed, "were removed by the filter")):
        if genes:
            log.warning(
                "%s: %d of %d genes %s and are left out: %s",
                *(key, len(genes), n_genes, what, listed(genes)),
            )


def listed(genes: Sequence[str]) -> str:
    """List genes, the first of them where there are many."""
    more = f" and {len(genes) - _MOST_LISTED} more" if len(genes) > _MOST_LISTED else ""
    return ", ".join(genes[:_MOST_LISTED]) + more


def _why(missing: Sequence[str], symbols: Sequence[str], ids: Callable[[], Sequence[str]]) -> str:
    """Say what missing genes and the data's look like."""
    if not missing:
        return "Lower filter.min_cells, or take the set out"
    there = ", ".join(list(symbols)[:3])
    said = f"Missing: {listed(missing)}; genes of the data are named like {there}"
    in_other_case = find_known(missing, symbols, ids, ignore_case=True)[0]
    if in_other_case:
        example, place = next(iter(in_other_case.items()))
        said += (
            f". {len(in_other_case)} of them are there in another case ({symbols[place]} for "
            f"{example}): are they of another species? For the cell cycle of mice set "
            "scores.cell_cycle: mouse"
        )
    return said
