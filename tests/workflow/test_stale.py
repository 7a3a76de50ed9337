"""No result stands that does not follow from the present config: after failures, kills, moves."""

import http.server
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import anndata as ad
import pytest

from tests.workflow import test_reruns as table
from tests.workflow.processes import processes_of, wait_until
from tests.workflow.test_interrupts import assert_same

#: Rule → its jobs and all that follow them, in the shared run. `download` has a test of its own.
FOLLOWS = {
    "simulate": table.SIMULATE,
    "convert": table.CONVERT,
    "qc": table.QC,
    "doublets": table.DOUBLETS,
    "filter": table.FILTER,
    "normalize": table.NORMALIZE,
    "matrix": table.of("matrix final h5ad"),
    "hvg": table.HVG,
    "pca": table.PCA,
    "harmony": table.CHANGES["harmony: {theta: 1}"],
    "neighbors": table.NEIGHBORS,
    "umap": table.of("umap") | table.DRAWN | table.FINAL,
    "tsne": table.at("plain", table.of("tsne") | table.FINAL),
    "leiden": table.LEIDEN,
    "louvain": table.at("plain", table.of("louvain") | table.FINAL),
    "markers": table.CHANGES["markers: {min_cells: 9}"],
    "scores": table.at("plain", table.of("scores") | table.FINAL),
    "cell_type_names": table.at("plain", table.of("cell_type_names") | table.FINAL),
    "trajectory": table.CHANGES["trajectory: {n_dcs: 5}"],
    "integration_scores": table.CHANGES["integration: {n_cells: 150}"],
    "integration": table.of("integration") | table.at("toy", table.FINAL),
    "final": table.of("final h5ad"),
    "h5ad": table.of("h5ad"),
    "qc_figures": table.of("qc_figures report"),
    "figures": table.of("figures report"),
    "marker_figures": table.of("marker_figures report"),
    "report": table.of("report"),
}
#: Those of the table that are run each time; all of them take a minute.
IN_SHORT = ["simulate", "filter", "harmony", "leiden", "figures", "final"]
#: What each rule writes, below results/ and the place of its job.
OUTPUTS = {
    "convert": ["counts.zarr", "counts.json"],
    "doublets": ["doublets.h5", "doublets.csv"],
    "filter": ["filter.h5", "filter.csv"],
    "markers": ["markers.h5", "markers.csv"],
    "integration": ["integration.h5", "integration.csv"],
    "cell_type_names": ["cell_type_names.h5", "cell_type_names.csv"],
    "matrix": ["matrix.zarr"],
    "final": ["final.zarr"],
    "h5ad": ["final.h5ad"],
    "report": ["report.html"],
    "simulate": [],
    "figures": [""],  # a folder a topic, which is its place
} | {rule: ["figures"] for rule in ("qc_figures", "marker_figures")}


def results_of(jobs: set[str]) -> set[str]:
    """The files and folders that some jobs write, below results/."""
    found = set()
    for rule, place in map(str.split, jobs):
        found |= {str(Path(place, name)) for name in OUTPUTS.get(rule, [f"{rule}.h5"])}
    return found


def there(workflow) -> dict[str, int]:
    """What stands below results/, and when it was written; the inside of stores apart."""
    results = workflow.folder / "results"
    found = [path for depth in ("*/*", "*/*/*") for path in results.glob(depth)]
    names = {str(path.relative_to(results)): path for path in found}
    made = results_of(table.jobs(table.JOBS))
    assert not [name for name in names if ".tmp-" in name], "temporary files are left"
    return {name: path.stat().st_mtime_ns for name, path in names.items() if name in made}


def breaking(workflow, rule: str, folder: Path):
    """The workflow with a rule that fails, in a copy of its working directory and of its code."""
    folder.mkdir()
    broken = workflow.at(folder / "work").clone(folder / "code").over("worker: none")
    script = broken.code / f"scripts/{rule}.py"
    script.write_text(f"raise SystemExit('{rule} is made to fail')\n" + script.read_text())
    return broken


def test_the_table_has_every_rule(done):
    files = {*done.code.glob("rules/*.smk")} - {done.code / "rules/samples.smk"}  # test_samples.py
    rules = {rule for file in files for rule in rules_in(file)}
    assert rules - {"download"} == {*FOLLOWS}
    assert {*there(done)} == results_of(table.jobs(table.JOBS))


