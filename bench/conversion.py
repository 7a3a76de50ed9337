"""Measure the conversion: python bench/conversion.py FILE.h5ad [...] [--threads N] [--keep].

For each file a Markdown row: its size, the most memory that a process of its own held (peak RSS,
imports included), seconds, MB of source a second, and the seconds that shutil takes to copy the
same bytes. Both read from the page cache where the file fits in it: to drop caches takes root. The
store lies beside the file and goes afterwards, unless --keep. --threads limits the cores.

    python bench/conversion.py --make FOLDER [--cells N]

makes the files first: by cells (cells_csr.h5ad), by genes (cells_csc.h5ad), and one of 100 times as
many cells with hardly a count each, which shows what grows with the cells alone (names.h5ad).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
_CONVERT = """
import logging, re, sys
sys.path[1:1] = [{root!r}]
sys.path.append({scripts!r})
from pathlib import Path
logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", stream=sys.stderr)
from scripts.convert import convert
convert(Path({source!r}), Path({out!r}), Path({out!r}).with_suffix(".json"), dataset="bench")
status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held, too
print(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


def measure(source: Path, *, threads: int | None, keep: bool) -> dict:
    """Convert a file in a process of its own, and copy it."""
    out = source.with_name(f".{source.stem}.counts.zarr")
    code = _CONVERT.format(
        root=str(SCRIPTS.parent), scripts=str(SCRIPTS), source=str(source), out=str(out)
    )
    command = [sys.executable, "-c", code]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        cwd=SCRIPTS.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    facts = json.loads(out.with_suffix(".json").read_text())
    copied = time.monotonic()
    shutil.copyfile(source, out.with_suffix(".copy"))
    copying = time.monotonic() - copied
    out.with_suffix(".copy").unlink()
    if not keep:
        shutil.rmtree(out)
        out.with_suffix(".json").unlink()
    return {
        "file": source.name,
        "cells": f"{facts['n_obs']:,}",
        "non-zeros": f"{facts['nnz']:,}",
        "GB": f"{source.stat().st_size / 1e9:.2f}",
        "peak RSS MB": f"{int(done.stdout.split()[-1]) * 1024 / 1e6:,.0f}",
        "s": f"{seconds:.1f}",
        "MB/s": f"{source.stat().st_size / 1e6 / seconds:,.0f}",
        "CPU s": f"{cpu:.1f}",
        "copy s": f"{copying:.1f}",
        "cores": str(len(cores)),
        "digest": facts["digest"][:12],
    }


def make(folder: Path, n_obs: int) -> list[Path]:
    """Write simulated files of `n_obs` cells by cells and by genes, and one of many empty cells."""
    sys.path.append(str(SCRIPTS))
    import anndata as ad

    from scrna.ingest.simulate import Simulation

    folder.mkdir(parents=True, exist_ok=True)
    csr, csc, names = (folder / f"{name}.h5ad" for name in ("cells_csr", "cells_csc", "names"))
    sizes = {"n_vars": 28_000, "n_types": 12, "n_batches": 4, "mean_counts": 4500}
    Simulation(n_obs=n_obs, **sizes).write_h5ad(csr)
    adata = ad.read_h5ad(csr)
    adata.X = adata.X.tocsc()
    adata.write_h5ad(csc)
    _write_names(names, 100 * n_obs)
    return [csr, csc, names]


def _write_names(path: Path, n_obs: int) -> None:
    """Write cells of ten counts each, with names and columns of strings as atlases have them."""
    import anndata as ad
    import h5py
    import numpy as np
    import pandas as pd

    n_vars, n_counts, step = 2_000, 10, 2**18
    rng = np.random.default_rng(0)
    steps = [(start, min(start + step, n_obs)) for start in range(0, n_obs, step)]

    def barcodes(n: int) -> np.ndarray:
        return rng.choice(np.frombuffer(b"ACGT", "S1"), (n, 16)).view("S16").ravel().astype(str)

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        genes = pd.Index([f"GENE{i}" for i in range(n_vars)])
        ad.io.write_elem(file, "var", pd.DataFrame(index=genes))
        obs = file.create_group("obs")
        columns = ["barcode", "cell_type", "donor", "n_umi", "pct_mt"]
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
        obs.attrs.update({"_index": "_index", "column-order": columns})
        for name in ("_index", "barcode", "cell_type"):
            text = obs.create_dataset(name, (n_obs,), h5py.string_dtype(), compression="gzip")
            text.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
            for start, stop in steps:
                if name == "cell_type":
                    values = [f"a cell type, {i}" for i in rng.integers(0, 80, stop - start)]
                else:
                    values = [f"{x}-{start + i}" for i, x in enumerate(barcodes(stop - start))]
                text[start:stop] = np.array(values, dtype=object)
        donors = [f"donor {i}" for i in range(300)]
        donor = pd.Categorical.from_codes(rng.integers(0, 300, n_obs), donors)
        ad.io.write_elem(obs, "donor", donor)
        ad.io.write_elem(obs, "n_umi", rng.integers(0, 5000, n_obs))
        ad.io.write_elem(obs, "pct_mt", rng.random(n_obs))
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = (n_obs, n_vars)
        X["indptr"] = np.arange(0, n_counts * n_obs + 1, n_counts)
        shape, chunks = (n_counts * n_obs,), (step,)
        data = X.create_dataset("data", shape, np.float32, chunks=chunks)
        indices = X.create_dataset("indices", shape, np.int32, chunks=chunks)
        for start, stop in steps:
            span = slice(n_counts * start, n_counts * stop)
            places = rng.integers(0, n_vars // n_counts, (stop - start, n_counts))
            indices[span] = (places + np.arange(0, n_vars, n_vars // n_counts)).ravel()
            data[span] = rng.integers(1, 9, span.stop - span.start)


def main() -> None:
    """Make the files that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the conversion.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    options = parser.parse_args()
    files = [file.resolve() for file in options.files] + (
        make(options.make, options.cells) if options.make else []
    )
    rows = [measure(file, threads=options.threads, keep=options.keep) for file in files]
    if rows:
        print("|", " | ".join(rows[0]), "|")
        print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("|", " | ".join(row.values()), "|")


if __name__ == "__main__":
    main()
