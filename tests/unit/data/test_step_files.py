import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import read_elem, write_elem

from scrna.damage import DamagedError
from scrna.data import step_files
from scrna.data.digests import slot_digest
from scrna.step import step

RNG = np.random.default_rng(0)
ARRAYS = {
    "obs/flags": np.array([True, False, True]),
    "obs/bytes": np.array([1, 200], dtype=np.uint8),
    "obs/numbers": np.array([1, -(2**40)]),
    "obs/fractions": np.array([0.1, np.nan, np.inf]),
    "obsm/X_pca": RNG.random((4, 3), dtype=np.float32),
    "obsm/none": np.zeros((0, 3)),
    "uns/scalar": np.array(3.5),
    "uns/whole": np.array(7),
}


def test_numbers_come_back_as_they_were(tmp_path):
    step_files.write(tmp_path / "a.h5", ARRAYS)
    for name, value in ARRAYS.items():
        found = step_files.read(tmp_path / "a.h5", name)
        np.testing.assert_array_equal(found, value)
        assert np.asarray(found).dtype == value.dtype
        assert np.shape(found) == value.shape


def test_numbers_are_what_anndata_reads(tmp_path):
    step_files.write(tmp_path / "a.h5", ARRAYS)
    with h5py.File(tmp_path / "a.h5") as file:
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(read_elem(file[name]), value)
        assert read_elem(file["obsm/X_pca"]).dtype == np.float32


@pytest.mark.parametrize("n", [1, 3, 128, 129, 40_000])
def test_categories_are_a_categorical(tmp_path, n):
    codes = np.arange(n + 2) % (n + 1) - 1  # with a missing value
    names = [f"β {i}" for i in range(n)]
    step_files.write(tmp_path / "a.h5", {"obs/filter_reason": step_files.Categories(codes, names)})
    expected = pd.Categorical.from_codes(codes, names)
    with h5py.File(tmp_path / "a.h5") as file:
        same_as_anndata = read_elem(file["obs/filter_reason"])
    for found in (step_files.read(tmp_path / "a.h5", "obs/filter_reason"), same_as_anndata):
        assert isinstance(found, pd.Categorical)
        assert not found.ordered
        assert found.categories.tolist() == names
        np.testing.assert_array_equal(found.codes, expected.codes)


def test_all_else_goes_through_anndata(tmp_path):
    graph = sp.random(20, 20, 0.2, "csr", np.float32, rng=RNG)
    table = pd.DataFrame({"names": ["a", "b"], "scores": [1.5, 2]}, index=["x", "y"])
    record = np.rec.fromarrays([np.array([1.0, 2]), np.array([3.0, 4])], names=["0", "1"])
    written = {
        "obsp/connectivities": graph,
        "obs/leiden": pd.Categorical(list("bab"), categories=["b", "a", "c"]),
        "obs/name": np.array(["a", "βγ", ""], dtype=object),
        "uns/neighbors": {"params": {"n_neighbors": 15, "metric": "cosine"}, "key": np.arange(3)},
        "uns/table": table,
        "uns/record": record,
        "uns/word": "text",
        "uns/number": 2.5,
    }
    step_files.write(tmp_path / "a.h5", written)
    found = step_files.read_all(tmp_path / "a.h5")
    assert (found["obsp/connectivities"] != graph).nnz == 0
    assert found["obsp/connectivities"].dtype == np.float32
    assert found["obs/leiden"].tolist() == list("bab")
    assert found["obs/leiden"].categories.tolist() == ["b", "a", "c"]
    assert found["obs/name"].tolist() == ["a", "βγ", ""]
    assert found["uns/neighbors"]["params"] == {"n_neighbors": 15, "metric": "cosine"}
    np.testing.assert_array_equal(found["uns/neighbors"]["key"], np.arange(3))
    pd.testing.assert_frame_equal(found["uns/table"], table, check_dtype=False)
    np.testing.assert_array_equal(found["uns/record"]["1"], record["1"])
    assert (found["uns/word"], found["uns/number"]) == ("text", 2.5)
    with h5py.File(tmp_path / "a.h5") as file:
        assert all(file[name].attrs["encoding-type"] for name in written)


