"""What runs again after which change, each told by Snakemake itself: the table of the README."""

import os
import re
from pathlib import Path

import pytest

#: Every job of the shared run, as rule and place.
JOBS = """
simulate toy, convert toy, qc toy, filter toy, normalize toy, matrix toy, hvg toy,
pca toy/pca, neighbors toy/pca, umap toy/pca, leiden toy/pca, markers toy/pca, trajectory toy/pca,
harmony toy/harmony, neighbors toy/harmony, umap toy/harmony, leiden toy/harmony,
markers toy/harmony, trajectory toy/harmony, integration_scores toy, integration toy,
qc_figures toy/qc,
figures toy/figures/genes, figures toy/figures/clusters, figures toy/figures/trajectory,
marker_figures toy/pca, marker_figures toy/harmony, report toy, final toy,
simulate plain, convert plain, qc plain, doublets plain, filter plain, normalize plain,
matrix plain, hvg plain,
scores plain, cell_type_names plain/pca,
pca plain/pca, neighbors plain/pca, umap plain/pca, tsne plain/pca, leiden plain/pca,
louvain plain/pca, markers plain/pca, trajectory plain/pca, final plain, h5ad plain
"""
#: Those of a dataset that is only now run.
NEW = """
convert new, qc new, filter new, normalize new, matrix new, hvg new, pca new/pca,
neighbors new/pca, umap new/pca, leiden new/pca, markers new/pca, trajectory new/pca, final new
"""


def jobs(listed: str) -> set[str]:
    return {job.strip() for job in listed.split(",")}


def of(rules: str) -> set[str]:
    """The jobs of some rules, at all places."""
    return {job for job in jobs(JOBS) if job.split()[0] in rules.split()}


def at(place: str, these: set[str]) -> set[str]:
    """Those of some jobs that are done for a dataset, or for a representation of it."""
    return {job for job in these if job.split()[1].startswith(place)}


# A step, and all that follows it. The markers of plain are of known types, not of clusters.
GENES, CLUSTERS, TRAJECTORY = (
    {f"figures toy/figures/{topic}"} for topic in ("genes", "clusters", "trajectory")
)
DRAWN = of("marker_figures report") | CLUSTERS | TRAJECTORY
ALL_DRAWN = of("figures marker_figures qc_figures report")
FINAL = of("final h5ad report")
LEIDEN = (
    of("leiden trajectory integration cell_type_names") | DRAWN | at("toy", of("markers")) | FINAL
)
NEIGHBORS = of("neighbors umap louvain") | LEIDEN
PCA = of("pca harmony tsne integration_scores") | GENES | NEIGHBORS
HVG = of("hvg") | PCA
NORMALIZE = of("normalize matrix markers scores cell_type_names") | HVG
FILTER = of("filter qc_figures") | NORMALIZE
QC = of("qc") | FILTER
DOUBLETS = of("doublets") | at("plain", FILTER)  # plain removes them
CONVERT = of("convert") | QC | DOUBLETS
SIMULATE = of("simulate") | CONVERT