def rules_in(file: Path) -> list[str]:
    return re.findall(r"^rule (\w+):", file.read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(IN_SHORT, id="in short"),
        pytest.param([*{*FOLLOWS} - {*IN_SHORT}], id="the others", marks=pytest.mark.campaign),
    ],
)
def test_each_rule_fails_twice_and_nothing_of_before_stands(done, tmp_path, rules):
    broken = {rule: breaking(done, rule, tmp_path / rule) for rule in rules}
    before, everything = there(done), results_of(table.jobs(table.JOBS))
    for time in ("once", "twice"):
        ends = dict(zip(broken, done.runs(*broken.values()), strict=True))
        for rule, (status, output) in ends.items():
            assert status == 1, f"{rule} {time}: {output}"
            assert "Nothing to be done" not in output
            standing = everything - results_of(FOLLOWS[rule])
            found = there(broken[rule])
            assert {*found} == standing, f"{rule} {time}: {output}"
            assert found == {name: before[name] for name in standing}, rule
    for rule, (_, output) in ends.items():
        assert "removed" not in output, f"{rule}: there was nothing left to remove"
    # -n and --summary say what is due, as the config is and with the change taken back
    taken_back = [replace(one, code=done.code) for one in broken.values()]
    plans = done.plans(*broken.values(), *taken_back)
    for rule, due in zip([*broken, *broken], plans, strict=True):
        assert due == FOLLOWS[rule], rule


@pytest.mark.long  # the test above has a change of each kind that fails
def test_a_change_that_fails_and_is_taken_back(done, tmp_path):
    asked = done.at(tmp_path / "work").over("run: plain")
    before = there(done)
    bad = asked.over("filter: {min_genes: 4999}")
    standing = {n for n in before if n.startswith("plain/")} - results_of(table.FILTER)
    for _ in range(2):
        output = bad.run(fails=True)
        assert re.search(r"filter plain failed:\n.*of 200 cells pass the filter", output)
        assert "Fix this and run the same command again to continue." in output
        assert {n for n in there(bad) if n.startswith("plain/")} == standing
    asked.run()
    after = there(asked)
    assert {name for name in before if after[name] == before[name]} == standing | {
        name for name in before if name.startswith("toy/")
    }
    for name in ("final.zarr", "pca/umap.h5"):
        assert (asked.folder / "results/plain" / name).exists()
    assert_same(*(w.folder / "results/plain/final.zarr" for w in (asked, done)))


def test_what_was_removed_is_said_once(done, tmp_path):
    bad = done.at(tmp_path / "work").over("run: plain\nfilter: {min_genes: 4999}\nworker: none")
    n_results = len(results_of(table.at("plain", table.FILTER)))
    said = (
        f"plain: filter and what follows are made again; {n_results} earlier results were removed"
    )
    assert said in bad.run(fails=True)
    assert "made again" not in bad.run(fails=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "is_replaced",
    [pytest.param(True, id="replaced", marks=pytest.mark.long), pytest.param(False, id="another")],
)
def test_a_source_without_counts(done, tmp_path, is_replaced):
    """Also one that is older than the results, which Snakemake takes for no change."""
    workflow = done.at(tmp_path / "work")
    good, bad = (workflow.folder / f"{name}.h5ad" for name in ("good", "bad"))
    shutil.copy2(workflow.folder / "resources/plain.h5ad", good)
    os.utime(good, (1e9, 1e9))
    asked = workflow.over("run: new\nworker: none\ndatasets: {new: {source: good.h5ad}}")
    asked.run("results/new/filter.h5")
    assert asked.due("results/new/filter.h5") == set()
    source = ad.read_h5ad(good)
    source.X = source.X.astype(float) * 1.5
    source.write_h5ad(bad)
    os.utime(bad, (1e9, 1e9))
    changed = asked.over("datasets: {new: {source: bad.h5ad}}")
    if is_replaced:
        shutil.move(bad, good)
        changed = asked
    assert "convert new" in changed.due("results/new/filter.h5")
    for _ in range(2):
        assert "has no counts" in changed.run("results/new/filter.h5", fails=True)
        assert [*workflow.folder.glob("results/new/*")] == []


def test_a_source_that_is_replaced_by_an_older_file_of_its_size(done, tmp_path):
    workflow = done.at(tmp_path / "work")
    source = workflow.folder / "source.h5ad"
    shutil.copy2(workflow.folder / "resources/plain.h5ad", source)
    os.utime(source, (1e9, 1e9))
    asked = workflow.over("run: new\nworker: none\ndatasets: {new: {source: source.h5ad}}")
    asked.run("results/new/counts.json")
    assert asked.due("results/new/counts.json") == set()
    os.utime(source, (9e8, 9e8))
    output = asked.run("results/new/counts.json", options=("--dry-run",))
    assert "new: convert: source.h5ad is another file of the same size" in output
    assert asked.due("results/new/counts.json") == {"convert new"}


