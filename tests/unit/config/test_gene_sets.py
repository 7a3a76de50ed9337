"""Gene sets and markers in the config and in files: what is read, and what is refused."""

import csv
import re
from collections import Counter

import pytest

from scrna.config.gene_set_files import SHIPPED, read_markers, read_sets
from scrna.config.gene_sets import gene_set_problems, marker_sets, named_genes, scored_sets
from scrna.config.settings import check, complete
from scrna.config.step_parameters import of_step
from scrna.data import step_files
from scrna.errors import UserError
from scrna.steps import is_made

pytest_plugins = ["tests.unit.fixtures"]
GMT = "INTERFERON\tsome site\tISG15\tIFI6\tMX1\tISG15\nHYPOXIA\t\tVEGFA\tLDHA\tPGK1\n\n"
CSV = "\ufeffset,gene,source\nown,ISG15,here\nown, MX1 ,\n,,\nother,IFI6,\n"
MARKERS = "cell_type,gene,sign\nT/NK cells,CD3D,+\nT/NK cells,MS4A1,-\nB cells,MS4A1,\n"


def dataset(**given) -> dict:
    return complete({"run": "x", "datasets": {"x": {"source": "x.h5ad"} | given}})["datasets"]["x"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def test_sets_come_from_lists_and_files(write, tmp_path, monkeypatch):
    write("a.gmt", GMT)
    write("a.csv", CSV)
    write("one.csv", "set,gene\nthe only one,CD4\n")
    monkeypatch.setenv("SETS", str(tmp_path))
    given = {"listed": ["CD3D", "CD3E"], "HYPOXIA": "$SETS/a.gmt", "any name": "one.csv"}
    assert scored_sets(dataset(scores={"sets": given})) == {
        "listed": ["CD3D", "CD3E"],
        "HYPOXIA": ["VEGFA", "LDHA", "PGK1"],
        "any name": ["CD4"],
    }
    whole = scored_sets(dataset(scores={"sets": "a.gmt"}))
    assert whole == {"INTERFERON": ["ISG15", "IFI6", "MX1"], "HYPOXIA": ["VEGFA", "LDHA", "PGK1"]}
    assert scored_sets(dataset(scores={"sets": "a.csv"})) == {
        "own": ["ISG15", "MX1"],
        "other": ["IFI6"],
    }


def test_a_step_depends_on_the_genes_in_a_file(write):
    own = dataset(scores={"sets": {"HYPOXIA": write("a.gmt", GMT)}})
    before = of_step("scores", own, backend="cpu", seed=0)
    assert before["sets"] == {"HYPOXIA": ["VEGFA", "LDHA", "PGK1"]}
    write("a.gmt", GMT.replace("VEGFA", "CA9"))
    assert of_step("scores", own, backend="cpu", seed=0)["sets"]["HYPOXIA"][0] == "CA9"


def test_steps_are_there_when_they_are_asked_for(write):
    for section, step, asked in (
        ("scores", "scores", {"sets": {"own": ["A", "B", "C"]}}),
        ("scores", "scores", {"cell_cycle": "mouse"}),
        ("cell_types", "cell_type_names", {"markers": "pbmc"}),
    ):
        assert not is_made(dataset(), step)
        assert is_made(dataset(**{section: asked}), step)
    assert named_genes(dataset()) == {"scores": {}, "formerly": {}, "columns": [], "markers": []}


#: Sets of the config, a file that they name, and what is said of it.
REFUSED_SETS = [
    ("none.gmt", None, "scores.sets is 'none.gmt', but there is no such file in /"),
    ({"own": "none.csv"}, None, "scores.sets.own is 'none.csv', but there is no such file"),
    ("a.txt", GMT, "a file of gene sets ends in .gmt or .csv"),
    ("a.gmt", "", "scores.sets: a.gmt has no gene sets"),
    ("a.gmt", "ONE\tsite\nTWO\tsite\tA\n", "line 1 of a.gmt has no genes; a line of a .gmt file"),
    ("a.gmt", "ONE,site,A,B\n", "line 1 of a.gmt has no genes"),
    ("a.gmt", "ONE\ts\tA\nTWO\ts\tB\nONE\ts\tC\n", "a.gmt has the set 'ONE' again in line 3"),
    ("a.gmt", "a/b\ts\tA\n", "the set in line 1 of a.gmt is named 'a/b': a name begins with a l"),
    ("a.gmt", b"\xff\xfe\x00", "a.gmt cannot be read as text"),
    ("a.csv", "set;gene\nown;A\n", "has no column set and gene; its first line is 'set;gene'"),
    ("a.csv", "set,gene\nown\n", "line 2 of a.csv has 1 values, its first line has 2 columns"),
    ("a.csv", "set,gene\nown,\n", "line 2 of a.csv names no gene"),
    ("a.gmt", "".join(f"SET{i}\ts\tA\n" for i in range(61)), "scores.sets has 61 sets, more than"),
    ({"INTERFERONE": "a.gmt"}, GMT, "none of them 'INTERFERONE'; did you mean INTERFERON?"),
    ({"leiden_genes": ["A"]}, None, "'leiden_genes', which is a column of obs that a step makes"),
    ({"phase": ["A"]}, None, "a set 'phase', which is a column of obs that a step makes"),
    ({"_own": ["A"]}, None, "a set of scores.sets is named '_own': a name begins with a letter"),
]


@pytest.mark.parametrize(("sets", "text", "expected"), REFUSED_SETS)
def test_sets_that_cannot_be_scored_are_refused(write, sets, text, expected):
    if text is not None:
        write(next(iter(sets.values())) if isinstance(sets, dict) else sets, text)
    problems = list(gene_set_problems(dataset(scores={"sets": sets})))
    assert len(problems) == 1
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"own": []}, "scores.sets.own is []; expected"),
        ({"own": ["A", "A"]}, "scores.sets.own is ['A', 'A']; expected"),
        ({"own": [1, 2]}, "expected"),
        (["A"], "datasets.x.scores.sets is ['A']; expected mapping or text"),
    ],
)
def test_the_schema_refuses_other_sets(sets, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        dataset(scores={"sets": sets})


def test_every_column_that_steps_make_is_refused_as_the_name_of_a_set(demo):
    made = {
        name.removeprefix("obs/")
        for file in (demo["filter"], demo["normalize"], *demo.steps)
        for name in step_files.names(file)
        if name.startswith("obs/")
    } | {"S_score", "G2M_score", "phase", "cell_type_auto", "leiden_0.6", "cell_type"}
    assert len(made) > 20
    for name in made:
        problems = list(gene_set_problems(dataset(scores={"sets": {name: ["A", "B", "C"]}})))
        assert "a column of obs that a step makes" in "".join(problems), name


def test_markers_have_signs(write):
    assert read_markers(write("m.csv", MARKERS), "key") == {
        "T/NK cells": {"positive": ["CD3D"], "negative": ["MS4A1"]},
        "B cells": {"positive": ["MS4A1"], "negative": []},
    }
    assert marker_sets(dataset()) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "there is no such file in .*; there are also human_tissues, pbmc, which ship"),
        ("gene\nCD3D\n", "m.csv has no column cell_type; its first line is 'gene'"),
        ("cell_type,gene\n", "m.csv has no cell types"),
        ("cell_type,gene,sign\nT,CD3D,up\n", "the sign in line 2 of m.csv is 'up'; expected . or"),
        ("cell_type,gene,sign\nT,CD3D,+\nT,cd3d,-\n", "m.csv has cd3d with both signs for T"),
        ("cell_type,gene,sign\nT,CD3D,-\n", "m.csv has no gene with the sign . for T"),
        ("cell_type,gene\n,CD3D\n", "the cell type in line 2 of m.csv is ''"),
        ("cell_type,gene\nunsure,CD3D\n", "has a cell type 'unsure', the name of clusters without"),
    ],
)
def test_wrong_markers_are_refused(write, text, expected):
    if text is not None:
        write("m.csv", text)
    own = complete({"run": "x", "datasets": {"x": {"source": "x.h5ad"}}, "backend": "cpu"})
    own["datasets"]["x"]["cell_types"] |= {"markers": "m.csv"}
    with pytest.raises(UserError, match=expected):
        check(own)


