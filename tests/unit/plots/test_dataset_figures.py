"""Pictures, by what they draw: artists, limits, labels."""

import json

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scripts import qc_figures as quality
from scripts.figures import (
    cell_groups,
    clusters,
    diffusion_map,
    embedding,
    figures,
    genes,
    trajectories,
    tsne,
)
from scripts.filter import filter_cells
from scripts.final import annotated
from scrna import file_list
from scrna.data import step_files
from scrna.data.graph import STATIONARY
from scrna.errors import UserError
from scrna.methods.cell_types import cell_types
from scrna.plots import dataset_figures as draw
from scrna.plots import quality_figures as quality_draw
from scrna.plots import saving, style
from scrna.plots import trajectory_figures as of_trajectory
from scrna.plots.colours import MISSING, PALETTE, colours_of
from tests.unit.steps import settings

pytest_plugins = ["tests.unit.fixtures"]

QUALITY = ["qc_violins", "qc_scatter", "filter"]
NAMES = "hvg pca_variance umap clusters_by_batch clusters_by_cell_type tsne trajectory".split()
NAMES += ["diffmap"]


def inputs(demo):
    steps = [f for f in demo.steps if f.stem in "pca umap tsne leiden trajectory".split()]
    return demo.counts, demo["qc"], demo["filter"], demo["hvg"], steps


def quality_inputs(demo):
    return demo.counts, demo["qc"], demo["filter"], demo.folder / "filter.csv"


@pytest.fixture(scope="module", autouse=True)
def look():
    with mpl.rc_context(style.STYLE):
        yield


@pytest.fixture(scope="module")
def drawn(demo, look):
    return drawn_of(demo)


def drawn_of(demo, annotations=None):
    *cells, hvg, steps = inputs(demo)
    files = {(file.parent.name, file.stem): file for file in steps}
    counts, qc, filtered = cells
    shown = cell_groups(counts, filtered, ["batch", "cell_type"], files, annotations or {})
    drawn = dict(quality.pictures(*quality_inputs(demo), batch_key=["batch"]))
    drawn |= dict(genes(hvg, filtered, files["pca", "pca"]))
    for draw_topic in (clusters, tsne):
        drawn |= dict(draw_topic(files, *shown, qc, filtered))
    labels = {name: of for name, of in shown[0].items() if name.startswith("cell_type")}
    drawn |= dict(trajectories(files, labels))
    return {name: draw() for name, draw in drawn.items()}


