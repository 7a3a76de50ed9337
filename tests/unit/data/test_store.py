import json
import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from scrna.data.csr_writer import CSRWriter, Rows
from scrna.data.store import bytes_on_disk, new_store, write_tables

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
    expected = [(start, min(1024, X.nnz - start)) for start in range(0, X.nnz, 1024)]
    assert sorted(starts) == expected


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


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        (np.uint16, "c2f92e4eef9c3ccf1fc3a3561333ed995acf02bd10832594663c37b436b82158"),
        (np.float32, "be174e416ea33220deb6dd1550d7a61ef24945fe949dcfefd04dceb8bf0ecdc2"),
    ],
)
@pytest.mark.parametrize("rows", [7, 60])
def test_digests_stay_as_they_are(tmp_path, dtype, digest, rows):
    numbers = np.arange(6000).reshape(60, 100)
    X = sp.csr_matrix((numbers % 7 * (numbers % 3 == 0)).astype(np.float32))
    options = {"dtype": dtype, "chunk": 32, "chunks_per_shard": 4}
    assert write(tmp_path / "a.zarr", blocks(X, rows), n_vars=100, **options).digest == digest


def test_many_shards_lie_in_their_order(tmp_path):
    X = counts(2000, 80)
    write(tmp_path / "a.zarr", blocks(X, 13), n_vars=80, chunk=64, chunks_per_shard=2)
    assert_same(ad.read_zarr(tmp_path / "a.zarr").X, X)


def test_another_compressor(tmp_path):
    X = counts(500, 80)
    sizes = []
    for compressor in (ZstdCodec(level=3), BloscCodec(cname="lz4", shuffle="shuffle")):
        write(tmp_path / "a.zarr", [X], n_vars=80, compressor=compressor)
        assert_same(ad.read_zarr(tmp_path / "a.zarr").X, X)
        sizes.append(bytes_on_disk(tmp_path / "a.zarr"))
    assert sizes[0] != sizes[1]


def test_the_pattern_of_another_matrix(tmp_path):
    X = counts(500, 80)
    logged = X.copy()
    logged.data = np.log1p(X.data)
    options = {"n_vars": 80, "dtype": np.float32, "chunk": 128, "chunks_per_shard": 4}
    with new_store(tmp_path / "a.zarr") as root:
        with CSRWriter(root, "X", **options) as first:
            first.append(logged)
        with CSRWriter(root, "same", **options, pattern=first) as second:
            for block in blocks(X, 37):
                second.append(block)
        with CSRWriter(root, "alone", **options) as alone:
            alone.append(X)
        assert_same(ad.io.read_elem(root["same"]), X)
        assert second.info == alone.info
        other = CSRWriter(root, "other", **options, pattern=first)
        other.append(X[1:])
        with pytest.raises(ValueError, match="other does not have the non-zeros of X"):
            other.close()


def test_rows_may_be_made_in_any_thread(tmp_path):
    X = counts(500, 80)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda block: Rows.of(block, np.uint16), blocks(X, 37)))
    info = write(tmp_path / "a.zarr", made, n_vars=80)
    assert_same(ad.read_zarr(tmp_path / "a.zarr").X, X)
    assert info.digest == write(tmp_path / "b.zarr", [X], n_vars=80).digest


@pytest.mark.parametrize("name", ["_write_shard", "_hash_pieces"])
def test_an_error_in_a_thread_surfaces_and_leaves_no_store(tmp_path, monkeypatch, name):
    calls = []

    def fails(*_):
        calls.append(1)
        if len(calls) > 3:
            msg = "No space left on device"
            raise OSError(28, msg)

    monkeypatch.setattr(f"scrna.data.csr_writer.{name}", fails)
    n_threads = threading.active_count()
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "a.zarr", blocks(counts(500, 80), 37), n_vars=80, chunk=32)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() <= n_threads + 2  # zarr's own stay
    assert 3 < len(calls) < 20


def test_an_interrupt_waits_for_the_threads(tmp_path, monkeypatch):
    """Nothing may be written any more when the folder goes."""
    written = []

    def slow(array, start, pieces):
        time.sleep(0.1)
        assert (tmp_path / f".a.zarr.tmp-{os.getpid()}").exists()
        written.append(start)

    def interrupted():
        yield counts(500, 80)
        raise KeyboardInterrupt

    monkeypatch.setattr("scrna.data.csr_writer._write_shard", slow)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.zarr", interrupted(), n_vars=80, chunk=512, chunks_per_shard=2)
    assert written
    assert list(tmp_path.iterdir()) == []


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
