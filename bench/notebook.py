"""The out-of-core notebook's work, in one process: what the workflow is measured against.

    python bench/notebook.py results/simulated_1m/counts.zarr --out notebook.json
    python bench/notebook.py results/simulated_1m/counts.zarr --in-memory --out notebook_memory.json
    python bench/notebook.py results/simulated_1m/counts.zarr --default-chunks /tmp/default.zarr
    python bench/notebook.py results/dli_census/counts.zarr --in-memory --save playbook.npz \
        --preset config/presets/dgx_spark_playbook.yaml

rapids-singlecell's calls in the notebook's order, on our store: X as a Dask array of 20,000 cells
a block on a LocalCUDACluster, or (``--in-memory``, or an h5ad) read whole and moved to the GPU.
Nothing is plotted and nothing written, but with ``--pictures FOLDER``: then what the notebooks draw
is drawn with scanpy's own functions and written as PNG, as the workflow writes its pictures; their
seconds are steps of their own. ``--default-chunks PATH`` first writes X as anndata would by
itself, float32 in its default chunks (not counted; a store that is there is used again).
``--steps`` names what to run; harmony, tsne and diffmap are left out by default. With harmony among
them, what follows runs for both representations. A step that fails is told and the next is tried.
``--preset FILE`` takes bounds, numbers and resolutions from a preset, and regresses out and scales
where it says so; without it they are those of the out-of-core notebook as first measured. ``--save
FILE`` keeps what the calls found, for bench/same_as_notebook.py.
``--backend cpu`` runs the same with scanpy, to try this script on a small store.

The JSON holds the seconds of each step, their sum (without imports and the cluster's start), the
wall time of the process, and the most device memory in use.
"""

# ruff: noqa: E402 - the clock starts before the imports

import time

BEGIN = time.perf_counter()

import argparse
import json
import os
import threading
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS = "read qc filter normalize hvg pca harmony neighbors umap tsne leiden louvain".split()
STEPS += ["diffmap", "markers"]
#: What the notebooks draw of each step: name of the file, scanpy's function, its arguments.
PICTURES = {
    "qc": [
        (f"violin_{column}", "violin", {"keys": column, "jitter": 0.4})
        for column in ("n_genes_by_counts", "total_counts", "pct_counts_mt")
    ]
    + [
        (f"scatter_{column}", "scatter", {"x": "total_counts", "y": column})
        for column in ("pct_counts_mt", "n_genes_by_counts")
    ],
    "hvg": [("hvg", "highly_variable_genes", {})],
    "pca": [("elbow", "pca_variance_ratio", {"log": True, "n_pcs": 100})],
    "umap": [("umap", "umap", {"color": "all"})],
    "tsne": [("tsne", "tsne", {"color": "all"})],
    "diffmap": [("diffmap", "diffmap", {"color": "leiden"})],
    "markers": [("rank_genes", "rank_genes_groups", {"n_genes": 20, "sharey": False})],
}
LEFT_OUT = {"harmony", "tsne", "louvain", "diffmap"}
NOT_COUNTED = {"import", "cluster", "default_chunks"}
BLOCK_CELLS = 20_000
#: Seeds from which Leiden runs again for --save.
RESEEDS = 5


