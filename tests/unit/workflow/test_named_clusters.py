import pytest
import yaml

from scrna.config.settings import complete
from scrna.workflow.named_clusters import named_clusters


def named(text: str, method: str, rep: str) -> dict:
    """Return config key → (clustering, clusters) that a step is to have."""
    own = {"source": "x.h5ad"} | yaml.safe_load(text)
    dataset = complete({"run": "toy", "datasets": {"toy": own}})["datasets"]["toy"]
    found = named_clusters(dataset, "toy", method, rep)
    if found is None:
        return {}
    assert (found["dataset"], found["rep"]) == ("toy", rep)
    return {key: (of["clustering"], of["clusters"]) for key, of in found["clusters"].items()}


INTEGRATED = "batch_key: b\n"


@pytest.mark.parametrize(
    ("text", "method", "rep", "expected"),
    [
        ("annotations: {}", "leiden", "pca", {}),
        ("annotations: {leiden: {0: B, '12': T}}", "leiden", "pca", ["leiden", ["0", "12"]]),
        ("annotations: {leiden: {0: B}}", "louvain", "pca", {}),
        (INTEGRATED + "annotations: {leiden: {0: B}}", "leiden", "pca", {}),
        (INTEGRATED + "annotations: {leiden: {0: B}}", "leiden", "harmony", ["leiden", ["0"]]),
        (INTEGRATED + "annotations: {leiden_pca: {0: B}}", "leiden", "pca", ["leiden", ["0"]]),
        (INTEGRATED + "annotations: {leiden_pca: {0: B}}", "leiden", "harmony", {}),
        (
            INTEGRATED + "annotations: {louvain_0.6_pca: {3: B}}",
            "louvain",
            "pca",
            ["louvain_0.6", ["3"]],
        ),
    ],
)
def test_annotations_belong_to_one_step(text, method, rep, expected):
    found = named(text, method, rep)
    assert list(map(list, found.values())) == ([expected] if expected else [])
    assert all(key.startswith("annotations.") for key in found)


@pytest.mark.parametrize("rep", ["pca", "harmony"])
def test_the_root_is_a_cluster_of_each_representation(rep):
    text = INTEGRATED + "trajectory: {root: {cluster: 3}}"
    assert named(text, "leiden", rep) == {"trajectory.root.cluster": ("leiden", ["3"])}
    assert named(text, "louvain", rep) == {}
    off = INTEGRATED + "trajectory: {enabled: false, root: {cluster: 3}}"
    assert named(off, "leiden", rep) == {}
