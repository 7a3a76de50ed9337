"""What reading the counts costs, and what would make it cheaper.

    python bench/reading.py results/sim_1m/counts.zarr --scratch /tmp/reading --out reading.json

Three parts, each within a share of ``--budget`` seconds; what does not fit is told as left out:

a. Reading as `scrna.counts` does: zarrs' codec pipeline or zarr's own, 1 to 8 readers, sizes of the
   blocks, and the ways onto the GPU (pageable, through a pinned copy, decoded into pinned memory).
b. Some hundred million non-zeros written again with other codecs, types, chunks and shards: bytes
   on disk, time to write and to read.
c. Decompression of plain Zstandard on the GPU by nvCOMP, from whole shards read into pinned memory
   or by kvikio, compared byte for byte with the CPU's.

``--quick`` halves the data and the budget; ``--backend cpu`` leaves the GPU's parts out. GB/s are
of decompressed data, 2 + 4 bytes a non-zero (uint16 counts, int32 columns), unless another type is
named. A measurement that fails says why and the next one begins.
"""

import argparse
import json
import os
import queue
import shutil
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from shards import Shards, check_parsing, decoded_alone, from_disk

ZARRS = "zarrs.ZarrsCodecPipeline"
BATCHED = "zarr.core.codec_pipeline.BatchedCodecPipeline"


class Bench:
    """The results so far, and the time that is left."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.rows: list[dict] = []
        self.left_out: list[str] = []
        self.deadline = time.perf_counter() + options.budget

    def part(self, seconds: float) -> None:
        """Give the next measurements so many seconds."""
        self.deadline = time.perf_counter() + seconds

    def measure(self, part: str, name: str, function, *args, **kwargs) -> dict | None:
        """Call a function that returns figures, unless the time is up; keep and print them."""
        if time.perf_counter() > self.deadline:
            self.left_out.append(f"{part} {name}")
            return None
        start = time.perf_counter()
        try:
            figures = function(*args, **kwargs)
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            print(f"{part} {name}: FAILED {type(error).__name__}: {error}", *lines[-6:], sep="\n  ")
            figures = {"failed": f"{type(error).__name__}: {error}"[:200]}
        row = {"part": part, "name": name, **figures}
        row["took"] = round(time.perf_counter() - start, 2)
        self.rows.append(row)
        print(line(row), flush=True)
        return row


def line(row: dict) -> str:
    """Write a row of figures in one line."""
    figures = [
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("part", "name")
    ]
    return f"{row['part']} | {row['name']:42s} | " + " | ".join(figures)


# ------------------------------------------------------------------------------- a. as counts does


class Store:
    """The arrays of a CSR matrix, opened with a codec pipeline."""

    def __init__(self, path: Path, pipeline: str, names: tuple[str, str] = ("X/data", "X/indices")):
        import zarr
        import zarrs  # noqa: F401 - registers itself

        with zarr.config.set({"codec_pipeline.path": pipeline}):
            root = zarr.open_group(path, mode="r", use_consolidated=False)
            self.arrays = [root[name] for name in names]

    def read(self, span: slice, out: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Read a span of both arrays, into memory that is given or new."""
        from zarr.core.buffer.cpu import NDBuffer

        if out is None:
            return [array[span] for array in self.arrays]
        for array, target in zip(self.arrays, out, strict=True):
            array.get_basic_selection(span, out=NDBuffer.from_numpy_array(target))
        return out


def spans_of(n: int, block: int) -> list[slice]:
    """Cut n elements into blocks."""
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


class ToGPU:
    """What a reader thread does with a block it has read: move it, cast the counts, add them up."""

    def __init__(self, how: str, block: int, dtypes: list[np.dtype]):
        import cupy as cp
        import cupyx

        self.cp, self.how = cp, how
        self.stream = cp.cuda.Stream(non_blocking=True)
        self.pinned = None
        if how != "pageable":
            self.pinned = [cupyx.empty_pinned(block, dtype) for dtype in dtypes]

    def __call__(self, store: Store, span: slice) -> None:
        """Read a span and bring it to the GPU, the counts as float32."""
        cp, n = self.cp, span.stop - span.start
        with self.stream:
            if self.how == "pageable":
                arrays = [cp.asarray(array) for array in store.read(span)]
            else:
                pinned = [buffer[:n] for buffer in self.pinned]
                if self.how == "decoded into pinned":
                    store.read(span, out=pinned)
                else:
                    for target, source in zip(pinned, store.read(span), strict=True):
                        target[...] = source
                arrays = [cp.empty(n, buffer.dtype) for buffer in pinned]
                for array, buffer in zip(arrays, pinned, strict=True):
                    array.set(buffer, stream=self.stream)
            arrays[0].astype(cp.float32)
        self.stream.synchronize()


