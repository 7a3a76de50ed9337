"""Diffusion map, PAGA and pseudotime: scanpy's, the simulated truth, and every kind of root."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from scripts.neighbors import neighbors
from scripts.trajectory import links, tip, trajectory
from scrna.data import step_files
from scrna.data.graph import open_graph
from scrna.errors import UserError
from tests.unit.steps import SEEDED, settings, store, write_pca

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture
def do(demo, tmp_path):
    """Run the step on the demo or other files; give the slots found."""

    def do(root=None, files=demo, rep="harmony", **own):
        out = tmp_path / "trajectory.h5"
        given = settings("trajectory", label_key="cell_type", root=root, **SEEDED) | own
        trajectory(*files.base, files[f"{rep}/neighbors"], files[f"{rep}/leiden"], out, **given)
        return step_files.read_all(out)

    return do


@pytest.fixture
def line(tmp_path):
    """Make cells along lines, one a separate piece, `n` cells each, ordered from their start."""

    def line(n=150, pieces=1, symbols=("START", "END", "NOWHERE")):
        along = np.linspace(0, 30, n)
        rng = np.random.default_rng(0)
        arrays = [
            np.column_stack([along, rng.normal(0, 0.5, n), np.full(n, 500.0 * piece)])
            for piece in range(pieces)
        ]
        X = np.zeros((n * pieces, 3), np.uint16)
        X[:, 0], X[:, 1] = 100 - np.tile(along, pieces), 60 + np.tile(along, pieces)
        third = np.where(np.arange(n) < n // 3, "early", "late")
        obs = pd.DataFrame({"stage": np.tile(third, pieces), "day": np.arange(n * pieces) // 50})
        obs["partly"] = obs["stage"].where(obs["stage"] == "early")
        obs.index = [f"cell{i}" for i in range(n * pieces)]
        files = store(tmp_path, X, obs, pd.DataFrame(index=list(symbols)))
        step_files.write(files["normalize"], {"obs/size_factor": np.ones(len(X))})
        rep = write_pca(tmp_path, np.vstack(arrays))
        neighbors(rep, files["pca/neighbors"], **settings("neighbors", **SEEDED))
        labels = pd.Categorical(np.tile((np.arange(n) * 3 // n).astype(str), pieces))
        step_files.write(files["pca/leiden"], {"obs/leiden": labels})
        return files

    return line


def assert_same_up_to_sign(found, expected):
    for a, b in zip(found.T, expected.T, strict=True):
        np.testing.assert_allclose(a * np.sign(a @ b), b, atol=1e-4)


# ------------------------------------------------------------------------- diffusion map and PAGA


def test_without_a_root(do, line):
    found = do(files=line(), rep="pca")
    assert set(found) == {"obsm/X_diffmap", "uns/diffmap_evals", "uns/paga", "uns/leiden_sizes"}


def test_the_diffusion_map_is_scanpys(do, line):
    files = line()
    found = do(files=files, rep="pca", n_comps=8)
    adata = open_graph(files["pca/neighbors"])
    sc.tl.diffmap(adata, n_comps=8)
    assert found["obsm/X_diffmap"].dtype == np.float32
    np.testing.assert_allclose(found["uns/diffmap_evals"], adata.uns["diffmap_evals"], atol=1e-5)
    assert_same_up_to_sign(found["obsm/X_diffmap"], adata.obsm["X_diffmap"])
    ordered = abs(np.corrcoef(found["obsm/X_diffmap"][:, 1], np.arange(150))[0, 1])
    assert ordered > 0.95


def assert_scanpys_paga(found, adata, groups):
    sc.tl.paga(adata, groups=groups)
    for key in ("connectivities", "connectivities_tree"):
        a, b = found[key], adata.uns["paga"][key]
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


def graph_of(X, n_neighbors, **labels):
    adata = ad.AnnData(obs=pd.DataFrame(labels).set_axis(np.arange(len(X)).astype(str)))
    adata.obsm["X_pca"] = X
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca")
    return adata


def test_paga_is_scanpys(demo, do):
    found = do()
    adata = open_graph(demo["harmony/neighbors"])
    adata.obsp["distances"] = step_files.read(demo["harmony/neighbors"], "obsp/distances")
    adata.obs["leiden"] = step_files.read(demo["harmony/leiden"], "obs/leiden")
    assert_scanpys_paga(found["uns/paga"], adata, "leiden")
    assert found["uns/paga"]["groups"] == "leiden"
    sizes = adata.obs["leiden"].value_counts(sort=False)
    assert list(found["uns/leiden_sizes"]) == list(sizes)


@pytest.mark.parametrize("groups", ["bulk_labels", "louvain", "phase"])
def test_paga_of_real_cells_is_scanpys(groups):
    adata = sc.datasets.pbmc68k_reduced()
    assert_scanpys_paga(links(adata.obsp["distances"], adata.obs[groups].array), adata, groups)


@pytest.mark.parametrize("k", [2, 12, 80])
@pytest.mark.parametrize("mixed", [False, True], ids=["apart", "mixed"])
def test_paga_of_few_and_many_clusters_is_scanpys(k, mixed):
    """Where clusters mix, many links are as strong as can be: the tree is one of several."""
    rng = np.random.default_rng(k)
    codes = rng.integers(0, k, 1000)
    X = rng.normal(size=(1000, 5)) + (0 if mixed else 3 * rng.normal(size=(k, 5))[codes])
    adata = graph_of(X, 10, group=pd.Categorical(codes))
    found = links(adata.obsp["distances"], adata.obs["group"].array)
    if mixed:
        assert (found["connectivities"].data == 1).any()
    assert_scanpys_paga(found, adata, "group")


def test_paga_counts_every_edge_as_scanpy_does():
    """Cells at distance 0, a cell that is its own neighbor, cells without any, one edge across."""
    distances = sparse.coo_matrix(
        ([0.0, 0.0, 1.0, 2.0, 0.0, 0.5], ([0, 1, 2, 3, 4, 4], [1, 0, 3, 2, 4, 2])), (7, 7)
    ).tocsr()
    adata = ad.AnnData(obs=pd.DataFrame({"group": pd.Categorical(list("aaaabbb"))}).rename(str))
    adata.obsp["distances"] = adata.obsp["connectivities"] = distances
    adata.uns["neighbors"] = {"params": {"n_neighbors": 2}}
    found = links(distances, adata.obs["group"].array)
    assert found["connectivities"][0, 1] == 1 / ((4 * 3 + 2 * 4) / 6)
    assert_scanpys_paga(found, adata, "group")


def test_paga_joins_the_types_along_the_trajectory(demo, do):
    links = do()["uns/paga"]["connectivities"].toarray()
    of = pd.crosstab(
        np.asarray(step_files.read(demo["harmony/leiden"], "obs/leiden")),
        demo.obs()["cell_type"].to_numpy(),
    )
    place = {type_: of.index.get_loc(of[type_].idxmax()) for type_ in of}
    fork = place["type_2"]
    assert all(links[fork, place[f"type_{i}"]] > 0.1 for i in (1, 3, 4))
    assert links[place["type_1"], place["type_3"]] < 0.1
    assert links[place["type_5"]].max() == links[place["type_6"]].max() == 0


def test_paga_of_one_cluster(do, line):
    files = line()
    step_files.write(files["pca/leiden"], {"obs/leiden": pd.Categorical(["0"] * 150)})
    found = do(files=files, rep="pca")
    assert list(found["uns/leiden_sizes"]) == [150]
    assert found["uns/paga"]["connectivities"].shape == (1, 1)


def test_paga_of_clusters_without_a_link(do, line):
    files = line(n=60, pieces=2)
    step_files.write(files["pca/leiden"], {"obs/leiden": pd.Categorical(["0"] * 60 + ["1"] * 60)})
    found = do(files=files, rep="pca")
    assert list(found["uns/leiden_sizes"]) == [60, 60]
    assert found["uns/paga"]["connectivities"].shape == (2, 2)
    assert found["uns/paga"]["connectivities_tree"].nnz == 0


def test_more_components_than_cells_have(do, line):
    found = do({"cluster": "0"}, line(n=18), "pca", n_comps=50, n_dcs=40)
    assert found["obsm/X_diffmap"].shape == (18, 16)
    assert np.isfinite(found["obs/dpt_pseudotime"]).all()


# ------------------------------------------------------------------------------------- pseudotime


def test_pseudotime_is_scanpys(do, line):
    files = line()
    found = do({"cell": "cell3"}, files, "pca", n_dcs=6)
    adata = open_graph(files["pca/neighbors"])
    adata.uns["iroot"] = 3
    sc.tl.diffmap(adata, n_comps=15)
    sc.tl.dpt(adata, n_dcs=6)
    np.testing.assert_allclose(found["obs/dpt_pseudotime"], adata.obs["dpt_pseudotime"], atol=1e-4)
    assert found["obs/dpt_pseudotime"].dtype == np.float32
    assert found["uns/iroot"] == 3


def test_pseudotime_with_a_scanpy_that_needs_the_graph(line, do, monkeypatch):
    files = line()
    expected = do(root={"cell": "cell0"}, files=files, rep="pca")["obs/dpt_pseudotime"]
    dpt, graphs = sc.tl.dpt, []

    def needs_graph(adata, **settings):
        graphs.append(adata.obsp["connectivities"])
        dpt(adata, **settings)

    monkeypatch.setattr(sc.tl, "dpt", needs_graph)
    found = do(root={"cell": "cell0"}, files=files, rep="pca")["obs/dpt_pseudotime"]
    assert len(graphs) == 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_pseudotime_is_the_simulated_one(demo, rep):
    values = step_files.read(demo[f"{rep}/trajectory"], "obs/dpt_pseudotime")
    truth = demo.obs()["pseudotime"].to_numpy()
    on = np.isfinite(values) & np.isfinite(truth)
    assert on.sum() > 0.95 * np.isfinite(truth).sum()
    assert np.corrcoef(values[on], truth[on])[0, 1] > 0.95
    assert pd.Series(values[on]).corr(pd.Series(truth[on]), method="spearman") > 0.8
    assert values[on].min() == 0
    assert values[on].max() == 1


def test_the_root_of_a_label_is_its_true_tip(demo, do):
    truth = demo.obs()["pseudotime"].to_numpy()
    of_type = demo.obs()["cell_type"].to_numpy()
    for type_, end in (("type_1", 0), ("type_3", 1), ("type_4", 1)):
        root = int(do({"label": type_})["uns/iroot"])
        members = of_type == type_
        assert members[root]
        assert abs(truth[root] - end) < 0.1  # members are up to 0.25 away, the farthest inside


@pytest.mark.parametrize(("cluster", "lowest"), [("0", 0), (2, 149)])
def test_the_root_of_a_cluster_is_its_tip(do, line, cluster, lowest):
    found = do({"cluster": cluster}, line(), "pca")
    assert abs(int(found["uns/iroot"]) - lowest) < 8
    assert found["obs/dpt_pseudotime"][found["uns/iroot"]] == 0
    moved = abs(np.corrcoef(found["obs/dpt_pseudotime"], np.arange(150))[0, 1])
    assert moved > 0.9


@pytest.mark.parametrize(("symbol", "root"), [("START", 0), ("END", 149)])
def test_the_root_of_a_gene_is_its_highest_cell(do, line, symbol, root):
    files = line()
    found = do({"gene": symbol}, files, "pca")
    X = ad.read_zarr(files.counts)[:, symbol].X.toarray().ravel()
    assert X[found["uns/iroot"]] == X.max()
    assert abs(int(found["uns/iroot"]) - root) < 6


def test_a_gene_is_compared_after_normalisation(do, line):
    files = line()
    factor = np.ones(150)
    factor[:100] = 10  # deeply sequenced cells: their many counts are not high expression
    step_files.write(files["normalize"], {"obs/size_factor": factor})
    assert do({"gene": "START"}, files, "pca")["uns/iroot"] >= 100


def test_a_root_counts_kept_cells(do, line):
    files = line()
    keep = np.ones(150, bool)
    keep[:10] = False
    masks = {"obs/keep": keep, "var/keep": np.ones(3, bool)}
    masks["var/n_cells_kept"] = ad.read_zarr(files.counts).X[keep].getnnz(axis=0)
    step_files.write(files["filter"], masks)
    step_files.write(files["normalize"], {"obs/size_factor": np.ones(140)})
    rep = write_pca(files.folder, step_files.read(files["pca/pca"], "obsm/X_pca")[keep])
    neighbors(rep, files["pca/neighbors"], **settings("neighbors", **SEEDED))
    labels = step_files.read(files["pca/leiden"], "obs/leiden")[keep]
    step_files.write(files["pca/leiden"], {"obs/leiden": labels})
    assert do({"cell": "cell10"}, files, "pca")["uns/iroot"] == 0
    assert do({"gene": "END"}, files, "pca")["uns/iroot"] > 130
    label = do({"label": "early"}, files, "pca", label_key="stage")
    assert label["uns/iroot"] < 8
    with pytest.raises(UserError, match="'cell3' did not pass the filter"):
        do({"cell": "cell3"}, files, "pca")


# ----------------------------------------------------------------------------- a graph in pieces


def test_pieces_without_the_root_have_no_pseudotime(do, line, caplog):
    files = line(n=60, pieces=3)
    found = do({"cell": "cell70"}, files, "pca")
    reached = np.isfinite(found["obs/dpt_pseudotime"])
    np.testing.assert_array_equal(np.flatnonzero(reached), np.arange(60, 120))
    assert found["obs/dpt_pseudotime"][70] == 0
    assert found["uns/iroot"] == 70
    assert "the neighbor graph has 3 separate pieces, the largest with 60 cells" in caplog.text


def test_pseudotime_of_a_piece_does_not_depend_on_the_others(do, line):
    """Twelve pieces: the graph's first twelve components only tell them apart."""
    found = do({"cell": "cell0"}, line(n=40, pieces=12), "pca")
    alone = do({"cell": "cell0"}, line(n=40), "pca")
    np.testing.assert_allclose(
        found["obs/dpt_pseudotime"][:40], alone["obs/dpt_pseudotime"], atol=1e-3
    )
    assert np.corrcoef(alone["obs/dpt_pseudotime"], np.arange(40))[0, 1] > 0.95


