"""Decompress the shards of a zarr array on the GPU: the parts of reading.py that know the files.

A shard is a file of zarr v3's ``sharding_indexed``: inner chunks, each a Zstandard frame, then the
index, (offset, size) as uint64 for each chunk, then the index's CRC-32C. nvCOMP decompresses such
frames as they are (its "raw" bit streams).
"""

import json
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

MISSING = 2**64 - 1  # an inner chunk that holds fill values alone is not stored


def index_of(shard: bytes | np.ndarray, n_chunks: int) -> np.ndarray:
    """Where the inner chunks lie in a shard's bytes: (offset, size) uint64, n_chunks × 2.

    The index is at the end of the file, followed by its CRC-32C (4 bytes).
    """
    tail = np.frombuffer(shard, np.uint8)[-(16 * n_chunks + 4) : -4]
    return np.frombuffer(tail.tobytes(), "<u8").reshape(n_chunks, 2)


class Shards:
    """The files of one array, to be decompressed without zarr."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        metadata = json.loads((self.folder / "zarr.json").read_text())
        (sharding,) = metadata["codecs"]
        if sharding["name"] != "sharding_indexed":
            msg = f"{folder} is not sharded: {sharding['name']}"
            raise ValueError(msg)
        self.codecs = [codec["name"] for codec in sharding["configuration"]["codecs"]]
        self.dtype = np.dtype(metadata["data_type"])
        self.chunk = int(sharding["configuration"]["chunk_shape"][0])
        shard = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        self.n_chunks = shard // self.chunk
        self.length = int(metadata["shape"][0])
        self.n_shards = -(-self.length // shard)
        self.shard = shard

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decompressed chunk."""
        return self.chunk * self.dtype.itemsize

    def file(self, number: int) -> Path:
        """Name the file of a shard."""
        return self.folder / "c" / str(number)


def read_into(path: Path, buffer: np.ndarray) -> int:
    """Read a whole file into a buffer of bytes."""
    size = path.stat().st_size
    view = memoryview(buffer[:size])
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            done += file.readinto(view[done:])
    return size


def check_parsing(shards: Shards, expected: np.ndarray) -> dict:
    """Decompress the first shard's chunks on the CPU, by the index read here; compare."""
    from numcodecs import Zstd

    raw = shards.file(0).read_bytes()
    index = index_of(raw, shards.n_chunks).tolist()
    frames = [raw[offset : offset + size] for offset, size in index if offset != MISSING]
    decoded = [np.frombuffer(Zstd().decode(frame), shards.dtype) for frame in frames]
    n = min(shards.length, shards.shard, len(expected))
    equal = np.array_equal(np.concatenate(decoded)[:n], expected[:n])
    stated = all(frame_size(frame) == shards.chunk_bytes for frame in frames)
    return {"equal": bool(equal), "sizes in frames": stated}


