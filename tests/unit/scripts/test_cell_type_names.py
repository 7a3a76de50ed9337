"""Names of clusters from markers: of real cells, of shuffled markers, of another tissue."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scripts.cell_type_names import _means, cell_type_names
from scrna.config.gene_set_files import read_markers
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.gene_lists import find_known
from scrna.errors import UserError
from scrna.methods.marker_names import SPREAD, best_types, type_scores, z_scores
from tests.unit.steps import settings

pytest_plugins = ["tests.unit.fixtures"]
DEFAULT = settings("cell_types")["min_margin"]


def marker_table(**own) -> dict:
    """Cell type → its positive genes; those after None are negative."""
    found = {}
    for name, genes in own.items():
        at = genes.index(None) if None in genes else len(genes)
        found[name] = {"positive": genes[:at], "negative": genes[at + 1 :]}
    return found


@pytest.fixture
def do(demo, tmp_path):
    def do(markers, clusters="harmony/leiden", files=None, **own):
        out, table = tmp_path / "names.h5", tmp_path / "names.csv"
        base = files or demo.base
        path = demo[clusters] if isinstance(clusters, str) else clusters
        given = settings("cell_types", **{"markers": markers} | own)
        cell_type_names(*base, path, out, table, **given)
        return step_files.read_all(out), pd.read_csv(table, dtype={"group": str})

    return do


@pytest.fixture(scope="module")
def simulated_markers(demo) -> dict:
    """The simulator's markers of each of its types."""
    var = demo.lognorm().var
    names = var.index[var["marker_of"].astype(str).str.startswith("type_")]
    of = var.loc[names, "marker_of"].astype(str)
    return {
        name: {"positive": names[of == name].tolist(), "negative": []} for name in sorted(set(of))
    }


def test_clusters_get_the_names_of_their_types(demo, do, simulated_markers):
    """Where a cluster is of one type by three in four of its cells, that is its name."""
    found, table = do(simulated_markers)
    truth = demo.obs()["cell_type"].astype(str).to_numpy()
    clusters = step_files.read(demo["harmony/leiden"], "obs/leiden")
    named = 0
    for row in table.itertuples():
        shares = pd.Series(truth[np.asarray(clusters) == row.group]).value_counts(normalize=True)
        if shares.iloc[0] > 0.75 and row.cell_type != "unsure":
            assert row.cell_type == shares.index[0]
            named += 1
    assert named >= 4
    auto = pd.Series(np.asarray(found["obs/cell_type_auto"]))
    of_group = dict(zip(table["group"], table["cell_type"], strict=True))
    assert (auto == pd.Series(np.asarray(clusters)).map(of_group)).all()


def test_scores_are_what_the_page_says(demo, do, simulated_markers):
    """By hand from the matrix: z over clusters, mean of the positive less half of the negative."""
    markers = {name: dict(own) for name, own in simulated_markers.items()}
    other = markers["type_2"]["positive"][:3]
    markers["type_1"]["negative"] = other
    found, table = do(markers)
    adata = demo.lognorm()
    clusters = np.asarray(step_files.read(demo["harmony/leiden"], "obs/leiden"))
    X = pd.DataFrame(adata.X.toarray(), columns=adata.var_names).groupby(clusters).mean()
    z = (X - X.mean(axis=0)) / (X.std(axis=0, ddof=0) + 0.1)
    expected = z[markers["type_1"]["positive"]].mean(axis=1) - z[other].mean(axis=1) / 2
    names = found["uns/cell_type_names"]
    scores = pd.DataFrame(names["scores"], names["groups"], names["types"])
    np.testing.assert_allclose(scores["type_1"][expected.index], expected, atol=1e-5)
    best = scores.idxmax(axis=1)
    assert (table.set_index("group")["best"] == best[table["group"]]).all()
    second = np.sort(scores, axis=1)[:, -2]
    margin = scores.max(axis=1) - np.maximum(second, 0)
    np.testing.assert_allclose(table["margin"], margin, atol=1e-4)
    is_unsure = table["cell_type"] == "unsure"
    assert (is_unsure == (margin.to_numpy() < DEFAULT)).all()


def test_symbols_may_be_in_another_case_and_genes_may_have_ids(demo, do, simulated_markers):
    expected, _ = do(simulated_markers)
    ids = demo.lognorm().var["gene_ids"]
    other = {
        name: {
            "positive": [
                gene.lower() if place % 2 else ids[gene]
                for place, gene in enumerate(own["positive"])
            ],
            "negative": [],
        }
        for name, own in simulated_markers.items()
    }
    found, _ = do(other)
    uns = [each["uns/cell_type_names"]["scores"] for each in (expected, found)]
    np.testing.assert_array_equal(*uns)


def test_genes_that_are_not_there_are_named(do, simulated_markers, caplog):
    markers = simulated_markers | marker_table(absent=["NONE-1"], partly=["NONE-2", "MARK1-1"])
    found, _ = do(markers)
    assert "left out: NONE-1, NONE-2" in caplog.text
    assert "types without a marker in the data are left out: absent" in caplog.text
    assert "absent" not in found["uns/cell_type_names"]["types"]
    assert "partly" in found["uns/cell_type_names"]["types"]


def test_without_any_marker_there_are_no_names(do):
    with pytest.raises(UserError, match="none of the markers of a, b is in the data"):
        do(marker_table(a=["NONE-1"], b=["NONE-2"]))