def read_all(store: Store, n: int, *, block: int, readers: int, how: str = "cpu") -> dict:
    """Read n elements in blocks by several threads; GB/s and ns a non-zero."""
    dtypes = [array.dtype for array in store.arrays]
    workers: queue.SimpleQueue = queue.SimpleQueue()  # buffers belong to no thread: made before
    for _ in range(readers):
        workers.put(ToGPU(how, block, dtypes) if how != "cpu" else None)

    def work(span: slice) -> None:
        worker = workers.get()
        try:
            worker(store, span) if worker else store.read(span)
        finally:
            workers.put(worker)

    start = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(work, spans_of(n, block)))
    seconds = time.perf_counter() - start
    n_bytes = n * sum(dtype.itemsize for dtype in dtypes)
    return {"s": seconds, "GB/s": n_bytes / seconds / 1e9, "ns/nnz": seconds / n * 1e9}


def part_a(bench: Bench, path: Path) -> None:
    """Pipelines, readers, blocks, ways to the GPU."""
    zarrs = Store(path, ZARRS)
    nnz = zarrs.arrays[0].shape[0]
    some = min(nnz, 2**28 if bench.options.quick else 2**29)
    everything = {"block": 2**24, "readers": 4}
    bench.measure("a", "all, zarrs, 4 readers (files cold)", read_all, zarrs, nnz, **everything)
    bench.measure("a", "all, zarrs, 4 readers (again)", read_all, zarrs, nnz, **everything)
    for readers in (1, 2, 4, 8):
        name = f"zarrs, 2^24, {readers} readers"
        bench.measure("a", name, read_all, zarrs, some, block=2**24, readers=readers)
    for power in (22, 23, 25):
        name = f"zarrs, 2^{power}, 4 readers"
        bench.measure("a", name, read_all, zarrs, some, block=2**power, readers=4)
    if bench.options.backend == "gpu":
        read_all(zarrs, min(some, 2**26), block=2**24, readers=4, how="pageable")  # warms up
        for how in ("pageable", "pinned copy", "decoded into pinned"):
            for readers in (1, 4, 8):
                name = f"zarrs to GPU, {how}, {readers} readers"
                bench.measure(
                    "a", name, read_all, zarrs, some, block=2**24, readers=readers, how=how
                )
        name = "zarrs to GPU, decoded into pinned, 2^23, 8"
        how = "decoded into pinned"
        bench.measure("a", name, read_all, zarrs, some, block=2**23, readers=8, how=how)
        bench.measure("a", "moving alone, pageable / pinned", moving, 2**24)
    batched = Store(path, BATCHED)
    few = min(some, 2**26)
    for readers in (1, 4):
        name = f"zarr's own pipeline, 2^24, {readers} readers"
        bench.measure("a", name, read_all, batched, few, block=2**24, readers=readers)


def moving(n: int) -> dict:
    """GB/s from the CPU's memory to the GPU's, by itself."""
    import cupy as cp
    import cupyx

    figures = {}
    target = cp.empty(n, np.int32)
    for name, source in (("pageable", np.ones(n, np.int32)), ("pinned", None)):
        if source is None:
            source = cupyx.empty_pinned(n, np.int32)
            source[...] = 1
        target.set(source)
        cp.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(10):
            target.set(source)
        cp.cuda.Device().synchronize()
        figures[f"{name} GB/s"] = 10 * source.nbytes / (time.perf_counter() - start) / 1e9
    return figures


# -------------------------------------------------------------------------------- b. other layouts


