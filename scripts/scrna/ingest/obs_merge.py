"""The tables of cells of several stores as one, a column at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from scrna.data import step_files
from scrna.data.integrity import check_content, files_of
from scrna.data.store import write_element
from scrna.ingest.obs_table import CellTable, Text

#: Reads the strings from a first to before a last cell: object array, None for missing ones.
Read = Callable[[int, int], np.ndarray]


class ObsStore:
    """The table of cells of one store of counts.

    Parameters
    ----------
    path
        The store.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._root = zarr.open_group(self.path, mode="r", use_consolidated=False)
        self._group = self._root["obs"]
        check_content(self.path, files_of(self._root), "obs")
        self.columns = [str(name) for name in self._group.attrs["column-order"]]

    def names(self) -> Text:
        """Open the names of the cells."""
        return _text_of(self._group[str(self._group.attrs["_index"])])

    def read(self, column: str) -> pd.Series | Text:
        """Read a column; strings that are no categories stay on disk."""
        element = self._group[column]
        kind = element.attrs.get("encoding-type")
        if kind == "string-array":
            return _text_of(element)
        if kind == "categorical":
            return pd.Series(step_files.read_categories(element))
        from anndata.io import read_elem

        return pd.Series(read_elem(element))


def merged_table(
    stores: Sequence[ObsStore], samples: Sequence[str], names: Text, notes: list[str]
) -> CellTable:
    """Join the tables of cells of samples, one below the other.

    Parameters
    ----------
    stores, samples
        The samples' tables and names, in their order.
    names
        The names of all cells, as they are to be.
    notes
        What is worth saying is added here.

    Returns
    -------
    ``sample``, categories in the samples' order, and every column that a sample has: missing where
    a sample lacks it. A source's own ``sample`` is ``sample_source``.
    """
    sizes = [len(store.names()) for store in stores]

    def sample() -> pd.Series:
        codes = np.repeat(np.arange(len(samples), dtype=np.int32), sizes)
        return pd.Series(pd.Categorical.from_codes(codes, pd.Index(samples, dtype="str")))

    columns: dict[str, Callable[[], Any]] = {"sample": sample}
    there = dict.fromkeys(name for store in stores for name in store.columns)
    for name in there:
        target = name
        if name == "sample":
            target = "sample_source"
            while target in there:
                target += "_"
            notes.append(
                f"obs sample of the sources is kept as {target}: the sheet's takes its name."
            )
        columns[target] = lambda name=name: _joined(stores, name, sizes)
    if partial := [name for name in there if any(name not in one.columns for one in stores)]:
        listed = ", ".join(partial[:10]) + (
            f" and {len(partial) - 10} more" if len(partial) > 10 else ""
        )
        notes.append(
            f"Columns of obs that not all samples have are missing in the others: {listed}."
        )
    return CellTable(columns, names)


def joined_names(stores: Sequence[ObsStore], samples: Sequence[str], *, with_sample: bool) -> Text:
    """Put the names of the cells of samples one below the other, maybe with ``-sample`` added."""
    texts = [store.names() for store in stores]
    readers = []
    for text, sample in zip(texts, samples, strict=True):

        def read(start: int, stop: int, text=text, sample=sample) -> np.ndarray:
            values = text.read(start, stop)
            return np.array([f"{name}-{sample}" for name in values], object)

        readers.append(read if with_sample else text.read)
    return _below([len(text) for text in texts], readers)


def sheet_column(codes: np.ndarray, values: Sequence[Any]) -> np.ndarray | pd.Categorical:
    """Give every cell the value of its sample.

    Parameters
    ----------
    codes
        The number of each cell's sample.
    values
        A value a sample, of one type (int, float, bool, str) or None.

    Returns
    -------
    Strings are categories in the samples' order; whole numbers with missing ones are fractions with
    NaN, and flags with missing ones categories, as no other reader of AnnData knows more.
    """
    there = [value for value in values if value is not None]
    is_flag = isinstance(there[0], bool)
    if isinstance(there[0], str) or (is_flag and len(there) < len(values)):
        texts = [value if value is None else str(value) for value in values]
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        numbers = np.array([-1 if text is None else distinct.index(text) for text in texts])
        return pd.Categorical.from_codes(numbers[codes], pd.Index(distinct, dtype="str"))
    if is_flag:
        return np.array(values, bool)[codes]
    if len(there) < len(values) or isinstance(there[0], float):
        return np.array([np.nan if v is None else v for v in values], float)[codes]
    return np.array(values, np.int64)[codes]