def test_a_group_alone_is_unsure(demo, do, simulated_markers, tmp_path, caplog):
    n = len(step_files.read(demo["harmony/leiden"], "obs/leiden"))
    one = tmp_path / "leiden.h5"
    step_files.write(one, {"obs/leiden": step_files.Categories(np.zeros(n, int), ["0"])})
    for margin in (0, DEFAULT):
        _, table = do(simulated_markers, one, min_margin=margin)
        assert table["cell_type"].tolist() == ["unsure"]
    assert "leiden has one group" in caplog.text


def test_a_column_of_obs_is_named_and_cells_without_a_group_are_not(
    demo, simulated_markers, tmp_path
):
    files = demo.base
    out, table = tmp_path / "names.h5", tmp_path / "names.csv"
    given = settings("cell_types", markers=simulated_markers, by="branch")
    cell_type_names(*files, [], out, table, **given)
    branch = demo.obs()["branch"]
    auto = step_files.read(out, "obs/cell_type_auto")
    assert branch.isna().any()
    assert (pd.isna(auto) == branch.isna().to_numpy()).all()


def test_no_name_without_a_margin():
    scores = np.array([[1.0, 0.6, 0], [0.4, -1, -2], [0.6, -1, -2], [-0.1, -2, -3]])
    found = best_types(scores, ["a", "b", "c"], min_margin=0.5, unsure="unsure")
    assert found["cell_type"].tolist() == ["unsure", "unsure", "a", "unsure"]
    assert found["second"].tolist() == ["b"] * 4
    one = best_types(scores[:, :1], ["a"], min_margin=0.5, unsure="unsure")
    assert one["cell_type"].tolist() == ["a", "unsure", "a", "unsure"]
    assert best_types(scores, ["a", "b", "c"], min_margin=0, unsure="unsure")["cell_type"][3] == (
        "unsure"
    )


def test_a_gene_that_hardly_varies_says_little():
    means = np.array([[0.02, 2.0], [0.0, 0.0], [0.0, 0.0]])
    quiet, loud = z_scores(means)[0]
    assert loud == pytest.approx(np.sqrt(2), rel=0.15)
    assert quiet < 0.02 / SPREAD


# -------------------------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def pbmc(real_data, tmp_path_factory, prepare):
    """The cells of scanpy's tutorial, and its names of them."""
    adata = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    bounds = {"min_genes": 200, "max_genes": 2499, "max_pct_mt": 5}
    folder = tmp_path_factory.mktemp("pbmc")
    return prepare(folder, adata, **bounds)


def test_names_of_pbmc3k_are_the_tutorials(pbmc, tmp_path):
    out, table = tmp_path / "names.h5", tmp_path / "names.csv"
    given = settings("cell_types", markers=read_markers("pbmc", "key"), by="scanpy_louvain")
    cell_type_names(pbmc.counts, pbmc.filtered, pbmc.normalized, [], out, table, **given)
    found = pd.read_csv(table).set_index("group")
    types = found.drop(index="filtered_out", errors="ignore")
    assert len(types) == 8
    assert (types["cell_type"] == types.index).sum() >= 7


def test_shuffled_markers_name_hardly_any_cluster(pbmc):
    """Genes dealt out anew to the types, as many to each: over 50 seeds 90 % are unsure."""
    markers = read_markers("pbmc", "key")
    groups = pd.Categorical(pbmc.kept.obs["scanpy_louvain"].astype(str))
    listed = {gene for own in markers.values() for genes in own.values() for gene in genes}
    places = find_known(sorted(listed), Counts(pbmc.counts).genes(), list)[0]
    base = pbmc.counts, pbmc.filtered, pbmc.normalized
    z = z_scores(_means(*base, groups, np.array([*places.values()])))
    slots = [
        (name, sign, gene)
        for name, own in markers.items()
        for sign in ("positive", "negative")
        for gene in own[sign]
    ]
    column = {gene: number for number, gene in enumerate(places)}
    unsure = []
    for seed in range(50):
        dealt = np.random.default_rng(seed).permutation([gene for *_, gene in slots])
        types = {name: ([], []) for name in markers}
        for (name, sign, _), gene in zip(slots, dealt, strict=True):
            if gene in column:
                types[name][sign == "negative"].append(column[gene])
        types = {name: tuple(map(np.array, own)) for name, own in types.items() if own[0]}
        scores = type_scores(z, types)
        named = best_types(scores, list(types), min_margin=DEFAULT, unsure="unsure")
        unsure += (named["cell_type"] == "unsure").tolist()
    assert np.mean(unsure) >= 0.9


def test_cells_of_another_tissue_are_mostly_unsure(real_data, tmp_path, prepare):
    adata = ad.read_h5ad(real_data / "celllines/celllines_5batch.h5ad")
    adata.var_names = adata.var["feature_name"].astype(str).to_numpy()
    adata.var_names_make_unique()
    files = prepare(tmp_path, adata, min_genes=1, max_genes=None, max_pct_mt=None)
    out, table = tmp_path / "names.h5", tmp_path / "names.csv"
    given = settings("cell_types", markers=read_markers("pbmc", "key"), by="cell_line")
    cell_type_names(files.counts, files.filtered, files.normalized, [], out, table, **given)
    assert (pd.read_csv(table)["cell_type"] == "unsure").mean() >= 0.8
