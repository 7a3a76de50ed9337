"""The report, by what is in its page; what its scripts do is tested in a browser."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from xml.etree.ElementTree import Element, TreeBuilder

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from scripts.filter import filter_cells
from scripts.markers import markers
from scripts.report import report
from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.errors import UserError
from scrna.file_list import write_list
from scrna.report.captions import pictures
from scrna.report.findings import Finding, findings
from scrna.report.map_data import embeddings, genes_of, groups, values
from scrna.report.page import marker_data, pack, page
from scrna.report.results import Results, read_markers
from scrna.step import step
from tests.unit.steps import integrated, reseal, settings

pytest_plugins = ["tests.unit.fixtures"]

VOID = {"meta", "link", "img", "br", "input", "hr"}
NAMES = "qc_violins qc_scatter filter hvg pca_variance umap tsne clusters_by_batch".split()
NAMES += ["trajectory", "odd_one"]
OF_REP = ["markers_ranks", "markers_dotplot", "markers_heatmap", "genes_umap"]
HOSTILE = "<script>alert('\"&</script>"


class Tree(HTMLParser):
    """A page as elements; scripts hold text."""

    def __init__(self, text):
        super().__init__()
        self._builder = TreeBuilder()
        self.feed(text)
        self.root = self._builder.close()

    def handle_starttag(self, tag, attrs):
        self._builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in VOID:
            self._builder.end(tag)

    def handle_endtag(self, tag):
        self._builder.end(tag)

    def handle_data(self, data):
        self._builder.data(data)

    def __getitem__(self, key) -> Element:
        found = self.root.find(f".//*[@id='{key}']")
        assert found is not None, f"no element {key}"
        return found

    def data(self, key):
        return json.loads(self[key].text)


def said(element):
    """The text of an element, white space as it is seen."""
    return " ".join("".join(element.itertext()).split())


def table(element):
    """The rows of a table, head and foot among them, as text."""
    return [[said(cell) for cell in row] for row in element.iter("tr")]


def draw(folder, names, size=(300, 200)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        made = PngImagePlugin.PngInfo()
        made.add_text("Provenance", "{}")
        pixels = rng.integers(255, size=(*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png", dpi=(100, 100), pnginfo=made)
    write_list(folder)
    return folder


@pytest.fixture(scope="module")
def results(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    scores = integrated(demo, label_key="cell_type")
    figures = [draw(folder / "qc/figures", NAMES[:3]), draw(folder / "figures", NAMES[3:])]
    figures += [draw(folder / rep / "figures", OF_REP) for rep in demo.reps]
    return Results(
        counts=demo.counts,
        steps=[demo["filter"], demo["normalize"], *demo.steps, scores],
        filter_table=demo.folder / "filter.csv",
        marker_tables=[demo.folder / rep / "markers.csv" for rep in demo.reps],
        figures=figures,
    )


def made(results, **changes):
    given = {"dataset": "demo", "config": {"kind": "h5ad"}, "usages": [], "cell_map": None}
    given |= {"n_markers": 5, "annotations": {}}
    return Tree(page(results, **given | changes))


def changed(results, tmp_path, step, rep="", **facts):
    """The results with other facts in the provenance of a step."""
    path = results.files[rep, step]
    copy = tmp_path / rep / path.name
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        record = json.loads(file.attrs["provenance"]) | facts
        file.attrs["provenance"] = json.dumps(record)
    reseal(copy)
    steps = [copy if file == path else file for file in results.steps]
    return Results(results.counts, steps, results.filter_table, results.marker_tables)


# -------------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def whole(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    benchmarks = folder / "benchmarks/demo"
    for name, seconds in (("convert", 2.5), ("qc", 61), ("pca/umap", 8), ("old", 99)):
        file = benchmarks / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\tmax_rss\n{seconds}\t512\n")
    report(
        results.counts,
        *results.steps[:2],
        results.steps[2:],
        results.filter_table,
        results.marker_tables,
        results.figures,
        folder / "report.html",
        **settings("report", batch_key=["batch"], label_key="cell_type", seed=0)
        | {"annotations": {"leiden": {"0": "first <type>"}}, "genes": ["MARK1-1"]},
        dataset="demo",
        config={"kind": "simulate", "label_key": "cell_type"},
        benchmarks=str(benchmarks),
    )
    assert [file.name for file in folder.glob("*report*")] == ["report.html"]
    return (folder / "report.html").read_text()


def test_the_page_asks_for_nothing(whole):
    tree = Tree(whole)
    for element in tree.root.iter():
        for name in ("src", "href", "action", "data", "poster"):
            url = element.get(name, "")
            assert not url or url.startswith(("data:", "#")), (element.tag, url[:80])
    for style in tree.root.iter("style"):
        assert not re.search(r"@import|url\(", style.text)
    assert {element.get("href") for element in tree.root.iter("link")} == {"data:,"}


def test_every_link_of_the_navigation_leads_somewhere(whole):
    tree = Tree(whole)
    links = [link.get("href") for link in tree.root.find(".//nav").iter("a")]
    assert links[:3] == ["#summary", "#map", "#integration"]
    assert links[-2:] == ["#markers", "#methods"]
    for link in links:
        assert tree[link[1:]].tag == "section"
        assert tree[f"{link[1:]}-heading"].tag == "h2"


def test_ids_are_there_once(whole):
    ids = [element.get("id") for element in Tree(whole).root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_the_map_has_the_genes_asked_for_first_and_names_of_clusters(whole):
    tree = Tree(whole)
    data = tree.data("cell-map-data")
    assert data["genes"][0]["name"] == "MARK1-1"
    assert [one["name"] for one in data["embeddings"]] == [
        "UMAP, harmony", "UMAP, pca", "t-SNE, harmony", "t-SNE, pca",
    ]  # fmt: skip
    assert data["groups"][0]["names"][0] == "first <type>"
    assert "first <type>" not in whole  # as markup it would be another thing
    assert said(tree.root.find(".//span[@class='called']")) == "first <type>"


def test_what_the_steps_took(whole):
    rows = table(Tree(whole)["usage"])
    assert sorted(rows[1:-1]) == [
        ["convert", "2.5 s", "537 MB", "CPU"],
        ["qc", "1 min 01 s", "537 MB", "CPU"],
        ["umap pca", "8.0 s", "537 MB", "CPU"],
    ]  # what is of no step that the report is made from is left out
    assert rows[-1][:2] == ["sum", "1 min 12 s"]


# ------------------------------------------------------------------------------------ the summary


def test_the_numbers_are_those_of_the_steps(results, demo):
    tree = made(results)
    numbers = {
        said(box.find("dt")): said(box.find("dd/strong"))
        for box in tree["summary"].find("dl").iter("div")
    }
    n_clusters = {
        rep: len(step_files.read(demo[f"{rep}/leiden"], "obs/leiden").categories)
        for rep in demo.reps
    }
    assert numbers == {
        "cells": f"{step_files.read(demo['filter'], 'obs/keep').sum():,}",
        "genes": f"{step_files.read(demo['filter'], 'var/keep').sum():,}",
        "highly variable genes": f"{step_files.read(demo['hvg'], 'var/highly_variable').sum():,}",
        "clusters, harmony": str(n_clusters["harmony"]),
        "clusters, pca": str(n_clusters["pca"]),
    }


def test_why_cells_went(results):
    rows = table(made(results).root.find(".//table[@class='filter']"))
    known = pd.read_csv(results.filter_table).set_index("criterion")
    for name, bound, cells, alone, _genes in rows[1:-1]:
        if name == "min_cells":
            continue
        assert float(bound.replace(",", "")) == known.loc[name, "bound"]
        assert int(cells.replace(",", "")) == known.loc[name, "cells"]
        assert int(alone.replace(",", "")) == known.loc[name, "cells_by_this_alone"]
    kept, n_obs = (int(known.loc[which, "cells"]) for which in ("kept", "all"))
    assert rows[-1][2] == f"{kept:,} of {n_obs:,} cells"


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_clusters_with_their_sizes_and_first_markers(results, demo, rep):
    shown = made(results).root.find(f".//table[@data-rep='{rep}']")
    rows = table(shown)[1:]
    sizes = step_files.read(demo[f"{rep}/leiden"], "obs/leiden").value_counts()
    known = pd.read_csv(demo.folder / rep / "markers.csv", dtype={"group": str})
    assert [row[0] for row in rows] == list(sizes.index)
    for name, n, _share, genes in rows:
        assert int(n) == sizes[name]
        own = known.loc[known["group"] == name, "names"].head(5).tolist()
        assert genes.split() == (own or "too few cells for markers".split())


def test_the_verdict_and_the_scores(results):
    tree = made(results)
    scores = results.integration
    assert said(tree["summary"].find("p[@class='verdict']")).endswith(scores["verdict"])
    row = tree["integration"].find(".//tr[@data-score='ari']")
    expected = [f"{scores[rep]['ari']:.2f}" for rep in ("pca", "harmony")]
    assert [said(cell) for cell in row][1:] == expected


def test_an_integration_is_told_without_known_types(results, tmp_path):
    of_labels = ("same_label", "clisi", "silhouette_label", "ari", "nmi")
    path = shutil.copy(results.files["", "integration"], tmp_path / "integration.h5")
    with h5py.File(path, "r+") as file:
        scores = file["uns/integration"]
        del scores["label_key"]
        for rep, name in product(results.reps, of_labels):
            scores[rep][name][...] = np.nan
    reseal(path)
    steps = [path for path in results.steps if path.stem != "integration"]
    tree = made(replace(results, steps=[*steps, tmp_path / "integration.h5"]))
    rows = {row.get("data-score") for row in tree["integration"].iter("tr")}
    assert "same_batch" in rows
    assert rows.isdisjoint(of_labels)
    assert "by batch; the scores" in said(tree["integration"])


def test_one_representation_has_no_integration(results):
    steps = [path for path in results.steps if path.parent.name != "harmony"]
    steps = [path for path in steps if path.stem != "integration"]
    alone = Results(results.counts, steps, results.filter_table, results.marker_tables)
    tree = made(alone)
    assert tree.root.find(".//*[@id='integration']") is None
    assert "There is no integration" in said(tree["summary"])
    assert [one["rep"] for one in tree.data("marker-data")["tables"]] == ["pca"]


# ---------------------------------------------------------------------------- what is to be known


def kinds(found):
    return {(finding.kind, finding.step) for finding in found}


@pytest.fixture
def quiet(results, tmp_path):
    """The same without what the trajectory warns of: cell types lie apart in this small demo."""
    for rep in results.reps:
        results = changed(results, tmp_path, "trajectory", rep, warnings=[])
    return results


def test_all_is_well(quiet):
    assert findings(quiet, kind="h5ad") == []
    assert made(quiet).root.find(".//*[@class='findings warning']") is None


def test_what_steps_warned_of_is_shown_once(quiet, tmp_path):
    several = quiet
    for rep in quiet.reps:
        text = "n_pcs is 40, but there are 20 components: all are used"
        several = changed(several, tmp_path, "neighbors", rep, warnings=[text])
    several = changed(several, tmp_path, "qc", warnings=[f"no mitochondrial gene: {HOSTILE}"])
    found = findings(several, kind="h5ad")
    assert kinds(found) == {("warning", "qc"), ("warning", "neighbors (pca, harmony)")}
    tree = made(several)
    box = tree.root.find(".//*[@class='findings warning']")
    assert f"qc no mitochondrial gene: {HOSTILE}" in [said(item) for item in box.iter("li")]
    assert len(list(box.iter("li"))) == 2


def test_pictures_that_could_not_be_drawn_are_named(results, tmp_path):
    folders = [tmp_path / name for name in ("qc/figures", "figures", "harmony/figures")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        reasons = {f"picture_{number}": "ValueError: no room"}
        (folder / "not_drawn.json").write_text(json.dumps(reasons))
    counts = tmp_path / "counts.zarr"
    shutil.copy(results.counts.with_suffix(".json"), counts.with_suffix(".json"))
    found = findings(replace(results, counts=counts, figures=folders), kind="h5ad")
    expected = "The figure {} could not be drawn and is left out: ValueError: no room"
    for number, of in enumerate(["qc_figures", "figures", "marker_figures (harmony)"]):
        finding = Finding("warning", of, expected.format(f"picture_{number}"))
        assert finding in found


def test_cells_without_a_label_are_counted(results, demo):
    labels = demo.obs()["cell_type"]
    unlabelled = results.unlabelled("cell_type", ["TYPE_1"])
    assert unlabelled == ("cell_type", int((labels == "type_1").sum() + labels.isna().sum()))
    texts = [found.text for found in findings(results, kind="h5ad", unlabelled=unlabelled)]
    n = unlabelled[1]
    assert any(f"{n:,} of {len(labels):,} cells (" in text for text in texts)
    all_have = findings(results, kind="h5ad", unlabelled=("cell_type", 0))
    assert not any("no label" in found.text for found in all_have)


@pytest.mark.parametrize("name", ["pca", "harmony"])
def test_a_dataset_may_be_called_like_a_representation(results, tmp_path, name):
    """Its own files are of no representation, although its folder has the name of one."""
    folder = tmp_path / name
    folder.mkdir()
    for file in (results.counts, results.counts.with_suffix(".json"), results.filter_table):
        (folder / file.name).symlink_to(file)
    moved = []
    for (rep, _), file in results.files.items():
        (folder / rep).mkdir(exist_ok=True)
        moved.append(folder / rep / file.name)
        moved[-1].symlink_to(file)
    own = replace(results, counts=folder / results.counts.name, steps=moved, figures=[])
    assert own.files.keys() == results.files.keys()
    assert own.reps == results.reps
    assert said(made(own)["summary"]) == said(made(results)["summary"])


def test_an_approximate_search_and_a_simulation_are_noted(quiet, tmp_path):
    recall = {"algorithm": "cagra", "recall": 0.9731}
    found = findings(changed(quiet, tmp_path, "neighbors", "pca", recall=recall), kind="simulate")
    assert kinds(found) == {("note", "simulate"), ("note", "neighbors (pca)")}
    assert any("97.3 %" in finding.text for finding in found)


@pytest.mark.parametrize(
    ("facts", "is_told"),
    [
        ({"mixing": "separate"}, True),
        ({"mixing": "partly mixed"}, True),
        ({"biology": "blurred"}, True),
        ({"overall": "worse"}, True),
        ({"mixing": "mixed", "biology": "kept", "overall": "better"}, False),
    ],
)
def test_a_bad_integration_is_a_warning(results, tmp_path, facts, is_told):
    scores = {**results.integration, "mixing": "mixed", "biology": "kept", "overall": "better"}
    step_files.write(tmp_path / "integration.h5", {"uns/integration": scores | facts})
    steps = [path for path in results.steps if path.stem != "integration"]
    steps.append(tmp_path / "integration.h5")
    other = Results(results.counts, steps, results.filter_table)
    other.__dict__["records"] = results.records  # a file that no step has written has none
    assert (("warning", "integration") in kinds(findings(other, kind="h5ad"))) is is_told


@pytest.fixture(scope="module")
def with_doublets(results, demo, tmp_path_factory):
    """The results where the filter goes by batch, and most of the first cluster are doublets."""
    folder = tmp_path_factory.mktemp("doublets")
    files = demo.counts, demo["qc"], folder / "filter.h5", folder / "filter.csv"
    bounds = settings("filter", by="batch", mad={"total_counts": 5})
    filter_cells(*files, **bounds)
    keep = step_files.read(demo["filter"], "obs/keep")
    clusters = step_files.read(demo["harmony/leiden"], "obs/leiden")
    flags = np.zeros(len(keep), dtype=bool)
    flags[np.flatnonzero(keep)[np.flatnonzero(clusters == "0")[:-1]]] = True
    batch = demo_batches(demo)
    names = sorted(set(batch))
    table = {
        "sample": np.array(names, dtype=object),
        "n_cells": np.array([(batch == name).sum() for name in names]),
        "n_doublets": np.array([flags[batch == name].sum() for name in names]),
        "found_by": np.array(["minimum", "expected_rate", "minimum"], dtype=object),
    }
    made_up = {"obs/predicted_doublet": flags, "obs/doublet_score": flags.astype(float)}

    @step
    def doublets(out):
        step_files.write(out, made_up | {"uns/doublets": table})

    doublets(folder / "doublets.h5")
    steps = [*results.steps, folder / "doublets.h5"]
    return Results(results.counts, steps, files[3], results.marker_tables, results.figures)


def demo_batches(demo):
    return Counts(demo.counts).obs(["batch"])["batch"].to_numpy().astype(str)


def test_samples_have_their_cells_and_doublets(with_doublets, demo):
    rows = table(made(with_doublets).root.find(".//table[@class='samples']"))
    batch = demo_batches(demo)
    known = pd.read_csv(with_doublets.filter_table).set_index(["sample", "criterion"])["cells"]
    found = step_files.read(with_doublets.files["", "doublets"], "uns/doublets")
    assert [row[0] for row in rows[1:]] == sorted(set(batch))
    for place, (name, n_cells, kept, doublets, how) in enumerate(rows[1:]):
        n_all, n_kept, n = (batch == name).sum(), known[name, "kept"], found["n_doublets"][place]
        assert n_cells == f"{n_all:,}"
        assert kept == f"{n_kept:,.0f} ({100 * n_kept / n_all:.1f} %)"
        assert doublets == f"{n:,} ({100 * n / n_all:.1f} %)"
        assert how == ("expected rate" if place == 1 else "minimum of the scores")


def test_a_cluster_of_doublets_is_named(with_doublets, results, demo):
    (told,) = (f for f in findings(with_doublets, kind="h5ad") if f.step == "doublets (harmony)")
    clusters = step_files.read(demo["harmony/leiden"], "obs/leiden")
    share = 100 * (1 - 1 / (clusters == "0").sum())
    assert told.kind == "warning"
    assert f": 0 ({share:.0f} %). filter.remove_doublets" in told.text
    rows = table(made(with_doublets).root.find(".//table[@data-rep='harmony']"))
    assert rows[0][3] == "doublets"
    assert [row[3] for row in rows[1:]] == [f"{share:.1f} %"] + ["0.0 %"] * (len(rows) - 2)
    assert not any(f.step.startswith("doublets") for f in findings(results, kind="h5ad"))
    assert made(results).root.find(".//table[@class='samples']") is None


def test_bounds_by_mad_are_said_under_the_violins(with_doublets):
    steps = [f for f in with_doublets.steps if f.stem != "filter"]
    steps.append(with_doublets.filter_table.with_suffix(".h5"))
    own = Results(
        with_doublets.counts, steps, with_doublets.filter_table, [], with_doublets.figures
    )
    (violins,) = (p for p in pictures(own) if p.path.stem == "qc_violins")
    assert (
        "min_counts_mad, max_counts_mad (_mad: so many MADs from the median of each batch: 5 "
        in (violins.caption)
    )


def test_a_filter_that_takes_most_cells_is_a_warning(results, tmp_path):
    keep = np.arange(len(results.keep)) < 60
    other = Results(results.counts, results.steps, results.filter_table)
    other.__dict__["keep"] = keep
    (told,) = (f for f in findings(other, kind="h5ad") if f.step == "filter")
    assert told.kind == "warning"
    assert told.text.startswith(f"The filter removed {len(keep) - 60:,} of {len(keep):,} cells")


# ------------------------------------------------------------------------------------- the figures


def test_every_picture_is_there_with_its_method(results):
    tree = made(results)
    shown = list(tree.root.iter("figure"))
    assert len(shown) == len(NAMES) + len(OF_REP) * 2
    for figure in shown:
        image = figure.find("button/img")
        assert image.get("src").startswith("data:image/png;base64,")
        assert image.get("alt")
        assert (image.get("width"), image.get("height")) == ("300", "200")
        assert "288px" in image.get("style")  # 3 inches
    umap = next(f for f in shown if said(f.find("h3")) == "UMAP")
    caption = said(umap.find("figcaption"))
    own = results.parameters("umap", "harmony")
    assert f"min_dist {own['min_dist']}" in caption
    assert "n_neighbors 15, n_pcs 40, metric euclidean" in caption
    assert f"resolution {results.parameters('leiden')['resolution']}" in caption


def test_pictures_are_by_topic_and_what_is_not_known_is_last(results):
    found = pictures(results)
    assert [one.path.stem for one in found][:3] == ["qc_violins", "qc_scatter", "filter"]
    assert (found[-1].topic, found[-1].title) == ("more", "odd one")
    assert found[-1].path.stem == "odd_one"
    titles = {one.title for one in found if one.topic == "expression"}
    assert "Markers, dotplot (Harmony, after integration)" in titles


def test_large_pictures_are_packed_again(tmp_path):
    folder = draw(tmp_path, ["a", "b"], size=(200, 200))
    flat = Image.new("RGB", (900, 900), "white")
    flat.save(folder / "a.png", compress_level=0)
    paths = sorted(folder.glob("*.png"))
    sizes = {path: path.stat().st_size for path in paths}
    assert max(sizes, key=sizes.get).stem == "a"
    packed = pack(paths, most_bytes=sum(sizes.values()) - 1)
    assert packed[paths[0]]["src"].startswith("data:image/webp;base64,")
    assert packed[paths[1]]["src"].startswith("data:image/png;base64,")
    assert (packed[paths[0]]["width"], packed[paths[0]]["height"]) == (900, 900)


# ------------------------------------------------------------------------------------- the markers


def test_the_table_has_the_first_genes_of_each_group(results):
    data = made(results).data("marker-data")
    assert [one["rep"] for one in data["tables"]] == ["harmony", "pca"]
    for one in data["tables"]:
        known = pd.read_csv(
            results.files[one["rep"], "markers"].with_suffix(".csv"), dtype={"group": str}
        )
        expected = known.groupby("group", sort=False).head(5)[one["columns"]]
        found = pd.DataFrame(one["rows"], columns=one["columns"])
        pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
        assert "pvals" not in one["columns"]


def test_a_further_grouping_has_a_table_and_its_figures(results, demo, tmp_path):
    """Markers of the cell types, beside those of the clusters."""
    folder = tmp_path / "harmony"
    folder.mkdir()
    step, found = folder / "markers_cell_type.h5", folder / "markers_cell_type.csv"
    own = settings("markers", backend="cpu") | {"groupby": "cell_type", "method": "logreg"}
    markers(*demo.base, [], step, found, **own, key_added="rank_genes_groups_cell_type")
    figures = draw(folder / "figures_cell_type", OF_REP[:2])
    more = replace(
        results,
        steps=[*results.steps, step],
        marker_tables=[*results.marker_tables, found],
        figures=[*results.figures, figures],
    )
    tree = made(more)
    data = tree.data("marker-data")["tables"]
    assert [one["label"] for one in data] == [
        "Harmony, after integration; by leiden",
        "Harmony, after integration; by cell_type",
        "PCA, before integration; by leiden",
    ]
    assert [one["file"] for one in data] == [
        f"markers_{name}.csv" for name in ("harmony", "harmony_cell_type", "pca")
    ]
    assert data[1]["headings"][:3] == ["cell_type", "gene", "score"]
    first = pd.read_csv(found).groupby("group", sort=False)["names"].first()
    assert first.to_dict() == {row[0]: row[1] for row in reversed(data[1]["rows"])}
    titles = {picture.title: picture for picture in pictures(more)}
    of_types = titles["Markers, ranks, by cell_type (Harmony, after integration)"]
    assert "(cell_type) with the highest scores" in of_types.caption
    assert "the groups against each other" in of_types.caption
    assert "p-values" not in of_types.caption
    assert "by cell_type" not in titles["Markers, ranks (Harmony, after integration)"].caption


def test_hostile_names_stay_text(results, tmp_path):
    (tmp_path / "harmony").mkdir()
    path = tmp_path / "harmony/markers.csv"
    with path.open("w", newline="") as file:
        rows = [["group", "names", "scores", "pvals_adj"], ["0", HOSTILE, "inf", ""]]
        csv.writer(file).writerows(rows)
    other = Results(results.counts, results.steps, results.filter_table, [path])
    names = {"leiden": {"0": HOSTILE}}
    text = page(
        other, dataset=HOSTILE, config={"kind": HOSTILE}, usages=[], cell_map=None, n_markers=5,
        annotations=names,
    )  # fmt: skip
    assert "<script>alert" not in text
    tree = Tree(text)
    assert said(tree.root.find(".//h1")) == HOSTILE
    (one,) = tree.data("marker-data")["tables"]
    assert one["rows"] == [["0", HOSTILE, None, None]]  # JSON has no infinity
    assert one["called"] == {"0": HOSTILE}
    assert said(tree.root.find(".//span[@class='gene']")) == HOSTILE
    assert HOSTILE in said(tree["config"])


def test_without_markers_and_figures(results):
    other = Results(results.counts, results.steps, results.filter_table)
    tree = made(other)
    assert tree.root.find(".//*[@id='markers']") is None
    assert tree.root.find(".//figure") is None
    assert marker_data(other, {}, {}) == {"tables": []}


def test_a_gene_may_be_called_na(tmp_path):
    path = tmp_path / "markers.csv"
    path.write_text("group,names,scores\n0,NA,1.5\n0,nan,\n0,c,1\n1,NaN,2\n")
    found = read_markers(path, 2)
    assert found.rows == [["0", "NA", 1.5], ["0", "nan", None], ["1", "NaN", 2.0]]
    assert found.genes(1) == {"0": ["NA"], "1": ["NaN"]}


# ----------------------------------------------------------------------------------------- the map


def test_what_the_map_shows(results, demo):
    n = int(results.keep.sum())
    shown = groups(results, ["batch", "cell_type"], {"leiden_pca": {"0": "T"}})
    assert list(shown) == [
        "cell_type", "leiden (harmony)", "louvain (harmony)", "leiden (pca)", "louvain (pca)",
        "batch", "cell_type_source",
    ]  # fmt: skip
    assert list(shown["batch"]) == demo.obs()["batch"].astype(str).tolist()
    first = np.asarray(step_files.read(demo["pca/leiden"], "obs/leiden") == "0")
    assert (np.asarray(shown["cell_type"] == "T") == first).all()
    xy = embeddings(results)["UMAP, harmony"]
    np.testing.assert_array_equal(xy, step_files.read(demo["harmony/umap"], "obsm/X_umap"))
    assert {len(each) for each in [*shown.values(), *values(results).values()]} == {n}


def test_genes_asked_for_are_first_and_each_group_has_its_best(results):
    tables = results.markers(1)["harmony", "markers"]
    found = genes_of(results, ["MARK2-1"])
    assert found[0] == "MARK2-1"
    assert len(found) == len(set(found))
    assert set(next(zip(*tables.genes(1).values(), strict=True))) <= set(found)


def test_a_gene_that_is_not_there_is_refused(results, tmp_path):
    with pytest.raises(UserError, match="MARK1-9999"):
        report(
            results.counts, *results.steps[:2], results.steps[2:], results.filter_table, [], [],
            tmp_path / "report.html",
            **settings("report", batch_key=[], label_key=None, annotations={}, seed=0)
            | {"genes": ["MARK1-9999"]},
            dataset="demo", config={"kind": "h5ad"}, benchmarks=str(tmp_path),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
