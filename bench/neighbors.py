"""Ways to find neighbors on the GPU, time against recall: python bench/neighbors.py pca.h5.

    python bench/neighbors.py results/sim_1m/pca/pca.h5 --out neighbors.json

For several numbers of the cells, each algorithm of rapids-singlecell's `pp.neighbors` with its
defaults and with settings that find more, and cuVS's CAGRA with a larger graph, which
rapids-singlecell does not offer: seconds of the search, the first time in this process and the
second, and the recall: the share of the 15 true neighbors (the cell itself among them) found, in
2,000 cells whose neighbors are computed exactly. The seconds of `pp.neighbors` as a whole, with the
weights of the graph, are those of the search and of what the row "graph" says.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

K = 15
SIZES = (1_000_000, 200_000, 500_000, 100_000)  # what matters most first, if time runs out
#: rapids-singlecell's algorithms with their settings; the first of each is its default.
VARIANTS = [
    ("brute", {}),
    ("ivfflat", {}),
    ("ivfflat", {"n_probes": 50}),
    ("ivfflat", {"n_probes": 100}),
    ("cagra", {}),
    ("nn_descent", {}),
    ("nn_descent", {"intermediate_graph_degree": 128}),
    ("all_neighbors", {}),
    ("all_neighbors", {"graph_degree": 32}),
    ("all_neighbors", {"graph_degree": 96, "intermediate_graph_degree": 192}),
    ("all_neighbors", {"algo": "ivf_pq"}),
    ("cuvs cagra", {"graph_degree": 32, "itopk_size": 32}),
    ("cuvs cagra", {"graph_degree": 32, "itopk_size": 64}),
    ("cuvs cagra", {"graph_degree": 64, "itopk_size": 64}),
]
ON_CPU = [("sklearn", {})]


def exact(X, rows: np.ndarray) -> np.ndarray:
    """Find the K nearest of some cells among all, themselves among them; (len(rows), K)."""
    if isinstance(X, np.ndarray):
        xp = np
    else:
        import cupy as xp
    norms = (X * X).sum(axis=1)
    step = max(1, 2**27 // len(X))
    found = []
    for first in range(0, len(rows), step):
        queries = X[xp.asarray(rows[first : first + step])]
        distances = norms[None, :] - 2 * (queries @ X.T)
        nearest = xp.argpartition(distances, K, axis=1)[:, :K]
        found.append(nearest.get() if hasattr(nearest, "get") else nearest)
        del distances
    return np.concatenate(found)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbors that were found."""
    hits = [
        len(np.intersect1d(row[row >= 0], true)) for row, true in zip(found, truth, strict=True)
    ]
    return sum(hits) / truth.size


def search(name: str, settings: dict, X) -> np.ndarray:
    """Find the neighbors of all cells; indices (n, K) where X lies."""
    if name == "sklearn":
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=K).fit(X).kneighbors(X, return_distance=False)
    if name == "cuvs cagra":
        return cuvs_cagra(X, **settings)
    from rapids_singlecell.preprocessing._neighbors._neighbors import KNN_ALGORITHMS

    function = KNN_ALGORITHMS[name]
    more = {"metric": "euclidean", "metric_kwds": {}, "algorithm_kwds": settings}
    return function(X, X, k=K, **more)[0]


def cuvs_cagra(X, *, graph_degree: int, itopk_size: int):
    """CAGRA with a graph of its own degree, which is then searched for every cell."""
    import cupy as cp
    from cuvs.neighbors import cagra

    parameters = cagra.IndexParams(
        metric="sqeuclidean",
        graph_degree=graph_degree,
        intermediate_graph_degree=2 * graph_degree,
        build_algo="nn_descent",
    )
    index = cagra.build(parameters, X)
    _, found = cagra.search(cagra.SearchParams(itopk_size=itopk_size), index, X, K)
    return cp.asarray(found)


def graph_seconds(X: np.ndarray, on_gpu: bool) -> float:
    """Seconds of a whole `pp.neighbors` with the exact search, the second time."""
    from anndata import AnnData

    if on_gpu:
        import rapids_singlecell as library
    else:
        import scanpy as library
    more = {"algorithm": "brute"} if on_gpu else {"transformer": "sklearn"}
    adata = AnnData(obsm={"X_pca": X})
    for _ in range(2):
        start = time.perf_counter()
        library.pp.neighbors(adata, n_neighbors=K, use_rep="X_pca", **more)
        seconds = time.perf_counter() - start
    return seconds


