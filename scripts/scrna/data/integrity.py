"""Check the files of zarr stores: none may be missing, cut off or changed.

zarr fills in what is missing with zeros, and zarrs verifies no checksum where it decodes a part of
a shard. So a store that `scrna.data.store` writes lists its files, with their sizes and checksums,
in the attributes of its root group (`FILES`). A matrix is read in parts: each of its chunks carries
a checksum of its own, and those that a read has touched are verified here. A store without the
list, of an older version, is read and checked as far as it goes.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from scrna.damage import DamagedError, not_readable, read_summary, reading
from scrna.errors import UserError

if TYPE_CHECKING:
    import zarr

#: Attribute of the root group: relative path → size, and the file's CRC-32C, which is None where
#: its chunks have their own.
FILES = "scrna_files"
_NO_CHUNK = 2**64 - 1  # in a shard's index: the chunk holds the fill value alone
_CRC_BYTES = 4
_THREADS = 4


def list_files(store: Path) -> dict[str, tuple[int, int | None]]:
    """List the files of a store that is complete but for its root's metadata, as `FILES` has them.

    Parameters
    ----------
    store
        The folder.
    """
    files = [file for file in sorted(store.rglob("*")) if file.is_file()]
    names = [file.relative_to(store).as_posix() for file in files]
    return {
        name: (file.stat().st_size, None if _is_shard(name) else _crc32c(file.read_bytes()))
        for name, file in zip(names, files, strict=True)
        if name != "zarr.json"
    }


def files_of(group: "zarr.Group") -> dict[str, tuple[int, int | None]]:
    """Return the list of files that a store's root group carries; empty in older stores."""
    return group.attrs.get(FILES, {})


def check_there(store: Path, files: dict[str, tuple[int, int | None]], under: str = "") -> None:
    """Check that the files of a store are there and as large as they were written.

    Parameters
    ----------
    store
        The folder.
    files
        Of `files_of`.
    under
        A group or array to check alone.

    Raises
    ------
    DamagedError
        For the first one that is not.
    """
    for name in _names(files, under):
        file, size = store / name, files[name][0]
        try:
            found = os.stat(file).st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(store, f"{file} is missing", file) from error
        if found != size:
            what = f"is damaged (it has {found:,} bytes of {size:,})" if found else "is empty"
            raise DamagedError(store, f"{file} {what}", file)


def check_content(store: Path, files: dict[str, tuple[int, int | None]], under: str = "") -> None:
    """Check that the files of a group or array hold what was written, those of matrices apart.

    Parameters
    ----------
    store, files, under
        As in `check_there`.

    Raises
    ------
    DamagedError
        For the first one that does not.
    """
    check_there(store, files, under)
    for name in _names(files, under):
        file, (_, crc) = store / name, files[name]
        with reading(file, store):
            found = crc if crc is None else _crc32c(file.read_bytes())
        if found != crc:
            raise DamagedError(store, f"{file} is damaged (it does not have its checksum)", file)


def check_sizes(
    store: Path, shape: tuple[int, int], indptr: np.ndarray, n_stored: list[int]
) -> None:
    """Check that the parts of a matrix fit together, and ``counts.json``, if it is there, to them.

    Parameters
    ----------
    store, shape, indptr
        The folder, cells and genes, and the row pointers.
    n_stored
        Elements of data and of indices.

    Raises
    ------
    DamagedError
        If they do not.
    """
    is_whole = len(indptr) == shape[0] + 1 and indptr[0] == 0 and bool(np.all(np.diff(indptr) >= 0))
    if not is_whole or n_stored != [indptr[-1]] * 2:
        found = f"{store}/X is damaged (its indptr, data and indices do not fit together)"
        raise DamagedError(store, found)
    summary = store.with_suffix(".json")
    if not summary.exists():
        return
    facts = read_summary(summary)
    own = {"n_obs": shape[0], "n_vars": shape[1], "nnz": n_stored[0]}
    for key, n in own.items():
        if facts.get(key, n) != n:
            found = f"{summary} does not belong to {store}: its {key} is {facts[key]}, not {n}"
            raise DamagedError(store, found, summary)


@contextmanager
def reading_elements(store: Path, group: "zarr.Group", under: Iterable[str]) -> Iterator[None]:
    """Check elements of a store before they are read within, and that they are still there after.

    Parameters
    ----------
    store
        The folder.
    group
        Its root group.
    under
        Groups or arrays, as ``obs/batch``.

    Raises
    ------
    DamagedError
        If a file of theirs is missing or damaged, or an element is not there.
    """
    under = list(under)
    files = files_of(group)
    for name in under:
        check_content(store, files, name)
        if name not in group:
            raise DamagedError(store, f"{store} has no {name}")
    try:
        yield
    except Exception as error:
        if not files and not isinstance(error, UserError | MemoryError):  # nothing was checked
            not_readable(store / under[0], error, store)
        raise
    finally:  # another step may have set the store aside meanwhile: then zeros were read
        for name in under:
            check_there(store, files, name)


