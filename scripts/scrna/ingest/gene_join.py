"""The genes of several samples as one list: those in all of them, or in any."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from scrna.errors import UserError
from scrna.ingest.tables import fit_for_disk, unique_index

#: Of the genes of all samples, the share in common under which a warning is due.
FEW_IN_COMMON = 0.2
_ENSEMBL = re.compile(r"(ENS[A-Z]*G)\d{6,}")
_VERSION = r"^(ENS[A-Z]*G\d{6,})\.\d+$"
_SPECIES = {"ENSG": "human", "ENSMUSG": "mouse", "ENSRNOG": "rat", "ENSDARG": "zebrafish"}


class Joined(NamedTuple):
    """The genes of several samples as one list."""

    var: pd.DataFrame
    """Indexed by unique symbols; ``gene_ids``, and the columns that all samples have alike."""
    places: dict[str, np.ndarray]
    """Sample → for each of its genes the place in `var`, int32; -1 for none."""
    on: str
    """``ids`` or ``symbols``."""
    n_common: int
    """Genes in all samples."""
    n_either: int
    """Genes in any."""
    notes: list[str]


def join_genes(
    tables: Mapping[str, pd.DataFrame], *, join: str, join_on: str, dataset: str
) -> Joined:
    """Join the genes of samples, as `anndata.concat` joins variables.

    Parameters
    ----------
    tables
        Sample → its table of genes as `scrna.ingest.tables.name_genes` makes it: indexed by unique
        symbols, with ``gene_ids``.
    join
        ``inner``: genes in all samples; ``outer``: genes in any.
    join_on
        ``ids``, ``symbols``; ``auto``: ids where all samples have Ensembl ids.
    dataset
        Its name, for messages.

    Returns
    -------
    Genes in the order of the first sample, and those of later ones after them.

    Raises
    ------
    UserError
        If samples are of different species, or have no gene in common.
    """
    keys, on, n_in, notes = _compared(tables, join_on, dataset)
    n_common = sum(n == len(tables) for n in n_in.values())
    if join == "inner":
        index = pd.Index([key for key, n in n_in.items() if n == len(tables)], dtype="str")
    else:
        index = pd.Index(n_in, dtype="str")
    var, more = _table(tables, keys, index, on)
    places = {name: index.get_indexer(own).astype(np.int32) for name, own in keys.items()}
    return Joined(var, places, on, n_common, len(n_in), notes + more)


def few_in_common(tables: Mapping[str, pd.DataFrame], *, join_on: str, dataset: str) -> list[str]:
    """Check genes as `join_genes` does; return a warning where few are in all samples."""
    *_, notes = _compared(tables, join_on, dataset)
    return [note for note in notes if note.startswith("Of ")]


def _compared(
    tables: Mapping[str, pd.DataFrame], join_on: str, dataset: str
) -> tuple[dict[str, pd.Index], str, Counter, list[str]]:
    """Return what tells genes, on what they are joined, in how many samples each is, and notes."""
    _check_species(tables, dataset)
    on, notes = _told_on(tables, join_on)
    keys = _keys(tables, on)
    n_in = Counter(key for index in keys.values() for key in index)  # in the order of appearance
    n_common = sum(n == len(tables) for n in n_in.values())
    _check_common(keys, n_common, on, dataset)
    if n_common < FEW_IN_COMMON * len(n_in):
        sizes = ", ".join(f"{name} {len(table):,}" for name, table in tables.items())
        notes.append(
            f"Of {len(n_in):,} genes in any sample only {n_common:,} are in all of them (joined on "
            f"{on}; {sizes}): look whether a sample is of another reference, a panel of few genes, "
            "or filtered. datasets.NAME.join: outer keeps all genes.".replace("NAME", dataset)
        )
    return keys, on, n_in, notes


def _told_on(tables: Mapping[str, pd.DataFrame], join_on: str) -> tuple[str, list[str]]:
    if join_on != "auto":
        return join_on, []
    without = [name for name, table in tables.items() if not _ensembl(table)]
    if not without:
        return "ids", ["Genes are joined on their Ensembl ids, which all samples have."]
    listed = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
    return "symbols", [f"Genes are joined on symbols: {listed} without Ensembl ids."]


def _ensembl(table: pd.DataFrame) -> Counter:
    """Count the prefixes of a table's Ensembl ids; nothing where they are not most of its ids."""
    found = Counter(m[1] for name in table["gene_ids"].astype(str) if (m := _ENSEMBL.match(name)))
    return found if sum(found.values()) > len(table) / 2 else Counter()


def _keys(tables: Mapping[str, pd.DataFrame], on: str) -> dict[str, pd.Index]:
    """Return what tells the genes of each sample, unique within it."""
    if on == "symbols":
        return {name: table.index.astype("str") for name, table in tables.items()}
    ids = {name: pd.Index(table["gene_ids"].astype("str")) for name, table in tables.items()}
    # with versions, ENSG00000243485.5, an id differs between annotations
    bare = {name: own.str.replace(_VERSION, r"\1", regex=True) for name, own in ids.items()}
    if all(bare[name].nunique() == own.nunique() for name, own in ids.items()):
        ids = bare
    return {name: unique_index(own, "gene ids")[0].rename(None) for name, own in ids.items()}


