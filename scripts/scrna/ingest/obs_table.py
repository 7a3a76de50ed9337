"""The table of cells of a source, read and written a column at a time.

Of many cells the names alone, as Python's strings, take 80 bytes a cell and column. So strings are
read in pieces: those that repeat become categories, the others, names among them, go to disk piece
by piece. What is held for each cell is one column of numbers or codes, and some hashes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scrna.errors import UserError

if TYPE_CHECKING:
    from scrna.ingest.obs_table import CellTable
import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import pandas as pd
import zarr

from scrna.data.encodings import encoding
from scrna.data.store import TABLE_COMPRESSOR, write_element
from scrna.ingest.tables import (
    MAX_DISTINCT,
    _nearest,
    add_column,
    describe_columns,
    fit_column,
    fit_names,
    unique_index,
)

_PIECE = 2**16  # strings that are read, and written, at once
_MISSING = np.uint64(2**64 - 1)  # the hash of a missing string; pandas takes it for text


class Text:
    """Strings, read by pieces.

    Parameters
    ----------
    read
        Gives the strings from a first to before a last one: object array, None for missing ones.
    n
        How many there are.
    cells
        Mask of those that are meant, (n,); None for all.
    numbers
        For each of those, what is added to it as ``-1``; 0 for nothing.
    """

    def __init__(
        self,
        read: Callable[[int, int], np.ndarray],
        n: int,
        cells: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ):
        self._read, self._n, self._cells, self._numbers = read, n, cells, numbers

    @classmethod
    def of(cls, values: pd.Series | pd.Index) -> Self:
        """Take strings that are in memory."""
        values = values.astype("str").array

        def read(start: int, stop: int) -> np.ndarray:
            found = np.array(values[start:stop], dtype=object)
            found[pd.isna(found)] = None
            return found

        return cls(read, len(values))

    def __len__(self) -> int:
        return self._n if self._cells is None else int(np.count_nonzero(self._cells))

    def where(self, cells: np.ndarray) -> Self:
        """Narrow them to some, by a mask."""
        return type(self)(self._read, self._n, None if cells.all() else cells)

    def numbered(self, numbers: np.ndarray) -> Self:
        """Add numbers to some: ``name-1``."""
        return type(self)(self._read, self._n, self._cells, numbers)

    def one(self, place: int) -> str:
        """Read one of the strings of all cells."""
        return self._read(place, place + 1)[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read some of the strings of all cells, from a first to before a last one."""
        return self._read(start, stop)

    def pieces(self) -> Iterator[np.ndarray]:
        """Read all, in pieces: object arrays, None for missing ones."""
        done = 0
        for start in range(0, self._n, _PIECE):
            stop = min(start + _PIECE, self._n)
            wanted = None if self._cells is None else self._cells[start:stop]
            if wanted is not None and not wanted.any():
                continue
            values = self._read(start, stop)
            values = values if wanted is None else values[wanted]
            if self._numbers is not None:
                numbers = self._numbers[done : done + len(values)]
                for i in np.flatnonzero(numbers):
                    values[i] = f"{values[i]}-{numbers[i]}"
            done += len(values)
            yield values

    def hashes(self) -> np.ndarray:
        """Hash each, uint64; `_MISSING` where there is none."""
        found = np.empty(len(self), np.uint64)
        done = 0
        for values in self.pieces():
            part = pd.util.hash_array(values, categorize=False)
            part[pd.isna(values)] = _MISSING
            found[done : done + len(values)] = part
            done += len(values)
        return found

    def at(self, places: np.ndarray) -> np.ndarray:
        """Read those at some places, ascending: object array."""
        found, done = [np.empty(0, object)], 0
        for values in self.pieces():
            first, last = np.searchsorted(places, [done, done + len(values)])
            found.append(values[places[first:last] - done])
            done += len(values)
        return np.concatenate(found)

    def categories(self) -> pd.Categorical | None:
        """Make categories of them if some repeat or are missing; None if all are distinct.

        Equal strings are found by their hashes, since a table of all strings takes much memory.
        """
        codes, distinct = pd.factorize(self.hashes())
        if len(distinct) == len(codes) and _MISSING not in distinct:
            return None
        # codes count up in the order in which strings come
        first = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))
        names = self.at(first)
        order = np.argsort(names[distinct != _MISSING])
        order = np.flatnonzero(distinct != _MISSING)[order]
        places = np.full(len(names), -1)
        places[order] = np.arange(len(order))
        return pd.Categorical.from_codes(places[codes], pd.Index(names[order], dtype="str"))


class CellTable:
    """The table of cells: its columns are read when they are asked for.

    Parameters
    ----------
    columns
        Name to a function that reads it: what AnnData reads, or `Text`.
    names
        The names of the cells.
    """

    def __init__(self, columns: dict[str, Callable[[], Any]], names: Text):
        fitted, self.notes = fit_names(list(columns), "obs")
        self._read = dict(zip(fitted, columns.values(), strict=True))
        self.names = names

    @classmethod
    def of(cls, obs: pd.DataFrame) -> Self:
        """Take a table that is in memory."""
        columns = {str(name): lambda values=values: values for name, values in obs.items()}
        return cls(columns, Text.of(obs.index))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, column: str) -> bool:
        return column in self._read

    @property
    def columns(self) -> list[str]:
        """Names of the columns, as AnnData can write them."""
        return list(self._read)

    def __getitem__(self, column: str) -> pd.Series:
        """Read a column."""
        values = self.read(column)
        return pd.Series(np.concatenate([*values.pieces()])) if isinstance(values, Text) else values

    def read(self, column: str, cells: np.ndarray | None = None) -> pd.Series | Text:
        """Read a column of some cells; distinct strings stay `Text`, repeated are categories."""
        values = self._read[column]()
        if len(values) != len(self):
            msg = (
                f"obs is damaged: its column {column} has {len(values):,} values for "
                f"{len(self):,} cells; get the file again"
            )
            raise UserError(msg)
        if not isinstance(values, Text):
            values = pd.Series(values).reset_index(drop=True)
            if values.dtype != object and not isinstance(values.dtype, pd.StringDtype):
                return fit_column(values if cells is None else values[cells])
            values = Text.of(values)
        values = values if cells is None else values.where(cells)
        categories = values.categories()
        return values if categories is None else pd.Series(categories)


