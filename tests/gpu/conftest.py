"""The same analysis on the CPU, from another seed on the CPU, and on the GPU."""

from pathlib import Path

import pytest
import yaml

from scripts.convert import convert
from scripts.filter import filter_cells
from scripts.hvg import hvg
from scripts.leiden import leiden
from scripts.neighbors import neighbors
from scripts.normalize import normalize
from scripts.pca import pca
from scripts.qc import qc
from scripts.umap import umap
from scrna.config.settings import complete

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def started_gpu():
    """Set up the GPU's memory once for all tests here, as a rule does."""
    pytest.importorskip("rapids_singlecell", reason="RAPIDS is not installed")
    from scrna.resources import gpu_pool

    gpu_pool.start_gpu(memory="pool", pool_gb=1)


@pytest.fixture(scope="session")
def settings():
    """Return the settings of pbmc3k: the defaults and the bounds of the tutorial."""
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    bounds = {"min_genes": 200, "max_genes": 2499, "max_pct_mt": 5}
    given["datasets"] = {"pbmc3k": {"source": "pbmc3k", "filter": bounds}}
    given["run"] = "pbmc3k"
    sections = complete(given)["datasets"]["pbmc3k"]

    def of(step: str, **more) -> dict:
        section = {k: v for k, v in sections[step].items() if k not in ("enabled", "h5ad")}
        if section.get("by") == "auto":  # auto is resolved before a step is called
            section["by"] = None
        return section | more

    return of


@pytest.fixture(scope="session")
def counts(real_data, tmp_path_factory) -> Path:
    """Convert pbmc3k."""
    folder = tmp_path_factory.mktemp("pbmc3k")
    store = folder / "counts.zarr"
    source = real_data / "pbmc3k/pbmc3k_raw.h5ad"
    convert(source, store, folder / "counts.json", dataset="pbmc3k")
    return store


@pytest.fixture(scope="session")
def analyses(counts, settings, tmp_path_factory) -> dict[str, Path]:
    """Run the steps up to the clusters: ``cpu``, ``reseed`` (CPU, another seed) and ``gpu``."""
    folders = {}
    for name, backend, seed in (("cpu", "cpu", 0), ("reseed", "cpu", 1), ("gpu", "gpu", 0)):
        folders[name] = folder = tmp_path_factory.mktemp(name)
        on = {"backend": backend}
        seeded = on | {"seed": seed}
        files = {step: folder / f"{step}.h5" for step in "qc filter normalize hvg pca".split()}
        qc(counts, files["qc"], **settings("qc", **on))
        table = folder / "filter.csv"
        filter_cells(counts, files["qc"], files["filter"], table, **settings("filter"))
        normalize(counts, files["filter"], files["normalize"], **settings("normalize", **on))
        hvg(
            counts,
            files["filter"],
            files["normalize"],
            files["hvg"],
            **settings("hvg", batch_key=None, **on),
        )
        pca(counts, *files.values(), **settings("pca", **seeded))
        graph = folder / "neighbors.h5"
        neighbors(files["pca"], graph, **settings("neighbors", **seeded))
        umap(graph, files["pca"], folder / "umap.h5", **settings("umap", **seeded))
        leiden(graph, folder / "leiden.h5", **settings("leiden", **seeded))
    return folders