@pytest.fixture(scope="module")
def table(demo):
    return pd.read_csv(demo.folder / "filter.csv").set_index("criterion")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def named(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def title(figure):
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left")


# ------------------------------------------------------------------------------------ the pictures


def test_every_picture_says_how_many(drawn, demo):
    assert list(drawn) == QUALITY + NAMES
    n_all = len(step_files.read(demo["filter"], "obs/keep"))
    n_kept = step_files.read(demo["filter"], "obs/keep").sum()
    for name, figure in drawn.items():
        n = {"hvg": "genes"}.get(name, f"{n_all if name[:3] == 'qc_' else n_kept:,}")
        assert n in title(figure), name
        for ax in figure.axes:
            assert ax.get_ylabel() or name == "filter", name


def test_violins_have_the_bounds_that_were_applied(drawn, table):
    counts, genes, mt, ribo = drawn["qc_violins"].axes
    assert [len(ax.collections) for ax in (counts, genes, mt, ribo)] == [3] * 4
    bounds = {line.get_gid(): line.get_ydata()[0] for line in genes.lines if line.get_gid()}
    assert bounds == {
        "min_genes": pytest.approx(np.log10(1 + table.loc["min_genes", "bound"])),
        "max_genes": pytest.approx(np.log10(1 + table.loc["max_genes", "bound"])),
    }
    assert texts(mt) == ["max_pct_mt 20"]
    assert texts(counts) == texts(ribo) == []
    labels = [label.get_text() for label in counts.get_xticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["batch_1", "batch_2", "batch_3"]


def test_violins_have_the_bounds_of_each_sample(demo, tmp_path):
    of = settings("filter", mad={"total_counts": 1, "pct_counts_mt": 0.5}, by="batch")
    files = demo.counts, demo["qc"], tmp_path / "filter.h5", tmp_path / "filter.csv"
    filter_cells(*files, **of)
    drawn = dict(quality.pictures(*files, batch_key=[]))
    counts, _, mt, _ = drawn["qc_violins"]().axes
    rows = pd.read_csv(files[3]).dropna(subset="sample").set_index(["criterion", "sample"])["bound"]
    shown = {line.get_gid(): line for ax in (counts, mt) for line in ax.lines if line.get_gid()}
    names = [label.get_text().split("\n")[0] for label in mt.get_xticklabels()]
    assert names == ["batch_1", "batch_2", "batch_3"]
    for place, sample in enumerate(names):
        for bound in ("min_counts_mad", "max_counts_mad", "max_pct_mt_mad"):
            line = shown[f"{bound} of {sample}"]
            at = rows[bound, sample]
            height = at if "mt" in bound else np.log10(1 + at)
            np.testing.assert_allclose(line.get_ydata(), [height] * 2)
            assert line.get_xdata()[0] < place < line.get_xdata()[1]
    assert rows["max_counts_mad"].nunique() == 3
    (bars,) = drawn["filter"]().axes
    shown = [label.get_text() for label in bars.get_yticklabels()]
    assert shown[-3:] == ["min_counts_mad", "max_counts_mad", "max_pct_mt_mad"]


def test_doublets_are_marked_on_the_umap(demo, tmp_path):
    *_, steps = inputs(demo)
    files = {(f.parent.name, f.stem): f for f in steps if f.stem in ("umap", "leiden")}
    keep = step_files.read(demo["filter"], "obs/keep")
    flags = np.arange(len(keep)) % 7 == 0
    scores = {"obs/predicted_doublet": flags, "obs/doublet_score": flags * 0.5}
    step_files.write(tmp_path / "doublets.h5", scores)
    of = files, {}, demo["qc"], demo["filter"]
    figure = dict(embedding("UMAP", *of, tmp_path / "doublets.h5"))["umap"]()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles.count("harmony: doublets") == titles.count("harmony: doublet score") == 1
    ax = figure.axes[titles.index("pca: doublets")]
    colours = ax.collections[0].get_facecolors()[:, :3]
    _, sizes = np.unique(colours.round(3), axis=0, return_counts=True)
    assert sorted(sizes) == sorted([flags[keep].sum(), (~flags[keep]).sum()])
    others = {ax.get_title(loc="left") for ax in dict(embedding("UMAP", *of))["umap"]().axes}
    assert not any("doublet" in title for title in others)


def test_kept_and_removed_cells_are_told_apart(drawn, demo):
    keep = step_files.read(demo["filter"], "obs/keep")
    genes, mt = drawn["qc_scatter"].axes
    colours = genes.collections[0].get_facecolors()
    blue = np.isclose(colours[:, :3], mpl.colors.to_rgb("#0072b2")).all(axis=1)
    assert (blue.sum(), (~blue).sum()) == (keep.sum(), (~keep).sum())
    drawn_genes = np.sort(genes.collections[0].get_offsets()[blue, 1])
    wanted = np.log10(1 + step_files.read(demo["qc"], "obs/n_genes_by_counts")[keep])
    np.testing.assert_allclose(drawn_genes, np.sort(wanted))
    assert named(mt) == [f"kept ({keep.sum():,})", f"removed ({(~keep).sum():,})"]


def test_bars_are_the_filters_table(drawn, table):
    (ax,) = drawn["filter"].axes
    both, alone = ([bar.get_width() for bar in bars] for bars in ax.containers)
    rows = ["min_genes", "max_genes", "max_pct_mt"]
    found = [label.get_text().split()[0] for label in ax.get_yticklabels()]
    assert sorted(found) == sorted(rows)
    assert both == table.loc[found, "cells"].tolist()
    assert alone == table.loc[found, "cells_by_this_alone"].tolist()
    kept, everything = table.loc["kept"], table.loc["all"]
    assert f"{int(kept.cells):,} of {int(everything.cells):,} cells" in title(drawn["filter"])


def test_a_filter_without_bounds_is_drawn():
    rows = [("all", 10, 5), ("min_cells", np.nan, 0), ("kept", 10, 5)]
    table = pd.DataFrame(rows, columns=["criterion", "cells", "genes"])
    table["bound"] = table["cells_by_this_alone"] = np.nan
    assert title(quality_draw.filter_bars(table)) == "10 of 10 cells and 5 of 5 genes kept"


def test_genes_lie_at_their_dispersion(drawn, demo):
    high = step_files.read(demo["hvg"], "var/highly_variable")
    assert title(drawn["hvg"]).startswith(f"{high.sum()} of {len(high)} genes")
    offsets = drawn["hvg"].axes[0].collections[0].get_offsets()
    known = np.isfinite(step_files.read(demo["hvg"], "var/dispersions_norm"))
    assert len(offsets) == known.sum()
    assert drawn["hvg"].axes[0].get_ylabel() == "normalised dispersion"


@pytest.mark.parametrize(
    ("flavor", "columns", "labels"),
    [
        ("seurat", ["dispersions_norm", "dispersions"], ["normalised dispersion", "dispersion"]),
        ("seurat_v3", ["variances_norm"], ["normalised variance"]),
        ("pearson_residuals", ["residual_variances"], ["log10 variance of Pearson residuals"]),
    ],
)
def test_each_flavor_has_its_axes(flavor, columns, labels):
    var = {name: np.array([0.5, 1.0, 2.0]) for name in ["means", *columns]}
    figure = draw.hvg_dispersion(var | {"highly_variable": np.array([1, 0, 0], bool)}, flavor)
    assert [ax.get_ylabel() for ax in figure.axes] == labels


def test_the_elbow_is_where_the_curve_bends(drawn):
    assert draw.elbow(np.array([0.5, 0.25, 0.12, 0.01, 0.0099, 0.0098, 0.0097])) == 4
    assert draw.elbow(np.array([1.0])) == 1
    lines = drawn["pca_variance"].axes[1].lines
    assert np.all(np.diff(lines[0].get_ydata()) > 0)
    assert lines[0].get_ydata()[-1] < 100


@pytest.mark.parametrize(("name", "slot"), [("umap", "X_umap"), ("tsne", "X_tsne")])
def test_embeddings_stand_side_by_side(drawn, demo, name, slot):
    panels = [ax for ax in drawn[name].axes if ax.get_title(loc="left")]
    titles = [ax.get_title(loc="left") for ax in panels]
    assert titles[2:6] == ["pca: batch", "harmony: batch", "pca: cell_type", "harmony: cell_type"]
    assert len(panels) == 10
    for ax, rep in zip(panels[:2], demo.reps, strict=True):
        clusters = step_files.read(demo[f"{rep}/leiden"], "obs/leiden")
        assert texts(ax) == list(clusters.categories)
        xy = step_files.read(demo[f"{rep}/{name}"], f"obsm/{slot}")
        order = style.in_random_order(len(xy))
        np.testing.assert_allclose(ax.collections[0].get_offsets(), xy[order])
        wanted = np.array(PALETTE)[clusters.codes % 60][order]
        found = [mpl.colors.to_hex(c) for c in ax.collections[0].get_facecolors()]
        assert found == wanted.tolist()
    assert named(panels[3]) == ["batch_1", "batch_2", "batch_3"]


def test_shares_of_a_cluster_sum_to_100(drawn, demo):
    for name, column in [("clusters_by_batch", "batch"), ("clusters_by_cell_type", "cell_type")]:
        ax = drawn[name].axes[1]
        shares = np.asarray(ax.images[0].get_array())
        np.testing.assert_allclose(shares.sum(axis=1), 100)
        overall = demo.obs()[column].value_counts(normalize=True).sort_index()
        np.testing.assert_allclose(shares[0], 100 * overall[overall > 0])
        assert ax.get_xlabel() == column


def test_cells_without_a_group_are_grey_and_counted():
    groups = style.as_groups(pd.Series(["b10", None, "b2"], dtype="category"))
    assert list(groups.categories) == ["b2", "b10"]
    figure = draw.cluster_table({"pca": pd.Categorical(["0", "0", "1"])}, groups, "batch")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["b2", "b10", "missing"]
    late = style.as_groups(pd.Series(["z", None], dtype="category"))
    figure = draw.cluster_table({"pca": pd.Categorical(["0", "1"])}, late, "batch")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["z", "missing"]
    _, ((ax,),) = style.panels(1, 1, (2, 2))
    assert style.points_by_group(ax, np.zeros((3, 2)), groups)["missing"] == MISSING


def test_paga_and_pseudotime(drawn, demo):
    paga = [ax for ax in drawn["trajectory"].axes if "PAGA" in ax.get_title(loc="left")]
    for ax, rep in zip(paga, demo.reps, strict=True):
        links = step_files.read(demo[f"{rep}/trajectory"], "uns/paga")["connectivities"].toarray()
        assert len(ax.lines) == (np.triu(links, 1) >= 0.05).sum()
        assert len(ax.collections[1].get_offsets()) == len(links)
    later = [ax for ax in drawn["trajectory"].axes if "pseudotime" in ax.get_title(loc="left")]
    assert len(later) == 4


def test_pseudotime_is_drawn_on_the_diffusion_map(drawn, demo):
    found = [ax for ax in drawn["trajectory"].axes if "diffusion" in ax.get_title(loc="left")]
    for ax, rep in zip(found, demo.reps, strict=True):
        path = demo[f"{rep}/trajectory"]
        evals = step_files.read(path, "uns/diffmap_evals")
        times = step_files.read(path, "obs/dpt_pseudotime")
        known = np.isfinite(times)
        _, (one, two) = diffusion_map(path)
        assert evals[one] < STATIONARY
        xy = step_files.read(path, "obsm/X_diffmap")[known][:, [one, two]]
        assert (xy.std(axis=0) > 1e-3).all()
        order = style.in_random_order(known.sum())
        (marks,) = ax.collections
        np.testing.assert_allclose(marks.get_offsets(), xy[order], rtol=1e-6)
        np.testing.assert_allclose(marks.get_array(), times[known][order])
        assert ax.get_xlabel() == f"diffusion component {one}"


def test_a_diffusion_map_of_pieces_alone_is_left_out(tmp_path):
    path = tmp_path / "trajectory.h5"
    found = {
        "obsm/X_diffmap": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
        "uns/diffmap_evals": np.array([1, 1, 0.9]),
        "obs/dpt_pseudotime": np.array([0, 0.1, np.nan, 0.2, 1]),
    }
    step_files.write(path, found)
    own, components = diffusion_map(path)
    assert components.tolist() == [2]
    assert np.isnan(own[:, 0]).tolist() == [False, False, True, False, False]
    points = draw.Embedding("UMAP", {"pca": np.zeros((5, 2))})
    clusters = {"pca": pd.Categorical(["0"] * 5)}
    of = {"pca": (own, components)}
    figure = of_trajectory.trajectory(
        points, clusters, {"pca": np.zeros((1, 1))}, {"pca": np.arange(5.0)}, of
    )
    assert sum("pca" in ax.get_title(loc="left") for ax in figure.axes) == 2
    figure = of_trajectory.diffusion_map({"pca": (own, components)}, clusters, {})
    assert not any(ax.get_visible() for ax in figure.axes)


def test_the_diffusion_map_is_drawn_by_cluster_and_label(drawn, demo):
    n, axes = len(demo.reps), drawn["diffmap"].axes
    by = {"cluster": axes[:n], "label": axes[n:]}
    for place, rep in enumerate(demo.reps):
        xy, components = diffusion_map(demo[f"{rep}/trajectory"])
        known = np.isfinite(xy).all(axis=1)
        groups = step_files.read(demo[f"{rep}/leiden"], "obs/leiden")
        order = style.in_random_order(known.sum())
        for kind, categories in (("cluster", groups), ("label", demo.obs()["cell_type"].array)):
            ax = by[kind][place]
            marks = ax.collections[0]
            np.testing.assert_allclose(marks.get_offsets(), xy[known][order], rtol=1e-6)
            names = style.as_groups(categories)
            expected = [colours_of(list(names.categories))[name] for name in names[known][order]]
            found = mpl.colors.to_rgba_array(expected)
            np.testing.assert_allclose(marks.get_facecolors(), found)
            assert ax.get_xlabel() == f"diffusion component {components[0]}"
        assert by["label"][place].get_title(loc="left") == f"{rep}: cell_type"


def test_the_diffusion_map_needs_no_root(tmp_path):
    """All cells, and the components that order them."""
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    evals = np.array([1, 0.99, 0.9, 0.8])
    path = tmp_path / "trajectory.h5"
    step_files.write(path, {"obsm/X_diffmap": values, "uns/diffmap_evals": evals})
    xy, components = diffusion_map(path)
    assert components.tolist() == [1, 2]
    np.testing.assert_array_equal(xy, values[:, [1, 2]])


def test_louvain_is_drawn_beside_leiden(demo):
    *cells, _, steps = inputs(demo)
    more = [f for f in demo.steps if f.stem == "louvain"]
    files = {(file.parent.name, file.stem): file for file in [*steps, *more]}
    drawn = dict(clusters(files, {}, {}, *cells[1:]))
    axes = drawn["umap"]().axes
    n = len(demo.reps)
    for place, rep in enumerate(demo.reps):
        groups = step_files.read(demo[f"{rep}/louvain"], "obs/louvain")
        ax = axes[n + place]
        assert ax.get_title(loc="left") == f"{rep}: {len(groups.categories)} clusters (louvain)"
        order = style.in_random_order(len(groups))
        expected = [colours_of(list(groups.categories))[name] for name in groups[order]]
        found = ax.collections[0].get_facecolors()
        np.testing.assert_allclose(found, mpl.colors.to_rgba_array(expected))


@pytest.mark.parametrize(("clustering", "rep"), [("leiden", "harmony"), ("leiden_pca", "pca")])
def test_named_clusters_are_shown_as_cell_types(demo, clustering, rep):
    drawn = drawn_of(demo, {clustering: {"0": "B cells", "2": "B cells", "1": "T $cells$"}})
    panels = [ax for ax in drawn["umap"].axes if ax.get_title(loc="left")]
    titles = [ax.get_title(loc="left") for ax in panels]
    assert titles[2:4] == ["pca: cell_type", "harmony: cell_type"]
    assert titles[6:8] == ["pca: cell_type_source", "harmony: cell_type_source"]
    clusters = step_files.read(demo[f"{rep}/leiden"], "obs/leiden")
    rest = [f"{clustering} {name}" for name in clusters.categories[3:]]
    assert named(panels[3]) == ["B cells", "T $cells$", *rest]
    order = style.in_random_order(len(clusters))
    colours = panels[2].collections[0].get_facecolors()
    of_b = [mpl.colors.to_hex(colour) == PALETTE[0] for colour in colours]
    assert of_b == np.isin(np.asarray(clusters), ["0", "2"])[order].tolist()
    assert "clusters_by_cell_type_source" in drawn


def test_cell_types_are_those_of_the_final_object(demo):
    clusters = step_files.read(demo["pca/leiden"], "obs/leiden")
    names = {"1": "T cells", "0": "T cells"}
    found = cell_types(clusters, "leiden", names)
    wanted = annotated(pd.DataFrame({"leiden": clusters}), "leiden", names)["cell_type"]
    pd.testing.assert_series_equal(pd.Series(found), wanted, check_names=False)
    with pytest.raises(
        UserError, match=r"annotations\.leiden names 77, which leiden does not have"
    ):
        drawn_of(demo, {"leiden": {"77": "x"}})
    without = pd.Categorical.from_codes([0, -1, 1], ["0", "1"])
    assert cell_types(without, "leiden", {"1": "x"}).codes.tolist() == [0, -1, 1]


def test_few_cells_and_constant_values_are_drawn():
    qc = pd.DataFrame({name: [3.0, 3.0, np.nan, 1.0] for name in quality_draw.QC})
    batch = pd.Categorical(["a", "a", "a", "b"])
    table = pd.DataFrame({"criterion": ["all"], "bound": [np.nan]})
    figure = quality_draw.qc_violins(qc, batch, table)
    assert [len(ax.collections) for ax in figure.axes] == [0] * 4
    figure.draw_without_rendering()


@pytest.mark.parametrize("n", [1000, style.MOST_DRAWN + 1])
def test_points_without_a_value_are_within_the_picture(n):
    xy = np.random.default_rng(0).uniform(-1, 1, (n, 2))
    values = np.where(np.abs(xy).max(axis=1) < 0.4, xy[:, 0], np.nan)
    _, ((ax,),) = style.panels(1, 1, (2, 2))
    style.points_by_value(ax, xy, values, "pseudotime")
    for limits, column in ((ax.get_xlim(), xy[:, 0]), (ax.get_ylim(), xy[:, 1])):
        assert limits[0] <= column.min()
        assert limits[1] >= column.max()


def test_many_groups_are_named_up_to_sixty():
    _, ((ax,),) = style.panels(1, 1, (2, 2))
    style.legend(ax, colours_of([f"b{i}" for i in range(75)]), "batch")
    assert named(ax)[-2:] == ["b59", "and 15 more"]


def test_long_names_get_room():
    names = [f"{i}: a cell type with a name that is rather long" for i in range(60)]
    groups = {"cell_type": pd.Categorical(names, categories=names)}
    xy = np.random.default_rng(0).normal(size=(60, 2))
    own = {"pca": pd.Categorical([str(i) for i in range(60)])}
    figure = draw.embedding(draw.Embedding("UMAP", {"pca": xy}), own, groups, {})
    figure.draw_without_rendering()
    (panel, typed) = figure.axes
    assert typed.get_window_extent().width > 300  # of 400 and what lies beside it
    assert panel.get_window_extent().width > 300
    assert {len(name) for name in named(typed)} == {style.LONGEST}
    legend = typed.get_legend().get_window_extent()
    assert (legend.x1, legend.y0) < (figure.bbox.width, figure.bbox.height)
    assert legend.x1 <= figure.bbox.width + 1


def test_names_of_clusters_do_not_lie_over_each_other():
    rng = np.random.default_rng(0)
    places = rng.normal(0, 0.3, (60, 2))
    places[1] = places[0]
    sizes = np.tile([0.18, 0.14], (60, 1))
    moved = style.apart(places, sizes)
    missing = sizes[0] - np.abs(moved[:, None] - moved)
    np.fill_diagonal(missing[..., 0], -1)
    assert (missing.min(axis=-1) < 0.03).all()
    assert np.linalg.norm(moved - places, axis=1).max() < 1.5
    np.testing.assert_array_equal(style.apart(10 * places[2:], sizes[2:] / 99), 10 * places[2:])


def test_a_name_that_went_far_has_a_line_to_its_cells():
    _, ((ax,),) = style.panels(1, 1, (3, 3))
    xy = np.zeros((30, 2)) + 1e-3 * np.arange(30)[:, None]
    ax.set(xlim=(-1, 1), ylim=(-1, 1))
    groups = pd.Categorical([str(i) for i in range(30)])
    style.label_groups(ax, xy, groups, size=(3, 3))
    assert texts(ax) == list(groups.categories)
    assert sum(line.get_gid() == "leader" for line in ax.lines) > 10
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))


