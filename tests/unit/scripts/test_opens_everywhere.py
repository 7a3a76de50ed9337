"""The result in the hands of others: scanpy's plots and functions, CELLxGENE, R, older AnnData."""

import json
import re

import anndata as ad
import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr

from scripts.final import readable
from scripts.h5ad import h5ad
from scripts.hvg import hvg
from tests.unit.steps import integrated, settings

pytest_plugins = ["tests.unit.fixtures"]

#: What AnnData 0.8 (2022) writes, and so every reader of this file format knows.
KNOWN = {
    "anndata": "0.1.0", "array": "0.2.0", "categorical": "0.2.0", "csr_matrix": "0.1.0",
    "dataframe": "0.2.0", "dict": "0.1.0", "numeric-scalar": "0.2.0", "rec-array": "0.2.0",
    "string": "0.2.0", "string-array": "0.2.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(demo):
    """Return the demo as zarr and as h5ad, with and without integration."""
    before = [path for path in demo.steps if path.parent.name != "harmony"]
    scores = integrated(demo, label_key=None)  # without a label, which leaves most empty
    names = {"integrated": [*demo.steps, scores], "plain": before}
    found = {}
    for name, steps in names.items():
        found[name, "zarr"] = demo.final(f"opens_{name}.zarr", steps)
        found[name, "h5ad"] = demo.folder / f"opens_{name}.h5ad"
        h5ad(found[name, "zarr"], found[name, "h5ad"])
    return found


@pytest.fixture(params=["zarr", "h5ad"])
def opened(files, request):
    """Open the demo after integration, from either file."""
    read = ad.read_zarr if request.param == "zarr" else ad.read_h5ad
    return read(files["integrated", request.param])


@pytest.fixture(params=[("integrated", ""), ("integrated", "_pca"), ("plain", "")], ids="".join)
def analysed(files, request):
    """Open the demo's h5ad, and give the ending of a representation's names."""
    name, suffix = request.param
    return ad.read_h5ad(files[name, "h5ad"]), suffix


@pytest.fixture(autouse=True)
def no_windows():
    mpl.use("Agg")
    yield
    mpl.pyplot.close("all")


# ------------------------------------------------------------------------------ scanpy's pictures


def points(ax) -> np.ndarray:
    """Read the coordinates of a scatter plot's points, in one order."""
    found = max((each.get_offsets() for each in ax.collections), key=len)
    return in_order(found)


def in_order(array) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    return array[np.lexsort(array.T)]


@pytest.mark.parametrize("name", ["umap", "tsne", "diffmap"])
def test_embeddings(analysed, name):
    adata, suffix = analysed
    color = f"leiden{suffix}"
    if suffix:
        ax = sc.pl.embedding(adata, f"{name}{suffix}", color=color, show=False)
    else:
        ax = getattr(sc.pl, name)(adata, color=color, show=False)
    np.testing.assert_allclose(points(ax), in_order(adata.obsm[f"X_{name}{suffix}"][:, :2]))
    clusters = list(adata.obs[color].cat.categories)
    assert [text.get_text() for text in ax.get_legend().texts] == clusters


def test_colours_of_a_gene_a_batch_and_pseudotime(opened):
    color = ["MARK1-1", "batch", "dpt_pseudotime", "dpt_pseudotime_pca"]
    axes = sc.pl.umap(opened, color=color, show=False)
    assert [ax.get_title() for ax in axes] == color
    shown = axes[0].collections[0].get_array()
    np.testing.assert_allclose(shown, np.sort(opened[:, "MARK1-1"].X.toarray()[:, 0]))
    assert len(axes[1].get_legend().texts) == opened.obs["batch"].nunique()


@pytest.mark.parametrize("name", ["umap", "umap_pca"])
def test_edges_of_the_graph_below_an_embedding(opened, name):
    key = {"umap": "neighbors", "umap_pca": "neighbors_pca"}[name]
    ax = sc.pl.embedding(opened, name, edges=True, neighbors_key=key, show=False)
    graph = opened.obsp[opened.uns[key]["connectivities_key"]]
    lines = [each for each in ax.collections if hasattr(each, "get_segments")]
    assert len(lines[0].get_segments()) == graph.nnz // 2


def test_paga(analysed):
    adata, suffix = analysed
    adata.uns["paga"] = adata.uns[f"paga{suffix}"]  # where sc.pl.paga looks
    ax = sc.pl.paga(adata, show=False)
    clusters = list(adata.obs[f"leiden{suffix}"].cat.categories)
    assert [text.get_text() for text in ax.texts] == clusters
    left, right = sc.pl.paga_compare(adata, basis=f"umap{suffix}", show=False)
    np.testing.assert_allclose(points(left), in_order(adata.obsm[f"X_umap{suffix}"]))
    assert [text.get_text() for text in right.texts] == clusters


def test_markers_as_dots_and_heat(analysed):
    adata, suffix = analysed
    key = f"rank_genes_groups{suffix}"
    names = adata.uns[key]["names"]
    own = {"key": key, "n_genes": 2, "show": False}
    dots = sc.pl.rank_genes_groups_dotplot(adata, return_fig=True, **own)
    assert set(dots.dot_color_df.columns) == {n for each in names[:2] for n in each}
    groups = adata.obs[f"leiden{suffix}"]
    assert set(dots.dot_color_df.index) == set(groups.cat.categories)
    gene = names[groups.cat.categories[0]][0]
    means = sc.get.obs_df(adata, [gene]).groupby(groups, observed=True)[gene].mean()
    shown = dots.dot_color_df.loc[means.index, gene]
    shown = (
        shown if shown.ndim == 1 else shown.iloc[:, 0]
    )  # a marker of two clusters is there twice
    np.testing.assert_allclose(shown, means, rtol=1e-4)
    heat = sc.pl.rank_genes_groups_heatmap(adata, **own)
    (image,) = heat["heatmap_ax"].images
    assert image.get_array().shape == (adata.n_obs, 2 * len(names.dtype))


def test_highly_variable_genes(analysed):
    adata, _ = analysed
    sc.pl.highly_variable_genes(adata, show=False)
    chosen = adata.var["highly_variable"]
    for ax, column in zip(mpl.pyplot.gcf().axes, ["dispersions_norm", "dispersions"], strict=True):
        drawn = [len(each.get_offsets()) for each in ax.collections]
        assert drawn == [chosen.sum(), (~chosen).sum()]
        means = adata.var.loc[chosen, ["means", column]]
        np.testing.assert_allclose(ax.collections[0].get_offsets(), means, rtol=1e-5)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger", "seurat_v3"])
def test_highly_variable_genes_of_a_flavor(demo, tmp_path, flavor):
    """Of Pearson residuals, scanpy draws its own result no better."""
    out = tmp_path / "hvg.h5"
    hvg(*demo.base, out, **settings("hvg", flavor=flavor, backend="cpu", batch_key=None))
    adata = ad.read_zarr(demo.final("flavor.zarr", [out, demo["pca/pca"]]))
    sc.pl.highly_variable_genes(adata, show=False)
    axes = mpl.pyplot.gcf().axes
    assert len(axes) == 2
    assert sum(len(each.get_offsets()) for each in axes[0].collections) == adata.n_vars


def test_pca_variance_ratio(analysed):
    adata, _ = analysed
    sc.pl.pca_variance_ratio(adata, n_pcs=12, show=False)
    texts = mpl.pyplot.gca().texts[:12]  # scanpy shows one more
    assert [text.get_text() for text in texts] == [f"PC{i}" for i in range(1, 13)]
    heights = [text.get_position()[1] for text in texts]
    np.testing.assert_allclose(heights, adata.uns["pca"]["variance_ratio"][:12])


def test_violins(analysed):
    adata, suffix = analysed
    keys = ["total_counts", "pct_counts_mt"]
    groups = f"leiden{suffix}"
    axes = sc.pl.violin(adata, keys, groupby=groups, stripplot=False, show=False)
    assert [ax.get_ylabel() for ax in axes] == keys
    for ax in axes:
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels == list(adata.obs[groups].cat.categories)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        ("pca", {"color": "leiden"}),
        ("pca_loadings", {}),
        ("rank_genes_groups", {}),
        ("rank_genes_groups_matrixplot", {"n_genes": 3, "dendrogram": False}),
        ("rank_genes_groups_stacked_violin", {"n_genes": 2, "dendrogram": False}),
        ("scatter", {"x": "total_counts", "y": "n_genes_by_counts", "color": "pct_counts_mt"}),
        ("dotplot", {"var_names": ["MARK1-1", "MARK2-1"], "groupby": "leiden"}),
        ("embedding", {"basis": "X_pca_harmony", "color": "leiden"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_pictures(opened, function, given):
    getattr(sc.pl, function)(opened, show=False, **given)
    assert mpl.pyplot.gcf().axes


# ------------------------------------------------------------------------------- scanpy goes on


def test_clusters_and_embedding_of_either_graph(opened):
    adata = opened.copy()
    own = {"resolution": 0.6, "flavor": "igraph", "n_iterations": -1, "directed": False}
    sc.tl.leiden(adata, key_added="again", random_state=0, **own)
    sc.tl.leiden(adata, key_added="again_pca", random_state=0, neighbors_key="neighbors_pca", **own)
    for suffix in ("", "_pca"):
        table = pd.crosstab(adata.obs[f"leiden{suffix}"], adata.obs[f"again{suffix}"])
        assert (table > 0).sum().max() == 1
    for key in ("neighbors_pca", "neighbors"):
        sc.tl.umap(adata, neighbors_key=key, maxiter=5)
    assert (adata.obsm["X_umap"] != opened.obsm["X_umap"]).any()
    sc.tl.paga(adata, groups="leiden_pca", neighbors_key="neighbors_pca")
    np.testing.assert_allclose(
        adata.uns["paga"]["connectivities"].toarray(),
        opened.uns["paga_pca"]["connectivities"].toarray(),
    )


def test_a_graph_of_some_cells(opened):
    some = opened[opened.obs["leiden"] == "0"].copy()
    sc.pp.neighbors(some, n_neighbors=10, use_rep="X_pca_harmony")
    assert some.obsp["distances"].shape == (some.n_obs, some.n_obs)
    assert some.uns["neighbors"]["params"]["use_rep"] == "X_pca_harmony"
    sc.pp.highly_variable_genes(some, n_top_genes=50)
    assert some.var["highly_variable"].sum() == 50


def test_pseudotime_from_the_root(opened):
    adata = opened.copy()
    sc.tl.dpt(adata)
    assert adata.obs["dpt_pseudotime"].iloc[int(opened.uns["iroot"])] == 0


def test_genes_are_ranked_the_same(opened):
    adata = opened.copy()
    sc.tl.rank_genes_groups(adata, "leiden", method="wilcoxon")
    ours, theirs = (sc.get.rank_genes_groups_df(a, "0") for a in (opened, adata))
    assert list(ours["names"].head(20)) == list(theirs["names"].head(20))
    np.testing.assert_allclose(
        ours["logfoldchanges"].head(20), theirs["logfoldchanges"].head(20), rtol=1e-3
    )


# ----------------------------------------------------------------------------- the file's format


@pytest.mark.parametrize("name", ["integrated", "plain"])
def test_every_encoding_is_known_since_anndata_0_8(files, name):
    def check(path, attrs):
        if kind := attrs.get("encoding-type"):
            assert KNOWN.get(kind) == attrs["encoding-version"], path

    with h5py.File(files[name, "h5ad"]) as file:
        check("/", file.attrs)
        file.visititems(lambda path, item: check(path, item.attrs))
    store = zarr.open_group(files[name, "zarr"], mode="r")
    for path, item in store.members(max_depth=None):
        check(path, item.attrs)


def test_columns_of_the_matrices_take_four_bytes(files):
    """What AnnData writes itself of a matrix in blocks takes eight."""
    with h5py.File(files["plain", "h5ad"]) as file:
        for matrix in ("X", "layers/counts"):
            assert file[matrix]["indices"].dtype == np.int32
            assert file[matrix]["data"].dtype == np.float32


def test_columns_have_types_that_every_reader_knows():
    table = pd.DataFrame(
        {
            "few": pd.array([1, None, 3], dtype="Int64"),
            "whole": pd.array([1, 2, 3], dtype="UInt8"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "sure": pd.array([True, True, False], dtype="boolean"),
            "type": pd.Categorical(["a", "b", "a"], categories=["c", "b", "a"]),
            "text": pd.array(["x", "y", "z"], dtype="str"),
            "plain": [1, 2, 3],
        }
    )
    found = readable(table)
    np.testing.assert_array_equal(found["few"], [1.0, np.nan, 3.0])
    assert found["whole"].dtype == np.uint8
    assert found["flag"].tolist() == ["True", np.nan, "False"]
    assert list(found["flag"].cat.categories) == ["False", "True"]
    assert found["sure"].dtype == bool
    assert list(found["type"].cat.categories) == ["b", "a"]
    assert found["text"].dtype == table["text"].dtype
    assert found["plain"].dtype == np.int64


# -------------------------------------------------------------------------------------- CELLxGENE


def test_what_cellxgene_asks_of_tables(opened):
    """As `cellxgene` 1.3 loads a file and `cellxgene-schema` 7.1 checks one, its terms apart."""
    for table in (opened.obs, opened.var):
        assert table.index.is_unique
        assert table.columns.is_unique
        assert not [name for name in table if name.startswith("__")]
        for name, values in table.items():
            dtype = values.dtype
            if isinstance(dtype, pd.CategoricalDtype):
                assert set(dtype.categories) == set(values.dropna()), name  # none without a row
                assert {type(value) for value in dtype.categories} == {str}, name
            elif dtype.kind == "O":
                assert values.map(type).eq(str).all(), name
            else:
                assert isinstance(dtype, np.dtype), name  # none of pandas' nullable types
                assert dtype.kind in "biuf", name
            if dtype.kind in "iu":  # the viewer has 32 bits
                assert values.abs().max() < 2**31, name


def test_what_cellxgene_asks_of_embeddings(opened):
    assert 0 < len(opened.obsm) <= 30  # more are not offered
    for name, values in opened.obsm.items():
        assert re.fullmatch(r"X_[a-zA-Z][a-zA-Z0-9_.-]*", name)
        assert type(values) is np.ndarray
        assert values.dtype == np.float32
        assert values.shape[0] == opened.n_obs
        assert values.shape[1] >= 2
        assert np.isfinite(values).all()


def test_what_cellxgene_asks_of_matrices_and_the_rest(opened):
    for matrix in (opened.X, opened.layers["counts"]):
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format
        assert matrix.getnnz(axis=1).all()  # no cell without a count
    assert (opened.layers["counts"].data % 1 == 0).all()
    rows = pd.util.hash_array(
        np.array([row.tobytes() for row in opened.layers["counts"].toarray()], dtype=object)
    )
    assert len(set(rows)) == opened.n_obs  # no cell is there twice
    for name, value in opened.uns.items():
        assert np.ndim(value) == 0 or len(value), name
        assert not isinstance(value, dict) or value, name
        assert not name.endswith("_colors")
    assert json.loads(opened.uns["provenance"]["final"])["step"] == "final"
