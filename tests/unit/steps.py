"""An analysis, every step of it, and stores made by hand, for the tests of the steps."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from scripts.convert import convert
from scripts.filter import filter_cells
from scripts.final import final
from scripts.harmony import harmony
from scripts.hvg import hvg
from scripts.integration import integration
from scripts.integration_scores import integration_scores
from scripts.leiden import leiden
from scripts.louvain import louvain
from scripts.markers import markers
from scripts.matrix import matrix
from scripts.neighbors import neighbors
from scripts.normalize import normalize
from scripts.pca import pca
from scripts.qc import qc
from scripts.trajectory import trajectory
from scripts.tsne import tsne
from scripts.umap import umap
from scrna.config.settings import complete
from scrna.data import digests, step_files
from scrna.data.csr_writer import CSRWriter
from scrna.data.store import new_store, write_tables

#: The most that rounding to float32 changes a number, as a share of it.
UNIT = float(np.finfo(np.float32).eps) / 2
#: The same of log1p(count / factor) in float32: the target, the factor and the quotient are rounded
#: once each; NumPy's log1p, whose loops differ by processor, is off by up to 4 units in the last
#: place, of two `UNIT` each; and log1p makes no relative error larger.
LOG_ERROR = (3 + 8) * UNIT
CPU = {"backend": "cpu"}
SEEDED = CPU | {"seed": 0}
MORE = "backend seed threads batch_key label_key label_missing n_pcs execution annotations".split()
MORE += ["key_added"]


@cache
def _defaults() -> dict:
    full = complete({"run": "x", "datasets": {"x": {"kind": "simulate"}}})
    return full["datasets"]["x"]


def reseal(path):
    """Update the digests of a step file that a test has changed."""
    with h5py.File(path, "r+") as file:
        own = {
            name: digests.slot_digest(file[name], {}, f"{name}/")
            for name in step_files._names(file)
        }
        text = digests.sha256_of_text(file.attrs["provenance"])
        file.attrs["digests"] = json.dumps(own | {"provenance": text})
        file.attrs["digest"] = digests.digest_of_all(own)


def settings(step, **own):
    """A step's default settings, some of them replaced."""
    section = {k: v for k, v in _defaults()[step].items() if k not in ("enabled", "h5ad")}
    if section.get("by") == "auto":  # which is resolved before a step is called
        section["by"] = None
    assert set(own) <= set(section) | set(MORE)
    return section | own


@dataclass
class Analysis:
    """The files of an analysis; those of a representation lie in a folder of its name."""

    folder: Path
    reps: list[str]

    @property
    def counts(self):
        return self.folder / "counts.zarr"

    def __getitem__(self, name):
        return self.folder / f"{name}.h5"

    @property
    def base(self):
        """What steps that read the matrix start with: counts, filter, normalize."""
        return self.counts, self["filter"], self["normalize"]

    @property
    def steps(self):
        names = ["qc", "hvg"]
        for rep in self.reps:
            steps = [rep, *"neighbors umap tsne leiden louvain markers trajectory".split()]
            names += [f"{rep}/{step}" for step in steps if self[f"{rep}/{step}"].exists()]
        return [self[name] for name in names]

    def obs(self):
        """The source's obs of the kept cells: the truth."""
        table = ad.io.read_elem(_group(self.counts)["obs"])
        return table[step_files.read(self["filter"], "obs/keep")]

    def lognorm(self):
        """The kept cells and genes as scanpy normalises them."""
        adata = ad.read_zarr(self.counts)
        keep = [step_files.read(self["filter"], f"{slot}/keep") for slot in ("obs", "var")]
        adata = adata[*keep].copy()
        adata.X = adata.X.astype(np.float32)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        return adata

    def matrix(self, **own):
        """The matrices of the result; by default those of both kinds, made once."""
        out = self.folder / "-".join(["matrix", *map(str, own.values())])
        if not out.exists():
            matrix(*self.base, out, **settings("final") | own)
        return out

    def final(self, name="final.zarr", steps=None, annotations=None, **own):
        out = self.folder / name
        files = *self.base, self.matrix(**own), steps or self.steps
        final(*files, out, annotations=annotations)
        return out


def _group(path):
    import zarr

    return zarr.open_group(path, mode="r", use_consolidated=False)


