"""Modules and functions that a reader takes in at once, and a small engine."""

import ast
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"
MODULES = sorted(SCRIPTS.rglob("*.py"))
MOST_LINES, MOST_OF_BODY, MOST_OF_ENGINE = 400, 60, 1000


def body_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Count the lines of a function's body without its docstring, blank lines and comments."""
    body = function.body[ast.get_docstring(function) is not None :]
    if not body:
        return 0
    within = [line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]]
    return sum(bool(line) and not line.startswith("#") for line in within)


def long_functions(text: str, most: int) -> list[str]:
    """List the functions whose body is too long, methods and nested ones among them."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    lines = text.splitlines()
    return [f"{node.name}: {n}" for node in found if (n := body_lines(node, lines)) > most]


@pytest.mark.parametrize(
    ("body", "n"),
    [
        ("'''One.\n\n    Two.\n    '''", 0),
        ("'''One.'''\n    # why\n\n    x = (\n        1\n    )\n    return x", 4),
        ("return 1  # at once", 1),
    ],
)
def test_the_lines_of_a_body_are_counted(body, n):
    text = f"def one():\n    {body}\n"
    assert long_functions(text, n - 1) == [f"one: {n}"]
    assert long_functions(text, n) == []


def test_no_module_is_too_long():
    sizes = {str(p.relative_to(SCRIPTS)): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in sizes.items() if n > MOST_LINES} == {}
    assert len(sizes) > 100  # all of them were looked at


def test_no_function_is_too_long():
    found = {
        str(p.relative_to(SCRIPTS)): long_functions(p.read_text(), MOST_OF_BODY) for p in MODULES
    }
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_the_engine_is_small():
    lines = [line for p in SCRIPTS.glob("scrna/engine/*.py") for line in p.read_text().splitlines()]
    assert len(lines) < MOST_OF_ENGINE
