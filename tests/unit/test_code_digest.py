import functools
import os
import re
import shutil
from pathlib import Path

import pytest

from scrna import code_digest

SCRIPTS = Path(code_digest.__file__).parents[1]
STEPS = sorted(path.stem for path in SCRIPTS.glob("*.py"))
FEW = ["umap", "download"]  # where an edit is one of umap's alone


@pytest.fixture(autouse=True, scope="module")
def _parsed_once():
    """Parse a file of the same content once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_digest, "_parse", functools.cache(code_digest._parse))
        yield


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A copy of the scripts, as another clone has them."""
    folder = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_digest, "PACKAGE", folder / "scrna")
    forget()
    yield folder
    forget()


def forget():
    for known in (code_digest._read, code_digest.tree_digest):
        known.cache_clear()


def digests(folder, steps=STEPS):
    forget()
    return {step: code_digest.code_digest(folder / f"{step}.py") for step in steps}


def changed(folder, path, old, new, steps=STEPS):
    """Edit a file; return the steps whose digest that changes."""
    before = digests(folder, steps)
    file = folder / path
    text = file.read_text()
    assert text.count(old) >= 1, f"{path} has no {old!r} any more: choose another edit"
    file.write_text(text.replace(old, new, 1))
    after = digests(folder, steps)
    return {step for step in steps if before[step] != after[step]}


def test_each_step_has_its_own_digest(scripts):
    found = digests(scripts)
    assert len(set(found.values())) == len(STEPS)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in found.values())


def test_a_clone_elsewhere_has_the_same_digests(scripts, monkeypatch):
    there = digests(scripts)
    monkeypatch.setattr(code_digest, "PACKAGE", SCRIPTS / "scrna")
    assert digests(SCRIPTS) == there


def test_a_script_by_its_relative_path_has_the_same_digest(scripts, monkeypatch):
    whole = digests(scripts, ["qc"])
    monkeypatch.chdir(scripts.parent)
    assert digests(Path("scripts"), ["qc"]) == whole


def test_an_edit_of_a_script_changes_that_step_alone(scripts):
    assert changed(scripts, "umap.py", "def umap(", "def umap_(") == {"umap"}
    assert changed(scripts, "qc.py", "* 100", "* 101") == {"qc"}


def test_an_edit_of_a_shared_module_changes_the_steps_that_use_it(scripts):
    assert changed(scripts, "scrna/methods/cluster_names.py", "def ", "def x_") == {
        "leiden",
        "louvain",
    }
    users = changed(scripts, "scrna/data/counts.py", "def kept(", "def kept_(")
    assert {"qc", "filter", "normalize", "hvg", "pca", "markers"} <= users
    assert not users & {"download", "simulate", "leiden"}


def test_an_edit_of_an_indirectly_imported_module_counts(scripts):
    steps = ["qc", "convert", "download"]
    # qc imports counts, counts imports backend
    assert "qc" in changed(scripts, "scrna/backend.py", "def arrays(", "def arrays_(", steps)
    # convert imports the formats, which import its readers within a function
    file = "scrna/ingest/formats/h5ad.py"
    assert changed(scripts, file, "import", "import this; import", steps) == {"convert"}


@pytest.mark.parametrize(
    "module",
    ["step", "resources/plan", "engine/client", "engine/worker", "resources/locks", "processes"],
)
def test_an_edit_of_what_carries_a_step_changes_nothing(scripts, module):
    file = f"scrna/{module}.py"
    assert changed(scripts, file, "from scrna", "import this\nfrom scrna") == set()
    assert code_digest.tree_digest(scripts) != code_digest.tree_digest(SCRIPTS)


def test_an_import_within_a_function_counts(scripts):
    (scripts / "scrna/extra.py").write_text("A = 1\n")
    umap = scripts / "umap.py"
    umap.write_text(umap.read_text() + "\ndef later():\n    from scrna import extra\n")
    assert changed(scripts, "scrna/extra.py", "A = 1", "A = 2", FEW) == {"umap"}


@pytest.mark.parametrize(
    "line", ["import scrna.extra", "import scrna.extra as e", "from scrna.extra import A"]
)
def test_every_way_to_import_counts(scripts, line):
    (scripts / "scrna/extra.py").write_text("A = 1\n")
    umap = scripts / "umap.py"
    umap.write_text(umap.read_text() + f"\n{line}\n")
    assert changed(scripts, "scrna/extra.py", "A = 1", "A = 2", FEW) == {"umap"}


def test_a_subpackage_is_run_by_what_imports_its_module(scripts):
    (scripts / "scrna/parts").mkdir()
    (scripts / "scrna/parts/__init__.py").write_text("B = 1\n")
    (scripts / "scrna/parts/one.py").write_text("A = 1\n")
    umap = scripts / "umap.py"
    umap.write_text(umap.read_text() + "\nfrom scrna.parts.one import A\n")
    assert changed(scripts, "scrna/parts/one.py", "A = 1", "A = 2", FEW) == {"umap"}
    assert changed(scripts, "scrna/parts/__init__.py", "B = 1", "B = 2", FEW) == {"umap"}


def test_comments_docstrings_and_layout_do_not_count(scripts):
    before = digests(scripts)
    for name in ("qc.py", "scrna/data/counts.py"):
        file = scripts / name
        text = file.read_text()
        text = text.replace('"""', '"""Other words. ', 1)  # the module's
        text = re.sub(r':(\n +""")', r":  # so\1Other words. ", text)  # functions' and classes'
        text = text.replace("\nimport numpy", "\n# about numpy\nimport   numpy")
        file.write_text(text + "\n# the end\n")
    assert digests(scripts) == before


def test_touch_does_not_count(scripts):
    before = digests(scripts)
    for file in scripts.rglob("*.py"):
        os.utime(file, (0, 0))
    assert digests(scripts) == before


def test_what_carries_a_step_does_not_count(scripts):
    before = digests(scripts)
    for carrier in code_digest.CARRIERS:
        folder = scripts.joinpath("scrna", *carrier.split("."))
        for file in folder.glob("*.py") if folder.exists() else [folder.with_suffix(".py")]:
            file.write_text(file.read_text() + "\nX = 1\n")
    assert digests(scripts) == before


def test_a_text_that_is_no_docstring_counts(scripts):
    umap = scripts / "umap.py"
    umap.write_text(umap.read_text() + "\nKEY = 'X_umap'\n")
    assert changed(scripts, "umap.py", "KEY = 'X_umap'", "KEY = 'X_other'", FEW) == {"umap"}
