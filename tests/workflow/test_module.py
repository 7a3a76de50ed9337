"""This workflow imported by another one, with ``module``."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

#: A workflow that counts the cells that this one keeps.
IMPORTING = """
configfile: "own.yaml"

module scrna:
    snakefile: {snakefile!r}
    config: config["scrna"]

use rule * from scrna exclude all

rule count_cells:
    input:
        "results/toy/filter.csv",
    output:
        "counted.txt",
    shell:
        "grep '^kept,' {{input}} > {{output}}"

rule copy_count:
    default_target: True
    input:
        "counted.txt",
    output:
        "cells.txt",
    shell:
        "cp {{input}} {{output}}"
"""
HOOKS = """
onstart:
    scrna.onstart()

onsuccess:
    scrna.onsuccess()

onerror:
    scrna.onerror()
"""


@pytest.fixture
def importing(fresh):
    """Write a workflow that imports this one; return the function that runs it."""
    config = yaml.safe_load(Path(__file__).with_name("configs").joinpath("base.yaml").read_text())
    own = {"scrna": config | {"run": "toy", "backend": "cpu", "worker": "none"}}
    (fresh.folder / "own.yaml").write_text(yaml.safe_dump(own))

    def run(*options, hooks=HOOKS):
        text = IMPORTING.format(snakefile=str(fresh.code / "Snakefile")) + hooks
        (fresh.folder / "Snakefile").write_text(text)
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *options]
        done = subprocess.run(
            command, cwd=fresh.folder, capture_output=True, text=True, timeout=200, check=False
        )
        return done.returncode, done.stdout + done.stderr

    run.folder = fresh.folder
    return run


def test_another_workflow_imports_this_one(importing):
    status, said = importing()
    assert status == 0, said
    assert (importing.folder / "cells.txt").read_text().startswith("kept,")
    assert "filter toy" in said  # the table of steps at the end
    status, said = importing()
    assert status == 0, said
    assert "Nothing to be done" in said
    config = yaml.safe_load((importing.folder / "own.yaml").read_text())
    config["scrna"]["datasets"]["toy"]["filter"] = {"min_genes": 4999}  # no cell has as many
    (importing.folder / "own.yaml").write_text(yaml.safe_dump(config))
    for _ in range(2):
        status, said = importing()
        assert status == 1
        assert not (importing.folder / "results/toy/filter.csv").exists()


def test_a_workflow_that_leaves_out_the_hooks_is_refused(importing):
    status, said = importing(hooks="")
    assert status == 1
    assert "has to call its hooks" in said
    assert not (importing.folder / "cells.txt").exists()
