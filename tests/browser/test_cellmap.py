"""The interactive map in Chromium: what its controls change in what is drawn."""

from types import SimpleNamespace

import numpy as np
import pytest

N = 3000
HOSTILE = "</script><script>alert(1)</script> \"B\" & 'cells' <b>🧬</b>"
#: What plotly draws: of each trace the points and their colours; and the ranges of the axes.
DRAWN = """() => {
  const plot = document.querySelector("#cell-map .cm-plot");
  const { xaxis, yaxis } = plot._fullLayout;
  return {
    n: plot.data.map((trace) => trace.x.length),
    x: plot.data.map((trace) => [...trace.x]),
    types: plot.data.map((trace) => trace.type),
    colours: plot.data.map(({ marker: { color } }) => (color.at(0) === "#" ? color : [...color])),
    scale: plot.data[1].marker.colorscale,
    ranges: [...xaxis.range, ...yaxis.range],
  };
}"""
RANGE = "document.querySelector('.cm-plot')._fullLayout.xaxis.range"


def drawn(page):
    return SimpleNamespace(**page.evaluate(DRAWN))


class Change:
    """Wait, after what is done within, until the map has been drawn again."""

    def __init__(self, page):
        self.page = page

    def __enter__(self):
        self.page.evaluate("performance.clearMarks()")

    def __exit__(self, failed, *_):
        if not failed:
            seen = "performance.getEntriesByName('cell-map-drawn').length > 0"
            self.page.wait_for_function(seen)


@pytest.fixture(scope="module")
def path(write_map):
    return write_map(N, HOSTILE)


@pytest.fixture(scope="module")
def opened(shared, path):
    return shared(path)


@pytest.fixture
def page(opened):
    """The page, as it is at first."""
    opened.emulate_media(media="screen")
    opened.mouse.move(0, 0)
    with Change(opened):
        opened.select_option(".cm-colour", index=1)
    with Change(opened):
        opened.select_option(".cm-colour", index=0)
    with Change(opened):
        opened.select_option(".cm-embedding", index=1)
    with Change(opened):
        opened.select_option(".cm-embedding", index=0)
    opened.locator("h1").click()
    return opened


def test_the_first_picture_shows_every_cell_by_cluster(page):
    found = drawn(page)
    assert found.types == ["scattergl", "scattergl"]
    assert found.n == [0, N]
    assert set(found.colours[1]) == {0, 1, 2, 3}
    assert page.inner_text(".cm-note") == "all 3,000 cells shown"
    # in random order, so that no cluster lies on top
    changes = np.count_nonzero(np.diff(found.colours[1]))
    assert changes > N / 2


def test_colours_follow_the_choice(page):
    with Change(page):
        page.select_option(".cm-colour", label="cell_type")
    found = drawn(page)
    assert found.n == [N / 10, N * 9 / 10]  # those without a type are grey, below
    assert found.colours[0] == "#d9d9d9"
    assert set(found.colours[1]) == {0, 1}
    legend = page.locator(".cm-legend [data-code]").all_inner_texts()
    assert [entry.rsplit(maxsplit=1)[0] for entry in legend] == [HOSTILE, "T cells", "missing"]
    assert legend[2].split()[1] == "300"
    with Change(page):
        page.select_option(".cm-colour", label="counts (log10)")
    found = drawn(page)
    assert found.n == [N / 5, N * 4 / 5]
    assert len(set(found.colours[1])) > N / 2
    assert [colour for _, colour in found.scale][::15] == ["#440154", "#fde725"]
    assert "missing 600" in page.inner_text(".cm-legend")


def test_a_gene_is_found_by_its_name(page):
    search = page.locator(".cm-gene")
    assert page.locator("#cell-map-genes option").count() == 5
    with Change(page):
        search.fill("gene2")
        search.press("Enter")
    assert page.locator(".cm-colour option:checked").inner_text() == "GENE2"
    colours = drawn(page).colours[1]
    assert colours == sorted(colours)  # the highest on top
    assert colours[0] == 0
    assert "GENE2" in page.inner_text(".cm-legend")
    search.fill("CD99")
    search.press("Enter")
    assert page.inner_text(".cm-message") == "CD99 is not among the 5 genes of this page."
    assert page.locator(".cm-colour option:checked").inner_text() == "GENE2"


def test_another_embedding_has_its_own_axes_and_the_same_colours(page):
    before = drawn(page)
    with Change(page):
        page.select_option(".cm-embedding", label="UMAP, harmony")
    after = drawn(page)
    np.testing.assert_allclose(after.x[1], 2 * np.array(before.x[1]), atol=1e-3)
    np.testing.assert_allclose(after.ranges, 2 * np.array(before.ranges), atol=1e-3)
    assert after.colours == before.colours


def test_the_legend_hides_shows_and_isolates_groups(page):
    button = page.locator('.cm-legend [data-code="1"]')
    in_group = int(button.locator("small").inner_text())
    with Change(page):
        button.click()
    found = drawn(page)
    assert found.n[1] == N - in_group
    assert set(found.colours[1]) == {0, 2, 3}
    assert button.get_attribute("aria-pressed") == "false"
    assert page.inner_text(".cm-note") == f"all 3,000 cells shown; {in_group} of them are hidden"
    with Change(page):
        page.get_by_text("show all").click()
    assert drawn(page).n[1] == N
    button.dblclick()
    page.wait_for_function(f"document.querySelector('.cm-plot').data[1].x.length === {in_group}")
    assert set(drawn(page).colours[1]) == {1}
    with Change(page):
        page.get_by_text("hide all").click()
    assert drawn(page).n == [0, 0]
    with Change(page):  # another colour begins with all
        page.select_option(".cm-colour", label="cell_type")
    assert sum(drawn(page).n) == N