def ranked(names, dtype=object):
    names = np.array(names, dtype=dtype)
    scores = np.arange(2 * len(names), dtype=np.float32)
    return {
        "params": {"groupby": "leiden"},
        "names": np.rec.fromarrays([names, names[::-1]], names=["0", "β, 1"]),
        "scores": np.rec.fromarrays(np.split(scores, 2), names=["0", "β, 1"]),
    }


NAMES = ["", "MT-CO1", "β-γ 🧬", " blanks  ", "a", "b"]


def test_records_of_text_are_what_anndata_reads(tmp_path):
    step_files.write(
        tmp_path / "a.h5", {"uns/genes": ranked(NAMES), "uns/names": ranked(NAMES)["names"]}
    )
    with h5py.File(tmp_path / "b.h5", "w") as other, h5py.File(tmp_path / "a.h5") as file:
        write_elem(other, "by_anndata", ranked(NAMES))
        all_found = [
            read_elem(other["by_anndata"]),
            read_elem(file["uns/genes"]),
            step_files.read(tmp_path / "a.h5", "uns/genes"),
            step_files.read_all(tmp_path / "a.h5")["uns/genes"],
            {**ranked(NAMES), "names": step_files.read(tmp_path / "a.h5", "uns/names")},
        ]
    for found in all_found:
        assert found["names"].dtype == [("0", object), ("β, 1", object)]
        assert found["names"]["0"].tolist() == NAMES
        assert found["names"]["β, 1"].tolist() == NAMES[::-1]
        assert found["scores"].dtype == [("0", np.float32), ("β, 1", np.float32)]
        np.testing.assert_array_equal(found["scores"]["β, 1"], np.arange(6, 12))


def test_the_digest_of_what_is_in_memory_is_that_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("scrna.data.digests._PIECE", 1000)
    rng = np.random.default_rng(0)
    graph = sp.random(200, 200, 0.1, format="csr", random_state=0)
    elements = {
        "obsm/X_pca": rng.normal(size=(300, 20)).astype(np.float32),
        "obs/keep": rng.random(5000) < 0.5,
        "obs/few": np.arange(3),
        "obsp/connectivities": graph,
        "uns/neighbors": {
            "params": {"n_neighbors": 15},
            "weights": np.asfortranarray(graph.todense()),
        },
    }
    step_files.write(tmp_path / "a.h5", elements)
    with h5py.File(tmp_path / "a.h5") as file:
        whole, digests = file.attrs["digest"], json.loads(file.attrs["digests"])
        assert list(digests) == [*elements, "provenance"]
        for name in elements:
            assert digests[name] == slot_digest(file[name], {}, f"{name}/")
    elements["obsm/X_pca"][-1, -1] += 1  # in the last piece
    step_files.write(tmp_path / "b.h5", elements)
    assert step_files.digest_of(tmp_path / "b.h5") != whole


def test_the_digest_of_records_is_that_of_what_is_in_the_file(tmp_path):
    digests = set()
    for dtype in (object, str):
        written = {"uns/genes": {"deeper": ranked(NAMES, dtype)}, "uns/r": ranked(NAMES)["names"]}
        step_files.write(tmp_path / "a.h5", written)
        with h5py.File(tmp_path / "a.h5") as file:
            written = json.loads(file.attrs["digests"])
            found = [slot_digest(file[name], {}, f"{name}/") for name in written if "/" in name]
            assert list(written.values())[:2] == found
            digests.add(tuple(found))
    assert len(digests) == 1


def test_files_of_other_programs_keep_the_order_that_h5py_has():
    assert not h5py.get_config().track_order


def test_dicts_keep_their_order(tmp_path):
    params = {"z": np.zeros(2), "a": {"y": np.ones(1), "b": np.ones(2)}, "k": "text"}
    step_files.write(tmp_path / "a.h5", {"uns/params": params})
    found = step_files.read(tmp_path / "a.h5", "uns/params")
    assert list(found) == ["z", "a", "k"]
    assert list(found["a"]) == ["y", "b"]


