"""Damaged counts are refused by what reads them onto the GPU, too."""

import shutil

import numpy as np
import pytest

from scrna.backend import to_host
from scrna.damage import DamagedError
from scrna.data import counts as counts_module
from scrna.data.counts import Counts
from scrna.data.matrix import open_matrix

pytestmark = pytest.mark.gpu


@pytest.fixture
def copy(counts, tmp_path, monkeypatch):
    """A copy of pbmc3k's counts, read in blocks that do not end where a chunk does."""
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", 300_007)
    shutil.copytree(counts, tmp_path / "counts.zarr")
    shutil.copy(counts.with_suffix(".json"), tmp_path)
    return tmp_path / "counts.zarr"


def in_memory(store, files):
    nnz = Counts(store).summary["nnz"]
    return float(Counts(store).matrix("gpu", nnz=nnz).sum())


def in_blocks(store, files):
    return sum(float(block.data.sum()) for block in Counts(store).blocks("gpu"))


def lazily(store, files, backend="gpu"):
    of = store, files / "filter.h5", files / "normalize.h5"
    with open_matrix("hvg", *of, backend=backend, asked="blocks") as lazy:
        return sum(float(block.compute().sum()) for block in lazy.blocks)


def damaged(file, kind):
    content = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "flipped":
        content[len(content) // 3] ^= 16
        file.write_bytes(content)
    else:
        file.write_bytes(content[: {"empty": 0, "cut off": -5}[kind]])


@pytest.mark.parametrize("reader", [in_memory, in_blocks, lazily])
@pytest.mark.parametrize("part", ["data", "indices"])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "flipped"])
def test_damaged_counts_are_not_read_onto_the_gpu(copy, analyses, reader, part, kind):
    file = copy / "X" / part / "c/0"
    damaged(file, kind)
    with pytest.raises(DamagedError, match=str(file)) as told:
        reader(copy, analyses["gpu"])
    assert told.value.result == copy


def test_intact_counts_are_the_same_on_both(copy, analyses):
    nnz = Counts(copy).summary["nnz"]
    found = {name: Counts(copy).matrix(name, nnz=nnz) for name in ("cpu", "gpu")}
    for part in ("data", "indices", "indptr"):
        own, other = getattr(found["cpu"], part), to_host(getattr(found["gpu"], part))
        np.testing.assert_array_equal(own, other)
    own, other = (lazily(copy, analyses["gpu"], backend) for backend in ("cpu", "gpu"))
    assert own == pytest.approx(other, rel=1e-5)
