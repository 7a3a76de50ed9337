"""What one process reads another takes over, or reads itself; that on a GPU is in tests/gpu."""

import json
import os
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Thread, Timer

import numpy as np
import pytest
from scipy import sparse

from scrna import ahead, backend, blocks, cache, execution, reader
from scrna.files import write_private
from scrna.watch import process_start
from tests.unit.test_watch import eventually

CONFIG = {"gpu": {"limit_gb": None}, "memory": {"headroom_gb": 1, "wait_s": 5}}
KEY = ("gpu", "memory", "a", "b", "c")


@pytest.fixture
def wanted(simulated):
    names = "counts", "filtered", "normalized"
    files = {name: str(getattr(simulated, name)) for name in names}
    return files | {"execution": "auto", "method": "t-test"}


@pytest.fixture
def meeting(tmp_path):
    """What is known of a reader that runs: this very process."""
    file = tmp_path / "matrix.json"
    return {"pid": os.getpid(), "started": process_start(os.getpid()), "file": str(file)}


@pytest.fixture
def matrix():
    return sparse.random(30, 20, 0.3, format="csr", dtype=np.float32, random_state=0)


@pytest.fixture
def sent(matrix, tmp_path, monkeypatch):
    """What a reader hands over, its arrays lying in files instead of a GPU's memory."""
    inner = backend.csr_matrix
    monkeypatch.setattr(backend, "csr_matrix", lambda parts, shape, _: inner(parts, shape, "cpu"))
    monkeypatch.setattr(reader, "_copied", lambda handle, **_: np.load(handle))
    monkeypatch.setattr(execution, "usable_memory", lambda _: 10**9)
    parts = []
    for i, part in enumerate(cache.parts(matrix)):
        np.save(tmp_path / f"{i}.npy", part)
        handle = str(tmp_path / f"{i}.npy")
        parts.append({"handle": handle, "size": part.size, "dtype": part.dtype.name})
    about = {"key": KEY, "nbytes": 1000, "shape": matrix.shape, "parts": parts}
    return about | {"fingerprint": cache.fingerprint(matrix)}


def file_of(meeting):
    return Path(meeting["file"])


def test_a_small_matrix_or_one_in_blocks_is_not_worth_a_process(wanted, tmp_path, monkeypatch):
    assert reader.start(wanted, CONFIG, tmp_path) == (None, None)
    monkeypatch.setattr(reader, "MIN_NNZ", 0)
    assert reader.start(wanted | {"execution": "blocks"}, CONFIG, tmp_path) == (None, None)


def test_the_matrix_is_taken_over_once_it_is_there(meeting, sent, matrix):
    Timer(0.2, write_private, [file_of(meeting), sent]).start()
    taken = reader.take(meeting, KEY)
    assert (taken != matrix).nnz == 0
    assert taken.nnz == matrix.nnz
    assert not file_of(meeting).exists()  # which ends the reader


@pytest.mark.parametrize("why", ["other files", "no room"])
def test_what_cannot_be_taken_is_let_go(meeting, sent, monkeypatch, why):
    if why == "no room":
        monkeypatch.setattr(execution, "usable_memory", lambda _: 999)
    else:
        sent["key"] = [*KEY[:4], "d"]
    write_private(file_of(meeting), sent)
    assert reader.take(meeting, KEY) is None
    assert not file_of(meeting).exists()


def test_what_does_not_arrive_as_it_was_sent_is_not_taken(meeting, sent):
    write_private(file_of(meeting), sent | {"fingerprint": sent["fingerprint"] + 1})
    with pytest.raises(ValueError, match="did not arrive as it was sent"):
        reader.take(meeting, KEY)
    assert not file_of(meeting).exists()


def test_nobody_waits_for_a_reader_that_is_gone(meeting):
    process = subprocess.Popen([sys.executable, "-c", ""])
    gone = {"pid": process.pid, "started": process_start(process.pid)}
    process.wait()
    assert reader.take(meeting | gone, KEY) is None


def test_the_reader_stays_until_the_matrix_is_taken(meeting, sent, monkeypatch):
    for name in ("die_with_parent", "send_logs"):
        monkeypatch.setattr(reader, name, lambda *_: None)
    monkeypatch.setattr(os, "nice", lambda _: None)
    monkeypatch.setattr(reader, "_read", lambda *_: sent)
    file = file_of(meeting)
    about = {"wanted": {}, "config": {}, "file": str(file)}
    thread = Thread(target=reader.main, args=[about])
    thread.start()
    eventually(file.exists)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["key"] == list(KEY)
    assert thread.is_alive()
    file.unlink()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.skipif(bool(find_spec("cupy")), reason="there is a GPU's library")
def test_where_the_reader_cannot_read_the_worker_does(wanted, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reader, "MIN_NNZ", 0)
    process, about = reader.start(wanted, CONFIG, tmp_path)
    cache.start()
    ahead.begin(wanted | {"reader": about}, "cpu")
    cache.settle()
    assert process.wait(timeout=30) == 0
    assert "the reader: the matrix was not read: ModuleNotFoundError" in capfd.readouterr().err
    files = wanted["counts"], wanted["filtered"], wanted["normalized"]
    key = blocks._keys("cpu", *map(Path, files))["memory"]
    assert cache.nbytes_of(key) > 0
    cache.stop()