def middle(page):
    box = page.locator(".cm-plot").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_mouse_moves_zooms_and_goes_back(page):
    whole = drawn(page).ranges
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)  # not yet clicked: the page's own scrolling
    assert drawn(page).ranges == whole
    page.mouse.down()
    page.mouse.move(x + 100, y, steps=3)
    page.mouse.up()
    page.wait_for_function(f"{RANGE}[0] < {whole[0] - 1}")
    moved = drawn(page).ranges
    np.testing.assert_allclose(np.diff(moved[:2]), np.diff(whole[:2]))
    assert moved[2:] == whole[2:]
    page.mouse.wheel(0, -300)
    size = f"(([a, b]) => b - a)({RANGE})"
    page.wait_for_function(f"{size} < {0.95 * np.diff(whole[:2])[0]}")
    with Change(page):  # zoom stays with another colour
        page.select_option(".cm-colour", label="cell_type")
    assert np.diff(drawn(page).ranges[:2]) < 0.95 * np.diff(whole[:2])
    page.mouse.dblclick(x, y)
    page.wait_for_function(f"Math.abs({size} - {np.diff(whole[:2])[0]}) < 1e-6")
    np.testing.assert_allclose(drawn(page).ranges, whole)


def test_a_cell_tells_what_it_is(page):
    with Change(page):
        page.select_option(".cm-colour", label="cell_type")
    page.locator('.cm-legend [data-code="0"]').dblclick()
    page.wait_for_function("document.querySelector('.cm-plot').data[0].x.length === 0")
    place = page.evaluate("""() => {
      const plot = document.querySelector(".cm-plot");
      const { xaxis, yaxis } = plot._fullLayout;
      const box = plot.getBoundingClientRect();
      const { x, y } = plot.data[1];
      const leftmost = x.indexOf(x.reduce((a, b) => Math.min(a, b)));
      return [box.left + xaxis._offset + xaxis.d2p(x[leftmost]),
              box.top + yaxis._offset + yaxis.d2p(y[leftmost])];
    }""")
    page.mouse.move(*place, steps=2)
    page.wait_for_selector(".cm-tip", state="visible")
    assert page.inner_text(".cm-tip").splitlines()[1] == f"cell_type: {HOSTILE}"


def test_a_phone_shows_a_sample_pinches_it_and_needs_no_sideways_scrolling(show, write_map):
    path = write_map(2000, max_cells=500)
    page = show(path, width=360, height=740, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expected = "500 of 2,000 cells shown, a random sample (seed 5)"
    assert page.inner_text(".cm-note") == expected
    assert drawn(page).n == [0, 500]
    before = np.diff(drawn(page).ranges[:2])
    touch = page.context.new_cdp_session(page)
    _, y = middle(page)
    for kind, apart in [("Start", 30), ("Move", 45), ("Move", 60)]:
        points = [{"x": 180 + side * apart, "y": y, "id": side} for side in (-1, 1)]
        points = [{**point, "id": i} for i, point in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(100)
    np.testing.assert_allclose(np.diff(drawn(page).ranges[:2]), before / 2, rtol=1e-6)
    with Change(page):
        page.locator('.cm-legend [data-code="0"]').tap()
    assert set(drawn(page).colours[1]) == {1, 2, 3}


def test_without_webgl_the_cells_are_painted_and_the_page_says_so(launch, show, path):
    page = show(path, browser=launch("--disable-3d-apis"), wait=False)
    page.wait_for_selector("#cell-map[data-state=no-webgl]")
    assert "no WebGL" in page.inner_text(".cm-message")
    colours = """() => {
      const canvas = document.querySelector(".cm-plot canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return [...new Set(new Uint32Array(data.buffer))].filter((ink) => ink).map((ink) =>
        "#" + [0, 8, 16].map((by) => ((ink >> by) & 255).toString(16).padStart(2, "0")).join(""));
    }"""
    assert sorted(page.evaluate(colours)) == ["#0072b2", "#009e73", "#d55e00", "#e69f00"]
    page.evaluate("performance.clearMarks()")
    page.select_option(".cm-colour", label="cell_type")
    page.wait_for_function("performance.getEntriesByName('cell-map-painted').length > 0")
    assert sorted(page.evaluate(colours)) == ["#0072b2", "#d9d9d9", "#e69f00"]
    assert "no WebGL" in page.inner_text(".cm-message")


def test_print_has_a_note_in_its_place(page):
    page.emulate_media(media="print")
    assert not page.is_visible(".cm-plot")
    assert page.is_visible(".cm-print")


@pytest.mark.parametrize(("n", "n_genes"), [(3000, 60), (200_000, 40)])
def test_a_page_is_small_and_shows_its_first_picture_soon(show, write_map, n, n_genes):
    path = write_map(n, n_genes=n_genes)
    assert path.stat().st_size < 25e6
    page = show(path)
    times = page.evaluate("""() => Object.fromEntries(
      [...performance.getEntriesByType("paint"), ...performance.getEntriesByType("mark")]
        .map(({ name, startTime }) => [name, startTime / 1000]))""")
    assert times["first-contentful-paint"] < 1.5
    assert times["cell-map-painted"] < 3
    assert times["cell-map-drawn"] < 12  # one that zooms: 1.6 and 2.7 s on two idle cores
