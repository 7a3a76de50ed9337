"""What settings name in the data: refused by the conversion, the filter and the start of a run."""

import os
import shutil
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

import scrna.data.counts
from scripts.convert import convert
from scripts.filter import filter_cells
from scripts.qc import qc
from scrna.config.converted import READING
from scrna.config.datasets import required_obs, sources
from scrna.config.settings import complete
from scrna.config.step_parameters import of_step
from scrna.data import step_files
from scrna.errors import UserError
from scrna.workflow.named_in_data import check_converted, named_in_data

N = 120  # cells, of which the first 20 have a single gene


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A file whose columns have all that columns can lack."""
    rng = np.random.default_rng(0)
    X = rng.integers(1, 5, (N, 30))
    X[:20, 1:] = 0
    X[20:, 29] = 0  # a gene of no cell that stays
    X[:20, 29] = 1
    few = np.arange(N) < 20
    obs = pd.DataFrame(
        {
            "batch": np.resize(["a", "b", "c"], N),
            "early": np.where(few, "a", "b"),
            "gaps": np.where(few, None, np.resize(["a", "b", "c"], N)),
            "late_gaps": np.where(~few, None, np.resize(["a", "b", "c"], N)),
            "none": np.full(N, np.nan),
            "one": "x",
            "own": [f"cell number {i}" for i in range(N)],
            "pairs": [f"pair {i // 2}" for i in range(N)],
            "text": np.resize(["1", "2"], N),
            "age": np.where(few, np.nan, 30.5),
            "label": np.where(few, "early type", np.resize(["T", "B"], N)),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    names = [f"GENE{i}" for i in range(30)]
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(30)]}, index=names)
    path = tmp_path_factory.mktemp("source") / "toy.h5ad"
    ad.AnnData(sp.csr_matrix(X.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    os.utime(path, (1000, 1000))
    return path


def dataset_of(source: Path, text: str = "") -> dict:
    """Complete a dataset of the source with settings, YAML, of its own."""
    own = {"filter": {"min_genes": 5, "min_cells": 3}, "source": str(source)}
    own |= yaml.safe_load(text) or {}
    return complete({"run": "toy", "datasets": {"toy": own}})["datasets"]["toy"]


@pytest.fixture
def dataset(source):
    return partial(dataset_of, source)


def converted(folder: Path, own: dict) -> Path:
    """Convert as the rule does."""
    reading = {key: own[key] for key in READING}
    needed = {"required_obs": required_obs(own, "toy"), "named": named_in_data(own, "toy", 0)}
    files = [own["source"]], folder / "counts.zarr", folder / "counts.json"
    convert(*files, dataset="toy", **reading, **needed)
    return folder


def filtered(folder: Path, own: dict) -> Path:
    """Filter as the rule does."""
    given = of_step("filter", own, backend="cpu", seed=0) | {"named": named_in_data(own, "toy", 0)}
    files = (folder / name for name in ("counts.zarr", "qc.h5", "filter.h5", "filter.csv"))
    filter_cells(*files, **given)
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """Counts, qc and filter of settings that name nothing."""
    own = dataset_of(source)
    folder = converted(tmp_path_factory.mktemp("made"), own)
    qc(folder / "counts.zarr", folder / "qc.h5", **of_step("qc", own, backend="cpu", seed=0))
    return filtered(folder, own)


@pytest.fixture
def there(made, tmp_path) -> Path:
    """What was `made`, in a folder of results."""
    return Path(shutil.copytree(made, tmp_path / "results/toy"))


#: Settings → what the conversion says.
BY_CONVERSION = {
    "batch_key: none": "toy: batch_key 'none' has no value in any of the 120 cells",
    "batch_key: none\nharmony: {missing_batch: own_batch}": "no value in any of the 120 cells",
    "batch_key: one": "batch_key 'one' has one batch, 'x', in all of the 120 cells",
    "batch_key: own": "'own' has another value in each of the 120 cells: they are no batches",
    "batch_key: pairs": "has 60 batches in 120 cells, but 0 of harmony.min_batch_cells .3. cells",
    "batch_key: [batch, one]": "batch_key 'one' has one batch",
    "pca: {regress_out: [total_counts, text]}": "regress_out names 'text', which is not a column "
    "of finite numbers",
    "markers: {groupby: none}": "markers.groupby 'none' has no value in any of the 120 cells",
    "markers: {groupby: one}": "toy: markers.groupby 'one' has one value, 'x', in all of the 120 "
    "cells that have one: there is no other group to compare with",
    "markers: {groupby: [label, leiden, none]}": "'none' has no value in any of the 120 cells",
    "markers: {groupby: pairs}": "no group of 'pairs' has markers.min_cells .10. cells; the "
    "largest has 2",
    "trajectory: {root: {cell: cell120}}": "toy: trajectory.root.cell 'cell120' is not among the "
    "cells .cells are named like 'cell0'.",
    "label_key: label\ntrajectory: {root: {label: NK}}": "root.label 'NK' is not in obs 'label'; "
    "there are B, T, early type",
    "trajectory: {root: {gene: gene1}}": "trajectory.root.gene: there is no gene 'gene1'; did you "
    "mean GENE1",
    "figures: {genes: [GENE2, ENSG00000000003, CD3D]}": "toy: figures.genes: there is no gene "
    "'CD3D'",
    "scores: {sets: {mine: [GENE1, GENE2, CD3D]}}": "toy: scores.sets.mine has 3 genes, of which "
    "the data have 2; a score needs 3. Missing: CD3D; genes of the data are named like GENE0",
    "scores: {sets: {mine: [gene1, gene2, GENE3]}}": "2 of them are there in another case .GENE1 "
    "for gene1.: are they of another species",
    "scores: {cell_cycle: human}": "scores.cell_cycle human, S has 43 genes, of which the data "
    "have 0",
    "scores: {sets: {early: [GENE1, GENE2, GENE3]}}": "toy: scores.sets.early: obs has a column "
    "'early' already; give the set another name",
    "cell_types: {markers: pbmc}": "toy: cell_types.markers: none of its .* genes is in the data",
    "batch_key: late_gaps": "toy: batch_key 'late_gaps' has no value in 100 of 120 cells. Fill",
    "keep_obs: {batch: [a]}\nbatch_key: batch": "batch_key 'batch' has one batch, 'a', in all of "
    "the 40 cells",
    "keep_obs: {batch: [a]}\ntrajectory: {root: {cell: cell1}}": "root.cell 'cell1' is not among",
}
KEPT = [text for text in BY_CONVERSION if "keep_obs" in text]
#: Settings → what the filter says, which the conversion cannot know.
BY_FILTER = {
    "markers: {groupby: early}": "toy, after the filter: markers.groupby 'early' has one value, "
    "'b', in all of the 100 cells",
    "batch_key: early": "toy, after the filter: batch_key 'early' has one batch, 'b', in all of "
    "the 100 cells",
    "label_key: label\ntrajectory: {root: {label: early type}}": "root.label 'early type' is not "
    "in obs 'label'; there are B, T$",
    "trajectory: {root: {cell: cell3}}": "root.cell 'cell3' is not among the cells that passed it "
    ".cells are named like 'cell20'.",
    "trajectory: {root: {gene: GENE29}}": "root.gene 'GENE29' is expressed in none of the "
    "kept cells",
    "figures: {genes: [ENSG00000000029]}": "figures.genes: ENSG00000000029 is in 0 of the kept "
    "cells and was removed by the filter. Lower filter.min_cells",
    "scores: {sets: {mine: [GENE1, GENE2, GENE29]}}": "toy, after the filter: scores.sets.mine has "
    "3 genes, of which the data have 3, the filter keeps 2; a score needs 3. Lower filter.min_",
    "pca: {regress_out: [age]}\nfilter: {min_genes: 1}": "regress_out names 'age', which is not a "
    "column of finite numbers in every kept cell",
}
ACCEPTED = [
    "",
    "batch_key: gaps",  # the filter takes the cells without a batch
    "batch_key: [batch, early]\nfilter: {min_genes: 1}",
    "pca: {regress_out: [age, n_genes_by_counts]}",
    "label_key: label\ntrajectory: {root: {label: T}}\nmarkers: {groupby: batch}",
    "markers: {enabled: false, groupby: one}",
    "trajectory: {enabled: false, root: {cell: nobody}}",
    "figures: {enabled: false, genes: [CD3D]}\nreport: {enabled: false}",
    "figures: {genes: [GENE1, ENSG00000000002]}\ntrajectory: {root: {gene: GENE3}}",
    "scores: {sets: {mine: [GENE1, ENSG00000000002, GENE3, CD3D]}}",
    "trajectory: {root: {cell: cell119}}\nmarkers: {enabled: false, groupby: none}",
]


# one of each kind: what is looked at is the same as at the start of a run, where all are tested
@pytest.mark.parametrize("text", list(BY_CONVERSION)[:1] + list(BY_CONVERSION)[6:16:2] + KEPT)
def test_the_conversion_refuses_what_no_filter_puts_right(dataset, tmp_path, text):
    with pytest.raises(UserError, match=BY_CONVERSION[text]):
        converted(tmp_path, dataset(text))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("text", "expected"), BY_FILTER.items())
def test_the_filter_refuses_what_depends_on_it(dataset, made, there, text, expected):
    for name in ("filter.h5", "filter.csv"):
        (there / name).unlink()
    with pytest.raises(UserError, match=expected):
        filtered(there, dataset(text))
    assert not (there / "filter.h5").exists()


def test_the_conversion_accepts_what_only_the_filter_knows(dataset, tmp_path):
    text = """
    batch_key: early
    label_key: label
    trajectory: {root: {label: early type}}
    figures: {genes: [ENSG00000000029]}
    pca: {regress_out: [age]}
    """
    converted(tmp_path, dataset(text))
    assert (tmp_path / "counts.json").exists()


@pytest.mark.parametrize("text", ACCEPTED)
def test_settings_that_the_data_allow(dataset, there, text):
    filtered(there, dataset(text))
    assert step_files.read(there / "filter.h5", "obs/keep").sum() in (100, 120)


def test_the_conversion_says_that_cells_have_no_batch(dataset, tmp_path, caplog):
    caplog.set_level("INFO", logger="scrna")
    converted(tmp_path, dataset("batch_key: gaps"))
    assert "batch_key 'gaps' has no value in 20 of 120 cells" in caplog.text
    assert "harmony.missing_batch to own_batch" in caplog.text


def test_a_gene_of_another_matrix_than_the_one_with_counts(source, tmp_path, dataset):
    """X holds no counts and other genes: those of raw.X are what settings may name."""
    adata = ad.read_h5ad(source)
    scaled = adata[:, 5:].copy()
    scaled.X = scaled.X * 0.5
    scaled.raw = adata
    scaled.write_h5ad(tmp_path / "raw.h5ad")
    for gene, problem in (("GENE1", None), ("GENE31", "no gene 'GENE31'")):
        named = named_in_data(dataset(f"figures: {{genes: [{gene}]}}"), "toy", 0)
        files = tmp_path / "raw.h5ad", tmp_path / "raw.zarr", tmp_path / "raw.json"
        if problem is None:
            convert(*files, dataset="toy", named=named)
        else:
            with pytest.raises(UserError, match=problem):
                convert(*files, dataset="toy", named=named)


# -------------------------------------------------------------------------- at the start of a run


@pytest.fixture
def look(dataset, tmp_path):
    """Look at converted data as the start of a run does, with settings as they are by then."""

    def look(text: str = "", **own) -> None:
        datasets = {"toy": dataset(text) | own}
        results = str(tmp_path / "results")
        check_converted(datasets, sources(datasets), results, backend="cpu", seed=0)

    return look


@pytest.mark.parametrize(("text", "expected"), (BY_CONVERSION | BY_FILTER).items())
def test_the_start_of_a_run_refuses_the_same(there, look, text, expected):
    if "keep_obs" in text or "filter:" in text:
        return look(text)  # these have the steps run again, which look themselves
    with pytest.raises(UserError, match=expected):
        look(text)
    return None


def test_the_start_of_a_run_refuses_a_column_that_is_not_there(there, look):
    look("batch_key: batch\nlabel_key: label")
    expected = (
        r"datasets\.toy\.label_key names 'labl', which obs of toy does not have .*"
        r"did you mean label\?$"
    )
    with pytest.raises(UserError, match=expected):
        look("batch_key: batch\nlabel_key: labl")
    with pytest.raises(UserError, match=r"batch_key names 'x', .* there are batch, early, "):
        look("batch_key: [batch, x]")


@pytest.mark.parametrize("text", ACCEPTED)
def test_the_start_of_a_run_accepts_the_same(there, look, text):
    look(text)


def test_nothing_is_read_where_the_settings_are_as_they_were(dataset, there, look, monkeypatch):
    text = "batch_key: batch\nfigures: {genes: [GENE1]}"
    own = dataset(text)
    filtered(converted(there, own), own)
    monkeypatch.setattr(scrna.data.counts, "Counts", None)
    look(text)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        look("batch_key: gaps")


@pytest.mark.parametrize(
    "change",
    [
        "keep_obs: {batch: [a, b]}",  # the conversion is due
        "gene_symbols: gene_ids",
        "filter: {min_genes: 1}",  # the filter is due
    ],
)
def test_steps_that_are_due_look_themselves(there, look, change):
    of_filter = "label_key: label\ntrajectory: {root: {label: early type}}"
    with pytest.raises(UserError, match="early type"):
        look(of_filter)
    look(f"{of_filter}\n{change}")


@pytest.mark.parametrize("name", ["filter.h5", "counts.zarr/obs/label/codes/c/0"])
def test_damage_is_left_to_the_step_that_reads_it_and_sets_it_aside(there, look, name):
    of_no_cell = "label_key: label\ntrajectory: {root: {label: NK}}"
    with pytest.raises(UserError, match="NK"):
        look(of_no_cell)
    assert (there / name).stat().st_size
    (there / name).write_bytes(b"")
    look("label_key: label" if name == "filter.h5" else of_no_cell)


def test_a_source_that_has_changed_is_left_to_the_conversion(there, look, source):
    os.utime(source)
    try:
        look("batch_key: one")
    finally:
        os.utime(source, (1000, 1000))
    with pytest.raises(UserError, match="has one batch"):
        look("batch_key: one")


def test_simulated_data_that_will_be_made_anew_tell_nothing(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source.parent, "resources")
    folder = tmp_path / "results/toy"
    folder.mkdir(parents=True)

    def simulated(label=None, **simulate):
        root = label and {"label": label}
        own = {"kind": "simulate", "label_key": "label", "trajectory": {"root": root}}
        own["simulate"] = simulate
        return complete({"run": "toy", "datasets": {"toy": own}})["datasets"]["toy"]

    def look(own, seed=0):
        datasets = {"toy": own}
        check_converted(datasets, sources(datasets), "results", backend="cpu", seed=seed)

    converted(folder, simulated() | {"source": "resources/toy.h5ad"})
    with pytest.raises(UserError, match="'type_9' is not in obs 'label'"):
        look(simulated("type_9"))
    look(simulated("type_9", n_types=9))
    look(simulated("type_9"), seed=1)


def test_nothing_is_there_yet(look):
    look("batch_key: one")
