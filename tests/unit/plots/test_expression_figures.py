"""Pictures of genes, by what they draw: against scanpy's dot plot, matrix plot and values."""

import json
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import sparse

from scripts.marker_figures import (
    marker_figures,
    pictures,
    rank_panels,
    read_table,
    top_markers,
)
from scripts.normalize import normalize
from scrna.data import step_files
from scrna.data.groups import groups_of
from scrna.errors import UserError
from scrna.plots import expression_figures as draw
from scrna.plots import style
from tests.unit import steps

pytest_plugins = ["tests.unit.fixtures"]

N = 4


@pytest.fixture(scope="module", autouse=True)
def look():
    with mpl.rc_context(style.STYLE):
        yield


def inputs(done, rep="pca", groupby="leiden"):
    clusters = done[f"{rep}/leiden"] if groupby == "leiden" else []
    return *done.base, done.folder / rep / "markers.csv", done[f"{rep}/umap"], clusters


def drawn_of(done, rep="pca", **own):
    given = {"groupby": "leiden", "genes": [], "n_markers": N, "names": {}} | own
    found = pictures(*inputs(done, rep, given["groupby"]), **given)
    return {name: draw() for name, draw in found}


@pytest.fixture(scope="module")
def adata(demo):
    """What scanpy's own plots start from."""
    adata = demo.lognorm()
    adata.obs["leiden"] = step_files.read(demo["pca/leiden"], "obs/leiden")
    adata.uns["rank_genes_groups"] = step_files.read(demo["pca/markers"], "uns/rank_genes_groups")
    return adata


@pytest.fixture(scope="module")
def drawn(demo, adata, look):
    genes = [str(adata.var_names[i]) for i in (5, 100, 7)]
    return drawn_of(demo, genes=genes) | {"genes": genes}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def brackets(ax):
    (above,) = [child for child in ax.child_axes if child.get_label() == "" and labels(child.xaxis)
                and child.xaxis.get_ticks_position() == "top"]  # fmt: skip
    return labels(above.xaxis)


def dots(ax):
    """Diameters and colours, groups × genes."""
    marks = ax.collections[0]
    shape = len(labels(ax.yaxis)), len(labels(ax.xaxis))
    return 2 * marks._widths.reshape(shape), np.asarray(marks.get_array()).reshape(shape)


# ---------------------------------------------------------------------------------------- markers


def test_the_dot_plot_is_scanpys(drawn, adata):
    plot = sc.pl.rank_genes_groups_dotplot(
        adata, n_genes=N, groupby="leiden", dendrogram=False, return_fig=True
    )
    ax = drawn["markers_dotplot"].axes[0]
    assert labels(ax.xaxis) == list(plot.dot_color_df.columns)
    sizes = adata.obs["leiden"].value_counts()
    assert labels(ax.yaxis) == [f"{group} ({sizes[group]})" for group in plot.dot_size_df.index]
    diameters, colours = dots(ax)
    np.testing.assert_allclose(colours, plot.dot_color_df, rtol=1e-5, atol=1e-7)
    most = np.ceil(10 * plot.dot_size_df.to_numpy().max()) / 10
    area = (diameters / diameters.max()) ** 2
    np.testing.assert_allclose(area, plot.dot_size_df.to_numpy() / most, atol=1e-6)
    assert brackets(ax) == list(adata.obs["leiden"].cat.categories)
    lines = [line for line in ax.lines if line.get_gid() == "bracket"]
    assert [round(np.ptp(line.get_xdata()), 6) for line in lines] == [N - 0.2] * len(sizes)
    assert (
        ax.get_title(loc="left")
        == f"pca: first 4 markers of each group (leiden), {len(adata)} cells"
    )


def test_the_sizes_are_told(drawn):
    ax = drawn["markers_dotplot"].axes[0]
    told = [text.get_text() for text in ax.texts]
    assert told == ["20", "40", "60", "80", "100", "cells expressing it (%)"]
    sample = 2 * ax.collections[1]._widths
    np.testing.assert_allclose(sample**2 / sample[-1] ** 2, [0.2, 0.4, 0.6, 0.8, 1])
    assert sample[-1] == pytest.approx(dots(ax)[0].max(), rel=0.05)


