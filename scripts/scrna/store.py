"""Stores: AnnData objects in zarr v3 whose matrices are streamed in by blocks of rows.

A matrix is written in AnnData's ``csr_matrix`` encoding, so that `anndata.read_zarr` opens it:
three 1-D arrays ``data``, ``indices`` and ``indptr``. What decides how fast every later step reads
is how those are cut:

- A *chunk* is what is decompressed at once, by one core or by one block of a GPU: 2**19 elements
  (1 MB of uint16 counts, 2 MB of indices, some 250 cells). Smaller ones cost more calls than they
  save, larger ones leave cores idle and make a small range of rows expensive.
- A *shard* is one file: 16 chunks, 50 MB of memory in all, so that a million cells make some
  hundreds of files and not ten thousand. The writer holds two shards, never the matrix.
- The compressor is plain Zstandard, level 3. On 2 cores, pbmc3k (bytes a non-zero; ns to read one):
  none 6.2; zstd 1.78, 5.5; Blosc-lz4 with shuffle 1.97, 2.8; Blosc-zstd with shuffle 1.62, 4.7.
  Blosc is faster on few cores, but a GPU can decompress plain zstd and not Blosc, and with 16 or
  more cores the disk is slower than either.
"""

import hashlib
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.errors import ZarrUserWarning

from scrna.files import replacing

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

CHUNK = 2**19  # elements
CHUNKS_PER_SHARD = 16
_SMALLEST_CHUNK = 2**14
_COMPRESSOR = ZstdCodec(level=3)


