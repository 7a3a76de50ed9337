"""The interactive map of cells: what is packed into the page is what was given."""

import gzip
import json
import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest

from scrna.plots.colours import PALETTE
from scrna.report.cell_map import cell_map, quantise, sample

NASTY = "</script><script>alert(1)</script> \"quoted\" 'too' & <b> 🧬 \u2028"


def codes_of(packed: dict) -> np.ndarray:
    """The codes in the page, NaN where one is missing."""
    dtype = np.dtype(packed["type"]).newbyteorder("<")
    codes = np.frombuffer(gzip.decompress(b64decode(packed["data"])), dtype)
    return np.where(codes == np.iinfo(dtype).max, np.nan, codes)


def decoded(packed: dict) -> np.ndarray:
    """The numbers that the page makes of them."""
    return packed["low"] + packed["step"] * codes_of(packed)


def data_of(html: str) -> dict:
    """The data as a browser reads it: all up to the first end of a script."""
    (found,) = re.findall(r'id="cell-map-data">(.*?)</script', html, re.DOTALL)
    return json.loads(found)


def categories(codes, names) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, names)


@pytest.fixture
def given() -> dict:
    rng = np.random.default_rng(1)
    n = 1000
    values = rng.normal(3, 1, n)
    values[:3] = np.nan, np.inf, -np.inf
    return {
        "embeddings": {
            "UMAP, pca": rng.normal(0, 7, (n, 2)).astype(np.float32),
            "t-SNE, pca": rng.normal(100, 30, (n, 2)).astype(np.float32),
        },
        "groups": {
            "leiden (pca)": categories(rng.integers(0, 61, n), [str(i) for i in range(61)]),
            NASTY: categories(rng.integers(-1, 2, n), [NASTY, "b"]),
        },
        "values": {"total counts (log10)": values},
    }


def expression(cells: np.ndarray) -> dict[str, np.ndarray]:
    """Expression that tells which cells were asked for."""
    return {"CD3E": cells % 5 / 2, NASTY: np.zeros(len(cells), np.float32)}


@pytest.mark.parametrize("max_cells", [1000, 300])
def test_the_page_decodes_to_what_was_given(given, max_cells):
    made = cell_map(**given, genes=expression, max_cells=max_cells, seed=3)
    data, cells = data_of(made.html), made.cells
    assert data["n"] == len(cells) == max_cells
    for packed, (name, xy) in zip(data["embeddings"], given["embeddings"].items(), strict=True):
        assert packed["name"] == name
        for axis, column in zip("xy", xy[cells].T, strict=True):
            half_a_step = np.ptp(column) / 65534 / 2
            assert np.abs(decoded(packed[axis]) - column).max() <= half_a_step * 1.001
    for packed, (name, groups) in zip(data["groups"], given["groups"].items(), strict=True):
        assert packed["name"] == name
        assert packed["names"] == list(groups.categories)
        expected = pd.Series(groups.codes[cells]).where(groups.codes[cells] >= 0)
        np.testing.assert_array_equal(codes_of(packed), expected)
        counts = pd.Series(groups[cells]).value_counts(sort=False)
        assert packed["counts"] == counts.tolist()
    (packed,) = data["values"]
    values = given["values"]["total counts (log10)"][cells]
    known = np.isfinite(values)
    np.testing.assert_array_equal(np.isnan(decoded(packed)), ~known)
    np.testing.assert_allclose(decoded(packed)[known], values[known], atol=packed["step"] * 0.51)
    np.testing.assert_allclose(packed["span"], np.percentile(values[known], [1, 99]))
    gene, nasty = data["genes"]
    assert (gene["name"], nasty["name"]) == ("CD3E", NASTY)
    assert gene["type"] == "uint8"
    np.testing.assert_allclose(decoded(gene), cells % 5 / 2, atol=2 / 254 / 2 * 1.001)
    assert np.all(decoded(gene)[cells % 5 == 0] == 0)  # no expression stays none
    assert gene["span"] == [0, 2]


def test_the_same_input_gives_the_same_page(given):
    pages = [cell_map(**given, genes=expression, max_cells=200, seed=3).html for _ in range(2)]
    assert pages[0] == pages[1]


