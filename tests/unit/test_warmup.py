"""First calls of the libraries, on the CPU: the GPU's take the same arguments."""

import logging

import pytest

from scrna import warmup


@pytest.mark.slow
def test_each_step_has_a_first_call_that_works(caplog):
    caplog.set_level(logging.INFO, "scrna")
    waiting = [(list(warmup._CALLS), "cpu")]
    while waiting:
        warmup.next_call(*waiting.pop(), lambda function, *rest: waiting.append(rest[:2]))
    said = [message for message in caplog.messages if "first call" in message]
    assert [line.split(":")[0] for line in said] == list(warmup._CALLS)
    assert all("its first call took" in line for line in said), said


def test_what_fails_is_said_and_the_next_follows(caplog, monkeypatch):
    monkeypatch.setattr(warmup, "_cells", lambda backend: None)
    later = []
    warmup.next_call(["qc", "pca", "umap"], "cpu", lambda *call: later.append(call[1]))
    assert later == [["umap"]]
    assert caplog.messages[0].startswith("pca: no first call: ")
    warmup.next_call(["qc", "tsne"], "cpu", lambda *call: later.append(call))
    assert later == [["umap"]]
