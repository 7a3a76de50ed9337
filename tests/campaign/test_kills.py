"""Every rule killed in the middle: nothing wrong stands, and the same command goes on."""

import http.server
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.campaign.conftest import SHORT, differences, temporary
from tests.campaign.victims import ENGINE, GROUP, PARENT, SNAKEMAKE, STEP, WORKER, holding
from tests.workflow.test_stale import rules_in

pytestmark = [pytest.mark.campaign, pytest.mark.slow]

#: Rule → its outputs in the shared run.
OUTPUTS = {
    "simulate": ["resources/toy.h5ad"],
    "convert": ["results/toy/counts.zarr", "results/toy/counts.json"],
    "qc": ["results/toy/qc.h5"],
    "filter": ["results/toy/filter.csv", "results/toy/filter.h5"],
    "normalize": ["results/toy/normalize.h5"],
    "matrix": ["results/toy/matrix.zarr"],
    "hvg": ["results/plain/hvg.h5"],
    "pca": ["results/plain/pca/pca.h5"],
    "harmony": ["results/toy/harmony/harmony.h5"],
    "neighbors": ["results/toy/harmony/neighbors.h5"],
    "umap": ["results/toy/pca/umap.h5"],
    "tsne": ["results/plain/pca/tsne.h5"],
    "leiden": ["results/plain/pca/leiden.h5"],
    "louvain": ["results/plain/pca/louvain.h5"],
    "markers": ["results/toy/harmony/markers.csv", "results/toy/harmony/markers.h5"],
    "trajectory": ["results/toy/pca/trajectory.h5"],
    "integration_scores": ["results/toy/integration_scores.h5"],
    "integration": ["results/toy/integration.csv", "results/toy/integration.h5"],
    "final": ["results/toy/final.zarr"],
    "h5ad": ["results/plain/final.h5ad"],
    "qc_figures": ["results/toy/qc/figures"],
    "figures": ["results/toy/figures/clusters"],
    "marker_figures": ["results/toy/pca/figures"],
    "report": ["results/toy/report.html"],
}
#: Without a worker the rule's own process writes the result.
ALONE = [STEP, SNAKEMAKE, GROUP]
BY_A_WORKER = "qc normalize hvg pca harmony neighbors umap tsne leiden louvain markers trajectory"
#: Of each rule with a worker, beside the worker and the engine, one in turn.
IN_TURN = [PARENT, STEP, SNAKEMAKE, GROUP]
CASES = [pytest.param("umap", "warm", [WORKER, ENGINE], marks=[SHORT, pytest.mark.long])]
CASES += [(rule, "none", ALONE) for rule in OUTPUTS]
CASES += [
    (rule, "warm", [WORKER, ENGINE, IN_TURN[number % len(IN_TURN)]])
    for number, rule in enumerate(BY_A_WORKER.split())
]


def test_the_table_has_every_rule(done):
    rules = {rule for file in done.code.glob("rules/*.smk") for rule in rules_in(file)}
    assert {*OUTPUTS, "download"} == rules
    assert {rule for rule, _, _ in CASES[1:]} == {*OUTPUTS}
    assert all((done.folder / name).exists() for names in OUTPUTS.values() for name in names)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(("rule", "worker", "victims"), CASES)
def test_killed_as_a_result_is_to_get_its_name(
    done, tmp_path, monkeypatch, subtests, rule, worker, victims
):
    workflow = done.at(tmp_path / "work").over(f"worker: {worker}")
    outputs = [workflow.folder / name for name in OUTPUTS[rule]]
    target = OUTPUTS[rule][-1]
    for output in outputs:
        remove(output)
    for role in victims:
        with subtests.test(f"kills: {role}", rule=rule, worker=worker):
            with holding(workflow, tmp_path / "hold", monkeypatch, target, target) as held:
                if role not in held.roles():
                    pytest.skip(f"with worker: {worker}, {rule} has no {role}")
                status = held.strike(role)
                assert status == (-9 if role == SNAKEMAKE else 1)
            printed = held.output.read_text()
            assert "Traceback" not in printed
            assert not outputs[-1].exists(), printed
            assert differences(workflow.folder / "results", done.folder / "results") == []
    with subtests.test("kills: the same command again", rule=rule, worker=worker):
        workflow.run(target)
        assert all(output.exists() for output in outputs)
        assert differences(workflow.folder / "results", done.folder / "results") == []
        assert temporary(workflow.folder) == []
        assert workflow.due(target) == set()


@pytest.mark.parametrize("role", ALONE)
def test_a_download_killed(fresh, done, tmp_path, monkeypatch, subtests, role):
    target = "resources/web.h5ad"
    with (
        serving(done.folder / "resources") as address,
        subtests.test(f"kills: {role}", rule="download"),
    ):
        monkeypatch.setenv("SCRNA_TEST_URL", address)
        workflow = fresh.over("run: web\ndatasets: {web: {source: $SCRNA_TEST_URL/plain.h5ad}}")
        with holding(workflow, tmp_path / "hold", monkeypatch, target, target) as held:
            assert held.strike(role) == (-9 if role == SNAKEMAKE else 1)
        assert not (workflow.folder / target).exists()
        workflow.run(target)
        wanted = done.folder / "resources/plain.h5ad"
        assert (workflow.folder / target).read_bytes() == wanted.read_bytes()


def test_a_whole_run_killed_again_and_again(fresh, done, tmp_path, monkeypatch, subtests):
    """All of the shared run from nothing, the same command each time."""
    workflow = replace(done, folder=fresh.folder)
    choose = random.Random(0)
    for number in range(10):
        missing = [
            (rule, outputs[-1])
            for rule, outputs in OUTPUTS.items()
            if not (workflow.folder / outputs[-1]).exists()
        ]
        rule, target = choose.choice(missing[:4])
        role = (SNAKEMAKE, GROUP)[number % 2]
        with subtests.test("kills: a whole run again and again", rule=rule, role=role):
            with holding(workflow, tmp_path / "hold", monkeypatch, target) as held:
                assert held.strike(role) == (-9 if role == SNAKEMAKE else 1)
            assert not (workflow.folder / target).exists()
            assert differences(workflow.folder / "results", done.folder / "results") == []
    workflow.run(timeout=400)
    assert workflow.due() == set()
    assert temporary(workflow.folder) == []
    found, wanted = (run.folder / "results" for run in (workflow, done))
    assert differences(found, wanted) == []
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (found, wanted)]
    assert names[0] == names[1]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