#: What is laid over the config → what is due.
CHANGES = {
    # a setting of a step: the step and what follows it
    "seed: 1": SIMULATE,
    "qc: {percent_top: [20]}": QC,
    "filter: {max_genes: 250}": FILTER,
    "filter: {mad: {total_counts: 5}}": FILTER,
    "filter: {mad: {total_counts: null}}": set(),
    "datasets: {toy: {filter: {by: status}}}": at("toy", FILTER),
    "datasets: {plain: {doublets: {expected_rate: 0.1}}}": DOUBLETS,
    "datasets: {toy: {doublets: {expected_rate: 0.1}}}": set(),  # it looks for none
    "normalize: {target_sum: 5000}": NORMALIZE,
    "hvg: {n_top_genes: 100}": HVG,
    "pca: {n_comps: 18}": PCA,
    "harmony: {theta: 1}": at("toy/harmony", PCA)
    | of("integration_scores integration")
    | CLUSTERS
    | TRAJECTORY
    | at("toy", FINAL),
    "neighbors: {n_neighbors: 10}": NEIGHBORS,
    "umap: {min_dist: 0.3}": of("umap") | DRAWN | FINAL,
    "leiden: {resolution: 1.1}": at("toy", LEIDEN),  # plain has its own
    "markers: {min_cells: 9}": of("markers marker_figures") | FINAL,
    "datasets: {plain: {scores: {n_bins: 20}}}": at("plain", of("scores") | FINAL),
    "datasets: {plain: {scores: {sets: {first type: [MARK1-1, MARK1-2, MARK1-3]}}}}": at(
        "plain", of("scores") | FINAL
    ),
    "datasets: {plain: {cell_types: {min_margin: 0.2}}}": at(
        "plain", of("cell_type_names") | FINAL
    ),
    "trajectory: {n_dcs: 5}": of("trajectory") | TRAJECTORY | FINAL,
    "integration: {n_cells: 150}": of("integration_scores integration") | at("toy", FINAL),
    "final: {counts_layer: false}": of("matrix final h5ad"),
    "figures: {dpi: 60}": set(),  # toy has its own
    "datasets: {toy: {figures: {dpi: 60}}}": ALL_DRAWN,
    "datasets: {toy: {figures: {n_markers: 2}}}": of("marker_figures report"),
    "datasets: {toy: {figures: {enabled: false}}}": {"report toy"},
    "report: {n_markers: 5}": {"report toy"},
    "report: {enabled: true}": {"report plain"},
    # a step more, or one less
    "tsne: {enabled: true}": jobs("tsne toy/pca, tsne toy/harmony, figures toy/figures/tsne")
    | at("toy", FINAL),
    "datasets: {toy: {scores: {sets: {one: [MARK1-1, MARK1-2, MARK1-3]}}}}": jobs(
        "scores toy, figures toy/figures/scores"
    )
    | at("toy", FINAL),
    "datasets: {toy: {cell_types: {markers: $SCRNA_TEST_CONFIGS/markers.csv}}}": jobs(
        "cell_type_names toy/pca, cell_type_names toy/harmony"
    )
    | CLUSTERS
    | at("toy", FINAL),
    "datasets: {plain: {cell_types: {markers: null}}}": at("plain", FINAL),
    "integration: {enabled: false}": at("toy", FINAL),
    "louvain: {enabled: true}": jobs("louvain toy/pca, louvain toy/harmony")
    | CLUSTERS
    | at("toy", FINAL),
    "doublets: {method: scrublet}": {"doublets toy"} | CLUSTERS | at("toy", FINAL),
    "datasets: {toy: {doublets: {method: scrublet}, filter: {remove_doublets: true}}}": {
        "doublets toy"
    }
    | at("toy", FILTER),
    "final: {h5ad: true}": {"h5ad toy"},
    "datasets: {plain: {final: {h5ad: false}}}": set(),
    "datasets: {toy: {markers: {enabled: false}}}": at("toy", FINAL),
    # a dataset's own setting: that dataset alone
    "datasets: {plain: {umap: {min_dist: 0.3}}}": at("plain", of("umap") | FINAL),
    "datasets: {plain: {leiden: {resolution: 0.9}}}": at("plain", LEIDEN),
    "datasets: {toy: {filter: {max_genes: 250}}}": at("toy", FILTER),
    "datasets: {plain: {simulate: {n_obs: 210}}}": at("plain", SIMULATE),
    "datasets: {toy: {keep_obs: {status: [cell]}}}": at("toy", CONVERT),
    "datasets: {toy: {label_key: status}}": at(
        "toy", of("trajectory integration_scores integration") | CLUSTERS | TRAJECTORY | FINAL
    ),
    "datasets: {toy: {batch_key: status}}": at("toy", HVG | of("qc_figures")),
    "datasets: {toy: {batch_key: null}}": at(
        "toy", (HVG | of("qc_figures")) - of("integration_scores integration")
    )
    - at("toy/harmony", PCA),
    "datasets: {toy: {batch_key: null, hvg: {batch_key: batch}}}": of("qc_figures")
    | CLUSTERS
    | TRAJECTORY
    | at("toy", FINAL),
    # a dataset more, or one less
    "run: toy": set(),
    "run: [toy, new]\ndatasets: {new: {source: resources/plain.h5ad}}": jobs(NEW),
    # what no result depends on
    "{}": set(),
    "gpu: {memory: managed, pool_gb: 4}": set(),
    "tsne: {perplexity: 10}": set(),  # toy has none, plain its own
    "datasets: {new: {source: $NO_SUCH/new.h5ad}}": set(),
    "datasets: {toy: {umap: {min_dist: 0.5}}}": set(),
    "datasets: {plain: {simulate: {trajectory: true}, batch_key: null}}": set(),
}

