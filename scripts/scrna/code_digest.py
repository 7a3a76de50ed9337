"""Digest the code of a step: its script and the shared modules that it imports.

Snakemake tracks a script by the time of its file: a fresh clone would run everything again, and an
edit of a shared module nothing. With this digest among its params a rule runs again if its code
changes.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: The folder of the scripts, and within it this package.
SCRIPTS = Path(__file__).parents[1]
PACKAGE = SCRIPTS / "scrna"
#: Modules that carry a step but do not make its result: how it is logged, locked or watched.
#: What the table of steps has of a step becomes its parameters, which are compared by themselves.
CARRIERS = set("atomic engine errors log processes progress provenance step steps workflow".split())
CARRIERS |= {"dask_cluster", "data.read_progress", "warm_process"}
CARRIERS |= {
    f"resources.{name}"
    for name in "admission estimates gpu_memory gpus host_memory locks plan".split()
}


def code_digest(script: Path) -> str:
    """Digest a script and all of this package that it imports, however indirectly.

    Parameters
    ----------
    script
        The script of a rule.

    Returns
    -------
    The first 16 digits of the SHA-256 of what the files say as code: layout, comments and
    docstrings do not count. Modules in `CARRIERS` do not either.
    """
    script = Path(script)
    files = [script, *sorted(_reached(script) - {script})]
    sha = hashlib.sha256("".join(_read(path).meaning for path in files).encode())
    return sha.hexdigest()[:16]


def page_digest() -> str:
    """Digest what a report's page is made of beside its code: template, styles, scripts."""
    sha = hashlib.sha256()
    for file in sorted((PACKAGE / "report").glob("*.*")):
        if file.suffix in (".j2", ".css", ".js"):
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


@cache
def tree_digest(scripts: Path) -> str:
    """Digest all code in a folder as it is when a process first asks, and so as it has loaded it.

    Parameters
    ----------
    scripts
        The folder of the scripts.

    Returns
    -------
    16 digits, as `code_digest`; here the carriers count too.
    """
    sha = hashlib.sha256()
    for path in sorted(scripts.rglob("*.py")):
        sha.update(f"{path.relative_to(scripts)} {_read(path).meaning}".encode())
    return sha.hexdigest()[:16]


def _reached(script: Path) -> set[Path]:
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


class _File(NamedTuple):
    imports: list[str]
    """The modules of the package that it imports."""
    meaning: str
    """The digest of its code, without comments and docstrings."""


@cache
def _read(path: Path) -> _File:
    return _parse(path.read_bytes())


def _parse(content: bytes) -> _File:
    tree = ast.parse(content)
    imports = _imports(tree)
    said = ast.dump(_without_docstrings(tree))
    return _File(imports, hashlib.sha256(said.encode()).hexdigest())


def _imports(tree: ast.Module) -> list[str]:
    """List the modules of the package that are imported, anywhere in a file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(name for name in names if name.startswith("scrna."))


def _imported(path: Path) -> list[Path]:
    """List the files of the modules of the package that a file imports."""
    parts = [name.split(".")[1:] for name in _read(path).imports]
    files = {
        candidate
        for part in parts
        if not {".".join(part[:depth]) for depth in (1, 2)} & CARRIERS
        for depth in range(1, len(part) + 1)  # a package is run before its modules
        for candidate in (
            PACKAGE.joinpath(*part[:depth]).with_suffix(".py"),
            PACKAGE.joinpath(*part[:depth], "__init__.py"),
        )
    }
    return [file for file in files if file.exists()]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:] or [ast.Pass()]
    return tree


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