def measured(name: str, settings: dict, X, rows: np.ndarray, truth: np.ndarray) -> dict:
    """Search twice; seconds of each, and the recall of the second."""
    on_gpu = not isinstance(X, np.ndarray)
    figures, found = {}, None
    for when in ("cold_s", "warm_s"):
        if when == "warm_s" and figures["cold_s"] > 20:
            break  # long enough that a first call's loading does not matter
        del found
        start = time.perf_counter()
        found = search(name, settings, X)
        if on_gpu:
            import cupy as cp

            cp.cuda.Device().synchronize()
        figures[when] = round(time.perf_counter() - start, 3)
    picked = found[rows]
    picked = picked.get() if hasattr(picked, "get") else picked
    figures["recall"] = round(recall(picked.astype(np.int64), truth), 4)
    return figures


def table(results: list[dict]) -> None:
    """Print a row for each variant, seconds (second time) and recall for each size."""
    sizes = sorted({row["cells"] for row in results})
    names = list(dict.fromkeys(row["variant"] for row in results))
    print("\n| algorithm |", " | ".join(f"{n:,}: warm s (cold), recall" for n in sizes), "|")
    print("|---" * (len(sizes) + 1) + "|")
    for name in names:
        shown = []
        for n in sizes:
            row = next((r for r in results if r["variant"] == name and r["cells"] == n), {})
            if "recall" in row:
                warm = f"{row['warm_s']:.2f}" if "warm_s" in row else "-"
                shown.append(f"{warm} ({row['cold_s']:.2f}), {row['recall']:.3f}")
            else:
                shown.append(row.get("failed", f"{row['s']:.2f}" if "s" in row else "-")[:60])
        print(f"| {name} |", " | ".join(shown), "|")


def main() -> None:
    """Measure every variant at every size; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pca", type=Path, help="step file with obsm/X_pca")
    parser.add_argument("--slot", default="obsm/X_pca")
    parser.add_argument("--n-pcs", type=int, default=40)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--budget", type=float, default=120, help="seconds; what is over is told")
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from scrna import slots

    begin = time.perf_counter()
    print("started", time.strftime("%H:%M:%S"), flush=True)
    X_all = np.ascontiguousarray(slots.read(options.pca, options.slot)[:, : options.n_pcs])
    X_all = X_all.astype(np.float32, copy=False)
    on_gpu = options.backend == "gpu"
    if on_gpu:
        import cupy as cp
        import rmm
        from rmm.allocators.cupy import rmm_cupy_allocator

        rmm.reinitialize(pool_allocator=True, initial_pool_size=2**30)
        cp.cuda.set_allocator(rmm_cupy_allocator)
        import rapids_singlecell  # noqa: F401 - not to be counted

    rng = np.random.default_rng(0)
    order = rng.permutation(len(X_all))  # a prefix is then a sample of all kinds of cells
    wanted = [int(n) for n in options.sizes.split(",")]
    sizes = list(dict.fromkeys(min(n, len(X_all)) for n in wanted))
    results: list[dict] = []
    left_out: list[str] = []
    for n in sizes:
        host = np.ascontiguousarray(X_all[order[:n]])
        rows = rng.choice(n, min(options.sample, n), replace=False)
        X = cp.asarray(host) if on_gpu else host
        truth = exact(X, rows)
        for name, settings in VARIANTS if on_gpu else ON_CPU:
            variant = f"{name} {settings}" if settings else name
            row = {"variant": variant, "cells": n}
            if time.perf_counter() - begin > options.budget:
                left_out.append(f"{variant} at {n:,}")
                continue
            try:
                row |= measured(name, settings, X, rows, truth)
            except Exception as error:
                traceback.print_exc()
                row["failed"] = f"{type(error).__name__}: {error}"[:200]
            results.append(row)
            print(row, flush=True)
        try:
            seconds = graph_seconds(host, on_gpu)
            results.append({"variant": "whole pp.neighbors, exact", "cells": n, "s": seconds})
            print(results[-1], flush=True)
        except Exception:
            traceback.print_exc()
        del X
    table(results)
    print("left out for want of time:", "; ".join(left_out) or "nothing")
    print(f"neighbors bench, {time.perf_counter() - begin:.0f} s in all")
    if options.out:
        options.out.write_text(json.dumps({"rows": results, "left_out": left_out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