class DeviceMemory(threading.Thread):
    """Watches the memory in use on all GPUs, by NVML."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self):
        """Sample ten times a second until `stop`."""
        try:
            import pynvml

            pynvml.nvmlInit()
            devices = range(pynvml.nvmlDeviceGetCount())
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in devices]
            while not self._done.wait(0.1):
                used = [pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles]
                self.peak = max(self.peak, *used)
        except Exception as error:
            print("device memory is not watched:", error)

    def stop(self) -> float:
        """Stop, and tell the most GB in use on one GPU."""
        self._done.set()
        return round(self.peak / 1e9, 2)


class Notebook:
    """The state of the notebook: its AnnData, and how long each step took."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.on_gpu = options.backend == "gpu"
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.adata = None
        self.library = None
        self.client = self.cluster = None
        self.representation = "X_pca"
        self.how = settings_of(options)

    def timed(self, name: str, function, *args) -> None:
        """Run a step between two synchronisations of the GPU, and keep its seconds."""
        self.synchronize()
        start = time.perf_counter()
        try:
            function(*args)
            self.synchronize()
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"[:300]
        self.seconds[name] = round(time.perf_counter() - start, 3)
        wrong = "  FAILED" if name in self.failed else ""
        print(f"{name:20s} {self.seconds[name]:8.2f} s{wrong}", flush=True)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu and self.library is not None:
            import cupy

            cupy.cuda.Device().synchronize()

    # ------------------------------------------------------------------------------ before the work

    def start_cluster(self) -> None:
        """Start a worker a GPU, as the notebook does."""
        from distributed import Client

        threads = self.options.threads
        if self.on_gpu:
            from dask_cuda import LocalCUDACluster

            self.cluster = LocalCUDACluster(
                CUDA_VISIBLE_DEVICES=",".join(str(n) for n in range(self.options.gpus)),
                threads_per_worker=threads,
                protocol="tcp",
                memory_limit=0,  # no share of what /proc/meminfo says: a machine may grow
                rmm_pool_size=self.options.pool,
                rmm_allocator_external_lib_list="cupy",
                dashboard_address=None,
            )
        else:
            from distributed import LocalCluster

            self.cluster = LocalCluster(
                n_workers=1, threads_per_worker=threads, dashboard_address=None
            )
        self.client = Client(self.cluster)
        if self.options.zarrs:
            self.client.run(use_zarrs)

    def load(self) -> None:
        """Import the library and give this process a pool of device memory."""
        if self.options.zarrs:
            use_zarrs()
        if self.on_gpu:
            import cupy
            import rmm
            from rmm.allocators.cupy import rmm_cupy_allocator

            rmm.reinitialize(pool_allocator=True, initial_pool_size=2**30)
            cupy.cuda.set_allocator(rmm_cupy_allocator)
            import rapids_singlecell as library
        else:
            import scanpy as library
        self.library = library

    def write_default_chunks(self, target: Path) -> None:
        """Write the store as anndata would by itself, X as float32."""
        import anndata as ad
        import zarr

        if not target.exists():
            use_zarrs()
            source = zarr.open_group(self.options.source, mode="r")
            X = ad.io.read_elem(source["X"]).astype(np.float32)
            temporary = target.with_name(target.name + ".tmp")
            root = zarr.open_group(temporary, mode="w", zarr_format=3)
            root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for name, value in (("X", X), ("obs", source["obs"]), ("var", source["var"])):
                ad.io.write_elem(root, name, value if name == "X" else ad.io.read_elem(value))
            for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
                ad.io.write_elem(root, name, {})
            temporary.rename(target)
            if not self.options.zarrs:
                zarr.config.set({"codec_pipeline.path": BATCHED})
        self.options.source = target

    # ------------------------------------------------------------------------------------ the steps

    def read(self) -> None:
        """Open X lazily, or read it whole; onto the GPU."""
        import anndata as ad

        path = Path(self.options.source)
        if path.suffix == ".h5ad":
            self.adata = ad.read_h5ad(path)
            self.adata.X = self.adata.X.astype(np.float32)
        elif self.options.in_memory:
            self.adata = ad.read_zarr(path)
            self.adata.X = self.adata.X.astype(np.float32)
        else:
            self.adata = lazy(path)
        if self.on_gpu:
            self.library.get.anndata_to_GPU(self.adata)
        print(f"    {self.adata.n_obs:,} cells × {self.adata.n_vars:,} genes", flush=True)

    def qc(self) -> None:
        """Compute the metrics, mitochondrial genes among them."""
        pp = self.library.pp
        if self.on_gpu:
            pp.flag_gene_family(self.adata, gene_family_name="mt", gene_family_prefix="MT-")
            pp.calculate_qc_metrics(self.adata, qc_vars=["mt"])
        else:
            self.adata.var["mt"] = self.adata.var_names.str.startswith("MT-")
            pp.calculate_qc_metrics(self.adata, qc_vars=["mt"], percent_top=None, inplace=True)

    def filter(self) -> None:
        """Take cells and genes by indexing, which computes nothing more."""
        obs, bounds = self.adata.obs, self.how["filter"]
        most, least = (np.less_equal, np.greater_equal)
        if not bounds["inclusive"]:
            most, least = np.less, np.greater
        cells = np.ones(len(obs), bool)
        for name, column, within in (
            ("min_counts", "total_counts", least),
            ("max_counts", "total_counts", most),
            ("min_genes", "n_genes_by_counts", least),
            ("max_genes", "n_genes_by_counts", most),
            ("max_pct_mt", "pct_counts_mt", most),
        ):
            if bounds[name] is not None:
                cells &= within(obs[column].to_numpy(), bounds[name])
        self.adata = self.adata[cells].copy()
        if self.options.preset and bounds["min_cells"]:  # of the cells that stay, as the playbook
            self.library.pp.filter_genes(self.adata, min_cells=bounds["min_cells"])
        elif bounds["min_cells"]:
            genes = (self.adata.var["n_cells_by_counts"] >= bounds["min_cells"]).to_numpy()
            if not genes.all():
                self.adata = self.adata[:, genes].copy()
        print(f"    {self.adata.n_obs:,} cells × {self.adata.n_vars:,} genes stay", flush=True)

    def normalize(self) -> None:
        """10,000 counts a cell, log1p."""
        self.library.pp.normalize_total(self.adata, target_sum=1e4)
        self.library.pp.log1p(self.adata)

    def hvg(self) -> None:
        """Choose the variable genes."""
        self.library.pp.highly_variable_genes(
            self.adata, n_top_genes=self.how["hvg"]["n_top_genes"], flavor="cell_ranger"
        )

    def pca(self) -> None:
        """100 components, brought into memory; of the residuals where the preset regresses out."""
        adata, how, pp = self.adata, self.how["pca"], self.library.pp
        n_comps = min(how["n_comps"], self.how["hvg"]["n_top_genes"] - 1)
        more = {} if self.on_gpu or self.options.in_memory else {"svd_solver": "covariance_eigh"}
        if how["regress_out"] or how["scale"]:
            chosen = adata[:, adata.var["highly_variable"].to_numpy()].copy()
            if how["regress_out"]:
                pp.regress_out(chosen, how["regress_out"])
            if how["scale"]:
                pp.scale(chosen, max_value=how["max_value"])
            pp.pca(chosen, n_comps=n_comps, mask_var=None, **more)
            X_pca = chosen.obsm["X_pca"]
        else:
            pp.pca(adata, n_comps=n_comps, mask_var="highly_variable", **more)
            X_pca = adata.obsm["X_pca"]
        if hasattr(X_pca, "compute"):
            X_pca = X_pca.compute()
        adata.obsm["X_pca"] = X_pca.get() if hasattr(X_pca, "get") else np.asarray(X_pca)

    def harmony(self) -> None:
        """Integrate the batches."""
        adata = self.adata
        if self.on_gpu:
            self.library.pp.harmony_integrate(adata, self.options.batch_key)
            corrected = adata.obsm["X_pca_harmony"]
        else:  # scanpy's own call expects harmonypy 0.x, which gave the transposed array
            from harmonypy import run_harmony

            corrected = run_harmony(adata.obsm["X_pca"], adata.obs, self.options.batch_key).Z_corr
        corrected = corrected.get() if hasattr(corrected, "get") else np.asarray(corrected)
        adata.obsm["X_pca_harmony"] = corrected

    def neighbors(self) -> None:
        """Build the graph: 15 neighbors in 40 components."""
        how = self.how["neighbors"]
        more = {"algorithm": self.options.algorithm} if self.on_gpu else {}
        self.library.pp.neighbors(
            self.adata,
            n_neighbors=how["n_neighbors"],
            n_pcs=how["n_pcs"],
            use_rep=self.representation,
            **more,
        )

    def umap(self) -> None:
        """Embed the graph."""
        self.library.tl.umap(self.adata)

    def tsne(self) -> None:
        """Embed the representation."""
        self.library.tl.tsne(
            self.adata, n_pcs=self.how["tsne"]["n_pcs"], use_rep=self.representation
        )

    def leiden(self) -> None:
        """Cluster the graph."""
        resolution = self.how["leiden"]["resolution"]
        self._cluster("leiden", resolution)
        print(f"    {self.adata.obs['leiden'].nunique()} clusters", flush=True)

    def _cluster(self, key: str, resolution: float, seed: int = 0) -> None:
        # to the end, as rapids-singlecell and the workflow do
        more = {} if self.on_gpu else {"flavor": "igraph", "n_iterations": -1, "directed": False}
        self.library.tl.leiden(
            self.adata, resolution=resolution, random_state=seed, key_added=key, **more
        )

    def louvain(self) -> None:
        """Cluster the graph with Louvain; scanpy does it with a package that is not installed."""
        if self.on_gpu:
            self.library.tl.louvain(self.adata, resolution=self.how["louvain"]["resolution"])

    def save(self, path: Path) -> None:
        """Keep cells, genes, components and clusters, these from several seeds, in an npz."""
        resolution = self.how["leiden"]["resolution"]
        reseeded = []
        for seed in range(1, 1 + RESEEDS):
            self._cluster("reseeded", resolution, seed)
            reseeded.append(self.adata.obs["reseeded"].to_numpy().astype(str))
        np.savez(
            path,
            cells=self.adata.obs_names.to_numpy().astype(str),
            genes=self.adata.var_names.to_numpy().astype(str),
            highly_variable=self.adata.var["highly_variable"].to_numpy(),
            X_pca=self.adata.obsm["X_pca"],
            leiden=self.adata.obs["leiden"].to_numpy().astype(str),
            reseeded=np.array(reseeded),
        )

    def diffmap(self) -> None:
        """Diffusion map of the graph."""
        self.library.tl.diffmap(self.adata)

    def markers(self) -> None:
        """Rank the genes of each cluster."""
        method = "wilcoxon_binned" if self.on_gpu else "t-test"
        if not self.on_gpu and hasattr(self.adata.X, "compute"):
            self.adata.X = self.adata.X.compute()  # scanpy ranks in memory alone
        self.library.tl.rank_genes_groups(
            self.adata, "leiden", method=method, use_raw=False, n_genes=self.options.n_genes
        )

    # --------------------------------------------------------------------------------- the pictures

    def draw(self, step: str, suffix: str = "") -> None:
        """Draw what the notebooks draw after a step; nothing without --pictures."""
        if self.options.pictures and step in PICTURES and step not in self.failed:
            self.timed(f"pictures_{step}{suffix}", self._draw, step, suffix)

    def _draw(self, step: str, suffix: str) -> None:
        """Draw, and write each as PNG."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
        import scanpy as sc

        self.options.pictures.mkdir(parents=True, exist_ok=True)
        adata = self.adata
        for name, values in list(adata.obsm.items()):
            if hasattr(values, "get"):
                adata.obsm[name] = values.get()
        coloured = ["leiden", self.options.label_key, self.options.batch_key]
        coloured = [name for name in coloured if name in adata.obs]
        for name, function, how in PICTURES[step]:
            if "color" in how:
                how = how | {"color": coloured if how["color"] == "all" else "leiden"}
            getattr(sc.pl, function)(adata, show=False, **how)
            path = self.options.pictures / f"{name}{suffix}.png"
            plt.gcf().savefig(path, dpi=200, bbox_inches="tight")
            plt.close("all")

    # ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run what was asked for."""
        options = self.options
        if not options.in_memory:
            self.timed("cluster", self.start_cluster)
        self.timed("import", self.load)
        if options.default_chunks:
            self.timed("default_chunks", self.write_default_chunks, options.default_chunks)
        wanted = [name for name in STEPS if name in options.steps]
        before = [name for name in wanted if STEPS.index(name) <= STEPS.index("harmony")]
        for name in before:
            self.timed(name, getattr(self, name))
            self.draw(name)
        for suffix, key in (("", "X_pca"), ("_harmony", "X_pca_harmony")):
            if suffix and ("harmony" not in wanted or "harmony" in self.failed):
                break
            self.representation = key
            for name in wanted[len(before) :]:
                self.timed(name + suffix, getattr(self, name))
            for name in wanted[len(before) :]:
                self.draw(name, suffix)

    def close(self) -> None:
        """End the cluster."""
        if self.client is not None:
            self.client.close()
        if self.cluster is not None:
            self.cluster.close()


