"""The conversion of many cells: bounded memory, several threads, and what goes wrong in them."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scripts.convert import convert
from scrna.errors import UserError
from scrna.ingest.formats import base, hdf5

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    for module in (base, hdf5):
        monkeypatch.setattr(module, "BLOCK_NNZ", 100)


def counts(n_obs=60, n_vars=40):
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 9, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.2)
    return sp.csr_matrix(dense.astype(np.float32))


@pytest.fixture
def do(tmp_path):
    """Convert a matrix; give the store as AnnData, and the summary."""

    def do(X, **options):
        names = pd.Index([f"cell{i}" for i in range(X.shape[0])])
        genes = pd.Index([f"gene{i}" for i in range(X.shape[1])])
        adata = ad.AnnData(X, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))
        adata.write_h5ad(tmp_path / "source.h5ad")
        out = tmp_path / "counts.zarr", tmp_path / "counts.json"
        convert(tmp_path / "source.h5ad", *out, dataset="toy", **options)
        return ad.read_zarr(out[0]), json.loads(out[1].read_text())

    return do


_MEASURE = """
import json, re, sys
sys.path[1:1] = [sys.argv[1]]
sys.path.append(sys.argv[1] + "/scripts")
from pathlib import Path
from scripts.convert import convert
folder, peaks = Path(sys.argv[2]), []
for name in ("few", "many"):
    convert(folder / f"{name}.h5ad", folder / "c.zarr", folder / "c.json", dataset=name)
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held too
    peaks.append(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]))
print(json.dumps(peaks))
"""


def test_names_and_columns_of_many_cells_are_not_held(tmp_path):
    n_obs, n_vars = {"few": 70_000, "many": 400_000}, 50
    for name, n in n_obs.items():
        obs = pd.DataFrame(
            {"barcode": [f"ACGTACGTACGTACGT-{i}" for i in range(n)], "type": ["a", "b"] * (n // 2)},
            index=[f"sample_of_many_cells_{i}" for i in range(n)],
        )
        parts = np.ones(n, np.float32), np.arange(n) % n_vars, np.arange(n + 1)
        X = sp.csr_matrix(parts, shape=(n, n_vars))
        ad.AnnData(X, obs=obs).write_h5ad(tmp_path / f"{name}.h5ad")
    command = [sys.executable, "-c", _MEASURE, str(Path(__file__).parents[3]), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = json.loads(done.stdout)
    # as Python's strings names and barcodes take 180 bytes a cell, tables made of them 420
    assert many - few < 250 * (n_obs["many"] - n_obs["few"])


def test_blocks_stay_in_order_whatever_the_threads(do, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    X = counts(500)
    found, summary = do(X)
    assert (found.X != X).nnz == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert do(X)[1]["digest"] == summary["digest"]


def test_a_disk_that_fills_leaves_nothing(do, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scrna.data.csr_writer._write_shard", fails)
    with pytest.raises(OSError, match="No space left on device"):
        do(counts())
    assert [path.name for path in tmp_path.iterdir()] == ["source.h5ad"]


def test_a_bad_value_among_many_threads_is_the_first_one(do, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    X = counts(500)
    for cell in (450, 321):
        X.data[X.indptr[cell]] = 0.5
    with pytest.raises(UserError, match=r"it has the value 0\.5 in cell 'cell321'"):
        do(X)
    assert [path.name for path in tmp_path.iterdir()] == ["source.h5ad"]


def test_names_that_are_numbers(do, tmp_path):
    do(counts())
    with h5py.File(tmp_path / "source.h5ad", "a") as file:
        del file["obs/_index"]
        ad.io.write_elem(file["obs"], "_index", np.arange(60))
    convert(tmp_path / "source.h5ad", tmp_path / "b.zarr", tmp_path / "b.json", dataset="toy")
    assert list(ad.read_zarr(tmp_path / "b.zarr").obs_names[:3]) == ["0", "1", "2"]