def test_the_panels_of_ranks_are_scanpys(drawn, adata):
    panels = drawn["markers_ranks"].axes
    theirs = sc.pl.rank_genes_groups(adata, n_genes=20, sharey=False, show=False)
    plt.close("all")
    assert [ax.get_title(loc="left") for ax in panels if ax.get_visible()] == [
        ax.get_title(loc="left") for ax in theirs
    ]
    for ours, scanpys in zip(panels, theirs, strict=False):
        (genes, places), (known, expected) = (
            ([text.get_text() for text in ax.texts], [text.get_position() for text in ax.texts])
            for ax in (ours, scanpys)
        )
        assert genes == known
        assert len(genes) == 20
        np.testing.assert_allclose(places, expected, rtol=1e-5)  # markers.csv has six digits
        low, high = ours.get_ylim()
        assert all(low < score < high for _, score in places)
        assert ours.get_xlim() == scanpys.get_xlim()


def test_only_so_many_groups_have_a_panel_of_ranks():
    sizes = pd.Series({f"g{i}": 100 - i % 50 for i in range(100)})
    rows = {"group": list(sizes.index) * 2, "names": "A", "scores": [1.0, np.nan] * 100}
    found = pd.DataFrame(rows)
    named = {group: f"{group}: type" for group in sizes.index}
    panels, title = rank_panels(found, named, sizes, "markers")
    assert title == "markers; the 60 largest of 100 groups"
    assert list(panels) == [f"g{i}: type" for i in range(100) if i % 50 < 30]
    assert not np.isnan(np.concatenate([scores for _, scores in panels.values()])).any()
    assert len(draw.ranks(panels, title).axes) == 60


def test_a_group_without_scores_has_an_empty_panel():
    figure = draw.ranks({"a": (["A"], np.array([2.0])), "b": ([], np.array([]))}, "")
    assert [len(ax.texts) for ax in figure.axes] == [1, 0]
    low, high = figure.axes[0].get_ylim()
    assert low < 2 < high


def test_the_heat_map_is_scanpys_matrix_plot(drawn, adata):
    ax = drawn["markers_heatmap"].axes[0]
    genes = labels(ax.xaxis)
    plot = sc.pl.matrixplot(
        adata, list(dict.fromkeys(genes)), "leiden", standard_scale="var", return_fig=True
    )
    found = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(found, plot.values_df[genes], rtol=1e-4, atol=1e-6)
    assert (found.min(axis=0), found.max(axis=0)) == (pytest.approx(0), pytest.approx(1))


# -------------------------------------------------------------------------------- genes asked for


def test_genes_are_drawn_on_the_umap(drawn, adata, demo):
    xy = step_files.read(demo["pca/umap"], "obsm/X_umap")
    panels = [ax for ax in drawn["genes_umap"].axes if ax.get_title(loc="left")]
    for ax, gene in zip(panels, drawn["genes"], strict=True):
        values = adata[:, gene].X.toarray().ravel()
        order = np.argsort(values, kind="stable")  # high ones on top
        marks = ax.collections[0]
        np.testing.assert_allclose(marks.get_array(), values[order], rtol=2 * steps.LOG_ERROR)
        assert ax.get_title(loc="left") == f"{gene}, in {(values > 0).mean():.1%} of cells"
        low, high = marks.get_clim()
        assert (low, high) == (0, pytest.approx(np.percentile(values[values > 0], 99), rel=1e-5))
        np.testing.assert_allclose(np.sort(marks.get_offsets()[:, 0]), np.sort(xy[:, 0]))
    assert f"{len(adata)} cells" in drawn["genes_umap"].get_suptitle()


def test_genes_have_a_dot_plot_of_their_own(drawn, adata):
    plot = sc.pl.dotplot(adata, drawn["genes"], "leiden", return_fig=True)
    ax = drawn["genes_dotplot"].axes[0]
    assert labels(ax.xaxis) == drawn["genes"]
    np.testing.assert_allclose(dots(ax)[1], plot.dot_color_df, rtol=1e-5, atol=1e-7)


def test_many_cells_are_counted_pixel_by_pixel(demo, drawn, monkeypatch):
    monkeypatch.setattr(style, "MOST_DRAWN", 50)
    figure = drawn_of(demo, genes=drawn["genes"])["genes_umap"]
    figure.draw_without_rendering()
    assert [len(ax.images) for ax in figure.axes if ax.get_title(loc="left")] == [1, 1, 1]


def test_named_clusters_are_called_so(demo):
    figure = drawn_of(demo, names={"0": "B cells", "2": "x"})["markers_dotplot"]
    (ax, *_) = figure.axes
    sizes = step_files.read(demo["pca/leiden"], "obs/leiden").value_counts()
    assert labels(ax.yaxis)[:3] == [
        f"0: B cells ({sizes['0']})", f"1 ({sizes['1']})", f"2: x ({sizes['2']})",
    ]  # fmt: skip
    assert brackets(ax)[:3] == ["0: B cells", "1", "2: x"]
    with pytest.raises(UserError, match="leiden names 99, which leiden does not have; there are 0"):
        drawn_of(demo, names={"99": "x"})


