import logging

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from scripts.hvg import FEWEST_CELLS, hvg, moments
from scrna.data import step_files
from scrna.errors import UserError

FLAVORS = ["cell_ranger", "seurat", "seurat_v3", "pearson_residuals"]


@pytest.fixture
def run_hvg(tmp_path, settings):
    def run(data, flavor, **changes):
        wanted = settings("hvg", flavor=flavor, **{"n_top_genes": 60} | changes)
        files = data.counts, data.filtered, data.normalized
        hvg(*files, tmp_path / "hvg.h5", **wanted, backend="cpu")
        return step_files.read_all(tmp_path / "hvg.h5")

    return run


def scanpys(adata, flavor, *, batch_key=None, n_top_genes=60, **own):
    """What scanpy says of the counts of kept cells and genes."""
    adata = adata.copy()
    options = {"n_top_genes": n_top_genes, "batch_key": batch_key, **own}
    if flavor == "pearson_residuals":
        sc.experimental.pp.highly_variable_genes(adata, flavor=flavor, **options)
    else:
        if flavor != "seurat_v3":
            sc.pp.normalize_total(adata, target_sum=10000)
            sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, flavor=flavor, **options)
    return adata.var.drop(columns=["gene_ids", "marker_of"], errors="ignore")


def same(found, expected, flavor, n_top=60):
    assert found.pop("uns/hvg") == {"flavor": flavor}
    assert set(found) == {f"var/{name}" for name in expected}
    for name in expected:
        np.testing.assert_allclose(
            found[f"var/{name}"].astype(float),
            expected[name].to_numpy(float),
            rtol=1e-3,
            atol=1e-5,
            err_msg=name,
        )
    np.testing.assert_array_equal(found["var/highly_variable"], expected["highly_variable"])
    assert found["var/highly_variable"].dtype == bool
    assert found["var/highly_variable"].sum() == n_top


@pytest.mark.parametrize("flavor", FLAVORS)
def test_genes_are_scanpys(simulated, run_hvg, flavor):
    same(run_hvg(simulated, flavor), scanpys(simulated.kept, flavor), flavor)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_genes_are_scanpys_in_batches(simulated, run_hvg, flavor, caplog):
    found = run_hvg(simulated, flavor, batch_key="batch")
    same(found, scanpys(simulated.kept, flavor, batch_key="batch"), flavor)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("flavor", "own"),
    [("seurat", {"n_bins": 7}), ("seurat_v3", {"span": 0.5}), ("pearson_residuals", {"theta": 5})],
)
def test_a_flavors_own_setting_is_used(simulated, run_hvg, flavor, own):
    same(run_hvg(simulated, flavor, **own), scanpys(simulated.kept, flavor, **own), flavor)


def with_batches(folder, prepare, simulated, batches):
    """The simulated counts with other batches, of which one is that of the kept cells."""
    adata = simulated.adata.copy()
    kept = np.flatnonzero(adata.obs_names.isin(simulated.kept.obs_names))
    values = np.full(adata.n_obs, None, dtype=object)
    values[kept] = batches(len(kept))
    adata.obs["batch"] = pd.Categorical(values)
    return prepare(folder, adata, min_genes=100, min_cells=10)


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat_v3"])
def test_cells_of_small_batches_and_without_one_are_left_out(
    tmp_path, prepare, simulated, run_hvg, flavor, caplog
):
    def batches(n):
        values = np.array(["a", "b"] * n, dtype=object)[:n]
        values[: FEWEST_CELLS - 1] = "small"
        values[100:140] = None
        values[200 : 200 + FEWEST_CELLS] = "large enough"
        return values

    data = with_batches(tmp_path, prepare, simulated, batches)
    caplog.clear()
    found = run_hvg(data, flavor, batch_key="batch")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    expected = f"without {40 + FEWEST_CELLS - 1} cells: their batch is missing or has under 25"
    assert expected in warning
    kept = data.kept
    large = kept[kept.obs["batch"].isin(["a", "b", "large enough"])].copy()
    same(found, scanpys(large, flavor, batch_key="batch"), flavor)


@pytest.mark.parametrize("values", [["a"], [None], ["a", None]])
def test_without_two_batches_all_cells_are_one(
    tmp_path, prepare, simulated, run_hvg, values, caplog
):
    data = with_batches(tmp_path, prepare, simulated, lambda n: (values * n)[:n])
    caplog.clear()
    found = run_hvg(data, "cell_ranger", batch_key="batch")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == "genes are ranked over all cells: batch has fewer than two batches"
    same(found, scanpys(data.kept, "cell_ranger"), "cell_ranger")


def test_batches_may_be_numbers(tmp_path, prepare, simulated, run_hvg):
    data = with_batches(tmp_path, prepare, simulated, lambda n: np.arange(n) % 2)
    assert data.counts.exists()
    found = run_hvg(data, "cell_ranger", batch_key="batch")
    kept = data.kept
    kept.obs["batch"] = kept.obs["batch"].astype(str).astype("category")
    same(found, scanpys(kept, "cell_ranger", batch_key="batch"), "cell_ranger")


@pytest.mark.parametrize(
    ("flavor", "batch_key"), [(flavor, None) for flavor in FLAVORS] + [("seurat", "batch")]
)
def test_all_genes_where_more_are_asked_for(simulated, run_hvg, flavor, batch_key, caplog):
    n_genes = simulated.kept.n_vars
    found = run_hvg(simulated, flavor, n_top_genes=n_genes + 1, batch_key=batch_key)
    assert found["var/highly_variable"].all()
    assert len(found["var/highly_variable"]) == n_genes
    first, *_ = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert first == (
        f"n_top_genes is {n_genes + 1}, but {n_genes} genes passed the filter: all are used"
    )