@pytest.mark.parametrize("by", ["louvain", "leiden_0.3"])
def test_names_are_for_clusters_that_are_made(by):
    own = complete({"run": "x", "datasets": {"x": {"source": "x.h5ad"}}, "backend": "cpu"})
    own["datasets"]["x"]["cell_types"] |= {"markers": "pbmc", "by": by}
    with pytest.raises(UserError, match=f"cell_types.by is {by}, but"):
        check(own)


@pytest.mark.parametrize("name", ["pbmc", "human_tissues"])
def test_markers_that_ship_have_their_sources(name):
    with (SHIPPED / f"markers/{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(re.search(r"\d{4}, doi:10\.\d+/\S+$", row["source"]) for row in rows)
    positive = Counter(row["cell_type"] for row in rows if row["sign"] == "+")
    assert min(positive.values()) >= 8
    assert len(positive) >= 10
    assert len({(row["cell_type"], row["gene"]) for row in rows}) == len(rows)
    assert set(read_markers(name, "key")) == set(positive)


def test_gene_sets_that_ship_may_be_scored_as_files():
    sets = read_sets(str(SHIPPED / "gene_sets/cell_cycle_human.csv"), "key")
    assert [*sets] == ["S", "G2M"]
    assert "MCM5" in sets["S"]