def test_an_unknown_gene_is_refused_before_anything_is_drawn(demo, tmp_path):
    with pytest.raises(UserError, match=r"figures\.genes: there is no gene 'MARK1'; did you mean"):
        marker_figures(
            *inputs(demo), tmp_path / "out", **steps.settings("figures", genes=["MARK1"]),
            groupby="leiden",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_groups_may_be_a_column_of_obs(demo):
    groups = groups_of(demo.counts, demo["filter"], [], "batch")
    pd.testing.assert_series_equal(
        pd.Series(groups),
        pd.Series(demo.obs()["batch"].astype("category").array),
        check_names=False,
    )


# -------------------------------------------------------------------------------------- bad input


def made(folder, groups, genes=("A", "B", "C"), table=None, X=None):
    """Step files of a few cells: their groups, and a table of markers."""
    groups = pd.Categorical(groups)
    rng = np.random.default_rng(0)
    X = rng.poisson(1, (len(groups), len(genes))) if X is None else np.asarray(X)
    X = X.astype(np.float32)
    X[:, 0] += 1  # no cell is empty
    done = steps.store(folder, sparse.csr_matrix(X), var=pd.DataFrame(index=list(genes)))
    normalize(done.counts, done["filter"], done["normalize"], target_sum=10, backend="cpu")
    step_files.write(done["pca/leiden"], {"obs/leiden": groups})
    step_files.write(done["pca/umap"], {"obsm/X_umap": rng.normal(size=(len(groups), 2))})
    table = {group: list(genes) for group in groups.categories} if table is None else table
    rows = [(group, gene, -i) for group, own in table.items() for i, gene in enumerate(own)]
    pd.DataFrame(rows, columns=["group", "names", "scores"]).to_csv(
        folder / "pca/markers.csv", index=False
    )
    return done


def inside(figure):
    """Draw it, and tell whether no name of a row or column lies over its neighbour."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ax = figure.axes[0]
    for axis, low, high in ((ax.xaxis, "x0", "x1"), (ax.yaxis, "y0", "y1")):
        boxes = [label.get_window_extent(renderer) for label in axis.get_ticklabels()]
        boxes.sort(key=lambda box: getattr(box, low))
        for one, other in pairwise(boxes):
            if getattr(one, high) > getattr(other, low) + 0.5:
                return False
    return True


def test_sixty_groups_have_room(tmp_path):
    groups = [str(i) for i in range(60)]
    genes = [f"GENE{i}-LONG-NAME-OF-SOME-KIND-AS-IN-ASSEMBLIES" for i in range(60)]
    table = {g: [genes[(i + k) % 60] for k in range(5)] for i, g in enumerate(groups)}
    done = made(tmp_path, pd.Categorical(groups * 2, categories=groups), genes, table)
    names = {group: f"{group} a cell type with a name that is rather long" for group in groups}
    drawn = drawn_of(done, names=names, n_markers=5)
    assert len(drawn.pop("markers_ranks").axes) == 60
    for figure in drawn.values():
        ax = figure.axes[0]
        assert (len(labels(ax.yaxis)), len(labels(ax.xaxis))) == (60, 120)
        assert max(map(len, labels(ax.xaxis) + brackets(ax))) == style.LONGEST
        assert "first 2 markers of each" in ax.get_title(loc="left")
        assert inside(figure)
        assert max(figure.get_size_inches()) < 35


def test_one_group_has_no_markers_but_its_genes(tmp_path, caplog):
    done = made(tmp_path, ["0"] * 45, table={})
    with caplog.at_level("WARNING", logger="scrna"):
        drawn = drawn_of(done, genes=["B", "A", "B"])
    assert "no group has markers" in caplog.text
    assert list(drawn) == ["genes_dotplot", "genes_umap"]
    ax = drawn["genes_dotplot"].axes[0]
    assert (labels(ax.yaxis), labels(ax.xaxis)) == (["0 (45)"], ["B", "A"])
    assert inside(drawn["genes_dotplot"])
    assert drawn_of(done) == {}


def test_a_group_of_one_cell_and_one_without_markers_are_rows(tmp_path):
    done = made(tmp_path, ["0"] * 30 + ["1"] * 14 + ["2"], table={"0": ["A"], "1": ["B", "A"]})
    ax = drawn_of(done)["markers_dotplot"].axes[0]
    assert labels(ax.yaxis) == ["0 (30)", "1 (14)", "2 (1)"]
    assert labels(ax.xaxis) == ["A", "B", "A"]
    assert brackets(ax) == ["0", "1"]
    of_one = dots(ax)[0][2] / dots(ax)[0].max()
    assert set(of_one.round(6)) <= {0, 1}  # a cell has a gene or not


@pytest.mark.parametrize("genes", [("$\\frac", "$A_{1}$", "NA"), ("x_y", "a^b", "100%")])
def test_names_are_not_mathematics(tmp_path, genes):
    done = made(tmp_path, ["a$b$", "a$b$", "NA", "NA"], genes)
    drawn = drawn_of(done, genes=list(genes))
    ax = drawn["markers_dotplot"].axes[0]
    assert labels(ax.xaxis) == list(genes) * 2
    assert labels(ax.yaxis) == ["NA (2)", "a$b$ (2)"]
    for figure in drawn.values():
        figure.draw_without_rendering()
    assert not any(text.get_parse_math() for text in ax.get_xticklabels())


def test_a_gene_that_is_the_same_in_all_groups_or_in_none(tmp_path):
    X = np.zeros((8, 3))
    done = made(tmp_path, ["0", "1"] * 4, X=X)
    drawn = drawn_of(done, genes=["C"])
    np.testing.assert_array_equal(drawn["markers_heatmap"].axes[0].images[0].get_array(), 0)
    for figure in drawn.values():
        figure.draw_without_rendering()
    diameters, _ = dots(drawn["genes_dotplot"].axes[0])
    assert (diameters == 0).all()


def test_cells_without_a_group_are_left_out(tmp_path):
    groups = pd.Categorical.from_codes([0, 0, -1, 1, 1], ["0", "1"])
    ax = drawn_of(made(tmp_path, groups))["markers_dotplot"].axes[0]
    assert labels(ax.yaxis) == ["0 (2)", "1 (2)"]
    assert ax.get_title(loc="left").endswith(", 4 cells")


def test_the_first_markers_of_each_group(tmp_path):
    table = tmp_path / "markers.csv"
    table.write_text("group,names,scores\n10,a,3\n10,NA,2\n10,c,1\n2,b,5\n2,a,4\n")
    assert top_markers(read_table(table), ["2", "3", "10"], 2) == (
        {"2": ["b", "a"], "10": ["a", "NA"]},
        2,
    )
    table.write_text("group,names,scores\n" + "\n".join(f"{i},g,1" for i in range(200)))
    assert top_markers(read_table(table), ["0"], 4) == ({"0": ["g"]}, 1)


# --------------------------------------------------------------------------------------- the step


def test_the_files_are_png_and_small_svg(demo, drawn, tmp_path):
    out = tmp_path / "figures"
    settings = steps.settings("figures", genes=drawn["genes"], dpi=50)
    marker_figures(*inputs(demo), out, **settings, groupby="leiden", names={"0": "B cells"})
    stems = ["genes_dotplot", "markers_dotplot", "markers_heatmap", "markers_ranks"]
    assert sorted(f.name for f in out.glob("*.svg")) == [f"{name}.svg" for name in stems]
    assert sorted(f.stem for f in out.glob("*.png")) == sorted([*stems, "genes_umap"])
    svg = (out / "markers_dotplot.svg").read_text()
    assert ">0: B cells</text>" in svg  # text that can be edited
    assert drawn["genes"][0] in (out / "genes_dotplot.svg").read_text()
    png = (out / "genes_umap.png").read_bytes()
    about = png[png.index(b"tEXtProvenance\0") :].partition(b"\0")[2]
    parameters = json.JSONDecoder().raw_decode(about.decode("latin-1"))[0]["parameters"]
    assert parameters["genes"] == drawn["genes"]
    again = tmp_path / "again"
    marker_figures(*inputs(demo), again, **settings | {"formats": ["png"]}, groupby="leiden")
    assert {f.suffix for f in again.iterdir() if f.name != "files.json"} == {".png"}


def test_a_picture_is_as_large_as_what_it_shows():
    values = np.random.default_rng(0).random((3, 90))
    of = draw.GroupMeans(["0", "1", "2"], [f"g{i}" for i in range(90)], values, values)
    width, _ = draw.dotplot(of, "wide").axes[0].get_window_extent().size / 100
    assert width == pytest.approx(90 * draw.FIELD)