@pytest.mark.parametrize(
    ("limits", "ticks"),
    [
        ((0, 40_000), ["0", "1", "10", "100", "1,000", "10,000"]),
        ((150, 4000), ["200", "500", "1,000", "2,000"]),
    ],
)
def test_ticks_of_counts_are_round_numbers(limits, ticks):
    figure, ((ax,),) = style.panels(1, 1, (3, 3))
    style.log_ticks(ax.xaxis)
    ax.set_xlim(*style.log10p1(limits))
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ticks


def test_variance_has_plain_ticks(drawn):
    drawn["pca_variance"].draw_without_rendering()
    axis = drawn["pca_variance"].axes[0].yaxis
    said = [tick.get_text() for tick in axis.get_ticklabels()]
    assert all(float(text) > 0 for text in said)
    assert not any(tick.get_text() for tick in axis.get_ticklabels(minor=True))


def test_svg_is_for_small_pictures(drawn, tmp_path, monkeypatch):
    clouds = {"qc_scatter", "hvg", "umap", "tsne", "trajectory", "diffmap"}
    assert {name for name, figure in drawn.items() if saving.has_cloud(figure)} == clouds
    some = [("filter", drawn["filter"]), ("umap", drawn["umap"])]
    how = {"dpi": 20, "made": {"step": "figures"}}
    saving.save_all(tmp_path, some, formats=["png", "svg"], **how)
    assert {f.name for f in tmp_path.iterdir()} == {"filter.png", "filter.svg", "umap.png"}
    svg = (tmp_path / "filter.svg").read_text()
    assert ">cells removed (a cell may break several bounds)</text>" in svg
    assert '"step": "figures"' in svg.replace("&quot;", '"')
    monkeypatch.setattr(saving, "MOST_SVG_BYTES", 100)
    saving.save_all(tmp_path, some[:1], formats=["png", "svg"], **how)
    assert {f.name for f in tmp_path.iterdir()} == {"filter.png", "umap.png"}


