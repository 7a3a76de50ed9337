"""A new step, added in a copy of the repository as docs/development.md says, runs."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from scrna.data import step_files
from tests.workflow.conftest import ROOT, Workflow

pytestmark = pytest.mark.long
#: The parts of the page's example in their order.
PARTS = ("script", "rule", "row", "reference", "section")


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """Read the code of the example from the page."""
    page = (ROOT / "docs/development.md").read_text()
    text = page.split("\n## Adding a step\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^   ```\w+\n(.*?)^   ```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(PARTS)
    return dict(zip(PARTS, map(textwrap.dedent, blocks), strict=True))


def insert_after(path: Path, pattern: str, added: str, *, times: int = 1) -> None:
    """Insert lines after each match of a pattern, indented as the match is."""

    def with_lines(found: re.Match) -> str:
        return found[0] + textwrap.indent(added, found[1])

    text, n = re.subn(pattern, with_lines, path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert n == times, f"{path.name} has {n} places for the step, the page says {times}"
    path.write_text(text)


@pytest.fixture(scope="module")
def extended(done: Workflow, example, tmp_path_factory) -> Workflow:
    """The finished run beside a copy of the code to which the step is added."""
    folder = tmp_path_factory.mktemp("new_step")
    workflow = done.at(folder / "work").clone(folder / "code")
    code = workflow.code
    (code / "scripts/kmeans.py").write_text(example["script"])
    rules = code / "rules/cluster.smk"
    rules.write_text(f"{rules.read_text()}\n\n{example['rule']}")
    row = r'^( +)"louvain": Step\((?:[^()]|\([^()]*\))*\),\n'
    insert_after(code / "scripts/scrna/steps.py", row, example["row"])
    schema = code / "config/schemas/config.schema.yaml"
    insert_after(schema, r"^( +)louvain: \{\$ref: [^\n]*\}\n", example["reference"], times=2)
    insert_after(schema, r"^(  )louvain:\n.*?\n(?=\n)", "\n" + example["section"])
    subprocess.run([sys.executable, code / "scripts/scrna/config/reference.py"], check=True)
    return workflow.over("kmeans: {enabled: true, n_clusters: 4, n_pcs: 15}")


@pytest.fixture(scope="module")
def ran(extended: Workflow) -> Path:
    """The results of a run with the step."""
    extended.run("results/toy/final.zarr")
    return extended.folder / "results/toy"


def test_the_config_and_its_page_have_the_settings_of_the_step(extended):
    assert "\nkmeans:\n" in (extended.code / "config/config.yaml").read_text()
    page = (extended.code / "config/README.md").read_text()
    assert "| `n_clusters` | `8` | integer, at least 2 |" in page


def test_nothing_but_the_step_and_what_gathers_it_is_due(extended, ran):
    before = extended.over("kmeans: {n_clusters: 5}").due("results/toy/final.zarr")
    assert before == {"kmeans toy/pca", "kmeans toy/harmony", "final toy"}
    assert extended.due("results/toy/final.zarr") == set()


def test_the_clusters_are_those_of_the_library_and_part_of_the_result(ran):
    import anndata as ad

    adata = ad.read_zarr(ran / "final.zarr")
    for rep, column in (("pca", "kmeans_pca"), ("harmony", "kmeans")):
        key = "X_pca" if rep == "pca" else "X_pca_harmony"
        points = step_files.read(ran / f"{rep}/{rep}.h5", f"obsm/{key}")[:, :15]
        expected = KMeans(4, n_init=10, random_state=0).fit_predict(points)
        found = adata.obs[column].astype(int).to_numpy()
        pairs = set(zip(found, expected, strict=True))
        assert len(pairs) == 4  # the same groups, named by size
        assert (np.diff(np.bincount(found)) <= 0).all()
    made = step_files.provenance_of(ran / "harmony/kmeans.h5")
    assert made["parameters"] == {"n_clusters": 4, "n_pcs": 15, "seed": 0}


def test_markers_can_be_of_the_new_clusters(extended, ran):
    by_clusters = extended.over("markers: {groupby: kmeans}")
    due = by_clusters.due("results/toy/harmony/markers.csv")
    assert due == {"markers toy/harmony"}
    refused = extended.over("markers: {groupby: kmeans}\nkmeans: {enabled: false}")
    said = refused.run("results/toy/harmony/markers.csv", options=("-n",), fails=True)
    assert "markers.groupby is kmeans, but kmeans.enabled is false" in said


def test_a_wrong_setting_of_the_step_is_refused(extended):
    said = extended.over("kmeans: {n_clusters: 1}").run(options=("-n",), fails=True)
    assert "kmeans.n_clusters is 1; expected integer, at least 2. Number of clusters." in said
