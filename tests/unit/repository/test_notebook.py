"""docs/explore.ipynb is docs/explore.md, and every cell of it runs."""

import json
import re

import matplotlib as mpl
import pytest

from docs.notebook import NOTEBOOK, PAGE, notebook, written

pytest_plugins = ["tests.unit.fixtures"]


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_it_is_made_from_the_page():
    expected = written(PAGE.read_text())
    assert NOTEBOOK.read_text() == expected, "write it anew: python docs/notebook.py"


def test_nothing_of_the_page_is_left_out():
    page = PAGE.read_text()
    first, *code = cells("code")
    assert code == [b.rstrip("\n") for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert "results" in first
    words = re.sub(r"```python\n.*?```\n", "", page, flags=re.DOTALL).split()
    assert "\n".join(cells("markdown")).split() == words
    assert any("```yaml" in text for text in cells("markdown"))  # other blocks stay text


def test_ids_and_outputs_are_as_the_format_asks():
    """Version 4.5: ids of 1 to 64 letters, each once; no output is committed."""
    found = notebook(PAGE.read_text())["cells"]
    names = [cell["id"] for cell in found]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


@pytest.mark.parametrize("text", ["no code at all\n", "```yaml\na: 1\n```\n"])
def test_a_page_without_code_is_text(text):
    kinds = [cell["cell_type"] for cell in notebook(text)["cells"]]
    assert kinds == ["markdown", "code"]


def test_every_cell_runs_where_jupyter_runs_it(demo, tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    (tmp_path / "results/demo").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    demo.final().rename(tmp_path / "results/demo/final.zarr")
    monkeypatch.chdir(tmp_path / "docs")  # the folder of the notebook
    scope = {}
    for code in cells("code"):
        exec(code, scope)
    mpl.pyplot.close("all")
    assert "MARK1-" in capsys.readouterr().out
    assert scope["part"].n_obs == scope["adata"].obs["leiden"].value_counts().iloc[0]
