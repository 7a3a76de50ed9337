import json
import os
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scrna.store import CSRWriter, bytes_on_disk, new_store, write_tables

# anndata 0.13 asks pandas for an option that pandas 3.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string'")


def counts(n_obs, n_vars, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return sp.random(
        n_obs, n_vars, density, "csr", np.float32, rng, lambda n: rng.integers(1, 900, n)
    )


def blocks(X, rows):
    return [X[start : start + rows] for start in range(0, X.shape[0], rows)]


def write(path, parts, *, n_vars, **options):
    with new_store(path) as root, CSRWriter(root, "X", n_vars=n_vars, **options) as writer:
        for part in parts:
            writer.append(part)
        info = writer.close()
        names = pd.Index([f"c{i}" for i in range(info.shape[0])])
        genes = pd.Index([f"g{i}" for i in range(n_vars)])
        write_tables(root, pd.DataFrame(index=names), pd.DataFrame(index=genes))
    return info


def assert_same(a, b):
    assert a.shape == b.shape
    assert (a != b).nnz == 0


@pytest.mark.parametrize("rows", [1, 37, 500])
def test_what_is_written_is_what_anndata_reads(tmp_path, rows):
    X = counts(500, 80)
    info = write(tmp_path / "a.zarr", blocks(X, rows), n_vars=80, chunk=256, chunks_per_shard=4)
    adata = ad.read_zarr(tmp_path / "a.zarr")
    assert_same(adata.X, X)
    assert adata.X.dtype == np.uint16
    assert list(adata.obs_names[:2]) == ["c0", "c1"]
    assert info.shape == (500, 80)
    assert info.nnz == X.nnz
    assert info.max == X.max()
    assert (info.chunk, info.shard) == (256, 1024)
    assert info.bytes_in_memory == X.nnz * 6 + 501 * 8
    data = zarr.open_group(tmp_path / "a.zarr", mode="r")["X/data"]
    assert (data.chunks, data.shards) == ((256,), (1024,))


def test_no_shard_is_written_twice(tmp_path, monkeypatch):
    starts = []
    original = zarr.Array.__setitem__

    def spy(self, selection, value):
        if self.name == "/X/data":
            starts.append((selection.start, len(value)))
        original(self, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", spy)
    X = counts(500, 80)
    write(tmp_path / "a.zarr", blocks(X, 37), n_vars=80, chunk=256, chunks_per_shard=4)
    assert starts == [(start, min(1024, X.nnz - start)) for start in range(0, X.nnz, 1024)]


def test_rows_become_canonical(tmp_path):
    data, indices = np.array([3, 1, 0, 2.0]), np.array([4, 1, 2, 4])
    X = sp.csr_matrix((data, indices, [0, 3, 3, 4]), shape=(3, 5))
    X = sp.vstack([X, sp.csr_matrix(([1.0, 1.0], [2, 2], [0, 2]), shape=(1, 5))], "csr")
    before = X.copy()
    info = write(tmp_path / "a.zarr", [X], n_vars=5)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")["X"]
    assert group["indices"][:].tolist() == [1, 4, 4, 2]
    assert group["data"][:].tolist() == [1, 3, 2, 2]
    assert group["indptr"][:].tolist() == [0, 2, 2, 3, 4]
    assert info.nnz == 4
    assert info.empty_rows == 1
    assert_same(X, before)
    assert X.data.tolist() == before.data.tolist()


def test_digest_depends_on_the_content_alone(tmp_path):
    X = counts(300, 50)
    one = write(tmp_path / "a.zarr", [X], n_vars=50)
    two = write(tmp_path / "b.zarr", blocks(X, 7), n_vars=50, chunk=128, chunks_per_shard=2)
    other = X.copy()
    other.data[5] += 1
    three = write(tmp_path / "c.zarr", [other], n_vars=50)
    moved = sp.csr_matrix((X.data, X.indices, np.roll(X.indptr, 0)), shape=X.shape)[::-1]
    four = write(tmp_path / "d.zarr", [moved], n_vars=50)
    assert one.digest == two.digest
    assert len({one.digest, three.digest, four.digest}) == 3


def test_small_data_are_neither_padded_nor_in_one_piece(tmp_path):
    X = counts(3000, 2000, 0.1)
    info = write(tmp_path / "a.zarr", [X], n_vars=2000)
    assert info.chunk == 2**16
    assert info.nnz / info.chunk > 8  # pieces for eight cores
    assert bytes_on_disk(tmp_path / "a.zarr") < 3 * X.nnz + 100_000


def test_floats_keep_their_values(tmp_path):
    X = counts(50, 20)
    X.data = np.log1p(X.data)
    write(tmp_path / "a.zarr", [X], n_vars=20, dtype=np.float32)
    assert_same(ad.read_zarr(tmp_path / "a.zarr").X, X)


def test_an_empty_matrix(tmp_path):
    info = write(tmp_path / "a.zarr", [sp.csr_matrix((4, 3), dtype=np.float32)], n_vars=3)
    adata = ad.read_zarr(tmp_path / "a.zarr")
    assert info.nnz == adata.X.nnz == 0
    assert adata.shape == (4, 3)


@pytest.mark.parametrize("value", [65_536, -1])
def test_a_value_that_does_not_fit_leaves_no_store(tmp_path, value):
    X = sp.csr_matrix(np.array([[1, value]], dtype=np.float32))
    with pytest.raises(OverflowError, match="does not fit into uint16"):
        write(tmp_path / "a.zarr", [X], n_vars=2)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_other_genes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a block of 4 columns for a matrix of 5"):
        write(tmp_path / "a.zarr", [counts(3, 4)], n_vars=5)


def test_a_store_is_replaced_whole_or_not_at_all(tmp_path):
    X = counts(10, 5)
    write(tmp_path / "a.zarr", [X], n_vars=5)

    def fails():
        yield X
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the error itself is not what is tested
        write(tmp_path / "a.zarr", fails(), n_vars=5)
    assert_same(ad.read_zarr(tmp_path / "a.zarr").X, X)
    write(tmp_path / "a.zarr", [X[:4]], n_vars=5)
    assert ad.read_zarr(tmp_path / "a.zarr").n_obs == 4


def test_what_a_killed_process_left_goes(tmp_path):
    dead, alive = tmp_path / ".a.zarr.tmp-999999999", tmp_path / f".a.zarr.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    write(tmp_path / "a.zarr", [counts(3, 4)], n_vars=4)
    assert not dead.exists()
    assert alive.exists()


def test_a_matrix_in_layers(tmp_path):
    X = counts(20, 6)
    with new_store(tmp_path / "a.zarr") as root:
        for group, key in ((root, "X"), (root.create_group("layers"), "counts")):
            with CSRWriter(group, key, n_vars=6) as writer:
                writer.append(X)
        root["layers"].attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        names = pd.Index([f"c{i}" for i in range(20)])
        write_tables(root, pd.DataFrame(index=names), pd.DataFrame(index=list("abcdef")))
    assert_same(ad.read_zarr(tmp_path / "a.zarr").layers["counts"], X)


def test_memory_does_not_grow_with_cells(tmp_path):
    block = counts(200, 500)
    peaks = []
    for n_blocks in (20, 200):
        tracemalloc.start()
        with (
            new_store(tmp_path / "a.zarr") as root,
            CSRWriter(root, "X", n_vars=500, chunk=2**12) as writer,
        ):
            for _ in range(n_blocks):
                writer.append(block)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    row_pointers = 3 * 8 * 200 * 180
    assert peaks[1] < 1.2 * peaks[0] + row_pointers


def test_the_info_is_plain(tmp_path):
    info = write(tmp_path / "a.zarr", [counts(3, 4)], n_vars=4)
    assert json.loads(json.dumps(info._asdict()))["dtype"] == "uint16"
