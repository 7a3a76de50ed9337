"""Names in CSV files that a spreadsheet would run."""

import csv
import io
import re

import pandas as pd
import pytest

from scripts.marker_figures import read_table, top_markers
from scrna.data.marker_csv import as_csv
from scrna.data.spreadsheet import escape_table, escaped, unescaped
from scrna.report.results import read_markers

FORMULAS = [
    "=1+1",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    '=HYPERLINK("x")',
    "-",
    "'=1",
    "＝1",
]
HARMLESS = ["CD4", "-1", "+1", "-1.5e-07", "-inf", "nan", "HLA-A", "5'-end", "'quoted'", "", "a=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gets_an_apostrophe(text):
    assert escaped(text) == f"'{text}"
    assert unescaped(escaped(text)) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_and_other_names_stay(text):
    assert escaped(text) == text
    assert unescaped(text) == text


@pytest.mark.parametrize("text", FORMULAS + HARMLESS)
def test_apostrophes_are_told_apart(text):
    for _ in range(3):
        assert unescaped(escaped(text)) == text
        text = f"'{text}"


def test_names_come_back_from_the_table_of_markers(tmp_path):
    groups = pd.Categorical(["=1+1", "=1+1", "-1"])
    table = pd.DataFrame({"group": groups, "names": ["@a", "CD4", "-b"], "scores": [-1.5, -2, 3]})
    path = tmp_path / "markers.csv"
    path.write_bytes(b"".join(as_csv(escape_table(table))))
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    running = [cell for cell in cells if re.match(r"[=+\-@\t\r]", cell)]
    assert running == ["-1.5", "-2", "-1"]  # numbers
    assert read_markers(path, 5).rows == [
        ["=1+1", "@a", -1.5],
        ["=1+1", "CD4", -2],
        ["-1", "-b", 3],
    ]
    assert top_markers(read_table(path), ["=1+1", "-1"], 5)[0] == {
        "=1+1": ["@a", "CD4"],
        "-1": ["-b"],
    }


def test_other_columns_are_left_alone():
    table = pd.DataFrame({"n": [-1, 2], "text": ["=a", None]})
    found = escape_table(table)
    assert found["n"].tolist() == [-1, 2]
    assert found["text"].tolist()[0] == "'=a"
    assert pd.isna(found["text"].iloc[1])
    text = found.to_csv(index=False)
    assert pd.read_csv(io.StringIO(text))["n"].tolist() == [-1, 2]
