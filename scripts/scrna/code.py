"""What a step's code is: its script and the shared modules it imports, as one digest.

Snakemake tracks a rule's script by the time of that one file, so a fresh clone runs everything
again and an edit of a shared module nothing. A digest among a rule's params does neither.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
#: Modules that carry a step but do not make its result: how it is logged, locked or watched.
CARRIERS = set("errors execution files host lock log machine progress sizes step watch".split())
CARRIERS |= {"cluster", "remote", "tasks", "warmup", "worker"}


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
    sha = hashlib.sha256(_meaning(script).encode())
    for path in sorted(_reached(script) - {script}):
        sha.update(_meaning(path).encode())
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
        sha.update(f"{path.relative_to(scripts)} {_meaning(path)}".encode())
    return sha.hexdigest()[:16]


def _reached(script: Path) -> set[Path]:
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imported(path: Path) -> list[Path]:
    """List the modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".")[1:] for name in names if name.startswith("scrna.")]
    files = {
        candidate
        for part in parts
        if part[0] not in CARRIERS
        for depth in range(1, len(part) + 1)  # a package is run before its modules
        for candidate in (
            PACKAGE.joinpath(*part[:depth]).with_suffix(".py"),
            PACKAGE.joinpath(*part[:depth], "__init__.py"),
        )
    }
    return [file for file in files if file.exists()]


@cache
def _meaning(path: Path) -> str:
    tree = _tree(path)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
