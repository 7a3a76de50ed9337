"""Scores on the GPU: those of the CPU and of scanpy, in memory and in blocks."""

import numpy as np
import pytest

from scripts.scores import scores
from scrna.config.gene_set_files import read_cell_cycle, read_markers
from scrna.data import counts as counts_module
from scrna.data import step_files
from scrna.data.counts import Counts

pytestmark = pytest.mark.gpu
#: log1p of the GPU is off by some units in the last place of a float32, and a score is a difference
#: of means of such values.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def sets() -> dict:
    markers = read_markers("pbmc", "key")
    return {name: own["positive"] for name, own in markers.items() if name != "Progenitor cells"}


@pytest.fixture
def do(counts, analyses, settings, sets, tmp_path):
    cycle, formerly = read_cell_cycle("human")

    def do(backend, execution, folder="cpu"):
        out = tmp_path / f"{backend}-{execution}.h5"
        base = counts, analyses[folder] / "filter.h5", analyses[folder] / "normalize.h5"
        given = settings("scores", sets=sets, cell_cycle=cycle | {"formerly": formerly})
        scores(*base, out, **given, backend=backend, seed=0, execution=execution)
        return step_files.read_all(out)

    return do


@pytest.fixture
def expected(do):
    return do("cpu", "memory")


@pytest.mark.parametrize("execution", ["memory", "blocks"])
def test_scores_are_those_of_the_cpu(do, expected, counts, execution, monkeypatch):
    if execution == "blocks":
        nnz = Counts(counts).indptr[-1]
        monkeypatch.setattr(counts_module, "BLOCK_NNZ", int(nnz // 9))
    found = do("gpu", execution)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name == "obs/phase":
            # a cell between two phases may be of either
            assert (np.asarray(found[name]) == np.asarray(values)).mean() > 0.999
        elif name.startswith("obs/"):
            np.testing.assert_allclose(found[name], values, rtol=0, atol=CLOSE, err_msg=name)