def test_a_cluster_that_there_is_not_is_refused_where_the_clusters_are_known(done, tmp_path):
    before = there(done)
    asked = done.at(tmp_path / "work").over("worker: none")
    of_pca = asked.over("datasets: {toy: {annotations: {leiden_pca: {0: B, 77: T}}}}")
    output = of_pca.run(fails=True)
    assert re.search(
        "toy: annotations.leiden_pca names 77, but leiden of pca has .* clusters, 0", output
    )
    assert there(of_pca) == before  # nothing was removed
    again = of_pca.over("leiden: {resolution: 0.7}")
    output = again.run("results/toy/pca/leiden.h5", fails=True)
    assert re.search(r"leiden toy/pca failed:\n.*toy: annotations.leiden_pca names 77", output)


def test_where_a_step_in_the_middle_is_asked_for_nothing_stands_that_followed_the_old_one(
    done, tmp_path
):
    workflow = done.at(tmp_path / "work").over("leiden: {resolution: 1.1}\nworker: none")
    workflow.run("results/toy/pca/leiden.h5")
    gone = table.at("toy", table.LEIDEN) - {"leiden toy/pca"}
    gone -= table.at("toy/harmony", table.LEIDEN)
    assert {*there(done)} - {*there(workflow)} == results_of(gone)
    assert "leiden toy/harmony" in workflow.due()


def test_what_is_no_longer_asked_for_does_not_stay_either(done, tmp_path):
    less = done.at(tmp_path / "work").over(
        "run: plain\nworker: none\nlouvain: {enabled: false}\nfilter: {min_genes: 4999}\n"
        "datasets: {plain: {tsne: {enabled: false}, louvain: {enabled: false}}}"
    )
    less.run(fails=True)
    assert not (less.folder / "results/plain/pca/tsne.h5").exists()
    assert not (less.folder / "results/plain/pca/louvain.h5").exists()


def test_a_result_goes_with_an_input_that_it_has_no_longer(done, tmp_path):
    other = "datasets: {plain: {tsne: {enabled: %s, perplexity: 10}}}\nworker: none"
    workflow = done.at(tmp_path / "work").over("run: plain")
    off, on = (workflow.over(other % word) for word in ("false", "true"))
    script = off.clone(tmp_path / "code")
    (script.code / "scripts/tsne.py").write_text("raise SystemExit('no')\n")
    script.run("results/plain/pca/tsne.h5", fails=True)
    assert on.due() == table.at("plain", table.of("tsne") | table.FINAL)


def test_a_dataset_that_is_not_run_and_a_touch_lose_nothing(done, tmp_path):
    workflow = done.at(tmp_path / "work")
    before = there(workflow)
    workflow.over("run: toy\nworker: none\nfigures: {dpi: 60}\nreport: {n_markers: 5}").run()
    plain = {n: t for n, t in there(workflow).items() if n.startswith("plain")}
    assert plain == {n: t for n, t in before.items() if n.startswith("plain")}
    changed = workflow.over("filter: {max_genes: 250}")
    changed.run(options=("--dry-run",))
    assert {*there(workflow)} == {*before}
    changed.run(options=("--touch",))
    assert {*there(workflow)} == {*before}
    assert changed.due() == set()


def test_what_a_failed_step_took_away_is_missed_whoever_ran_it(done, tmp_path):
    workflow = done.at(tmp_path / "work").over("run: plain")
    files = [f"results/plain/filter.{kind}" for kind in ("h5", "csv")]
    for file in files:
        (workflow.folder / file).unlink()
    assert workflow.due() == set()  # a person may remove what has served its purpose
    workflow.run(options=("--cleanup-metadata", *files))
    assert workflow.due() == table.at("plain", table.FILTER)


