"""Pictures of scores, by what they draw; and what the report has of them."""

import shutil

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from scripts.cell_type_names import cell_type_names
from scripts.figures import figures
from scripts.scores import scores
from scrna.data import step_files
from scrna.plots import score_figures as draw
from scrna.plots import style
from scrna.report.captions import pictures
from scrna.report.map_data import groups, values
from scrna.report.page import named_types
from scrna.report.results import Results
from tests.unit.steps import SEEDED, settings

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture(scope="module", autouse=True)
def look():
    with mpl.rc_context(style.STYLE):
        yield


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    """The step files of scores and names, and the figures of the topics that show them."""
    folder = tmp_path_factory.mktemp("scored") / "demo"
    folder.mkdir()
    names = demo.lognorm().var_names
    types = {
        f"type_{i}": {
            "positive": names[names.str.startswith(f"MARK{i}-")].tolist(),
            "negative": [],
        }
        for i in (1, 2, 3)
    }
    sets = {name: own["positive"] for name, own in types.items()}
    cycle = {"S": sets["type_1"][:10], "G2M": sets["type_2"][:10], "formerly": {}}
    given = settings("scores", **SEEDED | {"sets": sets, "cell_cycle": cycle})
    scores(*demo.base, folder / "scores.h5", **given)
    steps = [folder / "scores.h5"]
    for rep in demo.reps:
        (folder / rep).mkdir()
        steps += [
            shutil.copy(demo[f"{rep}/{name}"], folder / rep / f"{name}.h5")
            for name in ("umap", "leiden")
        ]
        out = folder / rep / "cell_type_names.h5"
        given = settings("cell_types", markers=types)
        cell_type_names(*demo.base, demo[f"{rep}/leiden"], out, out.with_suffix(".csv"), **given)
        steps.append(out)
    drawn = []
    for topic in ("scores", "clusters"):
        out = folder / "figures" / topic
        shown = [file for file in steps if topic == "scores" or file.stem != "scores"]
        base = demo.counts, demo["qc"], demo["filter"], demo["hvg"], shown
        figures(*base, out, topic=topic, dpi=50, formats=["png"])
        drawn.append(out)
    shutil.copytree(demo.counts, folder / "counts.zarr")
    shutil.copy(demo.counts.with_suffix(".json"), folder)
    others = [file for file in demo.steps if file.stem not in ("umap", "leiden")]
    return Results(
        counts=folder / "counts.zarr",
        steps=[demo["filter"], demo["normalize"], *others, *steps],
        filter_table=demo.folder / "filter.csv",
        figures=drawn,
    )


def test_every_picture_is_drawn_and_has_a_caption(made):
    found = {picture.path.stem: picture for picture in pictures(made)}
    assert set(found) == {
        "scores_umap", "scores_violins", "clusters_by_phase", "umap", "cell_types_heatmap",
    }  # fmt: skip
    assert made.not_drawn == []
    assert "ctrl_size 50, n_bins 25, seed 0" in found["scores_violins"].caption
    assert "Phases of the cell cycle" in found["scores_umap"].caption
    assert "0.5 above the next one" in found["cell_types_heatmap"].caption
    assert found["scores_umap"].topic == "scores"


def test_the_map_is_coloured_by_scores_phase_and_names(made):
    numbers, shown = values(made), groups(made, [], {})
    expected = step_files.read(made.files["", "scores"], "obs/type_1")
    np.testing.assert_array_equal(numbers["score: type_1"], expected)
    assert {"score: S_score", "score: G2M_score"} <= set(numbers)
    assert shown["phase"].categories.tolist() == ["G1", "S", "G2M"]
    assert {"cell_type_auto (harmony)", "cell_type_auto (pca)"} <= set(shown)


def test_the_table_of_names_is_that_of_the_step(made):
    for rep in made.reps:
        found = named_types(made, rep)
        table = pd.read_csv(
            made.files[rep, "cell_type_names"].with_suffix(".csv"), dtype={"group": str}
        )
        rows = pd.DataFrame(found["rows"])
        assert rows.columns.tolist() == table.columns.tolist()
        assert (rows["group"] == table["group"]).all()
        assert (rows["cell_type"] == table["cell_type"]).all()
        np.testing.assert_allclose(rows["margin"], table["margin"], atol=1e-4)
        assert found["by"] == "leiden"


def test_panels_of_an_embedding():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(50, 2))
    found = {f"set {i}": rng.normal(size=50) for i in range(5)}
    phase = pd.Categorical.from_codes(np.arange(50) % 3, ["G1", "S", "G2M"])
    figure = draw.scores_embedding("pca", xy, found, phase)
    shown = [ax for ax in figure.axes if ax.get_visible() and ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in shown] == ["phase", *found]
    points = shown[1].findobj(PathCollection)[0]
    assert sorted(points.get_array()) == sorted(found["set 0"])
    without = draw.scores_embedding("pca", xy, found, None)
    assert without.axes[0].get_title(loc="left") == "set 0"


def test_violins_have_the_medians_of_clusters():
    clusters = pd.Categorical.from_codes([0] * 10 + [1] * 10 + [2] * 2, list("012"))
    values = np.concatenate([np.arange(10.0), 5 + np.arange(10.0), [1, 1]])
    figure = draw.score_violins("pca", clusters, {"one": values})
    ax = figure.axes[0]
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert medians == [4.5, 9.5]
    points = [line for line in ax.lines if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in points] == [[1, 1]]


def test_the_heat_map_frames_names_and_not_what_is_unsure():
    scores_of = np.array([[2.0, -1, 0], [0.1, 0.2, 0.1]])
    one = draw.TypeScores(["0", "1"], ["a", "b", "c"], scores_of, ["a", "unsure"])
    ax = draw.type_heatmap({"pca": one}, "leiden").axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), scores_of)
    frames = [line for line in ax.lines if line.get_gid() == "named"]
    assert len(frames) == 1
    assert np.mean(frames[0].get_xdata()[:4]) == 0
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0: a", "1: unsure"]