def frame_size(frame: bytes) -> int | None:
    """Read the decompressed size that a Zstandard frame states; None if it states none."""
    descriptor = frame[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    width = {0: 1 if single else 0, 1: 2, 2: 4, 3: 8}[flag]
    if not width:
        return None
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


class Decoder:
    """Decompresses shards on the GPU: buffers, a stream and a codec of its own."""

    def __init__(
        self,
        shards: Shards,
        together: int,
        *,
        algorithm: str = "Zstd",
        skip: int = 0,
        unaligned: bool = False,
    ):
        import cupy as cp
        import cupyx
        from nvidia import nvcomp

        self.cp, self.nvcomp, self.shards, self.skip = cp, nvcomp, shards, skip
        largest = max(shards.file(n).stat().st_size for n in range(shards.n_shards))
        self.room = -(-largest // 4096) * 4096
        self.pinned = cupyx.empty_pinned(self.room * together, np.uint8)
        self.compressed = cp.empty(self.room * together + 16 * together * shards.n_chunks, cp.uint8)
        self.decoded = cp.empty(together * shards.n_chunks * shards.chunk_bytes, cp.uint8)
        self.stream = cp.cuda.Stream(non_blocking=True)
        self.codec = nvcomp.Codec(
            algorithm=algorithm,
            bitstream_kind=nvcomp.BitstreamKind.RAW,
            cuda_stream=self.stream.ptr,
        )
        self.frames: list[tuple[int, int, int]] = []  # offset and size compressed, place decoded
        self.aligned = None if unaligned else cp.empty_like(self.compressed)
        self.into_place = True

    def fetch(self, numbers: list[int], *, kvikio: bool = False) -> None:
        """Bring shards' files to the GPU."""
        self.frames = []
        for slot, number in enumerate(numbers):
            base = slot * self.room
            path = self.shards.file(number)
            if kvikio:
                size = path.stat().st_size
                self._by_kvikio(path, base, size)
                tail = 16 * self.shards.n_chunks + 4
                host = self.compressed[base + size - tail : base + size].get()
            else:
                size = read_into(path, self.pinned[base : base + self.room])
                host = self.pinned[base : base + size]
                self.compressed[base : base + size].set(host, stream=self.stream)
            for place, (offset, length) in enumerate(index_of(host, self.shards.n_chunks).tolist()):
                if offset != MISSING:
                    where = (slot * self.shards.n_chunks + place) * self.shards.chunk_bytes
                    self.frames.append((base + offset + self.skip, length - self.skip, where))
        self.stream.synchronize()

    def _by_kvikio(self, path: Path, base: int, size: int) -> None:
        import kvikio

        with kvikio.CuFile(str(path), "r") as file:
            file.read(self.compressed[base : base + size], size)

    def decode(self) -> None:
        """Decompress what was fetched, each chunk into its place."""
        step = self.shards.chunk_bytes
        with self.stream:
            parts = [self.compressed[start : start + size] for start, size, _ in self.frames]
            if self.aligned is not None:  # frames begin anywhere in a file; kernels like multiples
                start = 0
                for number, part in enumerate(parts):
                    parts[number] = self.aligned[start : start + len(part)]
                    parts[number][...] = part
                    start += -(-len(part) // 16) * 16
            places = [self.decoded[where : where + step] for _, _, where in self.frames]
            sources = self.nvcomp.as_arrays(parts, cuda_stream=self.stream.ptr)
            if self.into_place:
                try:
                    self.codec.decode(sources, data_type="|u1", out=places)
                except (TypeError, ValueError) as error:
                    print("nvCOMP does not decode into given memory:", error)
                    self.into_place = False
            if not self.into_place:
                found = self.codec.decode(sources, data_type="|u1")
                for place, array in zip(places, found, strict=True):
                    place[...] = self.cp.asarray(array).view(self.cp.uint8)
        self.stream.synchronize()


def decoded_alone(shards: Shards, together: int, *, check: np.ndarray | None, **how) -> dict:
    """Time the decompression by itself, of so many shards at once; compare with the CPU's."""
    decoder = Decoder(shards, together, **how)
    numbers = list(range(min(together, shards.n_shards)))
    decoder.fetch(numbers)
    decoder.decode()  # warms up
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        decoder.decode()
        seconds.append(time.perf_counter() - start)
    n = sum(min(shards.shard, shards.length - number * shards.shard) for number in numbers)
    figures = {
        "GB/s": n * shards.dtype.itemsize / min(seconds) / 1e9,
        "chunks": len(decoder.frames),
    }
    if check is not None:
        found = decoder.decoded.view(shards.dtype)[: min(n, len(check))].get()
        figures["equal"] = bool(np.array_equal(found, check[: len(found)]))
    return figures


def from_disk(parts: list[Shards], *, together: int, readers: int, kvikio: bool = False) -> dict:
    """Read, move and decompress all shards of the arrays by several threads."""
    todo = [
        (place, list(range(first, min(first + together, shards.n_shards))))
        for place, shards in enumerate(parts)
        for first in range(0, shards.n_shards, together)
    ]
    workers: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(readers):
        workers.put([Decoder(shards, together) for shards in parts])

    def work(item: tuple[int, list[int]]) -> None:
        worker = workers.get()
        try:
            decoder = worker[item[0]]
            decoder.fetch(item[1], kvikio=kvikio)
            decoder.decode()
        finally:
            workers.put(worker)

    work(todo[0])  # warms up
    start = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(work, todo))
    seconds = time.perf_counter() - start
    n_bytes = sum(shards.length * shards.dtype.itemsize for shards in parts)
    return {
        "s": seconds,
        "GB/s": n_bytes / seconds / 1e9,
        "ns/nnz": seconds / parts[0].length * 1e9,
    }
