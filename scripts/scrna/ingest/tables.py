"""Tables of cells and genes as a source has them, made fit: names, symbols, columns."""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scrna.errors import UserError, did_you_mean

if TYPE_CHECKING:
    pass

#: var columns in which gene symbols are looked for, in this order: those that CELLxGENE, scanpy's
#: readers (10x, STARsolo), alevin-fry and nf-core/scrnaseq (gene_symbol), kb-python and CellBender
#: (gene_name), Monocle and BioMart's users write.
SYMBOL_COLUMNS = (
    "feature_name gene_symbols gene_symbol gene_name gene_names symbol symbols gene_short_name "
    "hgnc_symbol mgi_symbol external_gene_name"
).split()
MAX_DISTINCT = 10_000  # more values than that make no groups worth counting
_ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{6,}")


def name_genes(
    var: pd.DataFrame, column: str, *, dataset: str
) -> tuple[pd.DataFrame, str, list[str]]:
    """Index a table of genes by unique symbols.

    Parameters
    ----------
    var
        The source's table of genes.
    column
        The column with the symbols; ``index``; or ``auto``, the first of `SYMBOL_COLUMNS` that
        there is, else the index.
    dataset
        Its name, for messages.

    Returns
    -------
    The table, with the old index as column ``gene_ids`` (``source_index`` where another column has
    that name and the symbols are not the old index); the column used, or ``index``; notes.

    Raises
    ------
    UserError
        If there is no such column.
    """
    ids = var.index.astype("str").rename(None)
    used = _symbol_column(var, column, dataset)
    notes = []
    symbols = ids
    if used != "index":
        values = var[used].astype("str").array
        is_missing = pd.isna(values) | (values == "")
        symbols = pd.Index(np.where(is_missing, ids, values), dtype="str")
        if n_missing := int(is_missing.sum()):
            notes.append(f"{n_missing:,} genes have no symbol in {used} and go by their id.")
    unique, note = unique_index(symbols, "gene symbols")
    notes += note
    if sum(map(bool, map(_ENSEMBL_ID.match, symbols))) > len(symbols) / 2:
        notes.append(
            f"Genes go by Ensembl ids (var {used}): patterns such as ^MT- find none of them. Name "
            f"the var column with symbols in datasets.{dataset}.gene_symbols; there are "
            f"{_listed(var.columns)}."
        )
    table = var.set_axis(unique)
    if "gene_ids" not in var:
        table.insert(0, "gene_ids", ids.array)
    elif not (ids == var["gene_ids"].astype("str").array).all() and not unique.equals(ids):
        table.insert(0, "source_index", ids.array)
    return table, used, notes


def fit_for_disk(table: pd.DataFrame, what: str) -> tuple[pd.DataFrame, list[str]]:
    """Give a table column names and types that AnnData can write.

    Strings that repeat become categories, as AnnData has them, and mixed values strings.

    Parameters
    ----------
    table
        A table of cells or genes.
    what
        ``obs`` or ``var``, for the notes.

    Returns
    -------
    The table, and notes.
    """
    table = table.copy(deep=False)
    table.columns, notes = fit_names([str(column) for column in table.columns], what)
    for column in table:
        table[column] = fit_column(table[column])
    return table, notes


def fit_names(columns: list[str], what: str) -> tuple[pd.Index, list[str]]:
    """Give columns names that AnnData can write, and say which are not their own.

    Parameters
    ----------
    columns
        Their names.
    what
        ``obs`` or ``var``, for the notes.
    """
    # AnnData keeps `_index` for itself, and a slash would make a group
    new = ["index" if name == "_index" else name.replace("/", "_") for name in columns]
    unique, _ = unique_index(pd.Index(new, dtype="str"), "columns")
    notes = [
        f"The {what} column {a!r} is named {b!r} here: AnnData cannot write it under its own name."
        for a, b in zip(columns, unique, strict=True)
        if a != b
    ]
    return unique, notes


def fit_column(values: pd.Series) -> pd.Series:
    """Give a column a type that AnnData can write; strings that repeat become categories."""
    if values.dtype == object:
        values = values.astype("str")
    if isinstance(values.dtype, pd.StringDtype) and values.nunique() < len(values):
        values = values.astype("category")
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.remove_unused_categories()
    return values


def describe_columns(obs: Mapping[str, pd.Series]) -> dict[str, dict[str, Any]]:
    """Tell each column's type, its number of distinct values, and how many cells have none.

    Returns
    -------
    Column to ``dtype``, ``distinct`` (None for fractions and above `MAX_DISTINCT`) and
    ``missing``.
    """
    described = {}
    for column in obs:
        values = obs[column]
        distinct = None if pd.api.types.is_float_dtype(values.dtype) else int(values.nunique())
        described[column] = {
            "dtype": str(values.dtype),
            "distinct": distinct if distinct is not None and distinct < MAX_DISTINCT else None,
            "missing": int(values.isna().sum()),
        }
    return described


def add_column(sha: "hashlib._Hash", name: str, hashes: np.ndarray) -> None:
    """Add a column to the digest of a table: its name, and the hash of each of its values."""
    sha.update(f"{name}\n".encode())
    sha.update(hashes)


def _symbol_column(var: pd.DataFrame, column: str, dataset: str) -> str:
    if column == "auto":
        found = [name for name in SYMBOL_COLUMNS if name in var and var[name].notna().any()]
        return found[0] if found else "index"
    if column != "index" and column not in var:
        columns = [str(name) for name in var.columns]
        msg = (
            f"datasets.{dataset}.gene_symbols: {dataset} has no var column {column!r}; "
            f"{_nearest(column, [*columns, 'index'])}"
        )
        raise UserError(msg)
    return column


def unique_index(names: pd.Index, what: str) -> tuple[pd.Index, list[str]]:
    """Add numbers to repeated names, as AnnData does, and say so."""
    if names.is_unique:
        return names, []
    from anndata.utils import make_index_unique

    is_repeat = names.duplicated()
    repeated = names[is_repeat].unique()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the numbers may be taken for names
        unique = make_index_unique(names)
    examples = ", ".join(repeated[:5]) + (", …" if len(repeated) > 5 else "")
    note = (
        f"{len(repeated):,} {what} occur more than once ({examples}): the {is_repeat.sum():,} "
        "repeats have a number added (-1, -2, …)."
    )
    return unique, [note]


def _nearest(word: str, known: list[str]) -> str:
    """Point to the nearest names, and list what there is."""
    listed = f"there are {_listed(known)}" if known else "there are none"
    return f"{did_you_mean(word, known)} {listed}".lstrip()


def _listed(names: Sequence[Any], most: int = 30) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "") or "none"