def test_many_points_are_counted_pixel_by_pixel(monkeypatch):
    monkeypatch.setattr(style, "MOST_DRAWN", 50)
    xy = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    xy[:30] -= 50
    groups = pd.Categorical(["a"] * 30 + ["b"] * 30)
    figure, ((left, right),) = style.panels(1, 2, (2, 2))
    style.points_by_group(left, xy, groups)
    style.points_by_value(right, xy, np.where(np.arange(60) < 3, np.nan, 1.0), "unit")
    figure.draw_without_rendering()
    assert not left.collections
    (image,) = left.images
    pixels = image.make_image(FigureCanvasAgg(figure).get_renderer())[0].reshape(-1, 4)
    colours = {mpl.colors.to_hex(pixel[:3] / 255) for pixel in pixels if pixel[3] > 0}
    assert {"#0072b2", "#e69f00"} <= colours
    assert left.get_xlim()[0] <= xy[:, 0].min()


# ----------------------------------------------------------------------------------------- the step


SETTINGS = {"dpi": 50, "formats": ["png", "svg"]}


def test_the_files_are_png_with_their_provenance(demo, tmp_path):
    *files, steps = inputs(demo)
    few = [f for f in steps if f.parent.name == "pca" and f.stem in ("umap", "leiden")]
    out = tmp_path / "figures"
    out.mkdir()
    (out / "old.png").touch()
    figures(*files, few, out, topic="clusters", **SETTINGS, batch_key=["batch"])
    names = ["umap.png", "clusters_by_batch.png", "clusters_by_batch.svg"]
    assert {f.name for f in out.iterdir()} == {*names, file_list.FILES}
    assert [f.name for f in tmp_path.iterdir()] == ["figures"]
    png = (out / "umap.png").read_bytes()
    assert len(mpl.image.imread(out / "umap.png")) == 800  # four panels of 4 inches
    made = png[png.index(b"tEXtProvenance\0") :].partition(b"\0")[2]
    parameters = json.JSONDecoder().raw_decode(made.decode("latin-1"))[0]["parameters"]
    assert parameters.items() >= {"dpi": 50, "topic": "clusters"}.items()