@pytest.mark.slow
def test_a_download_that_fails(fresh, done, tmp_path, monkeypatch):
    shutil.copy(done.folder / "resources/plain.h5ad", tmp_path / "good.h5ad")
    (tmp_path / "bad.h5ad").write_text("no counts")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("SCRNA_TEST_URL", f"http://127.0.0.1:{server.server_port}")
            good, bad = (
                fresh.over(f"run: web\ndatasets: {{web: {{source: $SCRNA_TEST_URL/{name}.h5ad}}}}")
                for name in ("good", "bad")
            )
            good.run("results/web/counts.json")
            for _ in range(2):
                bad.run("results/web/counts.json", fails=True)
                assert [*fresh.folder.glob("results/web/*")] == []
            due = {"download web", "convert web"}
            assert good.due("results/web/counts.json") == due
        finally:
            server.shutdown()


def test_without_its_hooks_no_run_starts(done):
    assert "Leave the option away" in done.run(options=("--no-hooks",), fails=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_stopped_in_the_middle_of_a_rerun(done, tmp_path, number):
    asked = done.at(tmp_path / "work").over("run: plain")
    changed = asked.over("filter: {max_genes: 250}\nworker: none")
    before = there(done)
    began, old = asked.folder / "results/plain/normalize.h5", before["plain/normalize.h5"]
    with open(tmp_path / "output.txt", "w") as output:
        process = changed.start(stdout=output, stderr=output)
        wait_until(lambda: began.exists() and began.stat().st_mtime_ns != old)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait()
        wait_until(lambda: not processes_of(process.pid), seconds=30)
    followers = results_of(table.at("plain", table.FILTER))
    found = there_or_temporary(asked)
    assert not [name for name in followers if found.get(name) == before[name]]
    assert "plain/final.zarr" not in found
    assert {"final plain", "h5ad plain"} <= changed.due()
    # with the change taken back, all of it is due, and nothing that stood
    assert asked.due() == table.at("plain", table.FILTER)
    target = "results/plain/hvg.h5"
    changed.run(target)
    assert not [*asked.folder.rglob("results/plain/.*.tmp-*")]
    assert changed.due(target) == set()


def there_or_temporary(workflow) -> dict[str, int]:
    results = workflow.folder / "results"
    paths = [path for depth in ("*/*", "*/*/*") for path in results.glob(depth)]
    return {str(path.relative_to(results)): path.stat().st_mtime_ns for path in paths}


# ------------------------------------------------------------------- without Snakemake's records

#: What does not say itself how it was made.
SILENT = table.of("matrix final h5ad qc_figures figures marker_figures report")


def test_results_that_came_without_their_records_are_compared_with_the_config(done, tmp_path):
    moved = done.at(tmp_path / "work")
    shutil.rmtree(moved.folder / ".snakemake")
    changed = moved.over("leiden: {resolution: 1.1}")
    output = changed.run(options=("--dry-run",))
    assert re.search("toy: leiden, leiden: made with resolution 0.6, not 1.1", output)
    assert "snakemake --touch takes all that is there" in output
    assert changed.due() == SILENT | table.at("toy", table.LEIDEN)
    assert "made again when asked for" not in changed.run(options=("--dry-run",))
    assert done.at(tmp_path / "again").due() == set()


@pytest.mark.parametrize(
    ("change", "due"),
    {
        "{}": set(),
        "seed: 1": table.SIMULATE,
        "datasets: {toy: {keep_obs: {status: [cell]}}}": table.at("toy", table.CONVERT),
        "filter: {max_genes: 250}": table.FILTER,
    }.items(),
)
def test_nothing_passes_without_a_record(done, tmp_path, change, due):
    moved = done.at(tmp_path / "work").over(change)
    shutil.rmtree(moved.folder / ".snakemake/metadata")
    assert moved.due() == SILENT | due


def test_an_edit_of_the_code_and_another_input_are_seen_without_records(done, tmp_path):
    moved = done.at(tmp_path / "work").clone(tmp_path / "code")
    shutil.rmtree(moved.folder / ".snakemake/metadata")
    script = moved.code / "scripts/umap.py"
    script.write_text(script.read_text() + "\nEDITED = 1\n")
    shutil.copy2(  # of the same settings, from other neighbors
        moved.folder / "results/toy/harmony/leiden.h5", moved.folder / "results/toy/pca/leiden.h5"
    )
    due = table.of("umap") | {"leiden toy/pca", "markers toy/pca", "trajectory toy/pca"}
    assert moved.due() == SILENT | due | {"integration toy"}


def test_touch_takes_results_without_records_as_they_are(done, tmp_path):
    moved = done.at(tmp_path / "work")
    shutil.rmtree(moved.folder / ".snakemake/metadata")
    before = {*there(moved)}
    moved.run(options=("--touch",))
    assert moved.due() == set()
    assert {*there(moved)} == before
