"""markers.groupby as a list: which files there are, and what is refused."""

from types import SimpleNamespace

import pytest

from scrna.config.datasets import required_obs
from scrna.config.groupings import by_suffix, grouping_of
from scrna.config.settings import check, complete
from scrna.config.step_parameters import of_step
from scrna.errors import UserError
from scrna.workflow.named_in_data import named_in_data
from scrna.workflow.targets import Targets


def config(groupby, *, backend="cpu", **own):
    markers = {"groupby": groupby}
    dataset = {"source": "a.h5ad", "batch_key": "batch", "markers": markers} | own
    full = complete({"datasets": {"d": dataset}, "run": "d"})
    check(full | {"backend": backend})
    return full["datasets"]["d"]


def files(dataset):
    targets = Targets({"d": dataset}, {})
    wildcards = SimpleNamespace(dataset="d")
    found = [*targets.step_files(wildcards), *targets.figure_folders(wildcards)]
    marked = [f for f in [*found, *targets.marker_tables(wildcards)] if "/markers" in f]
    return marked + [f for f in found if f.startswith(("results/d/pca/fig", "results/d/harmony/f"))]


PLAIN = [f"results/d/{rep}/{name}" for name in ("markers.h5", "markers.csv", "figures")
         for rep in ("pca", "harmony")]  # fmt: skip


@pytest.mark.parametrize("groupby", ["leiden", ["leiden"], "cell_type", ["cell_type"]])
def test_one_grouping_has_the_plain_names(groupby):
    assert files(config(groupby)) == PLAIN


def test_further_groupings_have_their_names_in_their_files():
    """Those of a column are the same in both representations, and are made once."""
    dataset = config(["leiden", "cell type", "louvain"], louvain={"enabled": True})
    assert by_suffix(dataset) == {"": "leiden", "_cell_type": "cell type", "_louvain": "louvain"}
    assert {*files(dataset)} - {*PLAIN} == {
        f"results/d/{name}"
        for name in (
            "pca/markers_louvain.h5", "pca/markers_louvain.csv", "pca/figures_louvain",
            "harmony/markers_louvain.h5", "harmony/markers_louvain.csv", "harmony/figures_louvain",
            "harmony/markers_cell_type.h5", "harmony/markers_cell_type.csv",
            "harmony/figures_cell_type",
        )
    }  # fmt: skip
    groups = Targets({"d": dataset}, {}).marker_groups
    for suffix, expected in (("", "harmony/leiden.h5"), ("_louvain", "harmony/louvain.h5")):
        asked = SimpleNamespace(dataset="d", rep="harmony", grouping=suffix)
        assert groups(asked) == f"results/d/{expected}"
    assert groups(SimpleNamespace(dataset="d", rep="harmony", grouping="_cell_type")) == []


def test_without_markers_there_are_none_of_further_groupings():
    markers = {"groupby": ["leiden", "type"], "enabled": False}
    assert files(config("leiden", markers=markers)) == []


def test_a_grouping_that_is_not_listed_is_what_its_file_says():
    assert grouping_of(config(["leiden", "cell type"]), "_leiden_0.5") == "leiden_0.5"


def test_each_grouping_has_its_own_parameters():
    one, two = config("leiden"), config(["leiden", "cell type"])
    how = {"backend": "cpu", "seed": 0, "rep": "harmony"}
    for step in ("markers", "marker_figures"):
        first = of_step(step, two, **how)
        assert first == of_step(step, one, **how)
        assert of_step(step, two, **how, grouping="_cell_type") == first | {
            "groupby": "cell type",
            **(
                {"key_added": "rank_genes_groups_cell_type"}
                if step == "markers"
                else {"on_umap": False}
            ),
        }


REFUSED = {
    "markers.groupby has louvain, but louvain.enabled is false": ["leiden", "louvain"],
    "markers.groupby has leiden_2, but leiden.resolution gives leiden": ["type", "leiden_2"],
    "markers.groupby has 'a b' and 'a/b', whose results would both be named markers_a_b": [
        "leiden", "a b", "a/b",
    ],
    "both be named markers_x{60}: rename": ["leiden", 61 * "x", 62 * "x"],
    "markers.groupby has 'type_pca': names that end in pca": ["leiden", "type_pca"],
    r"markers.groupby is \['a', 'a'\]; expected no value twice": ["a", "a"],
    r"markers.groupby is \[\]; expected at least one value": [],
    "markers.groupby is ''; expected at least one letter": "",
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message):
    with pytest.raises(UserError, match=message):
        config(REFUSED[message])


def test_before_integration_there_is_no_other_name():
    assert config(["leiden", "type_pca"], batch_key=None)["markers"]["groupby"][1] == "type_pca"


def test_every_column_is_looked_for_in_the_data():
    dataset = config(["leiden", "type", "donor"], hvg={"batch_key": None})
    wanted = {
        "batch": "datasets.d.batch_key",
        "type": "markers.groupby",
        "donor": "markers.groupby",
    }
    assert required_obs(dataset, "d") == wanted
    named = named_in_data(dataset, "d", 0)["markers"]
    assert [each["groupby"] for each in named] == ["type", "donor"]
    assert {each["method"] for each in named} == {"wilcoxon"}
