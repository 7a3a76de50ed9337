"""Write docs/explore.ipynb from docs/explore.md: ``python docs/notebook.py``.

A ``python`` block becomes a cell of code, what stands between two of them a cell of text. A cell of
its own comes first: the page names files from the workflow's folder, but Jupyter runs a notebook in
the notebook's.
"""

import hashlib
import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGE, NOTEBOOK = DOCS / "explore.md", DOCS / "explore.ipynb"

FIRST = """\
# This notebook lies in docs/, the results beside that folder.
import os

if not os.path.exists("results"):
    os.chdir("..")
"""


def notebook(page: str) -> dict:
    """Return the notebook of a page, in version 4.5 of Jupyter's format."""
    text, *rest = re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)
    cells = [_cell("markdown", text), _cell("code", FIRST)]
    for code, following in zip(rest[::2], rest[1::2], strict=True):
        cells.append(_cell("code", code))
        if following.strip():
            cells.append(_cell("markdown", following))
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, text: str) -> dict:
    text = text.strip("\n")
    source = text.splitlines(keepends=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:8]  # the same in each run, as the format asks
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return cell if kind == "markdown" else cell | {"execution_count": None, "outputs": []}


def written(page: str) -> str:
    """Return the text of the notebook's file."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(PAGE.read_text()))
