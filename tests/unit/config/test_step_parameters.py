"""A step has the parameters that it depends on, and no others."""

import pytest

from scrna.config import step_parameters
from scrna.config.settings import complete

BATCHES = {"source": "x.h5ad", "batch_key": "donor", "label_key": "cell_type"}


def dataset(**given) -> dict:
    return complete({"run": "x", "datasets": {"x": BATCHES | given}})["datasets"]["x"]


def of(step: str, rep: str | None = None, topic: str = "clusters", **given) -> dict:
    known = {"backend": "cpu", "seed": 3, "rep": rep, "topic": topic}
    return step_parameters.of_step(step, dataset(**given), **known)


def test_a_section_comes_in_order_without_its_switches():
    found = of("umap", umap={"min_dist": 0.3})
    assert list(found) == sorted(found)
    assert found["min_dist"] == 0.3
    assert found.items() >= {"backend": "cpu", "seed": 3}.items()
    assert "enabled" not in of("tsne")
    assert "h5ad" not in of("final")


def test_steps_on_tables_know_no_backend_and_no_seed():
    for step in ("filter", "final", "figures"):
        assert {"backend", "seed"}.isdisjoint(of(step))


def test_genes_are_ranked_in_the_first_batch_column_unless_told_otherwise():
    assert of("hvg")["batch_key"] == "donor"
    assert of("hvg", batch_key=["lab", "donor"])["batch_key"] == "lab"
    assert of("hvg", batch_key=None)["batch_key"] is None
    assert of("hvg", hvg={"batch_key": None})["batch_key"] is None


def test_cells_are_told_apart_by_the_sample_the_batch_or_the_column_named():
    mad = {"mad": {"total_counts": 5}}
    assert of("filter", filter=mad)["by"] == of("doublets")["by"] == "donor"
    assert of("doublets", batch_key=["lab", "donor"])["by"] == "lab"
    assert of("doublets", batch_key=None)["by"] is None
    assert of("doublets", doublets={"by": "none"})["by"] is None
    assert of("filter", filter=mad | {"by": "lane"})["by"] == "lane"
    full = dataset() | {"samples": "samples.csv"}
    given = {"backend": "cpu", "seed": 3}
    assert step_parameters.of_step("doublets", full, **given)["by"] == "sample"


def test_another_batch_key_filters_nothing_anew_without_bounds_by_mad():
    assert of("filter") == of("filter", batch_key="lab") == of("filter", filter={"mad": {}})
    one, other = {"total_counts": 5, "pct_counts_mt": 3}, {"pct_counts_mt": 3, "total_counts": 5}
    assert list(of("filter", filter={"mad": one})["mad"].items()) == list(
        of("filter", filter={"mad": other})["mad"].items()
    )


@pytest.mark.parametrize("enabled", ["auto", True])
def test_a_tsne_that_is_asked_for_has_no_limit(enabled):
    assert (of("tsne", tsne={"enabled": enabled})["max_cells"] is None) == (enabled is True)


@pytest.mark.parametrize(("clustering", "rep"), [("leiden", "harmony"), ("leiden_pca", "pca")])
def test_names_of_clusters_go_where_they_are_shown(clustering, rep):
    names = {clustering: {"0": "B cells"}}
    for step in ("final", "figures", "report"):
        assert of(step, annotations=names)["annotations"] == names
    for step in ("leiden", "markers", "umap"):
        assert "annotations" not in of(step, annotations=names)
    for each in ("pca", "harmony"):
        shown = of("marker_figures", each, annotations=names)["names"]
        assert shown == (names[clustering] if each == rep else {})


def test_without_batches_the_one_representation_has_the_plain_names():
    names = {"leiden": {"0": "B cells"}}
    found = of("marker_figures", "pca", annotations=names, batch_key=None)
    assert found["names"] == {"0": "B cells"}


def test_genes_to_show_change_the_pictures_of_genes_alone():
    genes = {"genes": ["CD3E"], "n_markers": 2}
    assert of("figures", figures=genes) == of("figures")
    assert of("marker_figures", "pca", figures=genes).items() >= genes.items()
    assert of("report", figures=genes)["genes"] == ["CD3E"]


def test_pictures_depend_on_what_their_topic_shows():
    by_cell = {"batch_key", "label_key", "annotations"}
    plain = {"dpi": 200, "formats": ["png", "svg"]}
    assert of("figures", topic="genes") == plain | {"topic": "genes"}
    of_trajectory = {"topic": "trajectory", "label_key": "type"}
    assert of("figures", topic="trajectory", label_key="type") == plain | of_trajectory
    for topic in ("clusters", "tsne"):
        assert of("figures", topic=topic).keys() == {"topic", "dpi", "formats"} | by_cell


def test_the_verdict_on_an_integration_depends_on_its_scores_alone():
    assert of("integration") == {}
    scores = of("integration_scores")
    assert scores.keys() == {"batch_key", "label_key", "label_missing", "n_cells", "n_pcs", "seed"}
