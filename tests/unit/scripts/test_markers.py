"""Marker genes: scanpy's numbers, as a table; and groups that cannot be tested."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scripts.markers import markers
from scrna.data import step_files
from scrna.data.unnamed import anndata_without_names
from scrna.errors import UserError
from tests.unit.steps import CPU, settings, store

pytest_plugins = ["tests.unit.fixtures"]
COLUMNS = "group names scores logfoldchanges pvals pvals_adj pct_nz_group pct_nz_reference".split()


def read(table):
    return pd.read_csv(table, dtype={"group": str})


@pytest.fixture
def do(demo, tmp_path):
    """Rank genes for the demo's clusters or another analysis' groups; give table and slots."""

    def do(files=demo, clusters="harmony/leiden", **own):
        out, table = tmp_path / "markers.h5", tmp_path / "markers.csv"
        clusters = files[clusters] if clusters else []
        markers(*files.base, clusters, out, table, **settings("markers", **CPU | own))
        return read(table), step_files.read_all(out)

    return do


@pytest.fixture
def by_hand(tmp_path):
    """Make counts with groups: genes of the first half mark the first group, and so on."""

    def by_hand(labels, n_genes=12):
        labels = pd.Series(labels)
        rng = np.random.default_rng(0)
        rate = np.ones((len(labels), n_genes))
        groups = labels.dropna().unique()
        for i, group in enumerate(groups):
            width = n_genes // len(groups)
            rate[labels == group, i * width : (i + 1) * width] = 6
        X = rng.poisson(rate).astype(np.uint16)
        genes = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
        files = store(tmp_path, X, pd.DataFrame({"kind": labels}), genes)
        step_files.write(files["normalize"], {"obs/size_factor": X.sum(axis=1) / 1e4})
        return files

    return by_hand


@pytest.mark.parametrize("method", ["wilcoxon", "t-test", "t-test_overestim_var", "logreg"])
def test_the_table_is_scanpys(demo, do, method):
    found, written = do(method=method)
    adata = demo.lognorm()
    adata.obs["leiden"] = step_files.read(demo["harmony/leiden"], "obs/leiden")
    sc.tl.rank_genes_groups(adata, "leiden", method=method, pts=True)
    expected = sc.get.rank_genes_groups_df(adata, None)
    has = [column for column in COLUMNS if column in expected]
    assert list(found) == has
    assert len(found) == len(expected) == adata.n_vars * adata.obs["leiden"].nunique()
    keys = ["group", "names"]
    found = found.set_index(keys)
    expected = expected.astype({"group": str}).set_index(keys).loc[found.index]
    for column in has[2:]:
        np.testing.assert_allclose(
            found[column], expected[column], rtol=2e-4, atol=2e-4, err_msg=column
        )
    for _, scores in found["scores"].groupby(level=0):
        assert scores.is_monotonic_decreasing
    params = written["uns/rank_genes_groups"]["params"]
    assert params["groupby"] == "leiden"
    assert params["method"] == method


def test_what_is_written_is_what_scanpy_reads(demo, do):
    found, written = do(n_genes=20)
    adata = demo.lognorm()
    adata.uns = {"rank_genes_groups": written["uns/rank_genes_groups"]}
    read_back = sc.get.rank_genes_groups_df(adata, None)
    assert list(read_back["names"]) == list(found["names"])
    np.testing.assert_allclose(read_back["scores"], found["scores"], rtol=1e-5)
    np.testing.assert_allclose(read_back["pct_nz_group"], found["pct_nz_group"], rtol=1e-5)


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_true_markers_come_first(demo, rep):
    found = read(demo.folder / rep / "markers.csv")
    truth = pd.crosstab(
        np.asarray(step_files.read(demo[f"{rep}/leiden"], "obs/leiden")),
        demo.obs()["cell_type"].to_numpy(),
    ).idxmax(axis=1)
    for group, type_ in truth.items():
        top = found.loc[found["group"] == group, "names"].head(8)
        assert top.str.startswith(f"MARK{type_[-1]}-").mean() > 0.8


def test_fractions_are_of_cells_with_the_gene(demo, do):
    found, _ = do(n_genes=5)
    adata = demo.lognorm()
    labels = np.asarray(step_files.read(demo["harmony/leiden"], "obs/leiden"))
    for row in found.itertuples():
        has = adata[:, row.names].X.toarray().ravel() > 0
        assert row.pct_nz_group == pytest.approx(has[labels == row.group].mean(), rel=1e-4)
        assert row.pct_nz_reference == pytest.approx(has[labels != row.group].mean(), rel=1e-4)


def test_a_number_of_genes(do):
    found, written = do(n_genes=7)
    assert (found.groupby("group").size() == 7).all()
    assert len(written["uns/rank_genes_groups"]["names"]) == 7


def test_bonferroni_and_ties(do):
    usual, strict, tied = (
        do(**own)[0].set_index(["group", "names"]).sort_index()
        for own in ({}, {"corr_method": "bonferroni"}, {"tie_correct": True})
    )
    assert (strict["pvals_adj"] >= usual["pvals_adj"]).all()
    assert (strict["pvals_adj"] > usual["pvals_adj"]).any()
    assert (tied["scores"].abs() >= usual["scores"].abs()).all()
    assert (tied["scores"].abs() > usual["scores"].abs()).any()


# --------------------------------------------------------------------------------- columns of obs


def test_a_column_of_obs(demo, do):
    found, written = do(clusters=None, groupby="cell_type", n_genes=5)
    types = [f"type_{i}" for i in range(1, 7)]
    assert sorted(found["group"].unique()) == types
    for row in found.itertuples():
        assert row.names.startswith(f"MARK{row.group[-1]}-")
    assert written["uns/rank_genes_groups"]["names"].dtype.names == tuple(types)


def test_a_further_grouping_has_a_name_of_its_own(do):
    _, written = do(clusters=None, groupby="cell_type", n_genes=5, key_added="rank_of_types")
    assert {name.split("/")[1] for name in written} == {"rank_of_types"}


def test_a_column_that_is_not_there_is_named(do):
    with pytest.raises(UserError, match=r"obs has no column 'celltype' .*; there are .*cell_type"):
        do(clusters=None, groupby="celltype")


def test_a_clustering_of_a_list(demo, do, tmp_path):
    labels = step_files.read(demo["harmony/leiden"], "obs/leiden")
    step_files.write(tmp_path / "two.h5", {"obs/leiden": labels, "obs/leiden_0.6": labels})
    out, table = tmp_path / "markers.h5", tmp_path / "markers.csv"
    given = settings("markers", **CPU, groupby="leiden_0.6", n_genes=3)
    markers(*demo.base, tmp_path / "two.h5", out, table, **given)
    assert step_files.read(out, "uns/rank_genes_groups")["params"]["groupby"] == "leiden_0.6"


def test_numbers_as_groups(by_hand, do):
    found, _ = do(by_hand([1] * 30 + [2] * 30), None, groupby="kind", n_genes=3)
    assert sorted(found["group"].unique()) == ["1", "2"]
    assert set(found["names"][found["group"] == "1"]) <= {f"gene{i}" for i in range(6)}


def test_truth_values_as_groups(by_hand, do):
    found, _ = do(by_hand([True] * 30 + [False] * 30), None, groupby="kind", n_genes=3)
    assert sorted(found["group"].unique()) == ["False", "True"]


def test_cells_without_a_label_are_part_of_the_rest(by_hand, do):
    labels = ["a"] * 30 + ["b"] * 30 + [None] * 30
    found, _ = do(by_hand(labels, n_genes=8), None, groupby="kind")
    assert sorted(found["group"].unique()) == ["a", "b"]
    a = found[found["group"] == "a"].set_index("names")
    assert set(a["scores"].nlargest(4).index) == {f"gene{i}" for i in range(4)}
    b_alone, _ = do(by_hand(["b"] * 30 + [None] * 60, n_genes=8), None, groupby="kind")
    assert list(b_alone["group"].unique()) == ["b"]
    assert b_alone["scores"].notna().all()


def test_small_groups_are_left_out_and_stay_in_the_rest(by_hand, do, caplog):
    files = by_hand(["a"] * 30 + ["b"] * 30 + ["c"] * 9 + ["d"] * 2)
    found, written = do(files, None, groupby="kind")
    assert sorted(found["group"].unique()) == ["a", "b"]
    assert (
        "groups left out, with fewer than markers.min_cells (10) cells: c (9 cells), d (2 cells)"
        in caplog.text
    )
    assert set(written["uns/rank_genes_groups"]["pts"]) == {"a", "b"}
    more, _ = do(files, None, groupby="kind", min_cells=2)
    assert sorted(more["group"].unique()) == ["a", "b", "c", "d"]
    pd.testing.assert_frame_equal(found, more[more["group"].isin(["a", "b"])], check_like=True)


def test_one_group_of_several_is_large_enough(by_hand, do):
    found, _ = do(by_hand(["a"] * 30 + ["c"] * 9), None, groupby="kind")
    assert list(found["group"].unique()) == ["a"]


def test_no_group_is_large_enough(by_hand, do):
    files = by_hand([f"cell{i}" for i in range(12)])
    with pytest.raises(
        UserError,
        match=r"no group of 'kind' has markers\.min_cells \(10\) cells; the largest has 1\. Lower",
    ):
        do(files, None, groupby="kind")


def test_no_labels_at_all(by_hand, do):
    files = by_hand(pd.Series([np.nan] * 30))
    with pytest.raises(UserError, match="the largest has 0"):
        do(files, None, groupby="kind")


@pytest.mark.parametrize("method", ["wilcoxon", "logreg"])
def test_one_group_makes_an_empty_table(by_hand, do, caplog, method):
    found, written = do(by_hand(["a"] * 30), None, groupby="kind", method=method)
    assert list(found) == COLUMNS
    assert len(found) == 0
    assert written == {}
    assert "kind has one group, nothing to compare it with" in caplog.text


def test_logistic_regression_of_two_groups(by_hand, do, caplog):
    found, _ = do(by_hand(["a"] * 30 + ["b"] * 30), None, groupby="kind", method="logreg")
    assert len(found["group"].unique()) == 1
    assert "logreg has one list for two groups: genes of b are first, genes of a last" in (
        caplog.text
    )
    assert set(found["names"].head(6)) == {f"gene{i}" for i in range(6, 12)}


def test_logistic_regression_needs_two_groups(by_hand, do):
    files = by_hand(["a"] * 30 + ["c"] * 9)
    with pytest.raises(UserError, match=r"only one of 'kind' has markers\.min_cells \(10\) cells"):
        do(files, None, groupby="kind", method="logreg")


def test_logistic_regression_leaves_out_small_groups(by_hand, do):
    labels = ["a"] * 30 + ["b"] * 30 + ["c"] * 30 + ["d"] * 5 + [None] * 5
    found, _ = do(by_hand(labels), None, groupby="kind", method="logreg")
    assert sorted(found["group"].unique()) == ["a", "b", "c"]
    for i, group in enumerate("abc"):
        assert set(found["names"][found["group"] == group].head(3)) == {
            f"gene{3 * i + j}" for j in range(3)
        }


@pytest.mark.parametrize("obs", [None, {}, {"a": pd.Series([5, 6, 7], index=[7, 1, 0])}])
def test_cells_without_names_keep_their_order_and_values(obs):
    X = sp.csr_matrix(np.eye(3, 2, dtype=np.float32))
    adata = anndata_without_names(3, X, obs=obs, obsm={"X_pca": np.ones((3, 4))})
    assert adata.obs_names.tolist() == ["0", "1", "2"]
    assert adata.obs.to_dict("list") == ({"a": [5, 6, 7]} if obs else {})
    assert adata.X is X
    assert anndata_without_names(3, obs=obs).shape == (3, 0)