class Written(NamedTuple):
    """What `write_cells` has written."""

    columns: dict[str, dict[str, Any]]
    """As `scrna.ingest.tables.describe_columns` tells."""
    digest: str
    notes: list[str]
    names: Text
    """The names of the cells, unique."""


def write_cells(root: zarr.Group, table: CellTable, cells: np.ndarray) -> Written:
    """Write the table of some cells as ``obs``, as AnnData encodes a DataFrame.

    Parameters
    ----------
    root
        The root group of the store.
    table
        The cells of the source.
    cells
        Mask of those that are written.
    """
    group = root.create_group("obs")
    order = {"_index": "_index", "column-order": table.columns}
    group.attrs.update(encoding("dataframe", **order))
    described, sha = {}, hashlib.sha256()
    for name in table.columns:
        values = table.read(name, cells)
        if isinstance(values, Text):
            distinct = len(values) if len(values) < MAX_DISTINCT else None
            described[name] = {"dtype": "str", "distinct": distinct, "missing": 0}
            add_column(sha, name, values.hashes())
            _write_text(group, name, values)
        else:
            described |= describe_columns({name: values})
            add_column(sha, name, pd.util.hash_pandas_object(values, index=False).to_numpy())
            is_plain = isinstance(values.dtype, np.dtype)
            write_element(group, name, values.to_numpy() if is_plain else values.array)
        del values  # before the next one is read
    names, notes = unique_names(table.names.where(cells))
    add_column(sha, "_index", names.hashes())
    _write_text(group, "_index", names)
    return Written(described, sha.hexdigest(), notes, names)


def unique_names(names: Text) -> tuple[Text, list[str]]:
    """Add numbers to repeated names, as AnnData does, and say so.

    Parameters
    ----------
    names
        The names of the cells.

    Returns
    -------
    Names of which each is there once, and notes.
    """
    hashes = pd.Series(names.hashes())
    if hashes.is_unique:
        return names, []
    numbers = hashes.groupby(hashes, sort=False).cumcount().to_numpy()
    unique = names.numbered(numbers)
    if not pd.Series(unique.hashes()).is_unique:  # a name with a number added was there already
        index = pd.Index(np.concatenate([*names.pieces()]), dtype="str")
        index, notes = unique_index(index, "cell names")
        return Text.of(index), notes
    first = np.flatnonzero(numbers == 1)
    examples = ", ".join(names.at(first[:5])) + (", …" if len(first) > 5 else "")
    note = (
        f"{len(first):,} cell names occur more than once ({examples}): the "
        f"{np.count_nonzero(numbers):,} repeats have a number added (-1, -2, …)."
    )
    return unique, [note]


def _write_text(group: zarr.Group, name: str, text: Text) -> None:
    """Write strings as AnnData encodes them, piece by piece."""
    n = len(text)
    array = group.create_array(
        name,
        shape=(n,),
        dtype=str,
        chunks=(max(1, min(n, _PIECE)),),
        compressors=TABLE_COMPRESSOR,
    )
    array.attrs.update(encoding("string-array"))
    waiting, done = np.empty(0, object), 0
    for values in text.pieces():
        waiting = np.concatenate([waiting, values])
        while len(waiting) >= _PIECE:
            array[done : done + _PIECE] = waiting[:_PIECE]
            waiting, done = waiting[_PIECE:], done + _PIECE
    if len(waiting):
        array[done:] = waiting


def kept_cells(obs: "CellTable", keep: Mapping[str, Sequence[Any]], *, dataset: str) -> np.ndarray:
    """Tell the cells whose obs values are among those asked for.

    Parameters
    ----------
    obs
        The table of cells.
    keep
        Column to values; numbers match numbers that are written as strings.
    dataset
        Its name, for messages.

    Returns
    -------
    Mask, (n_obs,).

    Raises
    ------
    UserError
        If there is no such column, or no cell has one of the values.
    """
    mask = np.ones(len(obs), bool)
    for column, values in keep.items():
        where = f"datasets.{dataset}.keep_obs"
        check_columns(obs.columns, {column: where}, dataset=dataset)
        known = {str(value): value for value in obs[column].dropna().unique()}
        wanted = []
        for value in values:
            match = [k for text, k in known.items() if k == value or text == str(value)]
            if not match:
                msg = (
                    f"{where}: no cell of {dataset} has {value!r} in obs column {column}; "
                    f"{_nearest(str(value), list(known))}"
                )
                raise UserError(msg)
            wanted += match
        mask &= obs[column].isin(wanted).to_numpy()
    return mask


def check_columns(columns: Sequence[str], required: Mapping[str, str], *, dataset: str) -> None:
    """Refuse obs columns that the config names and the data do not have.

    Parameters
    ----------
    columns
        The columns of the table of cells.
    required
        Column to the config key that names it.
    dataset
        Its name, for messages.
    """
    for column, key in required.items():
        if column not in columns:
            msg = f"{key}: {dataset} has no obs column {column!r}; {_nearest(column, columns)}"
            raise UserError(msg)
