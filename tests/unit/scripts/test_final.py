"""The one AnnData at the end: complete and true to its sources."""

import errno
import json
from importlib.metadata import version
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from scripts.final import final, final_name, renamed
from scripts.matrix import matrix
from scrna.data import step_files
from scrna.errors import UserError
from tests.unit.steps import store, write_pca

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture(scope="module")
def whole(demo):
    """The demo before and after integration."""
    return ad.read_zarr(demo.final())


@pytest.fixture(scope="module")
def plain(demo):
    """The demo without integration."""
    before = [path for path in demo.steps if path.parent.name != "harmony"]
    return ad.read_zarr(demo.final("plain.zarr", before))


# ---------------------------------------------------------------------------------- the matrices


def test_x_is_what_scanpy_makes_of_the_counts(demo, whole):
    assert isinstance(whole.X, csr_matrix)
    assert whole.X.dtype == np.float32
    expected = whole.layers["counts"].copy()
    adata = ad.AnnData(expected)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    assert (adata.X.astype(bool) != whole.X.astype(bool)).nnz == 0
    np.testing.assert_allclose(whole.X.toarray(), adata.X.toarray(), rtol=1e-5)


def test_counts_are_the_sources(demo, whole):
    source = ad.read_h5ad(demo.folder / "source.h5ad")
    source = source[whole.obs_names, whole.var_names]
    assert whole.shape[0] < 700
    assert isinstance(whole.layers["counts"], csr_matrix)
    assert (whole.layers["counts"] != source.X).nnz == 0
    truth = ["cell_type", "batch", "status", "pseudotime", "branch"]
    pd.testing.assert_frame_equal(whole.obs[truth], source.obs[truth], check_categorical=False)
    assert list(whole.var["gene_ids"]) == list(source.var["gene_ids"])


def test_the_filter_is_applied(demo, whole):
    cells, genes = (step_files.read(demo["filter"], f"{slot}/keep") for slot in ("obs", "var"))
    assert whole.shape == (cells.sum(), genes.sum())
    totals = step_files.read(demo["qc"], "obs/total_counts")[cells]
    np.testing.assert_array_equal(whole.obs["total_counts"], totals)
    np.testing.assert_array_equal(
        whole.var["n_cells_kept"], whole.layers["counts"].astype(bool).sum(axis=0).A1
    )
    assert "keep" not in whole.obs
    assert "keep" not in whole.var


def few(demo):
    """The steps that no config leaves out, without integration."""
    wanted = ["qc", "hvg", "pca", "neighbors", "umap", "leiden"]
    return [path for path in demo.steps if path.stem in wanted and path.parent.name != "harmony"]


