"""Many small datasets in one run, two steps at a time: how many fail, and are the results right.

    python bench/many_datasets.py --datasets 500 --runs 3 --out many.json

Simulates the datasets and runs them to their qc and their size factors, in a folder of its own that
is removed where nothing failed. ``--cores 2``, the default, runs two steps at the same time, each
with one thread. All numbers are then computed again from the counts with NumPy and compared: a
dataset whose file is missing has failed, one whose numbers differ is wrong. Ends with 1 if there is
one of either.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import yaml
import zarr

REPOSITORY = Path(__file__).resolve().parents[1]
TARGET_SUM = 1e4
SIZE = {"n_vars": 200, "n_types": 2, "n_batches": 1, "markers_per_type": 5}


def main() -> None:
    """Do the runs, print a line for each and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--worker", choices=["warm", "none", "auto"], default="warm")
    parser.add_argument("--folder", type=Path, help="where the runs' folders are made")
    parser.add_argument("--out", type=Path, help="the figures, JSON")
    args = parser.parse_args()
    results = []
    for number in range(args.runs):
        results.append(run(number, args))
        print(json.dumps(results[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))
    sys.exit(any(result["failed"] or result["wrong"] for result in results))


def run(number: int, args: argparse.Namespace) -> dict:
    """Run the datasets once; count those that failed or are wrong."""
    folder = Path(tempfile.mkdtemp(prefix="many-", dir=args.folder))
    names = [f"d{i:04}" for i in range(args.datasets)]
    config = {
        "run": names,
        "backend": "cpu",
        "worker": args.worker,
        "seed": number,
        "normalize": {"target_sum": TARGET_SUM},
        "filter": {"min_genes": 10},
        "datasets": {
            name: {"kind": "simulate", "simulate": SIZE | {"n_obs": 100 + i}}
            for i, name in enumerate(names)
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
    command += ["--profile", REPOSITORY / "profiles" / "cpu", "--cores", str(args.cores)]
    command += ["--configfile", folder / "config.yaml", "--"]
    command += [f"results/{name}/normalize.h5" for name in names]
    begun = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ, check=False
        ).returncode
    seconds = round(time.monotonic() - begun, 1)
    failed = [name for name in names if not (folder / f"results/{name}/normalize.h5").exists()]
    wrong = [name for name in names if name not in failed and not is_right(folder, name)]
    errors = re.findall(
        r"^.*?(\w*(?:Error|Exception)): ", (folder / "output.txt").read_text(), re.M
    )
    if not failed and not wrong and code == 0:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}", file=sys.stderr)
    return {
        "datasets": len(names),
        "worker": args.worker,
        "cores": args.cores,
        "seconds": seconds,
        "exit": code,
        "failed": failed,
        "wrong": wrong,
        "errors": Counter(errors),
    }


def is_right(folder: Path, name: str) -> bool:
    """Check counts a cell and size factors against those of the counts as NumPy adds them up."""
    own = folder / "results" / name
    group = zarr.open_group(own / "counts.zarr", mode="r")
    data, indices, indptr = (group[f"X/{part}"][:] for part in ("data", "indices", "indptr"))
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    n_obs = len(indptr) - 1
    with h5py.File(own / "qc.h5") as file:
        totals = file["obs/total_counts"][:]
    with h5py.File(own / "filter.h5") as file:
        cells, genes = file["obs/keep"][:], file["var/keep"][:]
    with h5py.File(own / "normalize.h5") as file:
        factors = file["obs/size_factor"][:]
    kept = np.bincount(rows, weights=data * genes[indices], minlength=n_obs)[cells]
    expected = np.where(kept == 0, 1, kept) / TARGET_SUM
    return bool(
        np.array_equal(totals, np.bincount(rows, weights=data, minlength=n_obs))
        and factors.shape == expected.shape
        and np.allclose(factors, expected, rtol=1e-6)
    )


if __name__ == "__main__":
    main()