@pytest.mark.parametrize(
    ("topic", "reads", "names"),
    [
        ("genes", ["pca"], ["hvg.png", "pca_variance.png", "pca_variance.svg"]),
        ("tsne", ["leiden", "tsne"], ["tsne.png"]),
        ("tsne", ["leiden"], []),  # more cells than a t-SNE is made of
        ("trajectory", ["leiden", "umap", "trajectory"], ["diffmap.png", "trajectory.png"]),
    ],
)
def test_a_topic_needs_its_own_steps_alone(demo, tmp_path, topic, reads, names):
    *files, steps = inputs(demo)
    own = [f for f in steps if f.stem in reads]
    figures(*files, own, tmp_path / "figures", topic=topic, **SETTINGS)
    assert {f.name for f in (tmp_path / "figures").iterdir()} == {*names, file_list.FILES}


@pytest.mark.parametrize("batch_key", [[], ["batch"], ["batch", "cell_type"]])
def test_the_quality_is_drawn_from_the_filter_on(demo, tmp_path, batch_key):
    out = tmp_path / "figures"
    how = {"dpi": 50, "formats": ["png", "svg"]}
    quality.qc_figures(*quality_inputs(demo), out, **how, batch_key=batch_key)
    files = [*(f"{name}.png" for name in QUALITY), "qc_violins.svg", "filter.svg"]
    assert file_list.check_there(out).keys() == set(files)
    assert {f.name for f in out.iterdir()} == {*files, file_list.FILES}
    drawn = dict(quality.pictures(*quality_inputs(demo), batch_key=batch_key))["qc_violins"]()
    n_batches = demo.obs()["batch"].nunique() if batch_key else 1
    assert len(drawn.axes[0].collections) >= n_batches


