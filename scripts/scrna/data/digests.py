"""Digests of what step files hold: of each slot, of all together, of the tables beside them."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_PIECE = 2**23  # bytes that are digested or written at once


_THREADS = 4


def slot_digest(
    element: h5py.Group | h5py.Dataset, known: Mapping[str, np.ndarray], above: str = ""
) -> str:
    """SHA-256 over names, encodings and bytes of all in an element, whatever its layout.

    Parameters
    ----------
    element
        A slot, or a whole file, whose own attributes do not count.
    known
        Arrays of it that are in memory, by their place in the file. They are not read again: that
        takes as long as the digest, and record arrays longer, for whose strings HDF5 takes a heap.
    above
        What the names within the element have before them in `known`; with it the element's own
        attributes count.
    """
    sha = hashlib.sha256()

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        encoding = {key: _listed(value) for key, value in sorted(item.attrs.items())}
        encoding.pop("encoding-version", None)
        sha.update(f"{name} {encoding}".encode())
        if isinstance(item, h5py.Dataset):
            sha.update(f"{item.dtype} {item.shape}".encode())
            values = known.get((above + name).rstrip("/"))
            if values is None or (values.dtype != item.dtype and not values.dtype.names):
                values = item[()]
                if encoding.get("encoding-type") == "array":  # h5py makes a scalar of shape ()
                    values = np.asarray(values)
            fields = getattr(getattr(values, "dtype", None), "names", None)
            for part in [values[field] for field in fields] if fields else [values]:
                is_plain = isinstance(part, np.ndarray) and part.dtype.kind in "biuf"
                sha.update(_pieces(part) if is_plain else _text(part))

    if above:
        add("", element)
    if isinstance(element, h5py.Group):
        element.visititems(add)
    return sha.hexdigest()


def digest_of_all(digests: Mapping[str, str]) -> str:
    """Return the digest of all slots."""
    return sha256_of_text(json.dumps(digests, sort_keys=True))


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pieces(array: np.ndarray) -> bytes:
    """Compute digests of the pieces of an array, in threads: one takes a second per gigabyte."""
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