def test_more_groups_than_colours_take_them_again(given):
    made = data_of(cell_map(**given, genes=None, max_cells=10**6, seed=0).html)
    assert made["groups"][0]["colours"] == [*PALETTE, PALETTE[0]]
    assert made["genes"] == []


def test_hostile_names_end_no_script(given):
    html = cell_map(**given, genes=expression, max_cells=1000, seed=0).html
    data = html.split('id="cell-map-data">')[1].split('<script type="text/plain"')[0]
    assert data.count("<") == 1  # the end of its own script
    assert html.count("</script>") == 3
    assert "alert(1)" in data


def test_a_sample_is_sorted_distinct_uniform_and_drawn_by_the_seed():
    drawn = sample(10_000, 500, 7)
    assert len(drawn) == 500
    assert np.all(np.diff(drawn) > 0)
    assert drawn.min() >= 0
    assert drawn.max() < 10_000
    np.testing.assert_array_equal(drawn, sample(10_000, 500, 7))
    assert not np.array_equal(drawn, sample(10_000, 500, 8))
    often = sum(np.bincount(sample(100, 20, seed), minlength=100) for seed in range(1000))
    assert np.abs(often - 200).max() < 5.5 * np.sqrt(1000 * 0.2 * 0.8)
    np.testing.assert_array_equal(sample(5, 5, 0), np.arange(5))
    np.testing.assert_array_equal(sample(3, 5, 0), np.arange(3))


@pytest.mark.parametrize(
    ("max_cells", "note"),
    [
        (1000, "all 1,000 cells shown"),
        (999, "999 of 1,000 cells shown, a random sample (seed 4)"),
    ],
)
def test_the_page_says_how_many_cells_it_shows(given, max_cells, note):
    made = cell_map(**given, genes=None, max_cells=max_cells, seed=4)
    assert made.note == data_of(made.html)["note"] == note
    assert f">{note}</p>" in made.html
    assert made.n_cells == 1000


def test_one_cell_without_colours():
    made = cell_map({"UMAP": np.array([[1.5, -2]])}, {}, {}, None, max_cells=10, seed=0)
    data = data_of(made.html)
    assert [decoded(data["embeddings"][0][axis]).tolist() for axis in "xy"] == [[1.5], [-2]]
    assert data["groups"] == data["values"] == data["genes"] == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_all_alike_or_all_missing(dtype):
    assert decoded(quantise(np.full(4, 2.5), dtype)).tolist() == [2.5] * 4
    packed = quantise(np.full(4, np.nan), dtype)
    assert (packed["low"], packed["high"]) == (None, None)
    assert np.isnan(codes_of(packed)).all()


def test_values_that_are_missing_or_constant_have_colours_all_the_same():
    values = {"none": np.full(2, np.nan), "alike": np.ones(2)}
    made = cell_map(
        {"UMAP": np.eye(2)}, {}, values, lambda _: {"A": np.zeros(2)}, max_cells=2, seed=0
    )
    data = data_of(made.html)
    assert [packed["span"] for packed in data["values"] + data["genes"]] == [[0, 1], [1, 2], [0, 1]]


def test_many_groups_take_two_bytes():
    names = [str(i) for i in range(300)]
    groups = {"sample": categories(np.arange(300), names)}
    made = cell_map({"UMAP": np.zeros((300, 2))}, groups, {}, None, max_cells=300, seed=0)
    (packed,) = data_of(made.html)["groups"]
    assert packed["type"] == "uint16"
    np.testing.assert_array_equal(codes_of(packed), np.arange(300))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"embeddings": {}}, "needs an embedding"),
        ({"embeddings": {"UMAP": np.empty((0, 2))}}, "needs a cell"),
        ({"values": {"counts": np.zeros(7)}}, "counts has 7 cells, 1,000 were expected"),
        ({"genes": lambda cells: {"CD3E": np.zeros(7)}}, "gene CD3E has 7 cells, 1,000"),
        ({"groups": {"sample": pd.Categorical([None] * 1000, [*range(2**16)])}}, "65,536 groups"),
    ],
)
def test_what_cannot_be_shown_is_refused(given, change, match):
    with pytest.raises(ValueError, match=match):
        cell_map(**{**given, "genes": None, **change}, max_cells=1000, seed=0)
