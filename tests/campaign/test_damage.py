"""Every kind of a run's files damaged: named by the run that reads it, made again by the next."""

import os
import re
from pathlib import Path

import h5py
import pytest

from tests.campaign.conftest import differences, temporary
from tests.campaign.test_kills import OUTPUTS, remove
from tests.unit.test_damage import another_kind, empty, flip

pytestmark = [pytest.mark.campaign, pytest.mark.slow]

#: File → the rule whose step reads it. Each rule's place is that of `OUTPUTS`.
READ_BY = {
    "toy/counts.zarr/X/data/c/0": "qc",
    "toy/counts.zarr/X/indices/c/0": "qc",
    "toy/counts.zarr/X/indptr/c/0": "qc",
    "toy/counts.zarr/zarr.json": "qc",
    "toy/counts.zarr/var/_index/c/0": "qc",
    "toy/counts.json": "qc",
    "toy/qc.h5": "final",
    "toy/filter.h5": "normalize",
    "toy/filter.csv": "qc_figures",
    "toy/normalize.h5": "matrix",
    "plain/hvg.h5": "pca",
    "toy/pca/pca.h5": "harmony",
    "toy/harmony/harmony.h5": "neighbors",
    "toy/pca/neighbors.h5": "umap",
    "toy/pca/umap.h5": "figures",
    "plain/pca/tsne.h5": "plain final",
    "plain/pca/louvain.h5": "plain final",
    "toy/harmony/leiden.h5": "markers",
    "toy/harmony/markers.csv": "report",
    "toy/harmony/markers.h5": "final",
    "toy/pca/trajectory.h5": "final",
    "toy/integration_scores.h5": "integration",
    "toy/integration.h5": "final",
    "toy/matrix.zarr/X/data/c/0": "final",
    "toy/matrix.zarr/layers/counts/indices/c/0": "final",
    "plain/final.zarr/layers/counts/data/c/0": "h5ad",
    "plain/final.zarr/obs/_index/c/0": "h5ad",
    "toy/figures/clusters/*.png": "report",
    "toy/qc/figures/*.png": "report",
}


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def missing(file: Path) -> None:
    file.unlink()


#: Of step files, the element that the next step reads, where it is not the largest.
IS_READ = {
    "filter.h5": "obs/keep",
    "hvg.h5": "var/highly_variable",
    "pca.h5": "obsm/X_pca",
    "neighbors.h5": "obsp/connectivities/data",
}


def changed(file: Path) -> None:
    """Change a bit in the middle, of a step file in the middle of an array that is read."""
    if file.suffix != ".h5":
        return flip(file)
    found = []
    with h5py.File(file) as opened:
        opened.visititems(
            lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None
        )
        array = max(found, key=lambda item: item.id.get_storage_size())
        array = opened[IS_READ.get(file.name, array.name)]
        if array.chunks:
            chunk = array.id.get_chunk_info(0)
            start, size = chunk.byte_offset, chunk.size
        else:
            start, size = array.id.get_offset(), array.id.get_storage_size()
    return flip(file, start + size // 2)


HARMS = [missing, empty, cut_in_half, changed, another_kind]


@pytest.mark.parametrize("name", READ_BY)
def test_what_is_damaged_is_named_and_made_again(done, tmp_path, subtests, name):
    workflow = done.at(tmp_path / "work").over("worker: none")
    results, wanted = workflow.folder / "results", done.folder / "results"
    rule = READ_BY[name]
    outputs = OUTPUTS.get(rule, ["results/plain/final.zarr"])
    is_within = ".zarr/" in name
    harms = HARMS
    if "json" in name:  # zarr.json has no middle, and counts.json tells no more than the store
        harms = [empty, another_kind]
    elif "png" in name:  # a report shows the pictures that there are
        harms = HARMS[1:]
    for harm in harms:
        file = sorted(results.glob(name))[0]
        with subtests.test(harm.__name__):
            for output in outputs:
                remove(workflow.folder / output)
            harm(file)
            if harm is missing and not is_within and file.suffix != ".png":
                workflow.run(outputs[-1])  # no result that Snakemake knows: it is due
            else:
                printed = workflow.run(outputs[-1], fails=True)
                assert str(file.relative_to(workflow.folder)) in printed
                assert "Traceback" not in printed
                assert "does not know this error" not in printed
                if told := re.search(r"Remove (\S+) and (\S+) and run the same", printed):
                    for each in told.groups():
                        remove(workflow.folder / each)
                assert not (workflow.folder / outputs[-1]).exists()
                assert differences(results, wanted) == []
                workflow.run(outputs[-1])
            assert all((workflow.folder / output).exists() for output in outputs)
            assert file.exists()
            assert differences(results, wanted) == []
            assert temporary(workflow.folder) == []


@pytest.mark.parametrize("harm", [empty, cut_in_half, another_kind, missing])
def test_snakemakes_records_damaged(done, tmp_path, harm):
    workflow = done.at(tmp_path / "work")
    records = [
        path for path in (workflow.folder / ".snakemake/metadata").rglob("*") if path.is_file()
    ]
    assert records
    for record in records:
        harm(record)
    assert "Traceback" not in workflow.run(options=("--dry-run",))
    target = "results/toy/pca/umap.h5"
    assert "Traceback" not in workflow.run(target)
    assert differences(workflow.folder / "results", done.folder / "results") == []
    assert workflow.due(target) == set()
