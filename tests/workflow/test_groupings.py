"""Markers of several groupings, in real runs."""

import anndata as ad
import pandas as pd

from scrna.data import step_files
from tests.workflow.conftest import _calls


def due_files(workflow) -> set[str]:
    """List the files of markers that a run would make."""
    ((_, summary),) = _calls((workflow,), (), "--summary")
    lines = summary.split("\noutput_file\t")[1].splitlines()[1:]
    due = [line.split("\t")[0] for line in lines if not line.endswith("\tno update")]
    return {name for name in due if name.startswith("results/plain/pca/markers")}


def of(*groupings: str) -> str:
    return f"datasets: {{plain: {{markers: {{groupby: [{', '.join(groupings)}]}}}}}}"


def files_of(suffix: str) -> set[str]:
    return {f"results/plain/pca/markers{suffix}.{kind}" for kind in ("h5", "csv")}


def test_a_further_grouping_runs_alone(done, tmp_path):
    """The shared run has markers of cell_type; clusterings come in addition and go again."""
    workflow = done.at(tmp_path / "work")
    both = workflow.over(of("cell_type", "leiden_0.3"))
    assert due_files(both) == files_of("_leiden_0.3")
    both.run("results/plain/final.zarr")
    folder = workflow.folder / "results/plain"
    adata = ad.read_zarr(folder / "final.zarr")
    first, more = (adata.uns[f"rank_genes_groups{name}"] for name in ("", "_leiden_0.3"))
    assert (first["params"]["groupby"], more["params"]["groupby"]) == ("cell_type", "leiden_0.3")
    clusters = tuple(adata.obs["leiden_0.3"].cat.categories)
    assert more["names"].dtype.names == clusters
    table = pd.read_csv(folder / "pca/markers_leiden_0.3.csv", dtype={"group": str})
    assert table["group"].unique().tolist() == [*clusters]
    best = table.groupby("group", sort=False)["names"].first()
    assert best.to_dict() == {group: more["names"][group][0] for group in clusters}

    changed = workflow.over(of("cell_type", "louvain"))
    assert due_files(changed) == files_of("_louvain")
    again = workflow.over(of("cell_type"))
    assert due_files(again) == set()
    again.run("results/plain/final.zarr")
    later = ad.read_zarr(folder / "final.zarr")
    assert [name for name in later.uns if name.startswith("rank_")] == ["rank_genes_groups"]


def test_a_further_grouping_that_is_no_longer_asked_for_does_not_outlive_its_clusters(
    done, tmp_path
):
    workflow = done.at(tmp_path / "work")
    workflow.over(of("cell_type", "leiden_0.3")).run("results/plain/pca/markers_leiden_0.3.h5")
    left = workflow.folder / "results/plain/pca/markers_leiden_0.3.h5"
    assert (
        step_files.provenance_of(left)["parameters"]["key_added"] == "rank_genes_groups_leiden_0.3"
    )
    workflow.over("leiden: {n_iterations: 1}").run("results/plain/pca/leiden.h5")
    assert not left.exists()
