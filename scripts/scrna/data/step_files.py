"""Step files: small HDF5 files that hold the AnnData slots a step adds, with its provenance.

A slot is named by its place in the AnnData, ``obs/leiden`` or ``obsm/X_pca``, and encoded as
AnnData encodes it on disk, so that ``anndata.io.read_elem`` reads every one of them. Arrays of
numbers, single numbers and texts, categories and dicts are written and read here, sparse matrices
read, since importing anndata takes longer than most steps on tables do; all else goes through
anndata.

A file carries a digest of each slot, which is checked whenever the slot is read, one of all slots
together, and one of the CSV table that its step has written beside it, if any.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from scrna.atomic import replacing
from scrna.damage import DamagedError, read_summary, reading
from scrna.data.digests import digest_of_all, sha256_of_file, sha256_of_text, slot_digest
from scrna.data.encodings import encoding

_PROVENANCE = "provenance"  # among the digests, whose other names have a slash


class Categories(NamedTuple):
    """A categorical column without pandas."""

    codes: np.ndarray
    names: list[str]


def write(
    path: Path, elements: Mapping[str, Any], *, table: Callable[[], Path] | None = None
) -> None:
    """Write a step file under a temporary name, then give it its own.

    It is built in memory, which takes as many bytes as the file has, and written at once. HDF5
    cannot close a file on a full disk: it would crash the process.

    Parameters
    ----------
    path
        The step file, HDF5.
    elements
        Slot name to value: arrays, `Categories`, sparse matrices, dicts, whatever an AnnData
        holds there.
    table
        Called when the slots are written: returns the CSV file of the same step, which lies in the
        same folder.
    """
    content = io.BytesIO()
    with replacing(path) as temporary:
        _build(content, elements, table)
        content.seek(0)
        # in pieces: an error that holds a view of the whole can crash Python at its end, too
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file, 2**23)


def _build(
    content: io.BytesIO, elements: Mapping[str, Any], table: Callable[[], Path] | None
) -> None:
    from scrna.provenance import provenance

    with h5py.File(content, "w", track_order=True) as file:
        for name, value in elements.items():
            _write_element(file, name, value)
        known = _in_memory(elements)
        digests = {name: slot_digest(file[name], known, f"{name}/") for name in _names(file)}
        text = json.dumps(provenance())
        file.attrs["digests"] = json.dumps(digests | {_PROVENANCE: sha256_of_text(text)})
        file.attrs["digest"] = digest_of_all(digests)
        file.attrs["provenance"] = text
        if table is not None:
            file.attrs["table"] = json.dumps({(written := table()).name: sha256_of_file(written)})


def read(path: Path, name: str) -> Any:
    """Read one slot of a step file.

    Parameters
    ----------
    path
        The step file.
    name
        The slot, as ``obsm/X_pca``.

    Returns
    -------
    The value as it was written; categories come back as a `pandas.Categorical`.

    Raises
    ------
    DamagedError
        If the file is missing, is no HDF5 file or is cut off, or the slot is not as it was written
        or is not there.
    """
    with _opened(path) as (file, digests):
        if name not in file:
            found = f"{path} has no {name!r}; it holds {', '.join(_names(file))}"
            raise DamagedError(path, found)
        return _read_checked(file, name, digests)


def read_all(path: Path) -> dict[str, Any]:
    """Read every slot of a step file, by name."""
    with _opened(path) as (file, digests):
        return {name: _read_checked(file, name, digests) for name in _names(file)}


def names(path: Path) -> list[str]:
    """List the slots of a step file."""
    with _opened(path) as (file, _):
        return _names(file)


def provenance_of(path: Path) -> dict[str, Any]:
    """Read the provenance of a step file, as `scrna.provenance.provenance` made it."""
    with _opened(path) as (file, digests):
        text = file.attrs["provenance"]
        if digests is not None and sha256_of_text(text) != digests[_PROVENANCE]:
            raise DamagedError(path, f"{path} is damaged (its provenance was changed)")
        return json.loads(text)


def check_table(table: Path) -> None:
    """Check a CSV file by the digest in the step file that was written with it.

    Parameters
    ----------
    table
        The CSV file; its step file has the same name but for ``.h5``.

    Raises
    ------
    DamagedError
        If it is missing, or not as it was written.
    """
    table = Path(table)
    with reading(table):
        found = sha256_of_file(table)
    path = table.with_suffix(".h5")
    if not path.exists():
        return
    with _opened(path) as (file, _):
        written = json.loads(file.attrs.get("table", "{}"))  # older files have none
    if written and written.get(table.name) != found:
        what = "is damaged" if table.stat().st_size else "is empty"
        raise DamagedError(table, f"{table} {what}: it is not as its step has written it")


def digest_of(path: Path) -> str | None:
    """Read the digest of a step file's or a count store's content.

    Parameters
    ----------
    path
        A step file (``.h5``), or the count matrix ``counts.zarr`` with ``counts.json`` beside it.

    Returns
    -------
    The SHA-256 of the content; None for another file, a damaged one, or one that is not there.

    Raises
    ------
    DamagedError
        If ``counts.json`` is damaged.
    """
    summary = path.with_suffix(".json")
    if path.suffix == ".zarr" and summary.exists():
        return read_summary(summary)["digest"]
    if path.suffix == ".h5":
        with suppress(OSError), h5py.File(path, "r") as file:
            return file.attrs.get("digest")
    return None


def read_categories(element) -> Any:
    """Read a categorical column as anndata does, without importing it where they are texts.

    Parameters
    ----------
    element
        Its group, of HDF5 or zarr.

    Returns
    -------
    `pandas.Categorical`.
    """
    names = element["categories"]
    if names.attrs["encoding-type"] != "string-array":
        from anndata.io import read_elem

        return read_elem(element)
    import pandas as pd

    texts = names.asstr() if isinstance(names, h5py.Dataset) else names
    texts, is_ordered = np.asarray(texts[...], dtype=object), bool(element.attrs["ordered"])
    return pd.Categorical.from_codes(element["codes"][...], texts, ordered=is_ordered)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, str] | None]]:
    """Open a step file and check that it has all its slots.

    Yields
    ------
    The file, and the digests of its slots by name; None where it was checked as a whole.
    """
    path = Path(path)
    with reading(path), h5py.File(path, "r") as file:
        if "digest" not in file.attrs:
            raise DamagedError(path, f"{path} is damaged or no step file (it has no digest)")
        if "digests" not in file.attrs:
            _check_whole(path, path.stat().st_mtime_ns, path.stat().st_size)
            yield file, None
            return
        digests = json.loads(file.attrs["digests"])
        slots = {name: digest for name, digest in digests.items() if name != _PROVENANCE}
        if missing := slots.keys() - _names(file):
            found = f"{path} is damaged ({', '.join(sorted(missing))} is missing)"
            raise DamagedError(path, found)
        if file.attrs["digest"] != digest_of_all(slots):
            raise DamagedError(path, f"{path} is damaged (its digests were changed)")
        yield file, digests


@lru_cache(maxsize=64)
def _check_whole(path: Path, mtime_ns: int, n_bytes: int) -> None:
    """Check a step file that has one digest for all its slots, once as long as it is the same."""
    with h5py.File(path, "r") as file:
        if file.attrs["digest"] != slot_digest(file, {}):
            raise DamagedError(path, f"{path} is damaged (it does not have its digest)")


def _read_checked(file: h5py.File, name: str, digests: Mapping[str, str] | None) -> Any:
    """Read a slot, or a part of one, and check that it is as it was written."""
    value = _read_element(file[name])
    if digests is not None:
        slot = "/".join(name.split("/")[:2])
        known = _in_memory({name: value})
        if digests.get(slot) != slot_digest(file[slot], known, f"{slot}/"):
            path = Path(file.filename)
            raise DamagedError(path, f"{path} is damaged ({slot} is not as it was written)")
    return value


def _names(file: h5py.File) -> list[str]:
    return [f"{slot}/{name}" for slot in file for name in file[slot]]


def _write_element(file: h5py.File, name: str, value: Any) -> None:
    above, _, key = name.rpartition("/")
    group = _group(file, above)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        element = group.create_dataset(key, data=value)
        element.attrs.update(encoding("array"))
    elif isinstance(value, Categories):
        _group(file, name).attrs.update(encoding("categorical", ordered=False))
        smallest = np.min_scalar_type(-max(1, len(value.names)))
        _write_element(file, f"{name}/codes", np.asarray(value.codes, dtype=smallest))
        element = file.create_dataset(
            f"{name}/categories", data=value.names, dtype=h5py.string_dtype()
        )
        element.attrs.update(encoding("string-array"))
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        element = file.create_dataset(name, data=value)
        element.attrs.update(encoding("numeric-scalar"))
    elif isinstance(value, str):
        element = file.create_dataset(name, data=value, dtype=h5py.string_dtype())
        element.attrs.update(encoding("string"))
    elif isinstance(value, Mapping):
        _group(file, name).attrs.update(encoding("dict"))
        for key, item in value.items():
            _write_element(file, f"{name}/{key}", item)
    else:
        from anndata.io import write_elem

        write_elem(group, key, value)


def _group(file: h5py.File, name: str) -> h5py.Group:
    """Open a group, made if it is missing, that keeps its members in the order of writing."""
    above, _, key = name.rpartition("/")
    group = _group(file, above) if above else file
    if not key:
        return group
    return group[key] if key in group else group.create_group(key, track_order=True)


def _read_element(element: h5py.Dataset | h5py.Group) -> Any:
    kind = element.attrs.get("encoding-type")
    if isinstance(element, h5py.Dataset) and kind == "array":
        return element[()]
    if kind == "numeric-scalar":
        return element[()].item()
    if kind in ("csr_matrix", "csc_matrix"):
        from scipy import sparse

        parts = tuple(element[name][()] for name in ("data", "indices", "indptr"))
        return getattr(sparse, kind)(parts, shape=tuple(element.attrs["shape"]))
    if kind == "categorical":
        return read_categories(element)
    if kind == "dict":
        return {name: _read_element(item) for name, item in element.items()}
    if kind == "string":
        return element.asstr()[()]
    from anndata.io import read_elem

    return read_elem(element)


def _in_memory(elements: Mapping[str, Any], above: str = "") -> dict[str, np.ndarray]:
    """Find the arrays in elements, dicts and sparse matrices too, by their place in the file."""
    found = {}
    for name, value in elements.items():
        if isinstance(value, Mapping):
            found |= _in_memory(value, f"{above}{name}/")
        elif hasattr(value, "indptr"):
            parts = {part: getattr(value, part) for part in ("data", "indices", "indptr")}
            found |= _in_memory(parts, f"{above}{name}/")
        elif isinstance(value, np.ndarray) and (value.dtype.names or value.dtype.kind in "biuf"):
            found[above + name] = value
    return found
