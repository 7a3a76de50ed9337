"""Stores: AnnData objects in zarr v3 whose matrices are streamed in by blocks of rows.

A matrix is written in AnnData's ``csr_matrix`` encoding, so that `anndata.read_zarr` opens it:
three 1-D arrays ``data``, ``indices`` and ``indptr``. What decides how fast every later step reads
is how those are cut:

- A *chunk* is what is decompressed at once, by one core or by one block of a GPU: 2**19 elements
  (1 MB of uint16 counts, 2 MB of indices, some 250 cells). Smaller ones cost more calls than they
  save, larger ones leave cores idle and make a small range of rows expensive.
- A *shard* is one file: 16 chunks, 50 MB of memory in all, so that a million cells make some
  hundreds of files and not ten thousand. The writer holds some shards, never the matrix.
- The compressor is Blosc's LZ4 with shuffle. 300 M non-zeros on 16 cores (bytes a non-zero; ns to
  read, to write one): LZ4 1.82, 0.47, 1.2; Blosc-zstd 1.43, 0.67, 1.6; plain zstd 1.76, 0.96, 4.4;
  none 6.0, 0.59, 1.2. Columns as uint16 would be read in 0.33, but scanpy's compiled functions
  refuse a matrix that is opened so.
- Each chunk ends with its CRC-32C, which any zarr reader verifies; `scrna.data.integrity` does so
  for zarrs, and lists the files, so that one that is lost is noticed.
"""

import hashlib
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec

from scrna.data.codecs import fast_codecs
from scrna.data.encodings import encoding
from scrna.resources.host_memory import give_back_freed

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK = 2**19  # elements
CHUNKS_PER_SHARD = 16
_SMALLEST_CHUNK = 2**14
_COMPRESSOR = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
_SHARDS_AHEAD = 2  # that are compressed while the next one fills
_TRIM_EVERY = 16  # shards


class MatrixInfo(NamedTuple):
    """Facts about what a `CSRWriter` has written."""

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


class Rows(NamedTuple):
    """Some rows of a matrix as they go to disk, of a `CSRWriter`'s type."""

    data: np.ndarray
    indices: np.ndarray
    sizes: np.ndarray
    """Non-zeros in each row."""

    @classmethod
    def of(cls, block: "csr_matrix", dtype: np.typing.DTypeLike) -> Self:
        """Make rows canonical: indices sorted, duplicates summed, no explicit zeros.

        Parameters
        ----------
        block
            CSR, left as it is. The rows may share its arrays, so it is not to be changed later.
        dtype
            Type of the values on disk.

        Raises
        ------
        OverflowError
            If an integer `dtype` cannot hold a value of the block.
        """
        block = _canonical(block)
        dtype = np.dtype(dtype)
        if block.nnz and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            least, largest = block.data.min().item(), block.data.max().item()
            if least < limits.min or largest > limits.max:
                msg = f"{least if least < limits.min else largest} does not fit into {dtype}"
                raise OverflowError(msg)
        return cls(
            block.data.astype(dtype, copy=False),
            block.indices.astype(np.int32, copy=False),
            np.diff(block.indptr).astype(np.int32),
        )


