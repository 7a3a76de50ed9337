"""Expression of a few genes, against what scanpy computes from the whole matrix."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr
from scipy import sparse

from scripts.normalize import normalize
from scrna.data import expression, step_files
from scrna.errors import UserError
from tests.unit import steps

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture(scope="module")
def truth(demo):
    return demo.lognorm()


@pytest.fixture(scope="module")
def clusters(demo):
    return step_files.read(demo["pca/leiden"], "obs/leiden")


@pytest.fixture(scope="module")
def final(demo):
    return ad.read_zarr(demo.final("expression.zarr"))


def dense(adata, genes):
    return adata[:, genes].X.toarray()


def test_cells_have_the_values_of_the_final_object(demo, truth, final):
    genes = [*truth.var_names[[3, 400, 0]], truth.var_names[3]]
    cells = np.array([0, 1, 17, 300, truth.n_obs - 1])
    found = expression.of_cells(*demo.base, genes, cells)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense(truth[cells], genes), rtol=2 * steps.LOG_ERROR)
    np.testing.assert_array_equal(found, dense(final[cells], genes))


def test_no_cells_and_no_genes_are_empty(demo):
    assert expression.of_cells(*demo.base, [], np.arange(3)).shape == (3, 0)
    genes = expression.names_of(demo.counts, np.array([0, 2]))
    assert expression.of_cells(*demo.base, genes, np.arange(0)).shape == (0, 2)


def test_blocks_of_any_size_give_the_same(demo, truth, monkeypatch):
    genes = list(truth.var_names[::50])
    cells = np.flatnonzero(np.arange(truth.n_obs) % 7 == 0)
    whole = expression.of_cells(*demo.base, genes, cells)
    monkeypatch.setattr(expression, "_BLOCK_NNZ", 1000)
    monkeypatch.setattr(expression, "CHUNK", 100)
    np.testing.assert_array_equal(expression.of_cells(*demo.base, genes, cells), whole)


def test_only_what_holds_the_cells_is_read(demo, truth, monkeypatch):
    """Cells a chunk apart are read by themselves."""
    read, original = [], zarr.Array.__getitem__

    def counted(self, key):
        if self.name.endswith("X/data"):
            read.append(key.stop - key.start)
        return original(self, key)

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    monkeypatch.setattr(expression, "CHUNK", 10_000)
    expression.of_cells(*demo.base, [truth.var_names[0]], np.array([0, 1, 500]))
    assert len(read) == 2
    assert sum(read) < 2000


def test_groups_are_those_of_scanpys_dot_plot(demo, truth, clusters):
    genes = list(truth.var_names[:60:3])
    mean, fraction = expression.by_group(*demo.base, genes, clusters)
    truth.obs["leiden"] = clusters
    plot = sc.pl.dotplot(truth, genes, "leiden", return_fig=True)
    np.testing.assert_allclose(mean, plot.dot_color_df.to_numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fraction, plot.dot_size_df.to_numpy())


def test_pbmc3k_is_as_scanpy_has_it(real_data, tmp_path, prepare):
    raw = ad.read_h5ad(real_data / "pbmc3k" / "pbmc3k_raw.h5ad")
    done = prepare(tmp_path, raw, min_genes=200, min_cells=3, max_genes=2499, max_pct_mt=5)
    kept = done.kept
    kept.X = kept.X.astype(np.float32)
    sc.pp.normalize_total(kept, target_sum=1e4)
    sc.pp.log1p(kept)
    genes = ["MS4A1", "NKG7", "LYZ", "CD3D", "PPBP", "HLA-DRA"]
    base = done.counts, done.filtered, done.normalized
    cells = np.arange(0, kept.n_obs, 11)
    found = expression.of_cells(*base, genes, cells)
    np.testing.assert_allclose(found, dense(kept[cells], genes), rtol=2 * steps.LOG_ERROR)
    groups = kept.obs["scanpy_louvain"].astype("category").array
    mean, fraction = expression.by_group(*base, genes, groups)
    plot = sc.pl.dotplot(kept, genes, "scanpy_louvain", return_fig=True)
    np.testing.assert_allclose(mean, plot.dot_color_df.to_numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fraction, plot.dot_size_df.to_numpy())


def test_cells_without_a_group_and_empty_groups_are_no_part_of_it(demo, truth):
    codes = np.zeros(truth.n_obs, int)
    codes[1::2] = -1
    groups = pd.Categorical.from_codes(codes, ["a", "empty"])
    genes = list(truth.var_names[:4])
    mean, fraction = expression.by_group(*demo.base, genes, groups)
    own = dense(truth[::2], genes)
    np.testing.assert_allclose(mean[0], own.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(fraction[0], (own > 0).mean(axis=0))
    assert np.isnan(mean[1]).all()
    assert np.isnan(fraction[1]).all()


@pytest.fixture
def named(tmp_path):
    """Cells by genes with symbols and ids, one of them filtered."""
    X = sparse.csr_matrix(np.array([[1, 0, 3, 5], [0, 0, 3, 5], [2, 1, 0, 5]], dtype=np.float32))
    ids = ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004"]
    var = pd.DataFrame({"gene_ids": ids}, index=["CD3D", "MS4A1", "CD3E", "cd3d"])
    done = steps.store(tmp_path, X, var=var)
    keep = {"obs/keep": np.ones(3, bool), "var/keep": np.array([True, False, True, True])}
    step_files.write(done["filter"], keep | {"var/n_cells_kept": X.getnnz(axis=0)})
    normalize(done.counts, done["filter"], done["normalize"], target_sum=10, backend="cpu")
    return done


def test_an_id_stands_for_its_symbol(named):
    places = expression.places_of(
        named.counts, named["filter"], ["ENSG00000000003", "cd3d", "CD3D", "CD3E"]
    )
    assert expression.names_of(named.counts, places) == ["CD3E", "cd3d", "CD3D", "CD3E"]
    by_id, by_name = expression.of_cells(*named.base, ["ENSG00000000003", "CD3E"], np.arange(3)).T
    np.testing.assert_array_equal(by_id, by_name)
    np.testing.assert_allclose(by_name, np.log1p([10 * 3 / 9, 10 * 3 / 8, 0]), rtol=steps.LOG_ERROR)


@pytest.mark.parametrize(
    ("gene", "message"),
    [
        ("CD3", r"figures.genes: there is no gene 'CD3'; did you mean .*CD3"),
        ("Ms4a1", r"there is no gene 'Ms4a1'; did you mean MS4A1"),
        ("ENSG00000000009", r"no gene 'ENSG00000000009'; did you mean ENSG0000000000"),
        ("zz", r"no gene 'zz'; genes are named like CD3D, MS4A1, CD3E"),
        ("MS4A1", r"MS4A1 is in too few cells and was taken out by the filter"),
    ],
)
def test_a_gene_that_is_not_there_is_refused(named, gene, message):
    with pytest.raises(UserError, match=message):
        expression.places_of(named.counts, named["filter"], [gene])