def _check_species(tables: Mapping[str, pd.DataFrame], dataset: str) -> None:
    """Refuse samples whose Ensembl ids are of different species."""
    found = {}
    for name, table in tables.items():
        prefixes = _ensembl(table)
        few = 0.1 * sum(prefixes.values())  # two species in one sample are a known experiment
        found[name] = {prefix for prefix, n in prefixes.items() if n > few}
    known = {name: prefixes for name, prefixes in found.items() if prefixes}
    if known and not set.intersection(*known.values()):
        listed = ", ".join(
            f"{name} {' and '.join(_SPECIES.get(p, f'{p}…') for p in sorted(prefixes))}"
            for name, prefixes in known.items()
        )
        msg = (
            f"{dataset}: its samples are of different species by their Ensembl ids ({listed}): "
            "analyse each species as a dataset of its own, with a sheet of its samples"
        )
        raise UserError(msg)


def _check_common(keys: Mapping[str, pd.Index], n_common: int, on: str, dataset: str) -> None:
    """Refuse genes that no sample shares with the others, and symbols that differ in case alone."""
    (first, own), *others = keys.items()
    folded = set(own.str.casefold())
    for name, other in others:
        shared = len(own.intersection(other))
        without_case = len(folded & set(other.str.casefold()))
        if on == "symbols" and shared < FEW_IN_COMMON * without_case:
            msg = (
                f"{dataset}: samples {first} and {name} share {shared:,} gene symbols, and "
                f"{without_case:,} if upper and lower case are the same ({own[0]}, {other[0]}): "
                "they look like human and mouse. Analyse each species as a dataset of its own"
            )
            raise UserError(msg)
    if not n_common:
        examples = "; ".join(f"{name}: {', '.join(own[:3])}" for name, own in keys.items())
        other = "symbols" if on == "ids" else "ids"
        msg = (
            f"{dataset}: no gene is in all samples, joined on {on} ({examples}). Join on {other} "
            f"(datasets.{dataset}.join_on), name the column with symbols "
            f"(datasets.{dataset}.gene_symbols), or remove the sample that does not belong"
        )
        raise UserError(msg)


def _table(
    tables: Mapping[str, pd.DataFrame], keys: Mapping[str, pd.Index], index: pd.Index, on: str
) -> tuple[pd.DataFrame, list[str]]:
    """Make the table of the joined genes: of each what the first sample that has it says."""
    rows = {name: table.set_axis(keys[name]) for name, table in tables.items()}
    symbols = _first([table.index.to_series() for table in tables.values()], keys, index)
    unique, notes = unique_index(pd.Index(symbols, dtype="str"), "gene symbols")
    if on == "ids":
        differ = sum(
            int((symbols.reindex(keys[name]).to_numpy() != table.index.to_numpy())[has].sum())
            for name, table in tables.items()
            if (has := keys[name].isin(index)).any()
        )
        if differ:
            notes.append(
                f"{differ:,} genes go by another symbol in a later sample: those of the first are "
                "used."
            )
    columns, left = {}, []
    for column in next(iter(tables.values())).columns:
        if column == "gene_ids" and on == "ids":
            columns[column] = index.to_numpy()
        elif all(column in table for table in tables.values()):
            values = _first([table[column] for table in rows.values()], keys, index)
            if column == "gene_ids" or _are_alike(rows, column, values):
                columns[column] = values.to_numpy()
            else:
                left.append(column)
        else:
            left.append(column)
    if left:
        notes.append(f"Columns of var that differ between samples are left out: {', '.join(left)}.")
    var, more = fit_for_disk(pd.DataFrame(columns, index=unique), "var")
    return var, notes + more


def _first(columns: list[pd.Series], keys: Mapping[str, pd.Index], index: pd.Index) -> pd.Series:
    """Take the value of each gene from the first sample that has it."""
    parts = []
    for values, own in zip(columns, keys.values(), strict=True):
        is_category = isinstance(values.dtype, pd.CategoricalDtype)
        values = values.astype(values.cat.categories.dtype) if is_category else values
        parts.append(pd.Series(values.array, index=own))
    joined = pd.concat(parts)
    return joined[~joined.index.duplicated()].reindex(index)


def _are_alike(rows: Mapping[str, pd.DataFrame], column: str, values: pd.Series) -> bool:
    """Return whether all samples say the same of the genes that they have."""
    for table in rows.values():
        own = table[column][table.index.isin(values.index)]
        wanted = values.reindex(own.index)
        is_same = (own.astype(object) == wanted.astype(object)) | (own.isna() & wanted.isna())
        if not is_same.all():
            return False
    return True
