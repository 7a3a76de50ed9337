import logging

import numpy as np
import pandas as pd
import pytest

from scripts.hvg import hvg
from scripts.pca import pca
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.errors import UserError


@pytest.fixture(scope="module")
def variable_genes(tmp_path_factory, simulated, settings):
    path = tmp_path_factory.mktemp("hvg") / "hvg.h5"
    files = simulated.counts, simulated.filtered, simulated.normalized
    hvg(*files, path, **settings("hvg", n_top_genes=100), backend="cpu")
    return path


@pytest.fixture
def run_pca(tmp_path, simulated, variable_genes, settings):
    def run(data=simulated, *, genes=variable_genes, seed=0, **changes):
        files = data.counts, data.qc, data.filtered, data.normalized, genes
        wanted = settings("pca", **{"n_comps": 10} | changes)
        pca(*files, tmp_path / "pca.h5", **wanted, backend="cpu", seed=seed)
        return step_files.read_all(tmp_path / "pca.h5")

    return run


@pytest.fixture(scope="module")
def values(simulated, variable_genes):
    """Log-normalised values as scanpy makes them, with qc's columns and the variable genes."""
    import scanpy as sc

    adata = simulated.kept
    sc.pp.normalize_total(adata, target_sum=10000)
    sc.pp.log1p(adata)
    cells = step_files.read(simulated.filtered, "obs/keep")
    for name in ("total_counts", "pct_counts_mt", "n_genes_by_counts"):
        adata.obs[name] = step_files.read(simulated.qc, f"obs/{name}")[cells]
    adata.var["highly_variable"] = step_files.read(variable_genes, "var/highly_variable")
    return adata


def variable(adata):
    return adata[:, adata.var["highly_variable"]].copy()


def same(found, adata, genes=slice(None), tolerance=1e-3):
    """Compare with what scanpy made of some genes, up to the sign of a component."""
    assert list(found) == ["obsm/X_pca", "varm/PCs", "uns/pca"]
    expected = adata.obsm["X_pca"]
    assert found["obsm/X_pca"].shape == expected.shape
    assert found["obsm/X_pca"].dtype == found["varm/PCs"].dtype == np.float32
    sign = np.sign((found["obsm/X_pca"] * expected).sum(axis=0))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found["obsm/X_pca"] * sign, expected, atol=tolerance * scale)
    np.testing.assert_allclose(found["varm/PCs"][genes] * sign, adata.varm["PCs"], atol=tolerance)
    for name in ("variance", "variance_ratio"):
        np.testing.assert_allclose(found["uns/pca"][name], adata.uns["pca"][name], rtol=tolerance)


@pytest.mark.parametrize("solver", ["auto", "arpack", "covariance_eigh"])
def test_components_of_the_variable_genes_are_scanpys(run_pca, values, solver):
    import scanpy as sc

    adata = variable(values)
    sc.pp.pca(adata, n_comps=10, svd_solver="arpack")
    found = run_pca(solver=solver)
    used = values.var["highly_variable"].to_numpy()
    same(found, adata, used)
    assert found["varm/PCs"].shape == (values.n_vars, 10)
    assert not found["varm/PCs"][~used].any()
    np.testing.assert_allclose(np.linalg.norm(found["varm/PCs"], axis=0), 1, rtol=1e-5)
    assert found["uns/pca"]["params"] == {
        "zero_center": True,
        "use_highly_variable": True,
        "mask_var": "highly_variable",
        "svd_solver": solver,
    }


def test_components_of_all_genes_are_scanpys(run_pca, values):
    import scanpy as sc

    adata = values.copy()
    sc.pp.pca(adata, n_comps=10, mask_var=None)
    found = run_pca(use_highly_variable=False)
    same(found, adata)
    params = found["uns/pca"]["params"]
    assert params == {"zero_center": True, "use_highly_variable": False, "svd_solver": "auto"}


@pytest.mark.parametrize("max_value", [2, None])
def test_scaled_values_are_scanpys(run_pca, values, max_value):
    import scanpy as sc

    adata = variable(values)
    adata.X = adata.X.toarray()
    sc.pp.scale(adata, max_value=max_value)
    sc.pp.pca(adata, n_comps=10)
    same(run_pca(scale=True, max_value=max_value), adata, values.var["highly_variable"].to_numpy())