def test_a_picture_that_cannot_be_drawn_costs_that_picture(demo, tmp_path, caplog, monkeypatch):
    def fail(*_):
        raise ValueError("no room for 4,000 names")

    monkeypatch.setattr("scrna.plots.quality_figures.qc_scatter", fail)
    out, how = tmp_path / "figures", {"dpi": 50, "formats": ["png", "svg"], "batch_key": []}
    quality.qc_figures(*quality_inputs(demo), out, **how)
    assert {f.stem for f in out.glob("*.png")} == {"qc_violins", "filter"}
    expected = {"qc_scatter": "ValueError: no room for 4,000 names"}
    assert json.loads((out / "not_drawn.json").read_text()) == expected
    assert "the figure qc_scatter could not be drawn and is left out: no room" in caplog.text


def test_a_picture_that_cannot_be_saved_leaves_no_file(tmp_path):
    figure, ((ax,),) = style.panels(1, 1, (2, 2))
    ax.set_yscale("function", functions=(lambda x: x, lambda x: x[0, 0, 0]))
    ax.yaxis.set_major_formatter(lambda *_: 1 / 0)
    how = {"dpi": 20, "formats": ["png", "svg"], "made": {}}
    failed = saving.save_all(tmp_path, [("odd", figure)], **how)
    assert list(failed) == ["odd"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_matter_of_one_picture(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        saving.save_folder(tmp_path / "f", [("a", fail)], dpi=20, formats=["png"], made={})
    assert list(tmp_path.iterdir()) == []
