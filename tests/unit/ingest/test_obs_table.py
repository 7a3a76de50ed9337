"""The table of cells, a column at a time: the same as with all of it in memory."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from scrna.errors import UserError
from scrna.ingest import obs_table
from scrna.ingest.obs_table import CellTable, Text, unique_names, write_cells
from scrna.ingest.tables import describe_columns

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(obs_table, "_PIECE", 7)


def everything(text):
    return np.concatenate([np.empty(0, object), *text.pieces()])


def names(values):
    unique, notes = unique_names(Text.of(pd.Index(values, dtype="str")))
    return list(everything(unique)), notes


@pytest.mark.parametrize(
    "values",
    [
        [*"zebra", "ünïcode", "", "zebra", "b"] * 5,
        ["b", None, "a", "c"] * 9,
        [None] * 20,
        [f"x{i}" for i in range(40)] + ["x3"],
        [f"x{i}" for i in range(40)] + [None],
    ],
)
def test_strings_that_repeat_become_the_categories_of_pandas(values):
    expected = pd.Series(values, dtype="str")
    found = Text.of(expected).categories()
    pd.testing.assert_series_equal(pd.Series(found), expected.astype("category"))


def test_distinct_strings_stay_strings():
    assert Text.of(pd.Index([f"x{i}" for i in range(40)])).categories() is None


def test_some_of_the_strings():
    values = np.array([f"x{i}" for i in range(40)], object)
    mask = np.random.default_rng(0).random(40) < 0.3
    mask[10:25] = False  # whole pieces are passed over
    text = Text.of(pd.Index(values)).where(mask)
    assert list(everything(text)) == list(values[mask])
    assert len(text) == mask.sum()
    places = np.array([0, 3, mask.sum() - 1])
    assert list(text.at(places)) == list(values[mask][places])
    assert text.one(12) == "x12"


@pytest.mark.parametrize(
    "values",
    [
        ["A", "B"] * 15,
        ["A"] * 12,
        ["b", "A", "A", "A-1", "b", "A"] + [f"c{i}" for i in range(20)],
    ],
)
def test_names_become_unique_as_anndata_makes_them(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are not unique, and may be taken for names
        adata = ad.AnnData(obs=pd.DataFrame(index=pd.Index(values)))
        adata.obs_names_make_unique()
    found, notes = names(values)
    assert found == list(adata.obs_names)
    assert len(notes) == 1


def test_repeated_names_are_told():
    assert names(["x", *"aabbbccddeeff"])[1] == [
        "6 cell names occur more than once (a, b, c, d, e, …): the 7 repeats have a number added "
        "(-1, -2, …)."
    ]
    assert names([10, 11]) == (["10", "11"], [])


def table(n=30):
    flags = pd.array([None, *[True] * (n - 1)], dtype="boolean")
    return pd.DataFrame(
        {
            "type": ["T cell", "B cell", "NK"] * (n // 3),
            "barcode": [f"AAC{i}" for i in range(n)],
            "donor": pd.Categorical(["d1", "d2"] * (n // 2), categories=["d3", "d2", "d1"]),
            "note": [None, *[f"n{i}" for i in range(n - 1)]],
            "umi": np.arange(n),
            "pct": np.linspace(0, 1, n),
            "flag": flags,
        },
        index=[f"cell{i}" for i in range(n)],
    )


@pytest.mark.parametrize("some", [False, True])
def test_what_is_written_is_what_anndata_reads(tmp_path, some):
    obs = table()
    obs["barcode"] = obs["barcode"].astype(object)  # as AnnData reads strings
    mask = np.arange(30) % 4 != 1 if some else np.ones(30, bool)
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    written = write_cells(root, CellTable.of(obs), mask)
    found = ad.io.read_elem(zarr.open_group(tmp_path / "a.zarr", mode="r")["obs"])
    kept = obs[mask]
    expected = kept.astype({"type": "category", "note": "category"})
    expected["donor"] = expected["donor"].cat.remove_unused_categories()
    pd.testing.assert_frame_equal(found, expected, check_index_type=False)
    assert written.columns == describe_columns(expected.astype({"barcode": "str"}))
    assert root["obs/barcode"].attrs["encoding-type"] == "string-array"


@pytest.mark.parametrize(
    "other",
    [
        lambda obs: obs.assign(type=obs["type"].to_numpy()[::-1]),
        lambda obs: obs.assign(note=["", *obs["note"][1:]]),  # missing is not empty
        lambda obs: obs.assign(flag=pd.array([True] * 30, dtype="boolean")),
        lambda obs: obs.assign(umi=obs["umi"] + (obs["umi"] == 7)),
        lambda obs: obs.rename(columns={"umi": "UMI"}),
        lambda obs: obs.set_axis([*obs.index[:-1], "another"]),
        lambda obs: obs.drop(columns="flag"),
        lambda obs: obs[[*obs.columns[::-1]]],
    ],
)
def test_the_digest_follows_every_value_and_name(tmp_path, other):
    def digest(obs):
        root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
        return write_cells(root, CellTable.of(obs), np.ones(len(obs), bool)).digest

    assert digest(table()) == digest(table())
    assert digest(other(table())) != digest(table())


@pytest.mark.parametrize("missing", ["nan", "None", "<NA>", ""])
def test_a_text_that_says_missing_is_not_missing(missing):
    hashes = Text.of(pd.Series([None, missing, "a"], dtype=object)).hashes()
    assert len({*hashes}) == 3


def test_columns_that_cannot_have_their_name():
    found = CellTable.of(pd.DataFrame({"a/b": [1], "a_b": [2], "_index": [3]}, index=["c"]))
    assert found.columns == ["a_b", "a_b-1", "index"]
    assert "'a/b' is named 'a_b' here" in found.notes[0]
    assert found["index"].tolist() == [3]


def test_a_column_of_another_length():
    found = CellTable({"n": lambda: np.arange(3)}, Text.of(pd.Index(["a", "b"])))
    with pytest.raises(UserError, match="its column n has 3 values for 2 cells; get the file"):
        found.read("n")
