"""The matrix of the markers is in the cache when the clusters are there, or nothing is lost."""

import pytest

from scrna import ahead, blocks, cache, execution
from scrna.counts import Counts

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture
def wanted(simulated):
    return {
        "counts": simulated.counts,
        "filtered": simulated.filtered,
        "normalized": simulated.normalized,
        "execution": "auto",
        "method": "t-test",
    }


@pytest.fixture
def warm():
    cache.start()
    yield
    cache.stop()


def opened(wanted):
    files = wanted["counts"], wanted["filtered"], wanted["normalized"]
    return blocks.matrix("markers", *files, backend="cpu", asked="auto", method="t-test")


def test_it_is_there_for_the_markers(wanted, warm, monkeypatch):
    with opened(wanted) as matrix:
        expected = matrix.copy()
    cache.stop()
    cache.start()
    with ahead.reading(wanted, "cpu"):
        pass
    monkeypatch.setattr(Counts, "read", None)  # nothing is read any more
    with opened(wanted) as matrix:
        assert (matrix != expected).nnz == 0
        assert matrix.nnz == expected.nnz
    with ahead.reading(wanted, "cpu"):  # it is there already
        pass


@pytest.mark.parametrize("why", ["no worker", "blocks", "no room", "not wanted"])
def test_it_is_left_where_it_cannot_be(wanted, monkeypatch, why):
    if why != "no worker":
        cache.start()
    if why == "no room":
        monkeypatch.setattr(execution, "usable_memory", lambda backend: 1000)
    asked = None if why == "not wanted" else wanted
    if why == "blocks":
        asked = wanted | {"execution": "blocks"}
    monkeypatch.setattr(Counts, "read", None)
    with ahead.reading(asked, "cpu"):
        pass
    assert cache.nbytes() == 0
    cache.stop()


def test_what_goes_wrong_does_not_harm_the_step(wanted, warm, monkeypatch, caplog):
    monkeypatch.setattr(Counts, "matrix", lambda *_, **__: 1 / 0)
    with ahead.reading(wanted, "cpu"):
        pass
    assert "the matrix was not read ahead: ZeroDivisionError" in caplog.text
    assert cache.nbytes() == 0


def test_a_step_that_fails_waits_for_it(wanted, warm):
    with pytest.raises(KeyError), ahead.reading(wanted, "cpu"):
        raise KeyError
    assert cache.nbytes() > 0