def test_many_blocks_make_the_same(demo, whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("scripts.matrix._BLOCK_NNZ", 5000)
    caplog.set_level("INFO", "scrna")
    matrix(*demo.base, tmp_path / "matrix.zarr", X=True, counts_layer=True)
    found = zarr.open_group(tmp_path / "matrix.zarr", mode="r")
    assert (read_elem(found["X"]) != whole.X).nnz == 0
    assert (read_elem(found["layers"])["counts"] != whole.layers["counts"]).nnz == 0
    assert f"{whole.n_obs:,} cells × {whole.n_vars:,} genes" in caplog.text


def files_of(store):
    return {f.relative_to(store): f for f in store.rglob("*") if f.is_file()}


def test_the_matrices_are_not_written_again(demo):
    made, store = files_of(demo.matrix()), files_of(demo.final("linked.zarr", few(demo)))
    shared = [name for name in made if name.parts[0] in ("X", "layers")]
    assert len(shared) > 8
    for name in shared:
        assert store[name].samefile(made[name])


def test_what_is_changed_in_the_result_does_not_change_the_matrices(demo, whole):
    path = demo.final("changed.zarr", few(demo))
    root = zarr.open_group(path, mode="r+")
    root["X/data"][:3] = 99
    changed, kept = (zarr.open_group(p, mode="r")["X/data"][:3] for p in (path, demo.matrix()))
    np.testing.assert_array_equal(changed, 99)
    np.testing.assert_array_equal(kept, whole.X.data[:3])


def test_without_hard_links_the_matrices_are_copied(demo, whole, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("scrna.data.store.os", SimpleNamespace(link=refuse))
    with caplog.at_level("INFO", "scrna"):
        found = ad.read_zarr(demo.final("copied.zarr", few(demo)))
    assert "no hard links" in caplog.text
    assert (found.X != whole.X).nnz == 0


@pytest.mark.parametrize(("has_x", "has_counts"), [(True, False), (False, True), (False, False)])
def test_either_matrix_may_be_left_out(demo, whole, has_x, has_counts):
    found = ad.read_zarr(demo.final("other.zarr", few(demo), X=has_x, counts_layer=has_counts))
    assert (found.X is not None) == has_x
    assert ("counts" in found.layers) == has_counts
    assert ("log1p" in found.uns) == has_x
    assert found.shape == whole.shape
    np.testing.assert_array_equal(found.obsm["X_pca"], whole.obsm["X_pca"])


# ------------------------------------------------------------------------------------- the names

STATISTICS = {"means", "dispersions", "dispersions_norm", "highly_variable"}
FOUND = {"leiden", "louvain", "dpt_pseudotime"}


def test_names_without_integration(plain):
    assert set(plain.obsm) == {"X_pca", "X_umap", "X_tsne", "X_diffmap"}
    assert set(plain.varm) == {"PCs"}
    assert set(plain.obsp) == {"distances", "connectivities"}
    assert set(plain.uns) >= {
        "pca", "hvg", "log1p", "neighbors", "umap", "tsne", "leiden", "louvain", "leiden_sizes",
        "paga", "diffmap_evals", "iroot", "rank_genes_groups", "provenance",
    }  # fmt: skip
    assert set(plain.obs) >= FOUND | {"size_factor", "pct_counts_mt", "batch"}
    assert set(plain.var) >= STATISTICS | {"mt", "n_cells_by_counts", "n_cells_kept"}
    assert not [name for name in [*plain.obs, *plain.uns, *plain.obsm] if name.endswith("_pca")][1:]


def test_names_with_integration(whole):
    before = {"X_umap_pca", "X_tsne_pca", "X_diffmap_pca"}
    after = {"X_umap", "X_tsne", "X_diffmap"}
    assert set(whole.obsm) == {"X_pca", "X_pca_harmony"} | before | after
    assert set(whole.varm) == {"PCs"}
    assert set(whole.obsp) == {
        "distances", "connectivities", "neighbors_pca_distances", "neighbors_pca_connectivities",
    }  # fmt: skip
    assert set(whole.obs) >= FOUND | {f"{name}_pca" for name in FOUND}
    names = "neighbors umap tsne leiden louvain paga diffmap_evals iroot rank_genes_groups".split()
    expected = {*names, *(f"{name}_pca" for name in names), "leiden_sizes", "leiden_pca_sizes"}
    assert set(whole.uns) == expected | {"pca", "hvg", "log1p", "target_sum", "provenance"}


@pytest.mark.parametrize(("rep", "suffix"), [("harmony", ""), ("pca", "_pca")])
def test_each_name_holds_its_representation(demo, whole, rep, suffix):
    for name in ("umap", "tsne"):
        values = step_files.read(demo[f"{rep}/{name}"], f"obsm/X_{name}")
        np.testing.assert_array_equal(whole.obsm[f"X_{name}{suffix}"], values)
    labels = step_files.read(demo[f"{rep}/leiden"], "obs/leiden")
    assert list(whole.obs[f"leiden{suffix}"]) == list(labels)
    sizes = whole.obs[f"leiden{suffix}"].value_counts(sort=False)
    assert list(whole.uns[f"leiden{suffix}_sizes"]) == list(sizes)
    assert whole.uns[f"paga{suffix}"]["groups"] == f"leiden{suffix}"
    assert whole.uns[f"rank_genes_groups{suffix}"]["params"]["groupby"] == f"leiden{suffix}"
    neighbors = whole.uns[f"neighbors{suffix}"]
    for graph in ("distances", "connectivities"):
        values = step_files.read(demo[f"{rep}/neighbors"], f"obsp/{graph}")
        assert (whole.obsp[neighbors[f"{graph}_key"]] != values).nnz == 0
    root = whole.obs_names[int(whole.uns[f"iroot{suffix}"])]
    assert whole.obs.loc[root, f"dpt_pseudotime{suffix}"] == 0


def test_several_resolutions_and_their_markers():
    assert final_name("obs", "leiden_0.4", "_pca") == "leiden_0.4_pca"
    assert final_name("uns", "rank_genes_groups_louvain", "_pca") == "rank_genes_groups_louvain_pca"
    for groupby, expected in (
        ("leiden_0.4", "leiden_0.4_pca"),
        ("louvain", "louvain_pca"),
        ("cell_type", "cell_type"),
        ("leiden_of_the_paper", "leiden_of_the_paper"),
    ):
        value = {"params": {"groupby": groupby, "method": "wilcoxon"}, "names": 1}
        found = renamed("rank_genes_groups", value, "_pca")
        assert found["params"] == {"groupby": expected, "method": "wilcoxon"}
        assert renamed("rank_genes_groups_louvain", value, "_pca") == found
        assert renamed("rank_genes_groups", value, "") is value


@pytest.mark.parametrize("name", ["pca", "harmony"])
def test_a_dataset_may_be_called_as_a_representation(tmp_path, name):
    folder = tmp_path / name
    files = store(folder, np.ones((60, 3)))
    step_files.write(files["normalize"], {"obs/size_factor": np.ones(60)})
    step_files.write(files["qc"], {"obs/total_counts": np.full(60, 3.0)})
    write_pca(folder, np.ones((60, 2)))
    step_files.write(files["pca/umap"], {"obsm/X_umap": np.zeros((60, 2))})
    steps = [files[step] for step in ("qc", "pca/pca", "pca/umap")]
    found = ad.read_zarr(files.final(steps=steps))
    assert set(found.obsm) == {"X_pca", "X_umap"}
    assert "total_counts" in found.obs
    write_pca(folder, np.ones((60, 2)), "harmony")
    step_files.write(files["harmony/umap"], {"obsm/X_umap": np.ones((60, 2))})
    steps += [files[step] for step in ("harmony/harmony", "harmony/umap")]
    found = ad.read_zarr(files.final(steps=steps))
    assert set(found.obsm) == {"X_pca", "X_pca_harmony", "X_umap", "X_umap_pca"}
    assert found.obsm["X_umap"].all()
    assert "total_counts" in found.obs


def test_columns_of_the_source_that_are_replaced_are_told(tmp_path, caplog):
    obs = pd.DataFrame({"total_counts": [7.0] * 60, "mine": ["a"] * 60})
    files = store(tmp_path, np.ones((60, 3)), obs)
    step_files.write(files["normalize"], {"obs/size_factor": np.ones(60)})
    step_files.write(files["qc"], {"obs/total_counts": np.full(60, 3.0)})
    found = ad.read_zarr(files.final(steps=[files["qc"], write_pca(tmp_path, np.ones((60, 2)))]))
    assert (found.obs["total_counts"] == 3).all()
    assert (found.obs["mine"] == "a").all()
    assert "obs of the source is replaced: total_counts" in caplog.text


# --------------------------------------------------------------------------------- its provenance


def test_the_provenance_of_every_step(demo, whole):
    known = {name: json.loads(text) for name, text in whole.uns["provenance"].items()}
    once = {"convert", "qc", "filter", "normalize", "hvg", "pca", "harmony", "final"}
    twice = set("neighbors umap tsne leiden louvain markers trajectory".split())
    assert set(known) == once | twice | {f"{name}_pca" for name in twice}
    assert known["leiden"]["parameters"]["resolution"] == 0.6
    assert known["leiden"]["step"] == known["leiden_pca"]["step"] == "leiden"
    assert known["leiden"]["inputs"] != known["leiden_pca"]["inputs"]
    assert known["leiden"]["inputs"]["neighbors"] == step_files.digest_of(demo["harmony/neighbors"])
    assert known["umap"]["versions"]["scanpy"] == version("scanpy")
    assert known["final"]["parameters"] == {"annotations": None}
    assert known["convert"]["n_obs"] == 700
    assert known["convert"]["digest"] == known["qc"]["inputs"]["counts"]


# ------------------------------------------------------------------------------------ what it is


def test_steps_may_be_missing(demo):
    """Without t-SNE, Louvain, markers and trajectory, as the config may ask."""
    found = ad.read_zarr(demo.final("few.zarr", few(demo)))
    assert set(found.obsm) == {"X_pca", "X_umap"}
    assert "paga" not in found.uns


def test_nothing_is_left_of_a_failure(demo, tmp_path):
    step_files.write(tmp_path / "pca.h5", {"obsm/X_pca": np.zeros((634, 2))})
    step_files.write(tmp_path / "worse.h5", {"obs/few": np.zeros(3)})
    with pytest.raises(ValueError, match="Length of values"):
        final(
            *demo.base, demo.matrix(), [tmp_path / "pca.h5", tmp_path / "worse.h5"],
            tmp_path / "final.zarr",
        )  # fmt: skip
    assert not list(tmp_path.glob("*final.zarr*"))


# ------------------------------------------------------------------------------- named clusters


def test_annotations_become_cell_types(demo, whole):
    clusters = list(whole.obs["leiden"].cat.categories)
    names = {"leiden": {clusters[0]: "B cells", clusters[2]: "B cells", clusters[1]: "T cells"}}
    found = ad.read_zarr(demo.final("named.zarr", few(demo), annotations=names))
    own = found.obs["leiden"].astype(str)
    expected = own.map(names["leiden"]).fillna("leiden " + own)
    assert found.obs["cell_type"].astype(str).tolist() == expected.tolist()
    assert list(found.obs["cell_type"].cat.categories)[:2] == ["B cells", "T cells"]
    pd.testing.assert_series_equal(
        found.obs["cell_type_source"], whole.obs["cell_type"], check_names=False
    )


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"leiden": {"0": "B", "99": "T"}}, "annotations.leiden names 99, which leiden does not"),
        ({"leiden_0.9": {"0": "B"}}, "annotations name leiden_0.9, which there is not; there are"),
    ],
)
def test_annotations_of_what_is_not_there_are_refused(demo, annotations, message):
    with pytest.raises(UserError, match=message):
        demo.final("wrong.zarr", few(demo), annotations=annotations)
    assert not (demo.folder / "wrong.zarr").exists()
