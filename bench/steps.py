"""Each step of a finished run: its first call, a later one, and the time its bytes alone take.

    python bench/steps.py simulated_1m --out steps.json
    python bench/steps.py simulated_1m --steps hvg,pca,markers --cache --repeat 3

Works in the run's directory, in one process. Every step that a backend's library does and whose
step file is there is called again as the run's warm worker calls it: on the same inputs, with the
settings and the backend of the step file's provenance, in the order of the run. What it writes is
taken away. The config's gpu, memory and dask are the defaults; of several GPUs the first is used.
``--reps pca,harmony`` adds the other representation, whose calls find the libraries' code loaded.

cold: a step's first call here. RAPIDS (or scanpy) is imported and the GPU's memory set up before,
timed by themselves, and the inputs are in the page cache; what a library imports, loads or compiles
at its first call counts, unless an earlier step of the table has done so. warm: the shortest of the
later calls. hvg, pca and markers read the matrix from disk each time; with ``--cache`` one that is
read for all kept genes stays in memory for the next call, as in the run's worker.

floor: of the last call, bytes over the bandwidth measured here, the sum of

- read: the inputs as they lie on disk, at the rate at which 4 threads copy shards of the counts out
  of the page cache: the matrix's data and columns for qc, normalize, hvg, pca and markers, else the
  components or the graph. Masks and factors, some bytes a cell, are left out.
- moved: the same decompressed, at the rate from pinned memory onto the GPU; none on the CPU.
- worked: what the arithmetic reads at least once, at the rate at which a copy within the device's
  memory reads and writes: 8 bytes a non-zero of the kept genes for hvg and markers and of those it
  uses for pca, else what was moved.

Each byte goes these ways one after the other, so they are added up; a step that overlaps them well
may come below, at best to the largest of the three (the JSON has them). The floor holds neither
decompression nor writing nor arithmetic: exact neighbors compare all pairs of cells, UMAP and t-SNE
go over their graph hundreds of times, Leiden and Harmony until nothing changes. A step far above it
is not thereby slow.

Peak: allocated through RMM in the last call, beside what ``--cache`` keeps.
"""

import argparse
import gc
import importlib
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zarr

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
sys.path.append(str(Path(__file__).parents[1]))

from scrna import backend as backends
from scrna.data import step_files
from scrna.log import send_logs
from scrna.resources import kept_matrices
from scrna.step import perform, start_gpu
from scrna.steps import is_clustering
from scrna.warm_process import free_memory

REPOSITORY = Path(__file__).parents[1]
_FILTERED = {"counts": "counts.zarr", "filtered": "filter.h5"}
_NORMALIZED = _FILTERED | {"normalized": "normalize.h5"}
_COMPONENTS, _GRAPH = {"representation_of": "{rep}/{rep}.h5"}, {"neighbors": "{rep}/neighbors.h5"}
#: What the rules (rules/*.smk) give each step, by parameter, below results/{dataset}; in DAG order.
INPUTS = {
    "qc": {"counts": "counts.zarr"},
    "normalize": _FILTERED,
    "hvg": _NORMALIZED,
    "pca": _NORMALIZED | {"qc": "qc.h5", "hvg": "hvg.h5"},
    "harmony": _FILTERED | {"pca": "pca/pca.h5"},
    "neighbors": _COMPONENTS,
    "umap": _GRAPH | _COMPONENTS,
    "tsne": _COMPONENTS,
    "leiden": _GRAPH,
    "louvain": _GRAPH,
    "markers": _NORMALIZED | {"clusters": "{rep}/{clustering}.h5"},
    "trajectory": _NORMALIZED | _GRAPH | {"leiden": "{rep}/leiden.h5"},
}
OF_DATASET = ("qc", "normalize", "hvg", "pca", "harmony")
ON_MATRIX = ("qc", "normalize", "hvg", "pca", "markers")
#: What the others work on: an input, and a slot in it.
_PCS, _EDGES = ("representation_of", "obsm"), ("neighbors", "obsp/connectivities")
ARRAYS = {"harmony": ("pca", "obsm/X_pca"), "neighbors": _PCS, "tsne": _PCS}
ARRAYS |= dict.fromkeys(("umap", "leiden", "louvain", "trajectory"), _EDGES)
THREADS = 4


def load_of(step: str, files: dict[str, Any], settings: dict[str, Any]) -> dict[str, int]:
    """Compute the bytes that a step has to move, from its inputs: read, moved and worked."""
    if step not in ON_MATRIX:
        name, slot = ARRAYS[step]
        read, moved = stored_arrays(files[name], slot, settings.get("n_pcs"))
        return {"read": read, "moved": moved, "worked": moved}
    matrix = zarr.open_group(files["counts"], mode="r")["X"]
    read = sum(file.stat().st_size for file in shards(files["counts"]))
    moved = matrix["data"].nbytes + matrix["indices"].nbytes
    if step in ("qc", "normalize"):
        return {"read": read, "moved": moved, "worked": moved}
    n_cells = step_files.read(files["filtered"], "var/n_cells_kept")
    n_cells = n_cells[step_files.read(files["filtered"], "var/keep")]
    if step == "pca" and settings["use_highly_variable"]:
        n_cells = n_cells[step_files.read(files["hvg"], "var/highly_variable")]
    return {"read": read, "moved": moved, "worked": 8 * int(n_cells.sum())}  # float32 and int32