#: An edit of a file of the code → what is due.
EDITS = {
    ("scripts/umap.py", "CODE"): of("umap") | DRAWN | FINAL,
    ("scripts/scrna/data/graph.py", "CODE"): of("tsne") | GENES | NEIGHBORS,
    ("scripts/scrna/methods/cluster_names.py", "CODE"): of("louvain") | LEIDEN,
    ("scripts/scrna/methods/clustering.py", "CODE"): of("louvain") | LEIDEN,
    ("scripts/scrna/methods/outliers.py", "CODE"): FILTER,
    ("scripts/scrna/methods/doublets.py", "CODE"): DOUBLETS,
    ("scripts/scrna/methods/gene_scores.py", "CODE"): of("scores") | at("plain", FINAL),
    ("scripts/scrna/methods/marker_names.py", "CODE"): at("plain", of("cell_type_names") | FINAL),
    ("scripts/scrna/plots/style.py", "CODE"): ALL_DRAWN,
    ("scripts/scrna/data/benchmarks.py", "CODE"): {"report toy"},
    ("scripts/scrna/report/report.css", "STYLE"): {"report toy"},
    ("scripts/scrna/ingest/simulate.py", "CODE"): SIMULATE,
    ("scripts/scrna/ingest/formats/mtx.py", "CODE"): CONVERT,
    ("scripts/scrna/log.py", "CODE"): set(),
    ("scripts/scrna/config/settings.py", "CODE"): set(),
    ("scripts/umap.py", "COMMENT"): set(),
    ("rules/embed.smk", "MESSAGE"): set(),
}
KINDS = {
    "CODE": lambda text: text + "\nEDITED = 1\n",
    "STYLE": lambda text: text + "p { margin: 0 }\n",
    "COMMENT": lambda text: text.replace('"""', '"""Edited. ', 1) + "\n# edited\n",
    "MESSAGE": lambda text: re.sub(r'(message:\s+")', r"\1Edited. ", text),
}


@pytest.fixture(scope="module")
def due(done, tmp_path_factory) -> dict[object, set[str]]:
    """What is due after each change and each edit."""
    asked = {change: done.over(change) for change in CHANGES}
    clones = tmp_path_factory.mktemp("clones")
    for number, (file, kind) in enumerate(EDITS):
        asked[file, kind] = done.clone(clones / str(number))
        path = asked[file, kind].code / file
        before = path.read_text()
        path.write_text(KINDS[kind](before))
        assert path.read_text() != before
    return dict(zip(asked, done.plans(*asked.values()), strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_config_reruns_what_depends_on_it_alone(due, change):
    assert due[change] == CHANGES[change]


@pytest.mark.parametrize(("file", "kind"), EDITS)
def test_an_edit_of_the_code_reruns_the_steps_that_use_it_alone(due, file, kind):
    assert due[file, kind] == EDITS[file, kind]


def test_a_fresh_clone_beside_the_same_results_reruns_nothing(done, tmp_path):
    assert done.clone(tmp_path / "clone").due() == set()


def test_touch_of_all_code_reruns_nothing(done, tmp_path):
    clone = done.clone(tmp_path / "clone")
    for file in clone.code.rglob("*"):
        os.utime(file)
    assert clone.due() == set()


def test_results_may_move(done, tmp_path):
    assert done.at(tmp_path / "elsewhere").due() == set()


def test_fewer_cores_rerun_nothing(done):
    assert "Nothing to be done" in done.run(options=("--dry-run", "--cores", "1"))


def test_the_dry_run_counts_the_same_jobs(done):
    table = done.over("leiden: {resolution: 1.1}").run(options=("--dry-run",))
    counts = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
    wanted = {"leiden": "2", "markers": "2", "trajectory": "2", "final": "1", "all": "1"}
    wanted |= {"integration": "1", "figures": "2", "marker_figures": "2", "report": "1"}
    assert counts == wanted | {"total": "14"}


def test_a_change_is_carried_out_once(done, tmp_path):
    changed = done.at(tmp_path / "work").over("datasets: {plain: {umap: {min_dist: 0.3}}}")
    before = times(changed.folder)
    changed.run()
    assert changed.due() == set()
    assert done.due() == set()
    written = {file for file, time in times(changed.folder).items() if before.get(file) != time}
    assert written == {"plain/pca/umap.h5", "plain/final.zarr", "plain/final.h5ad"}


def times(folder: Path) -> dict[str, int]:
    """When each result was written, by its name in results/."""
    results = folder / "results"
    files = [f for pattern in ("*/*", "*/*/*.h5", "*/*/*.csv") for f in results.glob(pattern)]
    return {str(f.relative_to(results)): f.stat().st_mtime_ns for f in files if f.suffix}