class ShardedArray:
    """A 1-D array of a matrix, whose chunks are verified as they are read.

    Parameters
    ----------
    store
        The store's folder.
    array
        The array, in shards.
    files
        Of `files_of` the store.
    """

    def __init__(self, store: Path, array: "zarr.Array", files: dict[str, Any]):
        from zarr.codecs import Crc32cCodec

        self._store = Path(store)
        self.array = array
        self._files = files
        self._chunk = array.chunks[0]
        self._shard = (array.shards or array.chunks)[0]
        has_checksums = any(isinstance(codec, Crc32cCodec) for codec in array.compressors)
        self._is_verifiable = has_checksums and array.shards is not None
        if self._is_verifiable and not files:  # both came with the same version
            raise DamagedError(store, f"{store}/zarr.json is damaged (it lists no files)")
        self._verified: dict[int, tuple[tuple, set[int]]] = {}

    def read(self, span: slice, fetch: Callable[["zarr.Array", slice], Any]) -> Any:
        """Read a part.

        Parameters
        ----------
        span
            From where to where.
        fetch
            Reads and decodes it, wherever to.

        Raises
        ------
        DamagedError
            If a file of it is missing or damaged.
        """
        try:
            values = fetch(self.array, span)
        except MemoryError:
            raise
        except Exception as error:
            self._explain(span, error)
        self.check(span)  # after reading: no file was set aside meanwhile, which zeros stand for
        return values

    def check(self, span: slice | None = None) -> None:
        """Verify the chunks of a part that have not been verified yet, by default of all."""
        start, stop = (0, self.array.shape[0]) if span is None else (span.start, span.stop)
        if start < stop:
            for number in range(start // self._shard, (stop - 1) // self._shard + 1):
                first = max(start - number * self._shard, 0) // self._chunk
                last = (min(stop - number * self._shard, self._shard) - 1) // self._chunk
                self._check_shard(number, range(first, last + 1))

    def check_all(self) -> None:
        """Verify every chunk, in threads."""
        n = self.array.shape[0]
        starts = range(0, n, self._shard)
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = [slice(start, min(start + self._shard, n)) for start in starts]
            list(pool.map(self.check, parts))

    def _name(self, number: int) -> str:
        return f"{self.array.path}/{self.array.metadata.encode_chunk_key((number,))}"

    def _check_shard(self, number: int, chunks: range) -> None:
        file = self._store / (name := self._name(number))
        known = self._files.get(name)
        try:
            about = os.stat(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._files and known is None:
                return  # it holds the fill value alone, and was never written
            raise DamagedError(self._store, f"{file} is missing", file) from error
        if about.st_size == 0:
            raise DamagedError(self._store, f"{file} is empty", file)
        if known and about.st_size != known[0]:
            check_there(self._store, {name: known})
        if not self._is_verifiable:
            return
        state = about.st_mtime_ns, about.st_size, about.st_ino
        before, done = self._verified.get(number, (None, set()))
        done = done if before == state else set()
        if todo := [chunk for chunk in chunks if chunk not in done]:
            with reading(file, self._store), file.open("rb", buffering=0) as opened:
                self._verify(file, opened.fileno(), about.st_size, todo)
            self._verified[number] = state, done | set(todo)

    def _verify(self, file: Path, descriptor: int, size: int, chunks: Iterable[int]) -> None:
        """Verify the index of a shard, which is its end, and the chunks asked for."""
        n = self._shard // self._chunk
        places = struct.Struct(f"<{2 * n}Q")
        n_index = places.size + _CRC_BYTES
        index = os.pread(descriptor, n_index, max(0, size - n_index))
        if len(index) != n_index or not _has_crc(np.frombuffer(index, np.uint8)):
            self._damaged(file, "its index does not have its checksum")
        where = places.unpack(index[:-_CRC_BYTES])
        # one buffer for all: getting new memory would take longer than reading into it
        buffer = np.empty(max((n for n in where[1::2] if n != _NO_CHUNK), default=0), np.uint8)
        for chunk in chunks:
            start, length = where[2 * chunk : 2 * chunk + 2]
            if (start, length) == (_NO_CHUNK, _NO_CHUNK):
                continue  # the fill value alone
            content = buffer[:length]
            n_read = os.preadv(descriptor, [content], start)
            if n_read < length or not _has_crc(content):
                self._damaged(file, f"chunk {chunk} does not have its checksum")

    def _damaged(self, file: Path, what: str) -> NoReturn:
        raise DamagedError(self._store, f"{file} is damaged ({what})", file)

    def _explain(self, span: slice, error: Exception) -> NoReturn:
        """Raise the error of a read: that of a damaged file, where one is."""
        self.check(span)
        for start in range(span.start // self._shard * self._shard, span.stop, self._shard):
            try:
                self.array[start : min(start + self._shard, self.array.shape[0])]
            except MemoryError:
                raise
            except Exception as again:
                not_readable(self._store / self._name(start // self._shard), again, self._store)
        raise error


def check_matrices(store: Path, group: "zarr.Group") -> None:
    """Check the whole of a store whose matrices are its content, each chunk of them.

    Parameters
    ----------
    store, group
        The folder and its root group.

    Raises
    ------
    DamagedError
        For the first file that is missing or damaged.
    """
    files = files_of(group)
    check_content(store, files)
    names = ["X"] if "X" in group else []
    names += [f"layers/{name}" for name in group["layers"]] if "layers" in group else []
    for name in names:
        for part in ("data", "indices"):
            ShardedArray(store, group[f"{name}/{part}"], files).check_all()


def _is_shard(name: str) -> bool:
    """Whether a file is one of a matrix, whose chunks have checksums."""
    parts = name.split("/")
    return parts[0] in ("X", "layers") and parts[-3:-1] in (["data", "c"], ["indices", "c"])


def _names(files: dict[str, Any], under: str) -> list[str]:
    return [name for name in files if not under or name.startswith(f"{under}/")]


def _has_crc(content: np.ndarray) -> bool:
    """Whether bytes end with the CRC-32C of those before."""
    stored = int.from_bytes(content[-_CRC_BYTES:].tobytes(), "little")
    return len(content) >= _CRC_BYTES and _crc32c(content[:-_CRC_BYTES]) == stored


def _crc32c(content: bytes | np.ndarray) -> int:
    import google_crc32c  # which zarr's own codec takes

    return google_crc32c.value(content)