def shards(counts: Path) -> list[Path]:
    """List the files of the matrix's data and columns."""
    return sorted(f for name in ("data", "indices") for f in (counts / "X" / name / "c").iterdir())


def stored_arrays(path: Path, slot: str, n_columns: int | None) -> tuple[int, int]:
    """Return the bytes of the array or matrix in a slot: on disk, and of so many columns."""
    with h5py.File(path) as file:
        found = file[slot]
        arrays = [found] if isinstance(found, h5py.Dataset) else list(found.values())
        stored = sum(array.id.get_storage_size() for array in arrays)
        if n_columns is None or arrays[0].ndim == 1:
            return stored, sum(array.nbytes for array in arrays)
        (array,) = arrays
        return stored, len(array) * min(n_columns, array.shape[1]) * array.dtype.itemsize


def page_cache_rate(files: list[Path]) -> float:
    """Measure bytes a second from the page cache into memory, over 256 to 512 MB of files."""
    sizes = np.array([file.stat().st_size for file in files])
    files = files[: max(1, int((sizes.cumsum() <= 2**29).sum()))]
    files = files * -(-(2**28) // int(sizes[: len(files)].sum()))  # small ones over and over
    buffers = [np.ones(sizes.max(), np.uint8) for _ in range(THREADS)]

    def read(thread: int) -> int:
        done = 0
        for path in files[thread::THREADS]:
            with path.open("rb", buffering=0) as file:
                done += file.readinto(buffers[thread])
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        n_bytes = sum(pool.map(read, range(THREADS)))
        return n_bytes / shortest("cpu", lambda: list(pool.map(read, range(THREADS))))


def memory_rates(backend: str) -> tuple[float | None, float]:
    """Measure bytes a second from pinned memory onto the GPU, and read and written where it is."""
    if backend == "cpu":
        n = 2**28
        return None, 2 * n / shortest(backend, np.copyto, *np.ones((2, n), np.uint8))
    import cupy
    from cupyx import empty_pinned

    room = max(2**26, cupy.cuda.runtime.memGetInfo()[0] // 4)
    with cupy.cuda.using_allocator(None):  # outside of the pool, which would stay as large
        pinned = empty_pinned(min(2**30, room), np.uint8)
        pinned[...] = 1
        target = cupy.empty(pinned.size, np.uint8)
        onto = pinned.nbytes / shortest(backend, target.set, pinned)
        source = cupy.zeros(min(2**32, room), np.uint8)
        copy = cupy.empty_like(source)
        return onto, 2 * source.nbytes / shortest(backend, cupy.copyto, copy, source)


def shortest(backend: str, call: Callable, *args) -> float:
    """Return the seconds of the shortest of three calls, after one that is not counted."""
    return min([timed(backend, call, *args) for _ in range(4)][1:])


def timed(backend: str, call: Callable, *args) -> float:
    """Return the seconds of a call, until the GPU has done all of it."""
    if backend == "gpu":
        from cupy.cuda import Device

        Device().synchronize()
    start = time.perf_counter()
    call(*args)
    if backend == "gpu":
        Device().synchronize()
    return time.perf_counter() - start


def calls_of(dataset: str, reps: list[str], only: list[str]) -> list[dict[str, Any]]:
    """List the steps of a run to call, with their inputs and settings, the backend among these."""
    folder, found = Path("results", dataset), []
    places = [(step, "") for step in OF_DATASET]
    places += [(step, rep) for rep in reps for step in INPUTS if step not in OF_DATASET]
    for step, rep in places:
        file = folder / (step if step in ("pca", "harmony") else rep) / f"{step}.h5"
        if step not in only or not file.exists():
            continue
        known = step_files.provenance_of(file)
        settings = known["parameters"] | {"backend": known["backend"]}
        groupby = settings.get("groupby", "")
        names = {"rep": rep, "clustering": groupby.split("_")[0]}
        files: dict = {name: folder / p.format(**names) for name, p in INPUTS[step].items()}
        if step == "markers" and not is_clustering(groupby):
            files["clusters"] = []  # a column of obs
        label = f"{rep}/{step}".strip("/")
        found.append({"step": step, "label": label, "files": files, "settings": settings})
    return found


def measure(call: dict[str, Any], repeat: int, rates: dict, config: dict, out: Path) -> dict:
    """Call a step some times; its seconds, bytes and floor."""
    step, files, settings = call["step"], call["files"], call["settings"]
    function = getattr(importlib.import_module(f"scripts.{step}"), step)
    written = {"out": out / f"{step}.h5"} | ({"table": out / "m.csv"} if step == "markers" else {})
    job = {"label": f"bench {call['label']}", "files": files | written, "settings": settings}
    job |= {"untracked": {}, "threads": THREADS, "config": config}
    seconds = [timed(settings["backend"], perform, function, job, "warm") for _ in range(repeat)]
    known = step_files.provenance_of(written["out"])
    load = load_of(step, files, settings)
    if known.get("matrix") == "kept in memory":
        load |= {"read": 0, "moved": 0}
    parts = {way: n / rates[way] if rates[way] else 0.0 for way, n in load.items()}
    figures = {"cold_s": seconds[0], "warm_s": min(seconds[1:]), "floor_s": sum(parts.values())}
    figures |= {"floor_parts_s": parts, "bytes": load, "seconds": seconds}
    return figures | {key: known.get(key) for key in ("gpu_peak_bytes", "matrix", "execution")}


def line(row: dict[str, Any]) -> str:
    """Write a step as a row of the table."""
    if "failed" in row:
        return f"| {row['step']} | {row['failed'].replace('|', '/')} |{' - |' * 5}"
    load, peak = row["bytes"], row["gpu_peak_bytes"]
    moved = f"{load['moved'] / 1e6:,.1f}" if row["floor_parts_s"]["moved"] else "-"
    figures = f"{row['cold_s']:.2f} | {row['warm_s']:.2f} | {row['floor_s']:.4f}"
    figures += f" | {load['read'] / 1e6:,.1f} | {moved} | {f'{peak / 1e9:.2f}' if peak else '-'}"
    return f"| {row['step']} | {figures} |"


def begin(backend: str, config: dict[str, Any], *, keep: bool) -> dict[str, float]:
    """Make this process what the run's worker is; the seconds of its imports and of the memory."""
    send_logs([logging.lastResort])  # warnings alone, on stderr
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    took = {"import_s": timed("cpu", backends.load, backend)}
    if backend == "gpu":
        took["start_gpu_s"] = timed("cpu", lambda: start_gpu(**config["gpu"]))
    if keep:
        kept_matrices.start()
    gc.freeze()  # collecting after a step then passes over what the libraries made
    return took


def main() -> None:
    """Measure the bandwidths, then every step; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset")
    parser.add_argument("--steps", default=",".join(INPUTS), help="those alone, e.g. qc,hvg")
    parser.add_argument("--reps", default="pca", help="representations, e.g. pca,harmony")
    parser.add_argument("--repeat", type=int, default=2, help="calls of a step, the first cold")
    parser.add_argument("--cache", action="store_true", help="keep the matrix between the calls")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if unknown := set(options.steps.split(",")) - set(INPUTS):
        parser.error(f"no such steps: {', '.join(sorted(unknown))}; there are {', '.join(INPUTS)}")
    if options.repeat < 2:
        parser.error("--repeat is 2 at least: a first call and a warm one")
    calls = calls_of(options.dataset, options.reps.split(","), options.steps.split(","))
    if len(used := {call["settings"]["backend"] for call in calls}) != 1:
        parser.error(f"results/{options.dataset} holds steps of {len(used)} backends, not of one")
    (backend,) = used
    config = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    took = begin(backend, config, keep=options.cache)
    counts = Path("results", options.dataset, "counts.zarr")
    for file in [*counts.rglob("*"), *counts.parent.rglob("*.h5")]:
        if file.is_file():
            file.read_bytes()  # into the page cache
    onto, within = memory_rates(backend)
    free_memory()
    rates = {"read": page_cache_rate(shards(counts)), "moved": onto, "worked": within}
    print(", ".join(f"{name[:-2]} {seconds:.1f} s" for name, seconds in took.items()))
    print("GB/s:", ", ".join(f"{way} {r / 1e9:.1f}" for way, r in rates.items() if r), "\n")
    print("| step | cold s | warm s | floor s | bytes read MB | bytes moved MB | peak GPU GB |")
    print("|---" * 7 + "|", flush=True)
    result = {"dataset": options.dataset, "backend": backend, "cache": options.cache, **took}
    result |= {"bytes_per_s": rates, "steps": []}
    with tempfile.TemporaryDirectory(prefix=".bench-steps-", dir=".") as out:
        for call in calls:
            row = {"step": call["label"]}
            try:
                row |= measure(call, options.repeat, rates, config, Path(out))
            except Exception as error:
                traceback.print_exc()
                row["failed"] = f"FAILED {type(error).__name__}: {error}"[:200]
            result["steps"].append(row)
            print(line(row), flush=True)
            if options.out:
                options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(any("failed" in row for row in result["steps"]))


if __name__ == "__main__":
    main()
