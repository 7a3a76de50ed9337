"""A dataset of samples, in real runs: what is made, what runs again, what is refused before."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tests.workflow.conftest import ROOT, Workflow

LAB = "run: lab\nbackend: cpu\ndatasets: {lab: {samples: data/samples.csv}}\n"
COUNTS = "results/lab/counts.zarr"
SHEET = {"a": ("a.h5ad", 1, "x"), "b": ("b.h5ad", 2, "y")}


def write_sheet(folder: Path, rows=None, columns=("donor", "condition"), name="samples.csv"):
    rows = SHEET if rows is None else rows
    lines = [",".join(["sample", "source", *columns])]
    lines += [",".join(map(str, [sample, *row])) for sample, row in rows.items()]
    (folder / "data" / name).write_text("\n".join(lines) + "\n")


def write_source(path: Path, seed: int, prefix: str) -> None:
    rng = np.random.default_rng(seed)
    X = sp.csr_matrix(rng.poisson(0.5, (60, 50)).astype(np.float32))
    obs = pd.DataFrame(index=[f"{prefix}{i}" for i in range(60)])
    ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(50)])).write_h5ad(path)


@pytest.fixture(scope="module")
def lab(code, once, tmp_path_factory) -> Workflow:
    """The counts of two samples, and a third that is in no sheet."""

    def make(folder: Path) -> None:
        (folder / "work/data").mkdir(parents=True)
        for seed, name in enumerate("abc"):
            write_source(folder / f"work/data/{name}.h5ad", seed, name)
        write_sheet(folder / "work")
        workflow = Workflow(code, folder / "work").over(LAB)
        (folder / "output.txt").write_text(workflow.run(COUNTS))

    made = once("lab", make)
    done = Workflow(code, made / "work", output=(made / "output.txt").read_text())
    return done.at(tmp_path_factory.mktemp("lab") / "work").over(LAB)


@pytest.fixture
def own(lab, tmp_path) -> Workflow:
    return lab.at(tmp_path / "work")


def test_each_sample_is_a_job_with_its_log_and_the_sheet_goes_to_obs(lab):
    found = ad.read_zarr(lab.folder / COUNTS)
    assert found.shape == (120, 50)
    assert list(found.obs["sample"].cat.categories) == ["a", "b"]
    assert list(found.obs["donor"]) == [1] * 60 + [2] * 60
    for sample, n in (("a", 0), ("b", 60)):
        logged = (lab.folder / f"logs/lab/samples/{sample}/convert_sample.log").read_text()
        assert "60 cells × 50 genes" in logged
        assert (lab.folder / f"benchmarks/lab/samples/{sample}/convert_sample.tsv").exists()
        source = ad.read_h5ad(lab.folder / f"data/{sample}.h5ad")
        assert (found.X[n : n + 60] != source.X).nnz == 0
    facts = json.loads((lab.folder / "results/lab/counts.json").read_text())
    assert {Path(file["path"]).name for file in facts["source"]} == {"a.h5ad", "b.h5ad"}
    assert "2 samples in data/samples.csv; to be converted: a, b" in lab.output


MORE = {"c": ("c.h5ad", 3, "x")}
MERGE, METADATA = "merge lab", "metadata lab"
BOTH = [f"convert_sample lab/samples/{name}" for name in "ab"]
ONE, TWO = SHEET["a"], SHEET["b"]


def reread(folder: Path) -> None:
    write_source(folder / "data/a.h5ad", 7, "a")


def forget(folder: Path) -> None:
    shutil.rmtree(folder / ".snakemake")


def one_column(folder: Path) -> None:
    write_sheet(folder, {name: row[:2] for name, row in SHEET.items()}, ["donor"])


def other_columns(folder: Path) -> None:
    """Another order, and an optional column that is empty."""
    rows = {name: (row[0], row[2], "", row[1]) for name, row in SHEET.items()}
    write_sheet(folder, rows, ["condition", "sha256", "donor"])


#: What is done to the folder, or the rows that the sheet has then → what is due.
CHANGES = {
    "add": (SHEET | MORE, ["convert_sample lab/samples/c", MERGE, METADATA]),
    "remove": ({"a": ONE}, [MERGE, METADATA]),
    "reorder": ({"b": TWO, "a": ONE}, [MERGE, METADATA]),
    "value": ({"a": ("a.h5ad", 1, "z"), "b": TWO}, [METADATA]),
    "missing": ({"a": ("a.h5ad", "", "x"), "b": TWO}, [METADATA]),
    "source": ({"a": ("c.h5ad", 1, "x"), "b": TWO}, [BOTH[0], MERGE, METADATA]),
    "rename": ({"n": ONE, "b": TWO}, ["convert_sample lab/samples/n", MERGE, METADATA]),
    "file": (reread, [BOTH[0], MERGE, METADATA]),
    "columns": (one_column, [METADATA]),
    "order of columns": (other_columns, []),
    "no records": (forget, []),
}
#: What is laid over the config → what is due.
SETTINGS = {
    "join: outer": [MERGE, METADATA],
    "join_on: symbols": [MERGE, METADATA],
    "batch_key: donor": [],
    "matrix: X": [*BOTH, MERGE, METADATA],
    "keep_obs: {}": [],
}


@pytest.fixture(scope="module")
def due(lab, tmp_path_factory) -> dict[str, set[str]]:
    """What is due after each change and with each setting."""
    asked = {}
    for number, (name, (change, _)) in enumerate(CHANGES.items()):
        asked[name] = lab.at(tmp_path_factory.mktemp("changed") / str(number))
        if callable(change):
            change(asked[name].folder)
        else:
            write_sheet(asked[name].folder, change)
    asked |= {setting: lab.over(f"datasets: {{lab: {{{setting}}}}}") for setting in SETTINGS}
    plans = Workflow.plans(lab, *asked.values(), targets=(COUNTS,))
    assert plans[0] == set()
    return dict(zip(asked, plans[1:], strict=True))


@pytest.mark.parametrize("change", [*CHANGES])
def test_a_change_of_the_sheet_reruns_what_depends_on_it_alone(due, change):
    assert due[change] == set(CHANGES[change][1])


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_reruns_what_depends_on_it_alone(due, setting):
    assert due[setting] == set(SETTINGS[setting])


def test_a_sample_that_is_added_leaves_the_others_as_they_are(own):
    folder = own.folder / "results/lab/samples"
    before = {name: (folder / name / "counts.json").stat().st_mtime_ns for name in "ab"}
    write_sheet(own.folder, SHEET | MORE)
    said = own.run(COUNTS)
    assert (
        "3 samples in data/samples.csv; converted: a 60 cells, b 60 cells; to be converted: c"
        in said
    )
    assert {name: (folder / name / "counts.json").stat().st_mtime_ns for name in "ab"} == before
    found = ad.read_zarr(own.folder / COUNTS)
    assert list(found.obs["sample"].value_counts(sort=False)) == [60, 60, 60]
    write_sheet(own.folder)  # and removed again: it stays converted
    assert "2 samples in data/samples.csv, 120 cells" in own.run(COUNTS)
    assert list(ad.read_zarr(own.folder / COUNTS).obs["sample"].cat.categories) == ["a", "b"]
    write_sheet(own.folder, SHEET | MORE)
    assert own.due(COUNTS) == {MERGE, METADATA}


def test_a_sheet_that_is_wrong_is_refused_before_any_work(own):
    write_sheet(own.folder, SHEET | {"d": ("gone.h5ad", 3, "x")})
    said = own.run(COUNTS, options=("--dry-run",), fails=True)
    assert "data/samples.csv, line 4, sample d: source is 'gone.h5ad', but there is no such" in said


def test_the_same_file_twice_is_refused_before_it_is_converted(own):
    shutil.copy(own.folder / "data/a.h5ad", own.folder / "data/copy.h5ad")
    write_sheet(own.folder, SHEET | {"d": ("copy.h5ad", 3, "x")})
    said = own.run(COUNTS, fails=True)
    assert "samples a and d are the same file by content" in said
    assert not (own.folder / "results/lab/samples/d").exists()


#: Without numba's compiler, as all runs of the tests are, these take minutes.
QUICK = """
umap: {max_iter: 5, negative_sample_rate: 1}
tsne: {enabled: false}
markers: {method: t-test}
figures: {dpi: 50}
"""


@pytest.mark.long
def test_the_example_runs_to_its_report(code, tmp_path, real_data, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(ROOT / "config/examples", folder / "config/examples")
    monkeypatch.setenv("REAL_DATA", str(real_data))
    example = Workflow(code, folder, config=(folder / "config/examples/samples.yaml",)).over(QUICK)
    example.run(timeout=500)
    found = ad.read_zarr(folder / "results/pbmc/final.zarr")
    assert list(found.obs["sample"].cat.categories) == ["pbmc1k", "pbmc3k"]
    assert dict(zip(found.obs["sample"], found.obs["chemistry"], strict=True)) == {
        "pbmc1k": "10x v3",
        "pbmc3k": "10x v1",
    }
    assert "X_pca_harmony" in found.obsm
    assert "30,358" in (folder / "results/pbmc/report.html").read_text()
