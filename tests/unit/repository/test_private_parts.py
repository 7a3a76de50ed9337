"""Other libraries' private parts: used in few places, each with a way to do without."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"
MODULES = sorted(SCRIPTS.rglob("*.py"))
INTERNALS = "scrna/workflow/snakemake_internals.py"
#: Private by name, and documented: of named tuples, and the end of a process.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit"}
#: Where a private part is used, with what; each has a test that takes it away.
GUARDED = {INTERNALS: {"_write_record"}}
#: What Snakemake documents, beside the modules of `INTERNALS`.
OF_SNAKEMAKE = {"snakemake.exceptions", "snakemake.logging", "snakemake.utils"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def nodes(path: Path, *kinds: type) -> list:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def own_names() -> set[str]:
    """Find the private names that the package itself defines: functions, attributes, variables."""
    found = set()
    for path in MODULES:
        found |= {node.name for node in nodes(path, ast.FunctionDef, ast.ClassDef)}
        for node in nodes(path, ast.Attribute, ast.Name):
            if isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def foreign_names(text: str, own: set[str]) -> set[str]:
    """Find the private attributes in code that are not its own package's."""
    found = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    return {name for name in found if is_private(name)} - own - DOCUMENTED


def foreign_modules(text: str) -> set[str]:
    """Find the imports of private modules and names, and of those that are private by agreement."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name
        for name in found
        if not name.startswith(("scrna.", "__future__"))
        and (any(map(is_private, name.split("."))) or name.startswith(("zarr.core.", "anndata._")))
    }


@pytest.mark.parametrize(
    ("code", "name"), [("dask.x._meta", "_meta"), ("a._own", None), ("row._replace(x=1)", None)]
)
def test_the_reader_sees_what_is_not_the_packages_own(code, name):
    assert foreign_names(code, {"_own"}) == ({name} if name else set())


def test_the_reader_sees_imports_of_private_modules():
    code = "import scanpy._utils\nfrom zarr.core.buffer import x\nfrom numpy import _core, array"
    assert len(foreign_modules(code)) == 3
    assert (
        foreign_modules("from scrna.step import _x\nfrom zarr.buffer.cpu import NDBuffer") == set()
    )


def test_private_parts_are_used_where_there_is_a_way_without():
    own, found = own_names(), defaultdict(set)
    for path in MODULES:
        text = path.read_text()
        if names := foreign_names(text, own) | foreign_modules(text):
            found[str(path.relative_to(SCRIPTS))] |= names
    assert found == GUARDED


def test_snakemakes_own_parts_are_used_in_one_module():
    """Its modules that are not documented, and the attributes of its object `workflow`."""
    rules = [*SCRIPTS.parent.glob("rules/*.smk"), SCRIPTS.parent / "Snakefile"]
    found = []
    for path in [*MODULES, *rules]:
        if str(path).endswith(INTERNALS):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.replace("(", " ").replace("{", " ").split()
            imported = words[1] if words[:1] in (["from"], ["import"]) else ""
            is_inner = imported.split(".")[0] == "snakemake" and imported not in OF_SNAKEMAKE
            asked = [w for w in words if w.removeprefix("self.").startswith("workflow.")]
            if is_inner or [w for w in asked if not w.startswith("workflow.basedir")]:
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert found == []