def write_sheet_columns(group: zarr.Group, columns: dict[str, np.ndarray | pd.Categorical]) -> None:
    """Write columns into the group of a table, as AnnData encodes them."""
    for name, values in columns.items():
        write_element(group, name, values)


def _joined(stores: Sequence[ObsStore], name: str, sizes: list[int]) -> pd.Series | Text:
    """Read a column of all samples: of one type where they agree, else as strings."""
    parts = [store.read(name) if name in store.columns else None for store in stores]
    kinds = {_kind(part) for part in parts if part is not None}
    if kinds == {"number"} or (kinds == {"flag"} and all(part is not None for part in parts)):
        there = [part for part in parts if part is not None]
        missing = np.nan if isinstance(there[0].dtype, np.dtype) else pd.NA
        filled = [
            pd.Series(np.full(n, missing, float) if missing is np.nan else pd.array([pd.NA] * n))
            if part is None
            else part
            for part, n in zip(parts, sizes, strict=True)
        ]
        return pd.concat(filled, ignore_index=True)
    if kinds == {"category"}:
        return pd.Series(_categories(parts, sizes))
    return _below(sizes, [_reader(part) for part in parts])


def _kind(part: pd.Series | Text) -> str:
    if isinstance(part, Text):
        return "text"
    if isinstance(part.dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(part.dtype):
        return "flag"
    return "number" if pd.api.types.is_numeric_dtype(part.dtype) else "text"


def _categories(parts: list[pd.Series | None], sizes: list[int]) -> pd.Categorical:
    """Join categories in their order of appearance, sorted where they are so in all parts."""
    there = [part.cat.categories for part in parts if part is not None]
    if len({values.dtype for values in there}) > 1:
        there = [values.astype("str") for values in there]
    union = there[0]
    for values in there[1:]:
        union = union.append(values[~values.isin(union)])
    is_ordered = all(part.cat.ordered for part in parts if part is not None)
    is_ordered = is_ordered and all(len(values) == len(union) for values in there)
    if not is_ordered and all(values.is_monotonic_increasing for values in there):
        union = union.sort_values()
    codes, remaining = [], iter(there)
    for part, n in zip(parts, sizes, strict=True):
        if part is None:
            codes.append(np.full(n, -1, np.int32))
        else:
            places = np.append(union.get_indexer(next(remaining)), -1).astype(np.int32)
            codes.append(places[part.cat.codes.to_numpy()])
    return pd.Categorical.from_codes(np.concatenate(codes), union, ordered=is_ordered)


def _reader(part: pd.Series | Text | None) -> Read:
    """Make a function that reads a part of a column as strings."""
    if part is None:
        return lambda start, stop: np.full(stop - start, None, object)
    if isinstance(part, Text):
        return part.read

    def read(start: int, stop: int) -> np.ndarray:
        piece = part.iloc[start:stop]
        values = np.array(piece.astype("str").array, dtype=object)
        values[piece.isna().to_numpy()] = None
        return values

    return read


def _below(sizes: list[int], readers: list[Read]) -> Text:
    """Put strings of several parts one below the other."""
    ends = np.cumsum(sizes)

    def read(start: int, stop: int) -> np.ndarray:
        found = [np.empty(0, object)]
        for end, n, reader in zip(ends, sizes, readers, strict=True):
            first, last = max(start, end - n), min(stop, end)
            if first < last:
                found.append(reader(first - (end - n), last - (end - n)))
        return np.concatenate(found)

    return Text(read, int(ends[-1]))


def _text_of(array: zarr.Array) -> Text:
    return Text(lambda start, stop: np.asarray(array[start:stop], dtype=object), array.shape[0])