def test_a_label_in_several_pieces_starts_in_the_one_with_most_of_it(do, line):
    files = line(n=60, pieces=2)
    labels = np.array(["x"] * 10 + ["y"] * 50 + ["x"] * 30 + ["y"] * 30)
    step_files.write(files["pca/leiden"], {"obs/leiden": pd.Categorical(labels)})
    found = do({"cluster": "x"}, files, "pca")
    assert 60 <= found["uns/iroot"] < 68
    assert np.isfinite(found["obs/dpt_pseudotime"]).sum() == 60


def test_the_demos_islands_are_off_the_trajectory(demo):
    values = step_files.read(demo["harmony/trajectory"], "obs/dpt_pseudotime")
    islands = demo.obs()["cell_type"].isin(["type_5", "type_6"]).to_numpy()
    assert np.isnan(values[islands]).mean() > 0.95
    graph = open_graph(demo["harmony/neighbors"]).obsp["connectivities"]
    _, piece = connected_components(graph, directed=False)
    root = step_files.read(demo["harmony/trajectory"], "uns/iroot")
    np.testing.assert_array_equal(np.isfinite(values), piece == piece[root])


def test_a_piece_too_small_for_a_trajectory(do, line):
    files = line(n=60)
    graph = sparse.block_diag([sparse.coo_matrix(np.ones((n, n))) for n in (56, 4)], format="csr")
    graph.setdiag(0)
    graph.eliminate_zeros()
    found = step_files.read_all(files["pca/neighbors"])
    found |= {f"obsp/{name}": graph for name in ("connectivities", "distances")}
    step_files.write(files["pca/neighbors"], found)
    with pytest.raises(UserError, match=r"has 4 cells, too few for a trajectory\. Raise neighbors"):
        do({"cell": "cell58"}, files, "pca")


