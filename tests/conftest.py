"""What all tests share: the import path, the folder of real data, and who needs a GPU."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# At the end of the path: scripts/umap.py must never stand before the installed umap.
sys.path += [str(ROOT / "scripts"), str(ROOT)]

#: The files that pytest-xdist hands out first, since the last to end decides how long all take.
#: The first makes the complete run, which the next two do not need.
FIRST = """
workflow/test_running workflow/test_stale workflow/test_worker unit/engine/test_server
unit/scripts/test_opens_everywhere unit/engine/test_steps unit/engine/test_dask
workflow/test_interrupts workflow/test_reruns workflow/test_config_cases unit/scripts/test_real_data
unit/scripts/test_neighbors browser/test_cellmap unit/test_code_digest
""".split()
#: The unit tests that compare numbers which a processor's rounding may change: marked `numeric`.
NUMERIC = """
data/counts data/expression data/marker_csv data/matrix ingest/simulate methods/clustering
methods/harmony methods/integration_scores methods/tsne plots/dataset_figures
plots/expression_figures scripts/filter scripts/final scripts/hvg scripts/markers
scripts/neighbors scripts/normalize scripts/opens_everywhere scripts/pca scripts/qc
scripts/real_data scripts/trajectory scripts/umap
""".split()


@cache
def has_gpu() -> bool:
    """Whether nvidia-smi lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "GPU " in listed.stdout


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep our order; by itself it begins with the files of most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, mark the numeric ones, skip those marked `gpu` without a GPU.

    Where there is one, the GPU stack may warn. Of the campaign only the short cases run by
    themselves, and those marked `long` not at all.
    """
    rank = {f"{ROOT}/tests/{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(FIRST)))
    numeric = {
        ROOT.joinpath("tests/unit", name).with_name(f"test_{Path(name).name}.py")
        for name in NUMERIC
    }
    for item in items:
        if item.path in numeric:
            item.add_marker(pytest.mark.numeric)
        campaign = item.get_closest_marker("campaign")
        if campaign and not campaign.kwargs and "SCRNA_TEST_CAMPAIGN" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="SCRNA_TEST_CAMPAIGN=1, as make campaign sets"))
        if item.get_closest_marker("long") and "SCRNA_TEST_LONG" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="SCRNA_TEST_LONG=1, as make test-long sets"))
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not has_gpu():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data that REAL_DATA names; skip the test where it is not set."""
    folder = os.environ.get("REAL_DATA")
    if not folder:
        pytest.skip("REAL_DATA is not set")
    return Path(folder)
