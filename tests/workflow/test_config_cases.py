"""What the config can ask for, one file of `configs` a feature, and what it cannot."""

import hashlib
import http.server
import os
import re
import threading
from functools import partial

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scrna.data import step_files


@pytest.fixture(scope="module")
def toy(done) -> ad.AnnData:
    return ad.read_zarr(done.folder / "results/toy/final.zarr")


@pytest.fixture(scope="module")
def plain(done) -> ad.AnnData:
    """The dataset with the features."""
    return ad.read_h5ad(done.folder / "results/plain/final.h5ad")


def log_of(workflow, step: str) -> str:
    return (workflow.folder / f"logs/plain/{step}.log").read_text()


# ---------------------------------------------------------------------------------------- features


def test_genes_by_seurat_v3(toy, plain):
    assert toy.uns["hvg"]["flavor"] == "cell_ranger"
    assert plain.uns["hvg"]["flavor"] == "seurat_v3"
    assert plain.var["highly_variable"].sum() == 150
    assert "variances_norm" in plain.var


def test_confounders_are_regressed_out(toy, plain):
    """Components follow the counts per cell; of plain they do not."""
    for adata, least, most in ((toy, 0.2, 1), (plain, 0, 1e-3)):
        correlations = np.corrcoef(adata.obsm["X_pca"].T, adata.obs["total_counts"])[-1, :-1]
        assert least <= np.abs(correlations).max() <= most


def test_tsne_lowers_a_perplexity_that_is_too_high(done, plain):
    assert plain.obsm["X_tsne"].shape == (plain.n_obs, 2)
    assert re.search("WARNING .*perplexity", log_of(done, "pca/tsne"))


def test_every_resolution_is_kept(plain):
    names = {"leiden", "leiden_1", "leiden_0.3", "louvain", "louvain_0.8", "louvain_1.2"}
    assert {name for name in plain.obs if name.startswith(("leiden", "louvain"))} == names
    assert (plain.obs["leiden"] == plain.obs["leiden_1"]).all()
    assert plain.obs["leiden_0.3"].nunique() < plain.obs["leiden_1"].nunique()


def test_markers_of_a_column(done, plain):
    table = pd.read_csv(done.folder / "results/plain/pca/markers.csv")
    assert set(table["group"]) == {"type_1", "type_2", "type_3"}
    for group, genes in table.groupby("group")["names"]:
        assert len(genes) == 20
        assert genes.iloc[:5].str.match(f"MARK{group[-1]}-").sum() >= 3
    assert plain.uns["rank_genes_groups"]["params"]["groupby"] == "cell_type"


def test_scores_of_sets_from_a_list_and_a_file(done, plain):
    type_1 = plain.obs["cell_type"] == "type_1"
    scores = plain.obs["first type"]
    assert scores[type_1].mean() > scores[~type_1].mean() + 0.5
    genes = {name: set(own) for name, own in plain.uns["scores"]["genes"].items()}
    assert genes["all types"] == {"MARK1-5", "MARK2-5", "MARK3-5"}
    assert genes["first type"] == {f"MARK1-{i}" for i in range(1, 5)}
    assert "first type: 1 of 5 genes are not in the data" in log_of(done, "scores")


def test_clusters_have_names_from_markers(plain):
    named = plain.obs[plain.obs["cell_type_auto"] != "unsure"]
    assert len(named) > len(plain) / 2
    same = named["cell_type_auto"].astype(str) == named["cell_type"].astype(str)
    assert same.mean() > 0.9
    table = plain.uns["cell_type_names"]["table"]
    assert table["n_cells"].sum() == plain.n_obs
    assert set(table.index) == set(plain.obs["leiden"])


@pytest.mark.parametrize("name", ["toy", "plain"])  # from a gene, from a label
def test_pseudotime_follows_the_truth(request, name):
    adata = request.getfixturevalue(name)
    assert adata.obs["dpt_pseudotime"].iloc[int(adata.uns["iroot"])] == 0
    assert adata.obs["dpt_pseudotime"].corr(adata.obs["pseudotime"], method="spearman") > 0.6


def test_doublets_are_removed(done, toy, plain):
    results = done.folder / "results/plain"
    flags = step_files.read(results / "doublets.h5", "obs/predicted_doublet")
    reasons = step_files.read(results / "filter.h5", "obs/filter_reason")
    assert ["doublet" in reason for reason in reasons] == flags.tolist()
    assert not plain.obs["predicted_doublet"].any()
    assert np.isfinite(plain.obs["doublet_score"]).all()
    assert plain.uns["doublets"]["n_doublets"].tolist() == [flags.sum()]
    assert "doublet_score" not in toy.obs


def test_h5ad_and_zarr_are_the_same(done, plain):
    store = ad.read_zarr(done.folder / "results/plain/final.zarr")
    assert store.X is None
    assert plain.X is None
    assert (store.layers["counts"] != plain.layers["counts"]).nnz == 0
    for table in ("obs", "var"):
        pd.testing.assert_frame_equal(
            getattr(store, table), getattr(plain, table), check_dtype=False
        )
    assert {*store.obsm} == {*plain.obsm}
    assert {*store.uns} == {*plain.uns}
    assert "WARNING" not in log_of(done, "h5ad")


# ----------------------------------------------------------------------------------------- sources


