"""Step files: small HDF5 files that hold the AnnData slots a step adds, with its provenance.

A slot is named by its place in the AnnData, ``obs/leiden`` or ``obsm/X_pca``, and encoded as
AnnData encodes it on disk, so that ``anndata.io.read_elem`` reads every one of them. Arrays of
numbers, categories and dicts are written and read here, sparse matrices and texts read, since
importing anndata takes longer than most steps on tables do; all else goes through anndata.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from scrna.encodings import encoding
from scrna.files import replacing

_PIECE = 2**23  # bytes of an array that are digested at once
_THREADS = 4


class Categories(NamedTuple):
    """A categorical column without pandas."""

    codes: np.ndarray
    names: list[str]


def write(path: Path, elements: Mapping[str, Any]) -> None:
    """Write a step file under a temporary name, then give it its own.

    Parameters
    ----------
    path
        The step file, HDF5.
    elements
        Slot name to value: arrays, `Categories`, sparse matrices, dicts, whatever an AnnData
        holds there.
    """
    from scrna.step import provenance

    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=True) as file:
        for name, value in elements.items():
            _write_element(file, name, value)
        file.attrs["digest"] = _digest(file, _in_memory(elements))
        file.attrs["provenance"] = json.dumps(provenance())


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
    KeyError
        If the file has no such slot; the message names those it has.
    """
    with h5py.File(path, "r") as file:
        if name not in file:
            msg = f"{path} has no {name!r}; it holds {', '.join(_names(file))}"
            raise KeyError(msg)
        return _read_element(file[name])


def read_all(path: Path) -> dict[str, Any]:
    """Read every slot of a step file, by name."""
    with h5py.File(path, "r") as file:
        return {name: _read_element(file[name]) for name in _names(file)}


def names(path: Path) -> list[str]:
    """List the slots of a step file."""
    with h5py.File(path, "r") as file:
        return _names(file)


def provenance_of(path: Path) -> dict[str, Any]:
    """Read the provenance of a step file, as `scrna.step.provenance` made it."""
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["provenance"])


def digest_of(path: Path) -> str | None:
    """Read the digest of a step file's or a count store's content.

    Parameters
    ----------
    path
        A step file (``.h5``), or the count matrix ``counts.zarr`` with ``counts.json`` beside it.

    Returns
    -------
    The SHA-256 of the content; None for another file, a damaged one, or one that is not there.
    """
    summary = path.with_suffix(".json")
    if path.suffix == ".zarr" and summary.exists():
        return json.loads(summary.read_text())["digest"]
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


def _digest(file: h5py.File, known: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, encodings and bytes of everything in the file, whatever its layout.

    What is in memory is not read again: that takes as long as the digest, and record arrays longer,
    for whose strings HDF5 takes a heap.
    """
    sha = hashlib.sha256()

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        encoding = {key: _listed(value) for key, value in sorted(item.attrs.items())}
        encoding.pop("encoding-version", None)
        sha.update(f"{name} {encoding}".encode())
        if isinstance(item, h5py.Dataset):
            sha.update(f"{item.dtype} {item.shape}".encode())
            values = known.get(name)
            if values is None or (values.dtype != item.dtype and not values.dtype.names):
                values = item[()]
            fields = getattr(getattr(values, "dtype", None), "names", None)
            for part in [values[field] for field in fields] if fields else [values]:
                is_plain = isinstance(part, np.ndarray) and part.dtype.kind in "biuf"
                sha.update(_pieces(part) if is_plain else _text(part))

    file.visititems(add)
    return sha.hexdigest()


def _pieces(array: np.ndarray) -> bytes:
    """Give the digests of an array's pieces, made in threads: one takes a second for a gigabyte."""
    whole = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    pieces = [whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE)]
    if len(pieces) < 2:
        return hashlib.sha256(whole).digest()
    with ThreadPoolExecutor(_THREADS) as pool:
        return b"".join(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))


def _text(values: Any) -> bytes:
    """Write what is no array of numbers as bytes, lists of strings without a detour."""
    listed = _listed(values)
    if isinstance(listed, list):
        with suppress(TypeError):  # it holds something else
            return b"\0".join(listed)
        with suppress(TypeError):
            return "\0".join(listed).encode()
    return repr(listed).encode()


def _listed(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values