BATCHED = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def use_zarrs() -> None:
    """Have zarr decode with zarrs, in this process."""
    import zarr
    import zarrs  # noqa: F401 - registers itself

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def lazy(path: Path):
    """Open a store as the notebook does: X in Dask blocks of 20,000 cells, as float32."""
    import anndata as ad
    import zarr
    from anndata.experimental import read_elem_lazy
    from scipy.sparse import csr_matrix

    root = zarr.open_group(path, mode="r")
    n_vars = int(root["X"].attrs["shape"][1])
    X = read_elem_lazy(root["X"], chunks=(BLOCK_CELLS, n_vars))
    if X.dtype != np.float32:  # CuPy's sparse matrices hold no integers
        meta = csr_matrix((0, 0), dtype=np.float32)
        X = X.map_blocks(as_float32, dtype=np.float32, meta=meta)
    return ad.AnnData(X=X, obs=ad.io.read_elem(root["obs"]), var=ad.io.read_elem(root["var"]))


def as_float32(block):
    """Cast a block, in a worker."""
    return block.astype("float32")


def settings_of(options: argparse.Namespace) -> dict:
    """Return the settings of a preset, or those of the out-of-core notebook and the options."""
    import sys

    import yaml
    from snakemake.utils import update_config

    sys.path.append(str(ROOT / "scripts"))  # last: scripts/umap.py is not the package umap
    from scrna.config.settings import complete

    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    own = {}
    if options.preset:
        own = yaml.safe_load(options.preset.read_text())
    else:
        bounds = ("min_genes", "max_genes", "max_pct_mt")
        own["filter"] = {name: getattr(options, name) for name in bounds}
        own["hvg"] = {"n_top_genes": options.n_top_genes}
        own["run"] = "demo"
        config["datasets"]["demo"].pop("filter", None)
    update_config(config, own)
    if options.n_top_genes is not None:
        config["hvg"]["n_top_genes"] = options.n_top_genes
    full = complete(config)
    return full["datasets"][full["run"][0]]