class MatrixInfo(NamedTuple):
    """What a `CSRWriter` has written."""

    shape: tuple[int, int]
    nnz: int
    dtype: str
    max: float
    empty_rows: int
    chunk: int
    shard: int
    digest: str

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the CSR matrix in memory: data, int32 indices, int64 indptr."""
        return self.nnz * (np.dtype(self.dtype).itemsize + 4) + 8 * (self.shape[0] + 1)


class CSRWriter:
    """Stream blocks of rows into a zarr v3 group, as AnnData encodes a CSR matrix.

    Rows become canonical: indices sorted, duplicates summed, no explicit zeros. Whole shards are
    compressed and written by a thread of its own while the next one fills. Use it as a context
    manager, or call `close`.

    Parameters
    ----------
    group
        An open zarr v3 group: the AnnData's root, or its ``layers``.
    key
        The matrix's name in the group: ``X``, ``counts``.
    n_vars
        Number of columns.
    dtype
        Type of the values on disk; uint16 holds nearly all counts in half the space of float32.
    chunk, chunks_per_shard
        Elements in a chunk and chunks in a shard, at most; a matrix smaller than one shard gets
        smaller chunks, so that several cores still share it and nothing is padded.
    """

    def __init__(
        self,
        group: zarr.Group,
        key: str,
        *,
        n_vars: int,
        dtype: np.typing.DTypeLike = np.uint16,
        chunk: int = CHUNK,
        chunks_per_shard: int = CHUNKS_PER_SHARD,
    ):
        self._group = group.create_group(key)
        self._n_vars = n_vars
        self._dtype = np.dtype(dtype)
        self._chunk = chunk
        self._shard = chunk * chunks_per_shard
        self._buffers = self._new_buffers()
        self._filled = 0
        self._arrays: tuple[zarr.Array, zarr.Array] | None = None
        self._row_sizes: list[np.ndarray] = []
        self._max = 0
        self._shas = (hashlib.sha256(), hashlib.sha256())
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None
        self.nnz = 0
        self.info: MatrixInfo | None = None

    def append(self, block: "csr_matrix") -> None:
        """Add rows below those that are there.

        Parameters
        ----------
        block
            CSR, rows × n_vars, left as it is.

        Raises
        ------
        OverflowError
            If an integer `dtype` cannot hold a value of the block.
        """
        if block.shape[1] != self._n_vars:
            msg = f"a block of {block.shape[1]:,} columns for a matrix of {self._n_vars:,}"
            raise ValueError(msg)
        block = _canonical(block)
        self._row_sizes.append(np.diff(block.indptr).astype(np.int64))
        if not block.nnz:
            return
        self._max = max(self._max, self._checked_max(block.data))
        start = 0
        while start < block.nnz:
            n = min(block.nnz - start, self._shard - self._filled)
            here, there = slice(self._filled, self._filled + n), slice(start, start + n)
            self._buffers[0][here] = block.data[there]
            self._buffers[1][here] = block.indices[there]
            self._filled += n
            start += n
            if self._filled == self._shard:
                self._flush()
        self.nnz += block.nnz

    def close(self) -> MatrixInfo:
        """Write what is left, the row pointers and the attributes; tell what was written."""
        if self._arrays is None:
            self._shrink_chunks()
        self._flush()
        self._wait()
        self._thread.shutdown()
        row_sizes = np.concatenate([np.zeros(1, np.int64), *self._row_sizes])
        indptr = np.cumsum(row_sizes, dtype=np.int64)
        array = self._group.create_array(
            "indptr",
            shape=indptr.shape,
            dtype=np.int64,
            chunks=(min(CHUNK, len(indptr)),),
            compressors=_COMPRESSOR,
        )
        array[:] = indptr
        shape = (len(indptr) - 1, self._n_vars)
        self._group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": list(shape),
            }
        )
        sha = hashlib.sha256(f"csr {shape} {self._dtype.str}".encode())
        for part in self._shas:
            sha.update(part.digest())
        sha.update(indptr)
        self.info = MatrixInfo(
            shape=shape,
            nnz=self.nnz,
            dtype=str(self._dtype),
            max=self._max,
            empty_rows=int(np.sum(row_sizes[1:] == 0)),
            chunk=self._chunk,
            shard=self._shard,
            digest=sha.hexdigest(),
        )
        return self.info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        elif self.info is None:
            self.close()

    def _new_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        return np.empty(self._shard, self._dtype), np.empty(self._shard, np.int32)

    def _checked_max(self, values: np.ndarray) -> float:
        least, largest = values.min().item(), values.max().item()
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            if least < limits.min or largest > limits.max:
                msg = f"{least if least < limits.min else largest} does not fit into {self._dtype}"
                raise OverflowError(msg)
        return largest

    def _shrink_chunks(self) -> None:
        """Cut a matrix of less than a shard into some 16 chunks, a power of two each."""
        per_shard = self._shard // self._chunk
        wanted = 2 ** int(np.ceil(np.log2(max(1, self.nnz) / per_shard)))
        self._chunk = min(self._chunk, max(_SMALLEST_CHUNK, wanted))
        self._shard = self._chunk * per_shard

    def _flush(self) -> None:
        """Hand the filled part of the buffers to the thread and go on with new ones."""
        if self._arrays is None:
            self._arrays = tuple(
                self._group.create_array(
                    name,
                    shape=(0,),
                    dtype=buffer.dtype,
                    chunks=(self._chunk,),
                    shards=(self._shard,),
                    compressors=_COMPRESSOR,
                )
                for name, buffer in zip(("data", "indices"), self._buffers, strict=True)
            )
        self._wait()  # one shard at a time: memory stays bounded
        filled = [buffer[: self._filled] for buffer in self._buffers]
        self._pending = self._thread.submit(self._write, filled)
        self._buffers = self._new_buffers()
        self._filled = 0

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _write(self, buffers: list[np.ndarray]) -> None:
        for array, sha, values in zip(self._arrays, self._shas, buffers, strict=True):
            start = array.shape[0]
            array.resize((start + len(values),))
            array[start:] = values
            sha.update(values)


@contextmanager
def new_store(path: Path) -> Iterator[zarr.Group]:
    """Make an AnnData store under a temporary name that gets its own when all went well.

    Parameters
    ----------
    path
        The store, ``*.zarr``; one that is there is replaced at the end.

    Yields
    ------
    The root group, zarr v3, with AnnData's attributes. An error within removes the store; what a
    killed process left behind goes with the next try.
    """
    with replacing(path) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        yield root
        _consolidate(temporary)


def _consolidate(store: Path) -> None:
    """List the store's parts in its zarr.json, as anndata does.

    Readers then look into no folder, where they would come upon `.snakemake_timestamp` and warn.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # not in zarr's specification yet
        zarr.consolidate_metadata(store)


def write_tables(root: zarr.Group, obs: "pd.DataFrame", var: "pd.DataFrame") -> None:
    """Write obs and var into a store, and the empty slots that make it a whole AnnData.

    Strings go in the encoding that every AnnData since 0.7 reads; a column of strings with missing
    ones, which that encoding does not know, becomes categorical.

    Parameters
    ----------
    root
        The root group of the store.
    obs, var
        Tables with unique string indices, in the order of the matrix's rows and columns.
    """
    import anndata as ad
    import pandas as pd

    with ad.settings.override(allow_write_nullable_strings=False):
        for name, table in (("obs", obs), ("var", var)):
            is_text = [isinstance(dtype, pd.StringDtype) for dtype in table.dtypes]
            partial = [c for c in table.columns[is_text] if table[c].hasnans]
            ad.io.write_elem(root, name, table.astype(dict.fromkeys(partial, "category")))
        for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            if slot not in root:
                ad.io.write_elem(root, slot, {})


def bytes_on_disk(path: Path) -> int:
    """Sum the sizes of a store's files, in bytes."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _canonical(block: "csr_matrix") -> "csr_matrix":
    """Sort, sum duplicates and drop zeros, on a copy where there is anything to do."""
    if block.has_canonical_format and np.all(block.data):
        return block
    block = block.copy()
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