def test_slots_keep_their_order(tmp_path):
    order = ["obs/z", "obs/a", "var/m", "obs/k", "uns/b", "uns/a"]
    step_files.write(tmp_path / "a.h5", {name: np.zeros(2) for name in order})
    grouped = ["obs/z", "obs/a", "obs/k", "var/m", "uns/b", "uns/a"]
    assert step_files.names(tmp_path / "a.h5") == grouped
    assert list(step_files.read_all(tmp_path / "a.h5")) == grouped


def test_dicts_of_slots_that_share_a_group_keep_their_order(tmp_path):
    wanted = {"z": {"d": np.arange(2), "c": "text"}, "y": sp.eye_array(2, format="csr"), "a": 1.0}
    step_files.write(tmp_path / "a.h5", {"uns/later": wanted, "uns/first": wanted})
    found = step_files.read_all(tmp_path / "a.h5")
    assert list(found) == ["uns/later", "uns/first"]
    for value in found.values():
        assert list(value) == ["z", "y", "a"]
        assert list(value["z"]) == ["d", "c"]


def test_other_files_of_the_process_are_written_as_h5py_does(tmp_path):
    step_files.write(tmp_path / "a.h5", {"obs/z": np.zeros(2)})
    assert not h5py.get_config().track_order


def test_a_slot_that_is_not_there_is_told_with_those_that_are(tmp_path):
    step_files.write(tmp_path / "qc.h5", {"obs/a": np.zeros(2), "var/b": np.zeros(3)})
    with pytest.raises(DamagedError, match=r"qc\.h5 has no 'obs/b'; it holds obs/a, var/b\. Rem"):
        step_files.read(tmp_path / "qc.h5", "obs/b")


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.h5"
    step_files.write(path, {"obs/a": np.arange(3)})
    before = path.read_bytes()
    with pytest.raises(Exception, match="object"):
        step_files.write(path, {"obs/a": np.arange(4), "uns/b": object()})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]
    with pytest.raises(Exception, match="object"):
        step_files.write(tmp_path / "new/b.h5", {"uns/b": object()})
    assert os.listdir(tmp_path / "new") == []


