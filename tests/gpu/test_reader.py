"""A matrix that another process has read onto the GPU."""

from pathlib import Path

import pytest

from scripts.filter import filter_cells
from scripts.normalize import normalize
from scripts.qc import qc
from scrna import cache, reader, slots
from scrna.counts import Counts, kept
from tests.gpu.test_worker import used

pytestmark = pytest.mark.gpu
CONFIG = {"gpu": {"limit_gb": None}, "memory": {"headroom_gb": 1, "wait_s": 30}}


@pytest.fixture(scope="module")
def wanted(counts, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wanted")
    qc(counts, folder / "qc.h5", **settings("qc", backend="gpu"))
    filtered, normalized = folder / "filter.h5", folder / "normalize.h5"
    table = folder / "filter.csv"
    filter_cells(counts, folder / "qc.h5", filtered, table, **settings("filter"))
    normalize(counts, filtered, normalized, **settings("normalize", backend="gpu"))
    files = {"counts": str(counts), "filtered": str(filtered), "normalized": str(normalized)}
    return files | {"execution": "auto", "method": "t-test"}


def files_of(wanted) -> list[Path]:
    return [Path(wanted[name]) for name in ("counts", "filtered", "normalized")]


@pytest.fixture
def key(wanted):
    cache.start()
    yield cache.keys_of("gpu", ["memory"], files_of(wanted))["memory"]
    cache.stop()


@pytest.mark.parametrize("large", ["by itself", "in a pool"])
def test_it_is_the_matrix_that_this_process_would_read(wanted, key, tmp_path, monkeypatch, large):
    monkeypatch.setattr(reader, "MIN_NNZ", 0)
    if large == "by itself":  # as are the arrays of a matrix that is worth a process
        program = tmp_path / "reader.py"
        text = Path(reader.__file__).read_text()
        scripts = str(Path(reader.__file__).parents[1])
        text = text.replace("_LARGE = 2**28", "_LARGE = 2**20")
        program.write_text(text.replace("str(Path(__file__).parents[1])", repr(scripts)))
        monkeypatch.setattr(reader, "__file__", str(program))
    process, about = reader.start(wanted, CONFIG, tmp_path)
    before = used()
    taken = reader.take(about, key)
    assert process.wait(timeout=10) == 0
    assert used() < before + 2**30  # the other process's memory is free again
    cells, genes = kept(Path(wanted["filtered"]))
    factor = slots.read(Path(wanted["normalized"]), "obs/size_factor")
    read = Counts(Path(wanted["counts"])).matrix(
        "gpu", nnz=taken.nnz, cells=cells, genes=genes, size_factor=factor
    )
    assert taken.shape == read.shape
    for ours, theirs in zip(cache.parts(taken), cache.parts(read), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


def test_no_room_for_two_is_left_to_the_worker(wanted, key, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reader, "MIN_NNZ", 0)
    process, about = reader.start(wanted, CONFIG | {"gpu": {"limit_gb": 0.001}}, tmp_path)
    assert reader.take(about, key) is None
    assert process.wait(timeout=30) == 0
    assert "no room for the matrix twice" in capfd.readouterr().err
