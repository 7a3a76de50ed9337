"""The presets: each is planned, and the playbook's runs from download to report on a stand-in."""

import http.server
import json
import re
import runpy
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scrna.ingest.simulate import Simulation
from tests.workflow.conftest import ROOT, Workflow

PRESETS = sorted(path.name for path in (ROOT / "config/presets").glob("*.yaml"))
#: The census has more assays than the playbook keeps.
ASSAYS = ["10x 3' v3", "10x 5' v1", "10x 5' v2", "10x 3' v2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_planned(name):
    """On a CPU, with its methods in place of those that need a GPU."""
    dry_runs = runpy.run_path(str(ROOT / ".ci/dry_runs.py"))
    arguments = dry_runs["plans"]()[f"preset {name}"] + ["--config", "backend=cpu"]
    done = dry_runs["plan"](arguments)
    if any(reason in done.stdout for reason in dry_runs["ON_CPU"]):
        done = dry_runs["plan"](dry_runs["without_gpu"](arguments, done.stdout))
    assert done.returncode == 0, done.stdout
    counted = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    reps = 2 if "playbook" in name else 1
    assert {name: int(counted[name]) for name in ("download", "pca", "leiden", "markers")} == {
        "download": 1, "pca": 1, "leiden": reps, "markers": reps,
    }  # fmt: skip
    assert ("h5ad" in counted) == ("playbook" in name) == ("louvain" in counted)
    assert ("tsne" in counted) == ("trajectory" in counted) == ("playbook" in name)


def stand_in(path: Path) -> ad.AnnData:
    """Write a small file laid out as the census subset: ids as index, symbols in feature_name."""
    simulation = Simulation(n_obs=700, n_vars=900, n_batches=len(ASSAYS), trajectory=False)
    simulation.write_h5ad(path)
    adata = ad.read_h5ad(path)
    batches = sorted(adata.obs["batch"].unique())
    assays = adata.obs["batch"].map(dict(zip(batches, ASSAYS, strict=True)))
    kept = adata.obs[["cell_type"]].assign(assay=assays.astype("category"))
    feature_name = pd.Categorical(adata.var_names)
    var = pd.DataFrame({"feature_name": feature_name}, index=adata.var["gene_ids"].to_numpy())
    census = ad.AnnData(X=adata.X.astype(np.float32), obs=kept, var=var)
    path.unlink()
    census.write_h5ad(path)
    return census


@pytest.fixture(scope="module")
def playbook(code, tmp_path_factory):
    """The playbook's preset after a run on the stand-in, which a server of this machine has."""
    folder = tmp_path_factory.mktemp("playbook")
    served = folder / "served/rapids-singlecell"
    served.mkdir(parents=True)
    census = stand_in(served / "dli_census.h5ad")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder / "served")
    handler.func.log_message = lambda *_: None
    (folder / "work").mkdir()
    preset = code / "config/presets/dgx_spark_playbook.yaml"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        source = f"http://127.0.0.1:{server.server_port}/rapids-singlecell/dli_census.h5ad"
        # of 900 genes there are not 5,000 variable ones; dpi is for the test's time
        own = {
            "backend": "cpu",
            "hvg": {"n_top_genes": 400},
            "figures": {"dpi": 50, "formats": ["png"]},
            "datasets": {"dli_census": {"source": source}},
        }
        workflow = Workflow(code, folder / "work", (preset,)).over(json.dumps(own))
        workflow.run(timeout=570)
        server.shutdown()
    return folder / "work/results/dli_census", census


@pytest.mark.long
def test_the_playbook_from_download_to_report(playbook):
    folder, census = playbook
    found = ad.read_h5ad(folder / "final.h5ad")
    assert {*found.obs["assay"]} == set(ASSAYS[:3])
    sc.pp.calculate_qc_metrics(
        named := census[census.obs["assay"].isin(ASSAYS[:3])].copy(), percent_top=None, inplace=True
    )
    symbols = named.var["feature_name"].astype(str)
    mt = symbols.str.startswith("MT-").to_numpy()
    share = 100 * np.asarray(named.X[:, mt].sum(axis=1)).ravel() / named.obs["total_counts"]
    kept = (named.obs["n_genes_by_counts"] < 5000) & (share < 20) & (named.obs["total_counts"] > 0)
    assert list(found.obs_names) == list(named.obs_names[kept])
    assert {"leiden", "leiden_pca", "louvain", "louvain_pca"} <= {*found.obs}
    assert {"X_pca", "X_pca_harmony", "X_umap", "X_tsne", "X_diffmap"} <= {*found.obsm}
    assert found.obsm["X_pca"].shape[1] == 100
    ranked = found.uns["rank_genes_groups"]
    assert (ranked["params"]["groupby"], ranked["params"]["method"]) == ("cell_type", "logreg")
    for group in ranked["names"].dtype.names:
        assert ranked["names"][group][0].startswith(f"MARK{group[-1]}-")
    assert "dpt_pseudotime" not in found.obs


@pytest.mark.long
def test_the_playbooks_figures_are_in_the_report(playbook):
    folder, _ = playbook
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png")}
    assert names >= {
        "qc/figures/qc_violins", "qc/figures/qc_scatter", "figures/genes/hvg",
        "figures/genes/pca_variance", "figures/clusters/umap", "figures/tsne/tsne",
        "figures/trajectory/diffmap", "harmony/figures/markers_ranks",
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    for title in ("UMAP", "t-SNE", "Diffusion map", "Markers, ranks (Harmony, after integration)"):
        assert f"<h3>{title}</h3>" in page
    assert "Louvain (Blondel et al. 2008; resolution 0.6, seed 0)" in page


@pytest.mark.long
def test_the_notebooks_own_calls_find_the_same(playbook):
    """Equal masks and genes, components but for their sign, Leiden within a reseed."""
    folder, _ = playbook
    command = [
        sys.executable,
        "bench/same_as_notebook.py",
        "config/presets/dgx_spark_playbook.yaml",
    ]
    command += [str(folder), "--backend", "cpu", "--n-top-genes", "400"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    same = re.findall(r"^(\w[\w ]*): [\d,]+, the same$", done.stdout, re.MULTILINE)
    assert same == ["cells", "genes", "highly variable genes"]