def test_what_a_killed_write_left_goes_with_the_next(tmp_path):
    program = f"""
        import os, signal, sys
        sys.path.append({str(Path(step_files.__file__).parents[2])!r})
        import numpy as np
        from scrna import atomic
        from scrna.data import step_files
        atomic.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        step_files.write({str(tmp_path / "a.h5")!r}, {{"obs/a": np.arange(3)}})
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.h5.tmp-")
    step_files.write(tmp_path / "a.h5", {"obs/a": np.arange(3)})
    assert os.listdir(tmp_path) == ["a.h5"]


@step
def write_step(out, *, seed, elements):
    step_files.write(out, elements)


def test_the_digest_is_that_of_the_content_alone(tmp_path):
    elements = {"obs/a": np.arange(3), "obs/b": step_files.Categories(np.array([0, 1]), ["x", "y"])}
    step_files.write(tmp_path / "a.h5", elements)
    digest = step_files.digest_of(tmp_path / "a.h5")
    assert len(digest) == 64
    write_step(tmp_path / "b.h5", seed=1, elements=elements)
    assert step_files.provenance_of(tmp_path / "a.h5") == {}
    assert step_files.provenance_of(tmp_path / "b.h5")["parameters"]["seed"] == 1
    assert step_files.digest_of(tmp_path / "b.h5") == digest
    step_files.write(tmp_path / "c.h5", dict(reversed(elements.items())))
    assert step_files.digest_of(tmp_path / "c.h5") == digest


@pytest.mark.parametrize(
    "changed",
    [
        {"obs/a": np.array([0, 1, 3])},
        {"obs/a": np.array([0, 1, 2], dtype=np.int32)},
        {"obs/a": np.array([[0, 1, 2]])},
        {"obs/a": np.array([0, 1, 2, 2])},
        {"var/a": np.arange(3)},
        {"obs/b": step_files.Categories(np.array([0, 1]), ["x", "z"])},
        {"obs/b": step_files.Categories(np.array([1, 0]), ["x", "y"])},
        {"uns/c": {"word": "other", "number": 1}},
        {"uns/c": {"word": "text", "number": 2}},
        {"uns/c": {"word": "text", "number": 1, "more": {}}},
        {"obsp/g": sp.csr_matrix(np.eye(2, 4))},
        {"obsp/g": sp.csc_matrix(np.eye(2, 3))},
        {"obs/d": pd.Categorical(["a"], ordered=True)},
        {"uns/e": ranked(["a", "c"])},
        {"uns/e": ranked(["b", "a"])},
    ],
)
def test_the_digest_changes_with_the_content(tmp_path, changed):
    elements = {
        "obs/a": np.arange(3),
        "obs/b": step_files.Categories(np.array([0, 1]), ["x", "y"]),
        "obs/d": pd.Categorical(["a"]),
        "obsp/g": sp.csr_matrix(np.eye(2, 3)),
        "uns/c": {"word": "text", "number": 1},
        "uns/e": ranked(["a", "b"]),
    }
    step_files.write(tmp_path / "a.h5", elements)
    step_files.write(tmp_path / "b.h5", elements | changed)
    assert step_files.digest_of(tmp_path / "a.h5") != step_files.digest_of(tmp_path / "b.h5")


def test_digests_of_other_files(tmp_path):
    assert step_files.digest_of(tmp_path / "missing.h5") is None
    assert step_files.digest_of(tmp_path / "counts.zarr") is None
    (tmp_path / "counts.json").write_text(json.dumps({"digest": "abc"}))
    assert step_files.digest_of(tmp_path / "counts.zarr") == "abc"
    (tmp_path / "truncated.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(30))
    assert step_files.digest_of(tmp_path / "truncated.h5") is None
    with h5py.File(tmp_path / "10x.h5", "w") as file:
        file.create_group("matrix")
    assert step_files.digest_of(tmp_path / "10x.h5") is None


@pytest.mark.parametrize(
    "value",
    [
        pd.Categorical(["b", "a", None, "b"]),
        pd.Categorical(["low", "high"], categories=["low", "high", "no one"], ordered=True),
        pd.Categorical([3, 1, 3]),
        pd.Categorical([]),
        {"flavor": "seurat", "deeper": {"n": np.int64(3), "empty": {}}, "β": np.arange(3)},
        "text",
    ],
    ids=str,
)
def test_what_is_read_here_is_as_anndata_reads_it(tmp_path, value):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_elem(file.create_group("uns"), "value", value)
        file.attrs["digest"] = slot_digest(file, {})
        expected = read_elem(file["uns/value"])
    found = step_files.read(tmp_path / "a.h5", "uns/value")
    if isinstance(value, pd.Categorical):
        assert found.equals(expected)
        assert found.dtype == expected.dtype
        assert found.categories.dtype == expected.categories.dtype
        assert found.codes.dtype == expected.codes.dtype
    else:
        assert repr(found) == repr(expected)


@pytest.mark.parametrize("value", [3, -2.5, True, np.float32(0.1), np.int8(7), "text", "", "β"])
def test_single_values_are_written_as_anndata_writes_them(tmp_path, value):
    step_files.write(tmp_path / "a.h5", {"uns/value": value})
    with h5py.File(tmp_path / "b.h5", "w") as file:
        write_elem(file.create_group("uns"), "value", value)
    files = [h5py.File(tmp_path / name) for name in ("a.h5", "b.h5")]
    (ours, theirs) = (file["uns/value"] for file in files)
    assert dict(ours.attrs) == dict(theirs.attrs)
    assert (ours.dtype, ours.shape, ours[()]) == (theirs.dtype, theirs.shape, theirs[()])
    found = step_files.read(tmp_path / "a.h5", "uns/value")
    assert (found, type(found)) == (read_elem(theirs), type(read_elem(theirs)))
