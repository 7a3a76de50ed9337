"""bench/steps.py: that it calls the steps as the rules do, and which bytes it counts."""

import importlib.util
import inspect
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from scrna import step
from scrna.data import step_files

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_steps", REPOSITORY / "bench/steps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_step(path: Path, elements: dict, **settings) -> None:
    """Write a step file with the provenance of a step of these settings."""

    def some(out: Path, *, backend: str, **settings) -> None:
        step_files.write(out, elements)

    path.parent.mkdir(parents=True, exist_ok=True)
    step.step(some)(path, **settings)


def test_every_step_gets_the_files_that_its_function_asks_for(bench):
    for name, inputs in bench.INPUTS.items():
        module = importlib.import_module(f"scripts.{name}")
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        files = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert files - {"out", "table"} == set(inputs), name
        assert name in bench.ON_MATRIX or bench.ARRAYS[name][0] in inputs, name


def test_steps_that_ran_are_called_with_their_settings(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("results/toy")
    write_step(folder / "pca/pca.h5", {}, backend="cpu", n_comps=3)
    write_step(folder / "pca/markers.h5", {}, backend="cpu", groupby="leiden_0.5")
    write_step(folder / "harmony/markers.h5", {}, backend="cpu", groupby="type")
    calls = bench.calls_of("toy", ["pca", "harmony"], list(bench.INPUTS))
    assert [call["label"] for call in calls] == ["pca", "pca/markers", "harmony/markers"]
    assert calls[0]["settings"] == {"n_comps": 3, "backend": "cpu"}
    assert calls[0]["files"]["hvg"] == folder / "hvg.h5"
    assert calls[1]["files"]["clusters"] == folder / "pca/leiden.h5"
    assert calls[2]["files"]["clusters"] == []
    assert [c["label"] for c in bench.calls_of("toy", ["pca"], ["markers"])] == ["pca/markers"]


def test_bytes_of_steps_on_the_matrix(bench, tmp_path):
    counts = tmp_path / "counts.zarr"
    matrix = zarr.open_group(counts, mode="w").create_group("X")
    for name, dtype in (("data", "uint16"), ("indices", "int32")):
        values = np.arange(1, 11, dtype=dtype)
        matrix.create_array(name, data=values, chunks=(4,), compressors=None)
    keep = np.array([True, True, False, True])
    files = {"counts": counts, "filtered": tmp_path / "filter.h5", "hvg": tmp_path / "hvg.h5"}
    step_files.write(
        files["filtered"], {"var/keep": keep, "var/n_cells_kept": np.array([1, 2, 9, 4])}
    )
    step_files.write(files["hvg"], {"var/highly_variable": np.array([True, False, True])})
    on_disk = 12 * (2 + 4)  # three chunks of four, the last one filled up
    raw = {"read": on_disk, "moved": 60, "worked": 60}
    assert bench.load_of("qc", files, {}) == raw
    assert bench.load_of("markers", files, {}) == raw | {"worked": 8 * (1 + 2 + 4)}
    used = {"use_highly_variable": True}
    assert bench.load_of("pca", files, used) == raw | {"worked": 8 * (1 + 4)}


def test_bytes_of_components_and_graph(bench, tmp_path):
    path = tmp_path / "pca.h5"
    step_files.write(
        path, {"obsm/X_pca": np.ones((20, 10), np.float32), "varm/PCs": np.ones((9, 10))}
    )
    files = {"representation_of": path}
    few = {"read": 800, "moved": 480, "worked": 480}
    assert bench.load_of("neighbors", files, {"n_pcs": 6}) == few
    assert bench.load_of("tsne", files, {"n_pcs": 50}) == dict.fromkeys(few, 800)
    with h5py.File(tmp_path / "neighbors.h5", "w") as file:
        for name, dtype in (("data", "f4"), ("indices", "i4"), ("indptr", "i8")):
            file[f"obsp/connectivities/{name}"] = np.ones(5, dtype)
        file["obsp/distances/data"] = np.ones(99)
    files = {"neighbors": tmp_path / "neighbors.h5"}
    assert bench.load_of("leiden", files, {}) == dict.fromkeys(few, 5 * (4 + 4 + 8))