def versions() -> dict[str, str]:
    """Versions of what is measured."""
    found = {}
    for name in ("rapids-singlecell-cu13", "cupy-cuda13x", "cuvs-cu13", "scanpy", "anndata"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="counts.zarr, or an h5ad")
    parser.add_argument("--in-memory", action="store_true", help="read X whole, no Dask")
    parser.add_argument("--default-chunks", type=Path, metavar="PATH")
    parser.add_argument("--steps", default=",".join(s for s in STEPS if s not in LEFT_OUT))
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--pool", default="20GB", help="RMM pool of a worker")
    parser.add_argument("--algorithm", default="all_neighbors")
    parser.add_argument("--zarrs", action="store_true", help="decode with zarrs")
    parser.add_argument("--min-genes", type=int, default=200)
    parser.add_argument("--max-genes", type=int, default=5000)
    parser.add_argument("--max-pct-mt", type=float, default=20)
    parser.add_argument("--n-top-genes", type=int, help="5000, or what the preset says")
    parser.add_argument("--preset", type=Path, metavar="FILE")
    parser.add_argument("--save", type=Path, metavar="FILE")
    parser.add_argument("--n-genes", type=int, default=None, help="genes ranked a cluster")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.steps = options.steps.split(",")
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no such steps: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if not options.preset:
        options.n_top_genes = options.n_top_genes or 5000
    options.in_memory = options.in_memory or options.source.suffix == ".h5ad"
    return options