# ------------------------------------------------------------------------------------ wrong roots


@pytest.mark.parametrize(
    ("root", "match"),
    [
        (
            {"cell": "nobody"},
            r"trajectory\.root\.cell 'nobody' is not among the cells .*named like 'cell0'",
        ),
        (
            {"cluster": "9"},
            r"trajectory\.root\.cluster '9' is no Leiden cluster; there are 0, 1, 2",
        ),
        (
            {"label": "middle"},
            r"trajectory\.root\.label 'middle' is not in obs 'stage'; there are early, late",
        ),
        ({"gene": "ELSE"}, r"trajectory\.root\.gene 'ELSE' is not among the gene symbols"),
        (
            {"gene": "NOWHERE"},
            r"trajectory\.root\.gene 'NOWHERE' is expressed in none of the kept cells",
        ),
    ],
    ids=lambda value: "-".join(*value.items()) if isinstance(value, dict) else "",
)
def test_a_root_that_is_not_there(do, line, root, match):
    with pytest.raises(UserError, match=match):
        do(root, line(), "pca", label_key="stage")


def test_labels_that_some_cells_lack(do, line):
    files = line()
    with pytest.raises(UserError, match=r"'late' is not in obs 'partly'; there are early$"):
        do({"label": "late"}, files, "pca", label_key="partly")
    assert do({"label": "early"}, files, "pca", label_key="partly")["uns/iroot"] < 8


def test_numbers_as_labels(do, line):
    files = line()
    assert do({"label": "2"}, files, "pca", label_key="day")["uns/iroot"] > 140
    with pytest.raises(UserError, match=r"'3' is not in obs 'day'; there are 0, 1, 2$"):
        do({"label": "3"}, files, "pca", label_key="day")


# ------------------------------------------------------------------------------------------- tip


def test_tip_follows_the_slow_components():
    """The first component is large but stationary, the last one noise: neither decides."""
    n = 100
    rng = np.random.default_rng(0)
    diffmap = np.column_stack(
        [rng.normal(0, 5, n), np.linspace(-1, 1, n), rng.normal(0, 3, n)]
    ).astype(np.float32)
    evals = np.array([1.0, 0.99, 0.01], dtype=np.float32)
    early, late = np.arange(n) < 40, np.arange(n) >= 60
    assert tip(diffmap, evals, early) == 0
    assert tip(diffmap, evals, late) == 99
    assert tip(diffmap, evals, np.arange(n) == 50) == 50