def analyse(folder, source, *, batch_key=None, label_key=None, without=(), **sections):
    """Run the steps from a source to the trajectory; `sections` replaces default settings."""

    def of(step, *more):
        known = SEEDED | {"threads": 1, "batch_key": batch_key, "label_key": label_key}
        return settings(step, **{k: known[k] for k in more}, **sections.get(step, {}))

    done = Analysis(folder, ["pca", "harmony"] if batch_key else ["pca"])
    convert(source, done.counts, folder / "counts.json", dataset="test")
    qc(done.counts, done["qc"], **of("qc", "backend"))
    filter_cells(done.counts, done["qc"], done["filter"], folder / "filter.csv", **of("filter"))
    normalize(done.counts, done["filter"], done["normalize"], **of("normalize", "backend"))
    ranking = of("hvg", "backend") | {"batch_key": batch_key[0] if batch_key else None}
    hvg(*done.base, done["hvg"], **ranking)
    before = done["pca/pca"]
    pca(
        done.counts, done["qc"], done["filter"], done["normalize"], done["hvg"], before,
        **of("pca", "backend", "seed"),
    )  # fmt: skip
    if batch_key:
        harmony(
            done.counts, done["filter"], before, done["harmony/harmony"],
            **of("harmony", "backend", "seed", "threads", "batch_key"),
        )  # fmt: skip
    for rep in done.reps:
        step = {name: done[f"{rep}/{name}"] for name in [rep, *_defaults()]}
        graph, clusters, table = step["neighbors"], step["leiden"], folder / rep / "markers.csv"
        neighbors(step[rep], graph, **of("neighbors", "backend", "seed"))
        leiden(graph, clusters, **of("leiden", "backend", "seed"))
        louvain(graph, step["louvain"], **of("louvain", "backend", "seed"))
        if "umap" not in without:
            umap(graph, step[rep], step["umap"], **of("umap", "backend", "seed"))
        if "tsne" not in without:
            tsne(step[rep], step["tsne"], **of("tsne", "backend", "seed", "threads"))
        if "markers" not in without:
            markers(*done.base, clusters, step["markers"], table, **of("markers", "backend"))
        if "trajectory" not in without:
            trajectory(
                *done.base, graph, clusters, step["trajectory"],
                **of("trajectory", "backend", "seed", "label_key"),
            )  # fmt: skip
    return done


def integrated(done, *, batch_key=("batch",), label_key=None, n_pcs=40, **own):
    """Score the integration of an analysis; the path of the step file, the table is beside it."""
    out, scores = done["integration"], done["integration_scores"]
    reps = ("pca", "harmony")
    given = settings(
        "integration", batch_key=list(batch_key), label_key=label_key, n_pcs=n_pcs, seed=0, **own
    )
    integration_scores(
        done.counts, done["filter"], *(done[f"{rep}/{rep}"] for rep in reps), scores, threads=1,
        **given,
    )  # fmt: skip
    leiden_of = [done[f"{rep}/leiden"] for rep in reps]
    integration(scores, leiden_of, out, out.with_suffix(".csv"))
    return out


def store(folder, X, obs=None, var=None):
    """A counts.zarr made by hand, and a filter that keeps all of it."""
    X = sparse.csr_matrix(X)
    n_obs, n_vars = X.shape
    obs = pd.DataFrame(index=range(n_obs)) if obs is None else obs
    var = pd.DataFrame(index=range(n_vars)) if var is None else var
    obs.index, var.index = obs.index.astype(str), var.index.astype(str)
    with new_store(folder / "counts.zarr") as root:
        with CSRWriter(root, "X", n_vars=n_vars) as writer:
            writer.append(X)
        write_tables(root, obs, var)
    (folder / "counts.json").write_text(json.dumps({"digest": "made by hand"}))
    keep = {"obs/keep": np.ones(n_obs, bool), "var/keep": np.ones(n_vars, bool)}
    keep["var/n_cells_kept"] = X.getnnz(axis=0)
    step_files.write(folder / "filter.h5", keep)
    return Analysis(folder, ["pca"])


def write_pca(folder, array, rep="pca"):
    """The step file of a representation made by hand."""
    path = Path(folder, rep, f"{rep}.h5")
    key = "X_pca" if rep == "pca" else "X_pca_harmony"
    step_files.write(path, {f"obsm/{key}": np.asarray(array, dtype=np.float32)})
    return path


def blobs(n_obs, n_comps=10, n_blobs=4, seed=0, spread=8.0):
    """Points in blobs, and the blob of each."""
    rng = np.random.default_rng(seed)
    of = np.arange(n_obs) % n_blobs
    centres = rng.normal(0, spread, (n_blobs, n_comps))
    return (centres[of] + rng.normal(0, 1, (n_obs, n_comps))).astype(np.float32), of
