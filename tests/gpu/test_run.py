"""A whole run under a profile, as it is typed: one step on the GPU at a time, the next at hand."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from scrna.data import step_files

ROOT = Path(__file__).parents[2]
#: The demo in both representations, without what only the CPU does.
STEPS = [f"{rep}/{step}.h5" for rep in ("pca", "harmony") for step in ("umap", "tsne", "markers")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile"]
    command += ["--profile", ROOT / "profiles/spark", "--cores", "8", "--"]
    command += [f"results/demo/{step}" for step in STEPS]
    ran = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder / "results/demo"


def gpu_steps(results) -> list[dict]:
    found = [step_files.provenance_of(file) for file in results.rglob("*.h5")]
    return [record for record in found if record["backend"] == "gpu"]


def test_no_two_steps_are_on_the_gpu_at_a_time(results):
    spans = []
    for record in gpu_steps(results):
        start = datetime.fromisoformat(record["started"])
        spans.append((start, start + timedelta(seconds=record["seconds"])))
    spans.sort()
    assert len(spans) >= 14
    # "started" has milliseconds
    early = [b[0] - a[1] for a, b in pairwise(spans)]
    assert min(early) >= timedelta(milliseconds=-2)


def test_the_next_rules_process_is_there_when_a_step_ends(results):
    beside = sorted((results.parents[1] / "benchmarks/demo").rglob("*.memory.json"))
    waited = {str(file): json.loads(file.read_text()).get("waited_s", 0) for file in beside}
    # behind the longest, the two t-SNE; the others take a tenth of a second
    assert sum(seconds > 0.3 for seconds in waited.values()) >= 2, waited


def test_steps_run_in_the_worker(results):
    warm = [record["step"] for record in gpu_steps(results) if record["worker"] == "warm"]
    assert {"pca", "harmony", "neighbors", "umap", "tsne", "markers"} <= {*warm}
