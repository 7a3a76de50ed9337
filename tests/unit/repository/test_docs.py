"""What the README shows is what the workflow does."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from docs import rulegraph
from scrna.config import settings

pytest_plugins = ["tests.unit.fixtures"]

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_picture_is_that_of_the_rules():
    drawn = rulegraph.picture()
    for page in rulegraph.PAGES:
        assert drawn in page.read_text(), f"{page.name}: run python docs/rulegraph.py"


def test_the_example_is_a_valid_config():
    example = yaml.safe_load(re.search(r"```yaml\n(run: mine.*?)```", README, re.DOTALL)[1])
    full = settings.complete(example)
    settings.check(full | {"backend": "cpu"})
    assert full["datasets"]["mine"]["batch_key"] == "sample"


@pytest.mark.parametrize("name", re.findall(r"`([a-z]+\.[a-z0-9_]+)(?:: \w+)?`", README))
def test_settings_that_the_readme_names_exist(name):
    section, key = name.split(".")
    if section in settings.SECTIONS and key not in ("zarr", "csv", "html"):
        assert key in settings.schema()["$defs"][section]["properties"]


PAGES = sorted(
    path for folder in (".", ".github", "config", "docs") for path in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)
    for target, anchor in targets:
        file = (page.parent / target) if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """List the anchors of the headings of a page, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_line_of_the_example_runs(demo, tmp_path, monkeypatch, capsys):
    """docs/explore.md, from the result to three answers."""
    import matplotlib as mpl

    mpl.use("Agg")
    results = tmp_path / "results/demo"
    results.mkdir(parents=True)
    demo.final().rename(results / "final.zarr")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/explore.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 4
    scope = {}
    for block in blocks:
        exec(block, scope)
    said = capsys.readouterr().out
    assert "MARK1-" in said
    shares = scope["shares"]
    assert shares.shape[1] == 3
    assert (abs(shares.sum() - 1) < 1e-9).all()
    assert scope["part"].n_obs == scope["adata"].obs["leiden"].value_counts().iloc[0]
    mpl.pyplot.close("all")


def test_measurements_hold_what_is_current_and_name_files_that_exist():
    text = (ROOT / "docs/measurements.md").read_text()
    assert len(text.splitlines()) < 200
    files = re.findall(r"\b(?:bench|tests)/[\w/]+(?:\.\w+)?", text)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


FORM = ["Purpose", "Method", "Settings", "Inputs", "Outputs"]


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_the_documentation_of_a_step_has_one_form(script):
    text = ast.get_docstring(ast.parse((ROOT / f"scripts/{script}.py").read_text()))
    summary, *rest = text.split("\n\n", 1)
    assert summary.endswith(".")
    assert rest
    found = re.findall(r"^(\w+)\n +\S", rest[0], flags=re.MULTILINE)
    assert found == [part for part in FORM if part in found or part != "Method"]


def test_every_rule_has_a_docstring_and_every_file_of_rules_its_inputs_and_outputs():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        text = path.read_text()
        assert text.startswith('"""'), path.name
        rules = re.findall(r"^rule (\w+):\n(.*)\n", text, flags=re.MULTILINE)
        assert [name for name, first in rules if not first.startswith('    """')] == []
        if rules:
            opening = text.split('"""')[1]
            assert re.search("^Inputs: .*^Outputs: ", opening, flags=re.DOTALL | re.MULTILINE)