@pytest.fixture
def url(done, monkeypatch):
    """A server of files on this machine, and the URL of one of them in SCRNA_TEST_URL."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=done.folder / "resources")
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/plain.h5ad"
        monkeypatch.setenv("SCRNA_TEST_URL", address)
        yield address
        server.shutdown()


def test_a_dataset_behind_a_url(done, fresh, url):
    workflow = fresh.over("url.yaml")
    target = "results/web/counts.json"
    workflow.run(target)
    original, copy = done.folder / "resources/plain.h5ad", fresh.folder / "resources/web.h5ad"
    assert copy.read_bytes() == original.read_bytes()
    assert workflow.due(target) == set()

    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    later = workflow.over(f"datasets: {{web: {{sha256: {digest}}}}}")
    assert later.due(target) == {"convert web"}  # which checks it; nothing is fetched again
    wrong = workflow.over(f"datasets: {{web: {{sha256: {digest[::-1]}}}}}")
    assert "resources/web.h5ad is not the expected file" in wrong.run(target, fails=True)


@pytest.mark.long
def test_what_cell_ranger_writes(fresh, real_data):
    workflow = fresh.over("tenx.yaml")
    dry = workflow.run(options=("--dry-run",))
    assert "harmony" not in dry
    names = ("folder", "file")
    workflow.run(*(f"results/{name}/filter.h5" for name in names))
    for slot in ("obs/keep", "var/keep"):
        folder, file = (
            step_files.read(fresh.folder / f"results/{name}/filter.h5", slot) for name in names
        )
        np.testing.assert_array_equal(folder, file)
    assert len(file) == 36601  # genes: the ten antibodies of the file are left out
    with h5py.File(real_data / "pbmc1k/pbmc1k_10x_v3_with_antibodies.h5") as raw:
        assert len(raw["matrix/features/id"]) == 36611


# ------------------------------------------------------------------------------------ bad configs


MANY_ERRORS = """
umpa: {min_dist: 0.3}
umap: {min_dits: 0.3}
leiden: {resolution: high}
filter: {max_pct_mt: 120}
datasets: {toy: {batchkey: batch, neighbors: {n_neighbors: 1}}}
"""
REFUSED = {
    MANY_ERRORS: [
        "umpa is not a key; did you mean umap?",
        "umap.min_dits is not a key; did you mean min_dist?",
        "leiden.resolution is 'high'; expected number or list",
        "filter.max_pct_mt is 120; expected number or null, at least 0, at most 100",
        "datasets.toy.batchkey is not a key; did you mean batch_key?",
        "datasets.toy.neighbors.n_neighbors is 1; expected integer, at least 2",
    ],
    "run: [toy, plian]": ["run names 'plian'", "did you mean plain?"],
    "markers: {method: wilcoxon_binned}": ["needs the GPU; on the CPU use wilcoxon"],
    "datasets: {toy: {batch_key: btach}}": [
        "datasets.toy.batch_key names 'btach', which obs of toy does not have",
        "did you mean batch?",
    ],
    "run: new\ndatasets: {new: {source: nowhere.h5ad}}": [
        "datasets.new.source is 'nowhere.h5ad', but there is no such file or folder in /"
    ],
    "run: new\ndatasets: {new: {source: $NO_SUCH/a.h5ad}}": ["variable NO_SUCH is not set"],
    "run: toy\ndatasets:\n  toy: {batch_key: batch}\n  toy: {batch_key: null}": [
        "has keys twice:\n  - datasets.toy in line 3 and again in line 4",
    ],
    "datasets: {toy: {trajectory: {root: {gene: MARK9-9}}}}": [
        "toy: trajectory.root.gene: there is no gene 'MARK9-9'; did you mean MARK",
    ],
    "run: plain\ndatasets: {plain: {batch_key: batch}}": [
        "plain: batch_key 'batch' has one batch, 'batch_1', in all of the 200 cells",
    ],
    "run: plain\ndatasets: {plain: {trajectory: {root: {label: type_9}}}}": [
        "plain: trajectory.root.label 'type_9' is not in obs 'cell_type'; there are type_1",
    ],
    "leiden: {resolution: [0.6, 0.6000001]}": ["which both make leiden_0.6"],
    "backend: gpu": ["backend: gpu is not possible: ", "or set backend: cpu"],
}


@pytest.mark.parametrize("settings", REFUSED)
def test_a_bad_config_is_refused_before_any_job(done, monkeypatch, settings):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    output = done.over(settings).run(options=("--dry-run",), fails=True)
    for message in REFUSED[settings]:
        assert message in output
    assert "Building DAG" not in output
    assert "Traceback" not in output


def test_a_setting_that_a_dataset_has_of_its_own_is_said_to_have_no_effect(done):
    workflow = done.over("trajectory: {root: {gene: MARK2-1}}")
    output = workflow.run(options=("--dry-run",))
    expected = "trajectory.root at the top level of .* has no effect on toy, which has its own: "
    assert re.search(expected, output)
    assert "has no effect" not in done.run(options=("--dry-run",))


def test_columns_of_an_older_source_are_no_reason_to_refuse(done, tmp_path):
    """The counts on disk lack the column; but they will be converted again."""
    workflow = done.at(tmp_path / "work").over("run: toy\ndatasets: {toy: {batch_key: donor}}")
    os.utime(workflow.folder / "resources/toy.h5ad")
    assert {"convert toy", "harmony toy/harmony"} <= workflow.due()
