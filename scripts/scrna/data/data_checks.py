"""Check that cells, genes, labels and batches named in the settings exist in the data.

The conversion refuses what no filter can change, since a filter only removes cells and genes. The
filter checks the same for the cells and genes that it keeps. The names come as a mapping from
`scrna.workflow.named_in_data.named_in_data`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scrna.data.batches import FEWEST_CELLS, complete_batches, in_large_batches
from scrna.data.covariates import as_numbers
from scrna.data.gene_lists import check_gene_lists
from scrna.data.genes import find_genes
from scrna.data.groups import check_groups
from scrna.errors import UserError
from scrna.log import log

if TYPE_CHECKING:
    import pandas as pd

#: Labels that a message lists.
_MOST_LISTED = 20


def check_cells(
    named: Mapping[str, Any],
    column: Callable[[str], "pd.Series"],
    cell_names: Callable[[], Iterable[np.ndarray]],
    *,
    is_filtered: bool,
) -> None:
    """Refuse settings that the cells do not allow.

    Parameters
    ----------
    named
        What the settings name.
    column
        Called with the name of a column of obs: its values for the cells.
    cell_names
        Called for the names of the cells, in pieces.
    is_filtered
        Whether these are the cells that passed the filter; before it, a cell without a batch or a
        number may yet be removed.

    Raises
    ------
    UserError
        For batches that cannot be integrated, a covariate that is not numeric, groups without
        markers, or a root of the trajectory that is not among the cells.
    """
    with _of_dataset(named, is_filtered=is_filtered):
        if named["batch_key"]:
            _check_batches(named, column, is_filtered=is_filtered)
        for name in named["regress_out"]:
            as_numbers(column(name).to_numpy(), name, may_be_missing=not is_filtered)
        for groups in named["markers"]:
            _check_markers(column(groups["groupby"]), **groups)
        root = named["root"] or {}
        if "label" in root:
            _check_label(column(named["label_key"]), root["label"], named["label_key"])
        if "cell" in root:
            _check_cell(root["cell"], cell_names, is_filtered=is_filtered)


def check_genes(
    named: Mapping[str, Any], symbols: Sequence[str], ids: Callable[[], Sequence[str]]
) -> None:
    """Refuse genes that the settings name and that are not there.

    Parameters
    ----------
    named
        What the settings name.
    symbols
        The symbols of the genes, unique.
    ids
        Called for their ids.
    """
    with _of_dataset(named):
        find_genes(named["genes"], symbols, ids, key="figures.genes")
        if gene := (named["root"] or {}).get("gene"):
            find_genes([gene], symbols, list, key="trajectory.root.gene")
        check_gene_lists(named["gene_sets"], symbols, ids)


def check_new_columns(named: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Refuse gene sets that are named as a column of obs that is there.

    Parameters
    ----------
    named
        What the settings name.
    columns
        The columns of the source's obs.
    """
    with _of_dataset(named):
        for name in sorted(set(columns) & set(named["gene_sets"]["columns"])):
            msg = (
                f"scores.sets.{name}: obs has a column {name!r} already; give the set another name"
            )
            raise UserError(msg)


def check_kept_genes(
    named: Mapping[str, Any],
    symbols: Sequence[str],
    ids: Callable[[], Sequence[str]],
    n_cells: np.ndarray,
    keep: np.ndarray,
) -> None:
    """Refuse genes that the settings name and that the filter removed.

    Parameters
    ----------
    named, symbols, ids
        As in `check_genes`.
    n_cells
        Kept cells that have the gene, for each.
    keep
        Whether the gene is kept, for each.
    """
    check_genes(named, symbols, ids)
    with _of_dataset(named, is_filtered=True):
        places = find_genes(named["genes"], symbols, ids, key="figures.genes")
        for gene, place in zip(named["genes"], places, strict=True):
            if not keep[place]:
                msg = (
                    f"figures.genes: {gene} is in {n_cells[place]:,} of the kept cells and was "
                    f"removed by the filter. Lower filter.min_cells, or take {gene} out of the list"
                )
                raise UserError(msg)
        if gene := (named["root"] or {}).get("gene"):
            place = find_genes([gene], symbols, list, key="trajectory.root.gene")[0]
            if not n_cells[place]:
                msg = f"trajectory.root.gene {gene!r} is expressed in none of the kept cells"
                raise UserError(msg)
        check_gene_lists(named["gene_sets"], symbols, ids, keep)


@contextmanager
def _of_dataset(named: Mapping[str, Any], *, is_filtered: bool = False) -> Iterator[None]:
    """Begin messages with the dataset's name."""
    try:
        yield
    except UserError as error:
        when = ", after the filter" if is_filtered else ""
        msg = f"{named['dataset']}{when}: {error}"
        raise UserError(msg) from None


def _check_batches(
    named: Mapping[str, Any], column: Callable[[str], "pd.Series"], *, is_filtered: bool
) -> None:
    import pandas as pd

    missing_batch = named["missing_batch"]
    batches = pd.DataFrame({name: column(name) for name in named["batch_key"]})
    if missing_batch == "refuse" and not is_filtered:
        has_all = batches.notna().all(axis=1)
        for name, n in batches.isna().sum().items():
            if 0 < n < len(batches):
                log.info(
                    "batch_key %r has no value in %s of %s cells: if the filter keeps one of them, "
                    "the run ends there. Fill them in, or set harmony.missing_batch to own_batch",
                    name,
                    f"{n:,}",
                    f"{len(batches):,}",
                )
        if has_all.sum() >= FEWEST_CELLS:  # else the gaps are the reason
            batches = batches[has_all]
    in_large_batches(complete_batches(batches, missing_batch), named["min_batch_cells"])


def _check_markers(groups: "pd.Series", *, groupby: str, min_cells: int, method: str) -> None:
    sizes = groups.value_counts()
    if groups.isna().all():
        msg = f"markers.groupby {groupby!r} has no value in any of the {len(groups):,} cells"
        raise UserError(msg)
    sizes = sizes[sizes > 0]
    if len(sizes) == 1:
        msg = (
            f"markers.groupby {groupby!r} has one value, {str(sizes.index[0])!r}, in all of the "
            f"{sizes.iloc[0]:,} cells that have one: there is no other group to compare with. Name "
            "a column with several values, or a clustering"
        )
        raise UserError(msg)
    check_groups(sizes, groupby, min_cells, method)


def _check_label(labels: "pd.Series", wanted: str, label_key: str) -> None:
    known = sorted(map(str, labels.dropna().unique()))
    if wanted not in known:
        shown = ", ".join(known[:_MOST_LISTED]) or "none"
        more = f" and {len(known) - _MOST_LISTED:,} more" if len(known) > _MOST_LISTED else ""
        msg = f"trajectory.root.label {wanted!r} is not in obs {label_key!r}; there are "
        raise UserError(msg + shown + more)


def _check_cell(
    wanted: str, cell_names: Callable[[], Iterable[np.ndarray]], *, is_filtered: bool
) -> None:
    example = None
    for names in cell_names():
        if (names == wanted).any():
            return
        example = names[0] if example is None and len(names) else example
    why = "is not among the cells that passed it" if is_filtered else "is not among the cells"
    msg = f"trajectory.root.cell {wanted!r} {why} (cells are named like {example!r})"
    raise UserError(msg)
