"""What the tests of the steps share: small counts on disk, and the steps before the one tested."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Prepared(NamedTuple):
    """A dataset and the files of the steps up to the normalisation."""

    adata: object  # counts of all cells and genes, CSR
    counts: Path
    qc: Path
    filtered: Path
    normalized: Path

    @property
    def kept(self):
        """Counts of the kept cells and genes, a copy."""
        from scrna.data.counts import kept

        cells, genes = kept(self.filtered)
        return self.adata[cells, genes].copy()


@cache
def _defaults() -> dict:
    from scrna.config.settings import complete

    return complete({"datasets": {"x": {"kind": "simulate"}}, "run": "x"})["datasets"]["x"]


@pytest.fixture(scope="session")
def settings() -> Callable[..., dict]:
    """Return the default settings of a step, with some changed."""

    def of(step: str, **changes) -> dict:
        section = {k: v for k, v in _defaults()[step].items() if k not in ("enabled", "h5ad")}
        if step == "hvg":
            section["batch_key"] = None
        if section.get("by") == "auto":
            section["by"] = None
        return section | changes

    return of


@pytest.fixture(scope="session")
def write_counts() -> Callable[..., Path]:
    """Write a matrix as counts.zarr with counts.json beside it, as `convert` does."""
    import pandas as pd
    import scipy.sparse as sp

    from scrna.data.csr_writer import CSRWriter
    from scrna.data.store import new_store, write_tables

    def write(folder: Path, X, obs=None, var=None, *, dtype=np.uint16) -> Path:
        path = Path(folder) / "counts.zarr"
        X = sp.csr_matrix(X)
        n_obs, n_vars = X.shape
        obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n_obs)]) if obs is None else obs
        var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_vars)]) if var is None else var
        with new_store(path) as root:
            with CSRWriter(root, "X", n_vars=n_vars, dtype=dtype, chunk=2**12) as writer:
                writer.append(X)
                info = writer.close()
            write_tables(root, obs, var)
        summary = {
            "n_obs": n_obs,
            "n_vars": n_vars,
            "nnz": info.nnz,
            "gene_symbols": "feature_name",
            "obs_columns": dict.fromkeys(obs.columns),
            "digest": info.digest,
        }
        path.with_suffix(".json").write_text(json.dumps(summary))
        return path

    return write


@pytest.fixture(scope="session")
def prepare(write_counts, settings) -> Callable[..., Prepared]:
    """Write a dataset's counts and run qc, filter and normalize on them."""
    from scripts.filter import filter_cells
    from scripts.normalize import normalize
    from scripts.qc import qc

    def run(folder: Path, adata, *, target_sum=10000, **bounds) -> Prepared:
        files = [folder / f"{name}.h5" for name in ("qc", "filter", "normalize")]
        store = write_counts(folder, adata.X, adata.obs, adata.var)
        qc(store, files[0], **settings("qc"), backend="cpu")
        filter_cells(store, *files[:2], folder / "filter.csv", **settings("filter", **bounds))
        normalize(store, *files[1:], target_sum=target_sum, backend="cpu")
        return Prepared(adata, store, *files)

    return run


@pytest.fixture(scope="session")
def simulated(tmp_path_factory, prepare) -> Prepared:
    """Prepare 600 droplets of 3 types in 2 batches, dead and empty ones among them."""
    from scrna.ingest.simulate import Simulation

    adata = Simulation(
        n_obs=600, n_vars=500, n_types=3, n_batches=2, markers_per_type=20, mean_counts=2000
    ).to_anndata(threads=1)
    return prepare(tmp_path_factory.mktemp("simulated"), adata, min_genes=100, min_cells=10)