def rewritten(
    scratch: Path, values: list[np.ndarray], *, compressor, chunk: int, per_shard: int
) -> dict:
    """Write two arrays with a codec and a layout, read them back; sizes and times."""
    import zarr
    import zarrs  # noqa: F401 - registers itself

    path = scratch / "rewritten.zarr"
    shutil.rmtree(path, ignore_errors=True)
    n = len(values[0])
    figures: dict = {}
    with zarr.config.set({"codec_pipeline.path": ZARRS}), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        root = zarr.open_group(path, mode="w", zarr_format=3)
        start = time.perf_counter()
        for name, array in zip(("data", "indices"), values, strict=True):
            codec = compressor(array.dtype) if callable(compressor) else compressor
            shards = (chunk * per_shard,) if per_shard > 1 else None
            target = root.create_array(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=(chunk,),
                shards=shards,
                compressors=codec,
                fill_value=0,
            )
            target[:] = array
        figures["write ns/nnz"] = (time.perf_counter() - start) / n * 1e9
    if any("unsupported" in str(warning.message) for warning in w):
        figures["note"] = "not by zarrs"
    for name in ("data", "indices"):
        files = (path / name / "c").rglob("*")
        figures[f"{name} B/nnz"] = sum(f.stat().st_size for f in files if f.is_file()) / n
    figures["B/nnz"] = figures["data B/nnz"] + figures["indices B/nnz"]
    store = Store(path, ZARRS, ("data", "indices"))
    block = max(2**24, chunk * per_shard)
    figures["read ns/nnz"] = min(
        read_all(store, n, block=block, readers=4)["ns/nnz"] for _ in range(2)
    )
    one = store.read(slice(n // 2, n // 2 + 1000))
    assert all(
        np.array_equal(a, v[n // 2 : n // 2 + 1000]) for a, v in zip(one, values, strict=True)
    )
    return figures


def part_b(bench: Bench, path: Path, scratch: Path) -> None:
    """Codecs, types, chunks and shards, one changed at a time from uint16, zstd 3, 2^19, 16."""
    from zarr.codecs import BloscCodec, ZstdCodec

    store = Store(path, ZARRS)
    n = min(store.arrays[0].shape[0], (100 if bench.options.quick else 300) * 10**6)
    n = min(n, bench.options.nnz or n)
    data, indices = store.read(slice(0, n))
    layout = {"chunk": 2**19, "per_shard": 16}
    ours = {"compressor": ZstdCodec(level=3), **layout}

    def blosc(cname: str, shuffle: str, level: int):
        return lambda dtype: BloscCodec(
            cname=cname, clevel=level, shuffle=shuffle, typesize=np.dtype(dtype).itemsize
        )

    def tried(name: str, values=(data, indices), **changed) -> None:
        bench.measure("b", name, rewritten, scratch, list(values), **(ours | changed))

    tried("uint16 + int32, zstd 3")
    tried("zstd 1", compressor=ZstdCodec(level=1))
    tried("blosc lz4, shuffle", compressor=blosc("lz4", "shuffle", 5))
    tried("blosc lz4, bitshuffle", compressor=blosc("lz4", "bitshuffle", 5))
    tried("blosc zstd 3, bitshuffle", compressor=blosc("zstd", "bitshuffle", 3))
    tried("blosc zstd 1, shuffle", compressor=blosc("zstd", "shuffle", 1))
    tried("no compression", compressor=None)
    columns = indices.astype(np.uint16)
    tried("columns as uint16, zstd 3", (data, columns))
    tried(
        "columns as uint16, blosc lz4 shuffle",
        (data, columns),
        compressor=blosc("lz4", "shuffle", 5),
    )
    deltas = columns.copy()
    deltas[1:] -= columns[:-1]  # wraps where a row begins; a sum of uint16 undoes it
    tried("columns as uint16 differences, zstd 3", (data, deltas))
    tried(
        "uint16 differences, blosc lz4 bitshuffle",
        (data, deltas),
        compressor=blosc("lz4", "bitshuffle", 5),
    )
    tried("no compression, columns uint16", (data, columns), compressor=None)
    low = np.minimum(data, 255).astype(np.uint8)
    tried("counts as uint8 (cut at 255), zstd 3", (low, indices))
    tried("counts as uint8, columns as uint16 differences", (low, deltas))
    tried("counts as float32, zstd 3", (data.astype(np.float32), indices))
    tried("zstd 9", compressor=ZstdCodec(level=9))
    for power in (17, 18, 20, 21):
        tried(f"chunks of 2^{power}, shards of 2^23", chunk=2**power, per_shard=2 ** (23 - power))
    for per_shard in (1, 4, 64):
        tried(f"chunks of 2^19, {per_shard} a shard", per_shard=per_shard)


# ------------------------------------------------------------------------- c. decompress on the GPU


def part_c(bench: Bench, path: Path, scratch: Path) -> None:
    """Let nvCOMP decompress shards of plain Zstandard, then smaller chunks and LZ4."""
    from zarr.codecs import ZstdCodec

    store = Store(path, ZARRS)
    host = store.read(slice(0, min(store.arrays[0].shape[0], 2**27)))
    rewritten(scratch, host, compressor=ZstdCodec(level=3), chunk=2**19, per_shard=16)
    data, indices = (Shards(scratch / "rewritten.zarr" / name) for name in ("data", "indices"))
    host = [values[: 2**25] for values in host]
    for shards, values in zip((data, indices), host, strict=True):
        bench.measure("c", f"index of {shards.folder.name}", check_parsing, shards, values)
    on_gpu = bench.options.backend == "gpu"
    if on_gpu:
        for shards, values in zip((data, indices), host, strict=True):
            for together in (1, 4, 16):
                name = f"nvCOMP alone, {shards.folder.name}, {together} shards"
                bench.measure("c", name, decoded_alone, shards, together, check=values)
        for readers, together in ((1, 4), (4, 2), (4, 4), (8, 2)):
            name = f"disk to GPU, nvCOMP, {readers} readers, {together} shards"
            parts = [data, indices]
            bench.measure("c", name, from_disk, parts, together=together, readers=readers)
        name = "disk to GPU, kvikio + nvCOMP, 4 readers, 4"
        more = {"together": 4, "readers": 4, "kvikio": True}
        bench.measure("c", name, from_disk, [data, indices], **more)
    smaller_chunks(bench, scratch, host[1])
    if on_gpu:  # last: were it refused, the process could use the GPU no more
        more = {"check": host[1], "unaligned": True}
        bench.measure("c", "nvCOMP alone, unaligned", decoded_alone, indices, 4, **more)


def smaller_chunks(bench: Bench, scratch: Path, values: np.ndarray) -> None:
    """Decompress smaller chunks, of which a GPU works on more at once, and LZ4."""
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.codecs.numcodecs import LZ4

    on_gpu = bench.options.backend == "gpu"
    variants = [("zstd 3", ZstdCodec(level=3), "Zstd", 0, power) for power in (14, 15, 16, 17)]
    variants += [("lz4", LZ4(acceleration=1), "LZ4", 4, power) for power in (14, 16)]
    for label, codec, algorithm, skip, power in variants:
        folder = scratch / f"chunks-{algorithm}-{power}.zarr"

        def write(folder=folder, codec=codec, power=power) -> dict:
            shutil.rmtree(folder, ignore_errors=True)
            path_of = BATCHED if skip else ZARRS  # noqa: B023 - called at once
            with zarr.config.set({"codec_pipeline.path": path_of}), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                root = zarr.open_group(folder, mode="w", zarr_format=3)
                target = root.create_array(
                    "indices",
                    shape=values.shape,
                    dtype=values.dtype,
                    chunks=(2**power,),
                    shards=(2**23,),
                    compressors=codec,
                )
                target[:] = values
            files = [f for f in (folder / "indices" / "c").iterdir() if f.is_file()]
            return {"B/value": sum(f.stat().st_size for f in files) / len(values)}

        row = bench.measure("c", f"{label}, chunks of 2^{power}: written", write)
        if on_gpu and row and "failed" not in row:
            shards = Shards(folder / "indices")
            name = f"nvCOMP alone, columns, {label}, 2^{power}"
            how = {"algorithm": algorithm, "skip": skip, "check": values}
            bench.measure("c", name, decoded_alone, shards, min(4, shards.n_shards), **how)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("store", type=Path, help="counts.zarr")
    parser.add_argument("--scratch", type=Path, default=Path("reading-scratch"))
    parser.add_argument("--parts", default="acb", help="which, in which order")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budget", type=float, default=None, help="seconds (120; quick: 60)")
    parser.add_argument("--nnz", type=int, default=None, help="non-zeros to write again in b")
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.budget = options.budget or (60 if options.quick else 120)
    shares = {"a": 0.3, "b": 0.45, "c": 0.25}
    begin = time.perf_counter()
    bench = Bench(options)
    if options.backend == "gpu":
        import cupy as cp
        import rmm
        from rmm.allocators.cupy import rmm_cupy_allocator

        rmm.reinitialize(pool_allocator=True, initial_pool_size=2**32)
        cp.cuda.set_allocator(rmm_cupy_allocator)
    options.scratch.mkdir(parents=True, exist_ok=True)
    parts = {
        "a": lambda: part_a(bench, options.store),
        "b": lambda: part_b(bench, options.store, options.scratch),
        "c": lambda: part_c(bench, options.store, options.scratch),
    }
    print("started", time.strftime("%H:%M:%S"), f"{len(os.sched_getaffinity(0))} cores", flush=True)
    for name in options.parts:
        bench.part(options.budget * shares[name])
        start = time.perf_counter()
        try:
            parts[name]()
        except Exception:
            traceback.print_exc()
        print(f"part {name}: {time.perf_counter() - start:.1f} s", flush=True)
    shutil.rmtree(options.scratch, ignore_errors=True)
    print(f"\nreading bench, {time.perf_counter() - begin:.0f} s in all")
    for row in bench.rows:
        print(line(row))
    print("left out for want of time:", "; ".join(bench.left_out) or "nothing")
    if options.out:
        result = {"rows": bench.rows, "left_out": bench.left_out}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
