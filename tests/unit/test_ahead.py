"""The matrix of the markers is in the cache when the clusters are there, or nothing is lost."""

from threading import Event, Timer

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


def read_ahead(wanted):
    ahead.begin(wanted, "cpu")
    cache.settle()


def opened(wanted):
    files = wanted["counts"], wanted["filtered"], wanted["normalized"]
    return blocks.matrix("markers", *files, backend="cpu", asked="auto", method="t-test")


def test_it_is_there_for_the_markers(wanted, warm, monkeypatch):
    with opened(wanted) as matrix:
        expected = matrix.copy()
    cache.stop()
    cache.start()
    read_ahead(wanted)
    monkeypatch.setattr(Counts, "read", None)  # nothing is read any more
    with opened(wanted) as matrix:
        assert (matrix != expected).nnz == 0
        assert matrix.nnz == expected.nnz
    read_ahead(wanted)  # it is there already


@pytest.mark.parametrize("why", ["no worker", "blocks", "no room"])
def test_it_is_left_where_it_cannot_be(wanted, monkeypatch, why):
    if why != "no worker":
        cache.start()
    if why == "no room":
        monkeypatch.setattr(execution, "usable_memory", lambda backend: 1000)
    if why == "blocks":
        wanted |= {"execution": "blocks"}
    monkeypatch.setattr(Counts, "read", None)
    read_ahead(wanted)
    assert cache.nbytes() == 0
    cache.stop()


def test_what_goes_wrong_does_not_harm_the_step(wanted, warm, monkeypatch, caplog):
    monkeypatch.setattr(Counts, "matrix", lambda *_, **__: 1 / 0)
    read_ahead(wanted)
    assert "the matrix was not read ahead: ZeroDivisionError" in caplog.text
    assert cache.nbytes() == 0


def test_who_asks_for_the_matrix_waits_for_it(wanted, warm, monkeypatch):
    go_on, inner, reads = Event(), Counts.matrix, []

    def slowly(*args, **more):
        reads.append(go_on.wait(30))
        return inner(*args, **more)

    monkeypatch.setattr(Counts, "matrix", slowly)
    ahead.begin(wanted, "cpu")
    assert cache.nbytes() == 0  # other work goes on meanwhile
    Timer(0.3, go_on.set).start()
    with opened(wanted) as matrix:
        assert matrix.nnz
    assert reads == [True]
