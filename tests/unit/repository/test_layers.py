"""The layers of scripts/scrna: imports run downwards, without circles (docs/architecture.md)."""

import re

import networkx as nx
import pytest

from docs import layers

ORDER = list(layers.LAYERS)


@pytest.fixture(scope="module")
def graph():
    return layers.graph()


def test_the_reader_sees_late_imports_and_those_for_types(tmp_path):
    code = tmp_path / "one.py"
    code.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from scrna.two import Thing\n"
        "def late():\n    from scrna import three\n"
        "import scrna.four\n"
    )
    known = {f"scrna.{name}": code for name in ("one", "two", "three", "four", "five")}
    found = layers.imports("scrna.one", known | {"scrna": code})
    assert found == {"scrna.two", "scrna.three", "scrna.four"}


def test_every_module_lies_in_a_layer(graph):
    assert [name for name in graph if layers.layer_of(name) not in ORDER] == []
    assert {layers.layer_of(name) for name in graph} == set(ORDER)


def test_no_module_imports_in_a_circle(graph):
    assert [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


def test_imports_run_downwards(graph):
    def height(name):
        layer = layers.layer_of(name)
        return ORDER.index(layer) if layer in ORDER else -1

    assert [(one, other) for one, other in graph.edges if height(one) < height(other)] == []


def test_the_science_knows_neither_the_engine_nor_the_workflow(graph):
    wrong = [
        (one, other)
        for one, other in graph.edges
        if layers.layer_of(one) in layers.SCIENCE
        and layers.layer_of(other) in ("step", "dask_cluster", "engine", "workflow")
    ]
    assert wrong == []


def test_the_page_shows_the_layers():
    assert layers.picture() in layers.PAGE.read_text(), "run python docs/layers.py"


def test_files_that_the_page_names_exist():
    named = re.findall(r"`([a-z_]+/[a-z_/]+(?:\.\w+(?:\.\w+)*|/))`", layers.PAGE.read_text())
    roots = (layers.PACKAGE, layers.ROOT)
    assert len(named) > 10
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
