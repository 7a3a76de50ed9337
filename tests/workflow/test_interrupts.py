"""Runs that are killed, stopped, refused or fail, and what comes after."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scrna.data import step_files
from scrna.ingest.simulate import Simulation
from tests.workflow.processes import processes_of, wait_until

pytestmark = pytest.mark.slow


def temporary_files(folder: Path) -> list[Path]:
    return [path for name in ("results", "resources") for path in (folder / name).rglob("*.tmp-*")]


def times(folder: Path) -> dict[str, int]:
    files = (folder / "results").rglob("*.h5")
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def kill(workflow, *targets: str, when: Callable[[], object]) -> None:
    """Kill Snakemake in the middle of a step, and it alone; its jobs have to end by themselves."""
    with open(workflow.folder / "output.txt", "w") as output:
        process = workflow.start(*targets, stdout=output, stderr=output)
        wait_until(when)
        process.kill()
        process.wait()
        wait_until(lambda: not processes_of(process.pid), seconds=20)


def stop(workflow, *, when: Callable[[], object]) -> str:
    """Press Ctrl-C, which reaches all processes of a terminal; return what the run printed."""
    with open(workflow.folder / "output.txt", "w") as output:
        process = workflow.start(stdout=output, stderr=output)
        wait_until(when)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 1
        assert processes_of(process.pid) == []
    return (workflow.folder / "output.txt").read_text()


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def assert_same(found: Path, wanted: Path) -> None:
    """Two AnnData stores hold the same arrays; when and how long differs."""
    found, wanted = ad.read_zarr(found), ad.read_zarr(wanted)
    pd.testing.assert_frame_equal(found.obs, wanted.obs)
    pd.testing.assert_frame_equal(found.var, wanted.var)
    assert (found.X is None) == (wanted.X is None)
    assert wanted.X is None or (found.X != wanted.X).nnz == 0
    for slot in ("obsm", "varm", "obsp", "layers"):
        ours, theirs = getattr(found, slot), getattr(wanted, slot)
        assert {*ours} == {*theirs}
        for name in theirs:
            a, b = (m.toarray() if sparse.issparse(m) else m for m in (ours[name], theirs[name]))
            np.testing.assert_array_equal(a, b, err_msg=f"{slot}/{name}")
    assert {*found.uns} == {*wanted.uns}


def test_killed_while_the_counts_are_written(fresh):
    source = fresh.folder / "large.h5ad"
    Simulation(n_obs=12_000, n_vars=1500, mean_counts=2000).write_h5ad(source)
    workflow = fresh.over("run: large\nbackend: cpu\ndatasets: {large: {source: large.h5ad}}")
    results = fresh.folder / "results/large"
    target = "results/large/qc.h5"
    kill(workflow, target, when=lambda: any(results.glob(".counts.zarr.tmp-*/X/*")))
    assert not [*results.glob("counts.*")]
    workflow.run(target)
    assert temporary_files(fresh.folder) == []
    counts, wanted = ad.read_zarr(results / "counts.zarr"), ad.read_h5ad(source)
    assert (counts.X != wanted.X).nnz == 0


def test_killed_while_the_result_is_written(done, tmp_path):
    workflow = done.at(tmp_path / "work").over("run: toy")
    result = workflow.folder / "results/toy/final.zarr"
    shutil.rmtree(result)
    before = times(workflow.folder)
    kill(workflow, when=lambda: any(result.parent.glob(".final.zarr.tmp-*/*")))
    assert not result.exists()
    assert workflow.due() == {"final toy"}
    workflow.run()
    assert_same(result, done.folder / "results/toy/final.zarr")
    assert temporary_files(workflow.folder) == []
    assert times(workflow.folder) == before


@pytest.mark.long  # test_worker.py has one with a worker
def test_stopped_by_ctrl_c_with_two_steps_running(done, tmp_path):
    workflow = done.at(tmp_path / "work").over("run: toy")
    folder = workflow.folder
    for result in ("final.zarr", "figures"):
        shutil.rmtree(folder / f"results/toy/{result}")
    logs = [folder / f"logs/toy/{rep}/umap.log" for rep in ("pca", "harmony")]
    for log in logs:
        log.unlink()
        (folder / f"results/toy/{log.parent.name}/umap.h5").unlink()
    # the run removes what follows from the UMAP, and is asked for the final object alone
    before = {f: t for f, t in times(folder).items() if "report" not in f and "figures" not in f}

    def both_work() -> bool:
        begun = [log.stat().st_mtime for log in logs if log.exists()]
        return len(begun) == 2 and time.time() - max(begun) > 0.5  # both import for longer

    assert "] stopped by Ctrl-C" in stop(workflow, when=both_work)
    again = {"umap toy/pca", "umap toy/harmony", "final toy", "report toy"}
    again |= {f"figures toy/figures/{topic}" for topic in ("genes", "clusters", "trajectory")}
    again |= {"marker_figures toy/pca", "marker_figures toy/harmony"}
    genes = {"figures toy/figures/genes"}  # they follow from no UMAP: drawn by then, or not
    assert workflow.due() | genes == again
    workflow.run("results/toy/final.zarr")
    assert_same(folder / "results/toy/final.zarr", done.folder / "results/toy/final.zarr")
    assert temporary_files(folder) == []
    assert {file: time for file, time in times(folder).items() if file in before} == before


def test_a_second_run_in_the_same_folder_is_refused(done, tmp_path):
    workflow = done.at(tmp_path / "work")
    targets = [f"results/plain/pca/{step}.h5" for step in ("umap", "tsne")]
    for target in targets:
        (workflow.folder / target).unlink()
    lock = workflow.folder / ".snakemake/scrna.resources.locks"
    lock.unlink()
    with open(tmp_path / "output.txt", "w") as output:
        first = workflow.start(*targets, stdout=output, stderr=output)
        wait_until(lock.exists)
        second = workflow.over("seed: 1").run(*targets, fails=True)
        assert first.poll() is None
        assert first.wait(timeout=120) == 0
    assert f"another run works in {workflow.folder}: Snakemake (process {first.pid} " in second
    assert "Wait until it ends or stop it" in second
    assert "simulate counts" not in second  # no job started
    assert workflow.due() == {"final plain", "h5ad plain"}


@pytest.mark.long  # test_running.py has the messages of steps that fail
def test_a_step_that_fails_says_why_and_the_others_finish(done, tmp_path):
    asked = done.at(tmp_path / "work").over("run: plain\numap: {min_dist: 0.3}")
    bad = asked.clone(tmp_path / "code")
    script, begins = bad.code / "scripts/trajectory.py", "    adata = open_graph(neighbors)\n"
    text = script.read_text()
    assert begins in text
    script.write_text(text.replace(begins, f"    raise ValueError('type_9, not type_1')\n{begins}"))
    output = bad.run(fails=True)
    assert re.search(r"^\[trajectory plain/pca\] .*type_9.*type_1", output, re.MULTILINE)
    log = read(asked.folder / "logs/plain/pca/trajectory.log")
    assert re.search(r"type_9", log)
    assert "Traceback" in log
    left = {"trajectory plain/pca", "final plain", "h5ad plain"}  # the UMAP is done
    assert done.plans(bad, asked) == [left, left]
    asked.run("results/plain/pca/trajectory.h5")
    found, wanted = (
        step_files.read(workflow.folder / "results/plain/pca/trajectory.h5", "obs/dpt_pseudotime")
        for workflow in (asked, done)
    )
    np.testing.assert_array_equal(found, wanted)
