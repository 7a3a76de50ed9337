"""Compare the notebook's own calls with the workflow on the same counts and the same preset.

    python bench/same_as_notebook.py config/presets/dgx_spark_playbook.yaml results/dli_census \
        [--backend cpu] [--n-top-genes 400]

The workflow has run before, with the preset; bench/notebook.py then makes the notebook's calls on
its counts in one process. What must hold: the same cells and genes are kept; the same genes are
variable; the components are the same but for their sign (the absolute correlation of each with its
own is at least 0.999 for the components that the neighbor graph uses); and the workflow's Leiden
clusters agree with the notebook's as well as the notebook's from several seeds agree with each
other (adjusted Rand index, not under the lowest of theirs). Ends with 1 if one does not hold.
"""

import argparse
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from scrna.data import step_files  # noqa: E402
from scrna.data.counts import Counts, kept  # noqa: E402

#: Float32 sums in another order, of variances that lie close together.
SAME_COMPONENT = 0.999


def notebooks(options: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    """Run bench/notebook.py and read what it found."""
    found = folder / "notebook.npz"
    counts = str(options.results / "counts.zarr")
    command = [sys.executable, str(ROOT / "bench/notebook.py"), counts]
    command += ["--in-memory", "--backend", options.backend, "--preset", str(options.preset)]
    command += [
        "--steps",
        "read,qc,filter,normalize,hvg,pca,neighbors,leiden",
        "--save",
        str(found),
    ]
    command += ["--algorithm", "brute"]
    if options.n_top_genes:
        command += ["--n-top-genes", str(options.n_top_genes)]
    subprocess.run(command, check=True)
    return dict(np.load(found))


def workflows(folder: Path) -> dict[str, np.ndarray]:
    """Read the same of the workflow's step files, before integration."""
    store = Counts(folder / "counts.zarr")
    cells, genes = kept(folder / "filter.h5")
    high = step_files.read(folder / "hvg.h5", "var/highly_variable")
    high = high[genes] if len(high) == len(genes) else high
    return {
        "cells": store.cell_names()[cells].astype(str),
        "genes": store.genes()[genes].astype(str),
        "highly_variable": np.asarray(high, bool),
        "X_pca": step_files.read(folder / "pca/pca.h5", "obsm/X_pca"),
        "leiden": np.asarray(step_files.read(folder / "pca/leiden.h5", "obs/leiden")).astype(str),
    }


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the absolute correlation of each column with the same of another matrix."""
    one, other = (X.astype(float) - X.mean(axis=0, dtype=float) for X in (one, other))
    norms = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    return np.abs((one * other).sum(axis=0)) / norms


def main() -> None:
    """Compare, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("preset", type=Path)
    parser.add_argument("results", type=Path, help="the dataset's folder of results")
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--n-top-genes", type=int, help="if the run had another than the preset")
    options = parser.parse_args()
    ours = workflows(options.results)
    n_pcs = step_files.provenance_of(options.results / "pca/neighbors.h5")["parameters"]["n_pcs"]
    with tempfile.TemporaryDirectory() as folder:
        theirs = notebooks(options, Path(folder))
    same = {name: np.array_equal(ours[name], theirs[name]) for name in ("cells", "genes")}
    same["highly variable genes"] = np.array_equal(
        ours["genes"][ours["highly_variable"]], theirs["genes"][theirs["highly_variable"]]
    )
    n = {name: len(ours[name]) for name in ("cells", "genes")}
    n["highly variable genes"] = int(ours["highly_variable"].sum())
    for name, is_same in same.items():
        print(f"{name}: {n[name]:,}, {'the same' if is_same else 'DIFFERENT'}")
    if not all(same.values()):
        sys.exit(1)
    r = correlations(ours["X_pca"], theirs["X_pca"])
    print(
        f"components: |r| at least {r[:n_pcs].min():.6f} of the first {n_pcs}, {r.min():.4f} of all"
    )
    seeds = [theirs["leiden"], *theirs["reseeded"]]
    reseeds = [adjusted_rand_score(*pair) for pair in combinations(seeds, 2)]
    ari = np.mean([adjusted_rand_score(ours["leiden"], other) for other in seeds])
    print(
        f"leiden: {len(set(ours['leiden']))} clusters, the notebook {len(set(theirs['leiden']))}; "
        f"ARI {ari:.3f} on average with the notebook's {len(seeds)} seeds; theirs with each other "
        f"{min(reseeds):.3f} to {max(reseeds):.3f}"
    )
    if r[:n_pcs].min() < SAME_COMPONENT or ari < min(reseeds):
        sys.exit("the two differ")


if __name__ == "__main__":
    main()