class CSRWriter:
    """Stream blocks of rows into a zarr v3 group, as AnnData encodes a CSR matrix.

    Whole shards are put together, compressed and written by threads of their own while the next
    ones fill; zarrs compresses the chunks of a shard on all cores. Use it as a context manager, or
    call `close`.

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
    compressor
        A codec of zarr's.
    pattern
        A writer, closed before this one, of a matrix with the same non-zeros: indices and row
        pointers are copied from it and not compressed again.
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
        compressor: BytesBytesCodec = _COMPRESSOR,
        pattern: Self | None = None,
    ):
        self.group = group.create_group(key)
        self.dtype = np.dtype(dtype)
        self.nnz = 0
        self.info: MatrixInfo | None = None
        self._n_vars = n_vars
        self._chunk = chunk
        self._shard = chunk * chunks_per_shard
        self._compressor = compressor
        self._pattern = pattern
        self._pieces: list[Rows] = []  # what the next shard is made of
        self._filled = 0
        self._n_shards = 0
        self._sizes = bytearray()  # one piece: many small ones would scatter the memory around them
        self._max = 0
        names = ("data", "indices") if pattern is None else ("data",)
        self._shas = {name: hashlib.sha256() for name in names}
        self._arrays: dict[str, zarr.Array] = {}
        self._written = 0
        # A digest is taken in order, by a thread of its own; shards are written as they come.
        self._hashing = {name: ThreadPoolExecutor(max_workers=1) for name in names}
        self._writing = ThreadPoolExecutor(max_workers=_SHARDS_AHEAD * len(names))
        self._pending: deque[list[Future]] = deque()

    def append(self, rows: "Rows | csr_matrix") -> None:
        """Add rows below those that are there.

        Parameters
        ----------
        rows
            CSR, rows × n_vars; or what `Rows.of` made of it, in any thread. They are kept until
            their shard is written, and are not to be changed.

        Raises
        ------
        OverflowError
            If an integer `dtype` cannot hold a value.
        """
        if not isinstance(rows, Rows):
            if rows.shape[1] != self._n_vars:
                msg = f"a block of {rows.shape[1]:,} columns for a matrix of {self._n_vars:,}"
                raise ValueError(msg)
            rows = Rows.of(rows, self.dtype)
        self._sizes += rows.sizes.astype(np.int32, copy=False).tobytes()
        start, stop = 0, len(rows.data)
        if stop:
            self._max = max(self._max, rows.data.max().item())
        while start < stop:
            end = min(stop, start + self._shard - self._filled)
            self._pieces.append(Rows(rows.data[start:end], rows.indices[start:end], rows.sizes[:0]))
            self._filled += end - start
            start = end
            if self._filled == self._shard:
                self._flush()
        self.nnz += stop

    def close(self) -> MatrixInfo:
        """Write what is left, the row pointers and the attributes; tell what was written."""
        if not self._written:
            self._shrink_chunks()
        self._flush()
        while self._pending:
            self._wait()
        self._shut_down()
        sizes = np.frombuffer(self._sizes, np.int32)
        shape = (len(sizes), self._n_vars)
        sha = hashlib.sha256(f"csr {shape} {self.dtype.str}".encode())
        if self._pattern is not None:
            self._copy_pattern()
        for name in ("data", "indices"):
            sha.update(self._shas[name].digest())
        self._write_indptr(sizes, sha)
        self.group.attrs.update(encoding("csr_matrix", shape=list(shape)))
        self.info = MatrixInfo(
            shape=shape,
            nnz=self.nnz,
            dtype=str(self.dtype),
            max=self._max,
            empty_rows=int(np.sum(sizes == 0)),
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
        if self.info is None:
            try:
                if kind is None:
                    self.close()
            finally:
                self._shut_down()  # nothing is written any more when the folder is removed

    def _shut_down(self) -> None:
        for pool in (self._writing, *self._hashing.values()):
            pool.shutdown(wait=True, cancel_futures=True)

    def _shrink_chunks(self) -> None:
        """Cut a matrix of less than a shard into some 16 chunks, a power of two each."""
        per_shard = self._shard // self._chunk
        wanted = 2 ** int(np.ceil(np.log2(max(1, self.nnz) / per_shard)))
        self._chunk = min(self._chunk, max(_SMALLEST_CHUNK, wanted))
        self._shard = self._chunk * per_shard

    def _flush(self) -> None:
        """Pass the collected rows to the threads and start with an empty buffer."""
        if not self._arrays:
            types = {"data": self.dtype, "indices": np.dtype(np.int32)}
            self._arrays = {name: self._new_array(name, types[name]) for name in self._shas}
        if len(self._pending) == _SHARDS_AHEAD:  # memory stays bounded
            self._wait()
        start, self._written = self._written, self._written + self._filled
        jobs = []
        for name, array in self._arrays.items():
            pieces = [getattr(piece, name) for piece in self._pieces]
            array.resize((self._written,))
            jobs.append(self._writing.submit(_write_shard, array, start, pieces))
            jobs.append(self._hashing[name].submit(_hash_pieces, self._shas[name], pieces))
        self._pending.append(jobs)
        self._pieces, self._filled = [], 0
        self._n_shards += 1
        if self._n_shards % _TRIM_EVERY == 0:
            give_back_freed()

    def _new_array(self, name: str, dtype: np.dtype) -> zarr.Array:
        with fast_codecs():
            return self.group.create_array(
                name,
                shape=(0,),
                dtype=dtype,
                chunks=(self._chunk,),
                shards=(self._shard,),
                compressors=[self._compressor, Crc32cCodec()],
            )

    def _wait(self) -> None:
        for job in self._pending.popleft():
            job.result()

    def _copy_pattern(self) -> None:
        """Copy the indices from the writer of a matrix with the same non-zeros."""
        other = self._pattern
        if other.info is None or other._sizes != self._sizes:
            msg = f"{self.group.path} does not have the non-zeros of {other.group.path}"
            raise ValueError(msg)
        folders = [Path(writer.group.store.root, writer.group.path) for writer in (other, self)]
        shutil.copytree(*(folder / "indices" for folder in folders))
        self._shas["indices"] = other._shas["indices"]

    def _write_indptr(self, sizes: np.ndarray, sha: "hashlib._Hash") -> None:
        """Write the row pointers piece by piece: with many cells they are large themselves."""
        n = len(sizes) + 1
        array = self.group.create_array(
            "indptr",
            shape=(n,),
            dtype=np.int64,
            chunks=(min(CHUNK, n),),
            compressors=[self._compressor, Crc32cCodec()],
        )
        end = 0
        for start in range(0, n, CHUNK):
            before = sizes[max(0, start - 1) : start + CHUNK - 1]
            indptr = end + np.cumsum(before, dtype=np.int64)
            if start == 0:
                indptr = np.concatenate([np.zeros(1, np.int64), indptr])
            array[start : start + len(indptr)] = indptr
            sha.update(indptr)
            end = int(indptr[-1])


def _write_shard(array: zarr.Array, start: int, pieces: list[np.ndarray]) -> None:
    values = np.concatenate([np.empty(0, array.dtype), *pieces])
    array[start : start + len(values)] = values


def _hash_pieces(sha: "hashlib._Hash", pieces: list[np.ndarray]) -> None:
    for piece in pieces:
        sha.update(np.ascontiguousarray(piece))


def _canonical(block: "csr_matrix") -> "csr_matrix":
    """Sort, sum duplicates and drop zeros, on a copy where there is anything to do."""
    if block.has_canonical_format and np.all(block.data):
        return block
    block = block.copy()
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