def main() -> None:
    """Run, print and write the times."""
    options = arguments()
    print("started", time.strftime("%H:%M:%S"), vars(options), flush=True)
    memory = DeviceMemory()
    if options.backend == "gpu":
        memory.start()
    notebook = Notebook(options)
    try:
        notebook.run()
        if options.save:
            notebook.save(options.save)
    finally:
        peak = memory.stop()
        wall = time.perf_counter() - BEGIN - notebook.seconds.get("default_chunks", 0)
        counted = [s for name, s in notebook.seconds.items() if name not in NOT_COUNTED]
        adata = notebook.adata
        result = {
            "mode": "memory" if options.in_memory else "blocks",
            "store": "default chunks" if options.default_chunks else "ours",
            "threads": options.threads,
            "gpus": options.gpus,
            "cells": None if adata is None else adata.n_obs,
            "genes": None if adata is None else adata.n_vars,
            "steps": notebook.seconds,
            "failed": notebook.failed,
            "seconds": round(sum(counted), 2),
            "wall": round(wall, 2),
            "device_peak_gb": peak,
            "versions": versions(),
        }
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(
            f"notebook, {result['mode']}: steps {result['seconds']} s, process {result['wall']} s, "
            f"device peak {peak} GB, failed: {', '.join(notebook.failed) or 'none'}",
            flush=True,
        )
    notebook.close()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