@pytest.mark.parametrize("scale", [False, True])
def test_regressed_values_are_scanpys(run_pca, values, scale):
    import scanpy as sc

    adata = variable(values)
    sc.pp.regress_out(adata, ["total_counts", "pct_counts_mt"])
    if scale:
        sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=10)
    found = run_pca(regress_out=["total_counts", "pct_counts_mt"], scale=scale)
    same(found, adata, values.var["highly_variable"].to_numpy())


def test_regressed_components_do_not_follow_the_covariate(run_pca, values):
    total = values.obs["total_counts"]
    followed = np.corrcoef(total, run_pca()["obsm/X_pca"].T)[0, 1:]
    left = np.corrcoef(total, run_pca(regress_out=["total_counts"])["obsm/X_pca"].T)[0, 1:]
    assert np.abs(followed).max() > 0.2
    assert np.abs(left).max() < 0.001


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("solver", ["auto", "arpack", "randomized"])
def test_without_centring_the_matrix_stays_sparse(run_pca, values, scale, solver, monkeypatch):
    import scanpy as sc

    adata = variable(values)
    if scale:
        sc.pp.scale(adata, max_value=10, zero_center=False)
    library = None if solver == "auto" else solver
    sc.pp.pca(adata, n_comps=10, zero_center=False, svd_solver=library)
    given = []
    monkeypatch.setattr(
        sc.pp, "pca", lambda adata, _pca=sc.pp.pca, **kw: (given.append(adata.X), _pca(adata, **kw))
    )
    found = run_pca(zero_center=False, scale=scale, solver=solver)
    same(found, adata, values.var["highly_variable"].to_numpy())
    assert found["uns/pca"]["params"]["zero_center"] is False
    assert given[0].format == "csr"


def test_a_seed_gives_the_same_again(run_pca):
    first, again = (run_pca(seed=3)["obsm/X_pca"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_fewer_components_where_there_are_no_more(run_pca, values, caplog):
    found = run_pca(n_comps=200)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == (
        f"n_comps is 200, but {values.n_obs} cells × 100 genes have 99 components: "
        "these are computed"
    )
    assert found["obsm/X_pca"].shape == (values.n_obs, 99)
    assert found["varm/PCs"].shape == (values.n_vars, 99)


def test_one_gene_has_no_components(tmp_path, run_pca, values):
    one = np.arange(values.n_vars) == 3
    step_files.write(tmp_path / "one.h5", {"var/highly_variable": one})
    expected = r"× 1 genes have no principal components: raise hvg\.n_top_genes"
    with pytest.raises(UserError, match=expected):
        run_pca(genes=tmp_path / "one.h5")


@pytest.fixture
def with_columns(tmp_path, simulated, prepare):
    """The simulated counts with columns of obs that may be regressed out, or not."""
    adata = simulated.adata.copy()
    n = adata.n_obs
    adata.obs["age"] = np.arange(n) % 7
    adata.obs["treated"] = np.arange(n) % 2 == 0
    adata.obs["part"] = np.where(np.arange(n) % 9 == 0, np.nan, 1.5)
    adata.obs["donor"] = pd.Categorical(np.where(np.arange(n) % 2 == 0, "a", "b"))
    return prepare(tmp_path, adata, min_genes=100, min_cells=10)


@pytest.mark.parametrize("name", ["age", "treated"])
def test_a_column_of_the_counts_may_be_regressed_out(with_columns, run_pca, values, name):
    import scanpy as sc

    adata = variable(values)
    adata.obs[name] = with_columns.kept.obs[name].astype(float)
    sc.pp.regress_out(adata, [name])
    sc.pp.pca(adata, n_comps=10)
    same(run_pca(with_columns, regress_out=[name]), adata, values.var["highly_variable"].to_numpy())


@pytest.mark.parametrize(
    ("name", "found"),
    [("donor", r"found object, e\.g\. \['."), ("part", r"found float64, e\.g\. \[")],
)
def test_a_covariate_that_is_no_number_everywhere_is_refused(with_columns, run_pca, name, found):
    expected = f"pca.regress_out names '{name}', which is not a column of finite numbers .*{found}"
    with pytest.raises(UserError, match=expected):
        run_pca(with_columns, regress_out=["total_counts", name])


def test_a_covariate_that_is_not_there_is_refused(run_pca, simulated):
    expected = "pca.regress_out names 'pct_counts_in_top_9_genes', .*pct_counts_in_top_50_genes"
    with pytest.raises(UserError, match=expected):
        run_pca(regress_out=["pct_counts_in_top_9_genes"])
    assert "batch" in Counts(simulated.counts).table("obs")
