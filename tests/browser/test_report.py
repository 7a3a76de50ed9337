"""The whole report of a small analysis in Chromium: one page, at a desk, on a phone, on paper."""

import json
import re

import pytest

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture(scope="module")
def path(demo, tmp_path_factory):
    from scripts.figures import figures
    from scripts.qc_figures import qc_figures
    from scripts.report import report
    from scrna.config.settings import complete
    from tests.unit.steps import settings

    folder = tmp_path_factory.mktemp("report")
    table = demo.folder / "filter.csv"
    drawn = [demo[f"{r}/{s}"] for r in demo.reps for s in ("umap", "leiden")]
    shown = {"batch_key": ["batch"], "label_key": "cell_type", "annotations": {}}
    how = {"dpi": 72, "formats": ["png"]}
    cells = demo.counts, demo["qc"], demo["filter"]
    qc_figures(*cells, table, folder / "qc/figures", **how, batch_key=["batch"])
    topics = {"genes": ([demo["pca/pca"]], {}), "clusters": (drawn, shown)}
    for topic, (read, by) in topics.items():
        out = folder / "figures" / topic
        figures(*cells, demo["hvg"], read, out, topic=topic, **how, **by)
    config = complete({"run": "demo", "datasets": {"demo": {"kind": "simulate"}}})
    report(
        *demo.base,
        demo.steps,
        table,
        [demo.folder / rep / "markers.csv" for rep in demo.reps],
        [folder / "qc/figures", *(folder / "figures" / topic for topic in topics)],
        folder / "report.html",
        **settings("report"),
        **shown,
        genes=[],
        seed=0,
        dataset="demo",
        config=config["datasets"]["demo"],
        benchmarks=str(folder),
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(shared, path):
    return shared(path)


def rows(page) -> list[list[str]]:
    lines = page.locator("#marker-table tbody tr").all()
    return [line.locator("td").all_inner_texts() for line in lines]


def test_all_parts_are_there_and_every_link_leads_somewhere(page):
    assert page.locator("h1").inner_text() == "demo"
    ids = [link.get_attribute("href") for link in page.locator('a[href^="#"]').all()]
    assert {"#summary", "#map", "#markers", "#methods"} <= {*ids}
    assert all(page.locator(place).count() == 1 for place in ids)
    widths = page.locator("figure img").evaluate_all("""(images) =>
      Promise.all(images.map(async (image) => {
        image.loading = "eager";
        await image.decode();
        return image.naturalWidth;
      }))""")
    assert len(widths) > 5
    assert min(widths) > 100
    given = page.locator("[id]").evaluate_all("(all) => all.map((one) => one.id)")
    assert len(given) == len({*given})


def test_the_map_offers_what_the_analysis_has(page):
    offered = page.locator(".cm-embedding option").all_inner_texts()
    assert offered[0] == "UMAP, harmony"
    assert {*offered} == {
        f"{what}, {rep}" for what in ("UMAP", "t-SNE") for rep in ("pca", "harmony")
    }
    colours = page.locator(".cm-colour option").all_inner_texts()
    assert {"leiden (harmony)", "leiden (pca)", "batch", "cell_type"} <= {*colours}
    genes = page.locator("#cell-map-genes option").evaluate_all(
        "all => all.map((one) => one.value)"
    )
    assert len(genes) > 5
    page.evaluate("performance.clearMarks()")
    page.locator(".cm-gene").fill(genes[3])
    page.locator(".cm-gene").press("Enter")
    page.wait_for_function("performance.getEntriesByName('cell-map-drawn').length > 0")
    assert page.locator(".cm-colour option:checked").inner_text() == genes[3]


def test_the_table_of_markers_is_searched_and_sorted(page):
    whole = rows(page)
    gene = json.loads(page.inner_text("#marker-data"))["tables"][0]["rows"][4][1]
    assert whole[4][1] == gene
    page.fill("#marker-text", gene.lower())
    found = rows(page)
    assert 0 < len(found) < len(whole)
    assert all(gene in name for _, name, *_ in found)
    page.fill("#marker-text", "nosuchgene")
    assert rows(page) == []
    page.fill("#marker-text", "")
    assert rows(page) == whole
    page.select_option("#marker-group", index=2)
    only = rows(page)
    assert len({group for group, *_ in only}) == 1
    page.locator("#marker-table th button").nth(2).click()  # scores
    scores = [float(row[2].replace("−", "-")) for row in rows(page)]
    assert scores == sorted(scores, reverse=True)
    page.select_option("#marker-group", index=0)


def test_a_figure_is_enlarged_and_closed(page):
    page.locator(".enlarge").first.click()
    assert page.is_visible("#large img")
    page.keyboard.press("Escape")
    assert not page.is_visible("#large img")


def test_a_phone_shows_it_without_sideways_scrolling(show, path):
    page = show(path, width=360, height=740, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_it_prints(page, path, tmp_path):
    page.emulate_media(media="print")
    assert not page.is_visible(".cm-plot")
    assert page.is_visible("#summary")
    pdf = page.pdf(format="A4")
    page.emulate_media(media="screen")
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2


def test_the_first_picture_comes_soon(show, path):
    assert path.stat().st_size < 25e6
    page = show(path, wait=False)
    page.wait_for_function("performance.getEntriesByName('cell-map-painted').length > 0")
    for name in ("first-contentful-paint", "cell-map-painted"):
        assert page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime") < 3000