@pytest.mark.filterwarnings("ignore:`n_top_genes`")
@pytest.mark.parametrize(
    ("X", "flavor", "own"),
    [
        (np.eye(50), "cell_ranger", {}),  # every gene has the same mean
        (np.eye(50), "seurat", {}),
        (np.eye(50), "seurat_v3", {}),
        (np.arange(6) + 1, "cell_ranger", {}),  # a gene a bin
        (np.arange(60) + 1, "seurat_v3", {"span": 0.01}),
    ],
)
def test_genes_that_cannot_be_ranked_are_refused(tmp_path, prepare, run_hvg, X, flavor, own):
    X = X if X.ndim == 2 else np.random.default_rng(0).poisson(X / 9, (50, len(X)))
    X = sp.csr_matrix(np.tile(X, (4, 1)), dtype=np.float32)
    data = prepare(tmp_path, AnnData(X), min_cells=1)
    expected = rf"flavor {flavor} cannot rank these {X.shape[1]} genes: .* Raise filter.min_cells"
    with pytest.raises(UserError, match=expected):
        run_hvg(data, flavor, n_top_genes=5, **own)
    assert not (tmp_path / "hvg.h5").exists()


@pytest.mark.filterwarnings("ignore:`n_top_genes`")
@pytest.mark.parametrize(
    ("X", "flavor", "own", "kept"),
    [
        (np.eye(50), "cell_ranger", {}, {"means", "dispersions"}),
        (np.eye(50), "seurat", {}, {"means", "dispersions"}),
        (np.eye(50), "seurat_v3", {}, {"means", "variances"}),
        (np.arange(2) + 1, "cell_ranger", {}, {"means", "dispersions"}),
        (np.arange(60) + 1, "seurat_v3", {"span": 0.01}, {"means", "variances"}),
    ],
)
@pytest.mark.parametrize(("n_top", "execution"), [(0, "memory"), (5000, "blocks")])
def test_genes_that_are_all_taken_need_no_ranks(
    tmp_path, prepare, run_hvg, X, flavor, own, kept, n_top, execution
):
    X = X if X.ndim == 2 else np.random.default_rng(0).poisson(X / 9, (50, len(X)))
    X = sp.csr_matrix(np.tile(X, (4, 1)), dtype=np.float32)
    data = prepare(tmp_path, AnnData(X), min_cells=1, min_genes=None)
    wanted = {"n_top_genes": n_top or X.shape[1], "execution": execution}
    found = run_hvg(data, flavor, **wanted, **own)
    assert found["var/highly_variable"].all()
    columns = {name.removeprefix("var/") for name in found if name.startswith("var/")}
    assert kept <= columns
    if flavor == "seurat_v3":
        counts = data.kept.X.toarray()
        np.testing.assert_allclose(found["var/means"], counts.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found["var/variances"], counts.var(axis=0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("flavor", ["cell_ranger", "seurat", "seurat_v3"])
def test_the_statistics_kept_are_those_of_the_flavor(simulated, run_hvg, flavor):
    found = run_hvg(simulated, flavor, n_top_genes=50)
    X = simulated.kept.X.astype(np.float32)
    if flavor != "seurat_v3":
        adata = AnnData(X)
        sc.pp.normalize_total(adata, target_sum=1e4)
        X = sc.pp.log1p(adata, copy=True).X
    ours = moments(X, flavor)
    assert len(ours) == 2
    for name, values in ours.items():
        np.testing.assert_allclose(values, found[f"var/{name}"], rtol=1e-4)


def test_a_panel_of_93_genes_is_taken_whole(tmp_path, prepare, run_hvg):
    """As targeted panels are: few genes, many of them seen in most cells."""
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(0.3, 3, 93), (300, 93)).astype(np.float32)
    X[:, 0] += 1  # no cell is empty
    data = prepare(tmp_path, AnnData(sp.csr_matrix(X)), min_cells=1, min_genes=None)
    found = run_hvg(data, "cell_ranger", n_top_genes=5000, batch_key=None)
    assert found["var/highly_variable"].all()


def test_seurat_v3_on_pbmc3k_takes_the_genes_that_r_takes(tmp_path, real_data, prepare, run_hvg):
    import anndata as ad

    adata = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    bounds = dict.fromkeys(["min_genes", "max_genes", "max_pct_mt"])
    data = prepare(tmp_path, adata, **bounds, min_cells=3)
    found = run_hvg(data, "seurat_v3", n_top_genes=2000)
    table = pd.read_csv(real_data / "pbmc3k/seurat_hvg_v3.csv.gz", index_col=0)
    ours, theirs = (  # R writes "_" and "-" differently
        names.str.replace(r"\W|_", "", regex=True) for names in (data.kept.var_names, table.index)
    )
    assert ours.tolist() == theirs.tolist()
    top = np.argsort(-table["variance.standardized"].to_numpy())[:2000]
    assert np.flatnonzero(found["var/highly_variable"]).tolist() == sorted(top)
    np.testing.assert_allclose(found["var/variances"], table["variance"], rtol=1e-5)
    np.testing.assert_allclose(
        found["var/variances_norm"], table["variance.standardized"], rtol=2e-3
    )
