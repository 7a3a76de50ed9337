"""AnnData files as sources, and telling the kinds apart; 10x is in test_sources_10x.py."""

import gzip
import os
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scrna.errors import UserError
from scrna.ingest.formats import base, hdf5, mtx, open_source
from scrna.ingest.formats.base import NotMatrix
from scrna.ingest.formats.hdf5 import Column
from tests.unit.source_reading import assert_same, counts, read

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Let small matrices be read in many blocks."""
    for module in (base, hdf5, mtx):
        monkeypatch.setattr(module, "BLOCK_NNZ", 100)


def adata(X, **slots):
    obs = pd.DataFrame(
        {"batch": pd.Categorical(["a", "b"] * (X.shape[0] // 2)), "age": 1.5},
        index=[f"cell{i}" for i in range(X.shape[0])],
    )
    var = pd.DataFrame({"n": 1}, index=[f"gene{i}" for i in range(X.shape[1])])
    return ad.AnnData(X, obs=obs, var=var, **slots)


def change(folder, name, function):
    path = folder / name
    path.write_bytes(function(path.read_bytes()))


def rechunk(path):
    """Cut X's data and indices into small chunks, as a big file has many."""
    with h5py.File(path, "a") as file:
        for name in ("data", "indices") if isinstance(file["X"], h5py.Group) else ():
            values = file["X"][name]
            del file["X"][name]
            file["X"].create_dataset(
                name, data=values, chunks=(64,), compression=values.compression
            )


FORMATS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda X: X.toarray()}


# ------------------------------------------------------------------------------------------- h5ad


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("format_", FORMATS)
def test_h5ad_of_any_layout(tmp_path, format_, compression):
    X = counts()
    adata(FORMATS[format_](X)).write_h5ad(tmp_path / "a.h5ad", compression=compression)
    rechunk(tmp_path / "a.h5ad")
    obs, var, found, n_blocks = read(tmp_path / "a.h5ad")
    assert_same(found, X)
    assert list(obs["batch"][:2]) == ["a", "b"]
    assert var.index[-1] == "gene39"
    assert n_blocks >= (4 if format_ != "dense" else 1)


@pytest.mark.parametrize("format_", FORMATS)
def test_some_cells_alone(tmp_path, format_):
    X = counts()
    adata(FORMATS[format_](X)).write_h5ad(tmp_path / "a.h5ad")
    rechunk(tmp_path / "a.h5ad")
    cells = np.random.default_rng(1).random(60) < 0.3
    cells[20:45] = False  # whole blocks are passed over
    cells[5] = True  # an empty cell stays
    assert_same(read(tmp_path / "a.h5ad", cells=cells)[2], X[cells])


@pytest.mark.parametrize("n_passes", [1, 3])
def test_csc_within_a_memory_budget(tmp_path, caplog, n_passes):
    caplog.set_level("INFO", logger="scrna")
    X = counts()
    adata(X.tocsc()).write_h5ad(tmp_path / "a.h5ad")
    cells = np.arange(60) % 7 != 0
    memory = (8 * X[cells].nnz + 40 * 60) // n_passes + 400  # of a value, of a cell; a cell more
    assert_same(read(tmp_path / "a.h5ad", cells=cells, memory=memory)[2], X[cells])
    assert f"read {n_passes + 1} times, with 0 MB of cells in memory" in caplog.text


def test_dense_chunks_larger_than_a_block(tmp_path):
    X = counts().toarray()
    adata(X).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["X"]
        file.create_dataset("X", data=X, chunks=(60, 2))
    assert_same(read(tmp_path / "a.h5ad")[2], sp.csr_matrix(X))
    assert read(tmp_path / "a.h5ad", memory=10 * 40 * 4)[3] == 6


def test_raw_has_its_own_genes(tmp_path):
    X = counts()
    a = adata(X)
    a.raw = a.copy()
    a = a[:, :10].copy()
    a.layers["spliced"] = a.X.copy()
    a.write_h5ad(tmp_path / "a.h5ad")
    with open_source(tmp_path / "a.h5ad") as source:
        assert source.kind == "h5ad"
        assert source.matrices() == ["X", "raw.X", "layers/spliced"]
        assert len(source.var("raw.X")) == 40
    assert_same(read(tmp_path / "a.h5ad", "raw.X")[2], X)
    assert_same(read(tmp_path / "a.h5ad", "layers/spliced")[2], X[:, :10])


def test_index_types_and_byte_orders(tmp_path):
    X = counts()
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "obs", adata(X).obs)
        ad.io.write_elem(file, "var", adata(X).var)
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": X.shape})
        group["data"] = X.data.astype(">f8")
        group["indices"] = X.indices.astype(np.uint8)
        group["indptr"] = X.indptr.astype(np.uint64)
    assert_same(read(tmp_path / "a.h5ad")[2], X)


def test_half_precision(tmp_path):
    X = counts().toarray()
    adata(X).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["X"]
        file["X"] = X.astype(np.float16)
    assert_same(read(tmp_path / "a.h5ad")[2], sp.csr_matrix(X))


def write_old(path, X, *, strings):
    """Write as AnnData before 0.7 did."""
    obs_type = [("index", strings), ("batch", "i1"), ("age", "f8")]
    obs = [(f"cell{i}", i % 2, 1.5) for i in range(X.shape[0])]
    var_type = [("index", strings), ("gene_ids", strings)]
    var = [(f"gene{i}", f"id{i}") for i in range(X.shape[1])]
    with h5py.File(path, "w") as file:
        for name, matrix in (("X", X[:, :10]), ("raw.X", X)):
            group = file.create_group(name)
            group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": matrix.shape})
            group["data"], group["indices"] = matrix.data, matrix.indices
            group["indptr"] = matrix.indptr
        file["obs"] = np.array(obs, dtype=obs_type)
        file["var"] = np.array(var[:10], dtype=var_type)
        file["raw.var"] = np.array(var, dtype=var_type)
        names = (
            np.array([b"left", b"right"]) if strings != h5py.string_dtype() else ["left", "right"]
        )
        file["uns/batch_categories"] = names


@pytest.mark.parametrize("strings", [h5py.string_dtype(), "S10"])
def test_encoding_before_anndata_0_7(tmp_path, strings):
    X = counts()
    write_old(tmp_path / "a.h5ad", X, strings=strings)
    obs, var, found, _ = read(tmp_path / "a.h5ad")
    assert_same(found, X[:, :10])
    assert list(obs["batch"][:2]) == ["left", "right"]
    assert list(obs.index[:2]) == ["cell0", "cell1"]
    assert list(var["gene_ids"][:2]) == ["id0", "id1"]
    _, var, found, _ = read(tmp_path / "a.h5ad", "raw.X")
    assert_same(found, X)
    assert var.index[-1] == "gene39"


def test_a_dense_matrix_of_anndata_0_5(tmp_path):
    X = counts()
    write_old(tmp_path / "a.h5ad", X, strings="S10")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        for name in ("X", "raw.X", "raw.var"):
            del file[name]
        file["X"] = X[:, :10].toarray()
    assert_same(read(tmp_path / "a.h5ad")[2], X[:, :10])


def test_categories_of_anndata_0_7(tmp_path):
    """Codes in the column, categories beside it in ``__categories``."""
    X = counts()
    adata(X).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        names = [f"cell{i}" for i in range(60)]
        del file["obs"]
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
        obs.attrs.update({"_index": "_index", "column-order": ["batch"]})
        obs["_index"] = names
        obs["batch"] = np.arange(60, dtype="i1") % 2
        obs["__categories/batch"] = ["left", "right"]
        obs["batch"].attrs["categories"] = obs["__categories/batch"].ref
    assert list(read(tmp_path / "a.h5ad")[0]["batch"][:3]) == ["left", "right", "left"]


def test_the_real_old_file(real_data):
    path = real_data / "pbmc1k/pbmc1k_300cells_anndata0.6.22_format.h5ad"
    obs, var, found, _ = read(path)
    assert found.shape == (300, 36_601)
    assert set(obs["batch"]) == {"a", "b"}
    assert var["gene_ids"].iloc[0] == "ENSG00000243485"


def replaced(name, change):
    def apply(X):
        values = X[name][:]
        del X[name]
        X[name] = change(values)

    return apply


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (replaced("indptr", lambda x: x + 1), "row pointers do not fit 60 rows"),
        (replaced("indptr", lambda x: x[:-1]), "row pointers do not fit"),
        (replaced("indptr", lambda x: np.r_[0, x[:0:-1][1:], x[-2:]]), "row pointers do not fit"),
        (replaced("data", lambda x: x[:-1]), "row pointers do not fit"),
        (replaced("indices", lambda x: x + 1), "damaged: it has a value at 40, with 40 rows or"),
        (replaced("indices", lambda x: x - 1), "damaged"),
        (replaced("data", lambda x: x > 1), "it holds true and false, not numbers"),
        (replaced("data", lambda x: ["a"] * len(x)), "it holds text, not numbers"),
        (lambda X: X.attrs.update({"shape": (60, 41)}), "its size is 60 × 41, not 60 cells × 40"),
        (lambda X: X.attrs.update({"encoding-type": "coo"}), "it is encoded as 'coo', not as"),
    ],
)
def test_what_is_no_matrix(tmp_path, damage, match):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        damage(file["X"])
    with pytest.raises(NotMatrix, match=match):
        read(tmp_path / "a.h5ad")


def test_no_x(tmp_path):
    a = adata(counts())
    ad.AnnData(obs=a.obs, var=a.var, layers={"counts": a.X}).write_h5ad(tmp_path / "a.h5ad")
    with open_source(tmp_path / "a.h5ad") as source:
        assert source.matrices()[-1] == "layers/counts"
        if "X" in source.matrices():
            with pytest.raises(NotMatrix, match=r"no matrix|encoded as"):
                list(source.blocks("X", np.ones(60, bool)))


def test_a_missing_part_is_damage(tmp_path):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["X/indices"]
    with pytest.raises(UserError, match=r"X of a\.h5ad cannot be read: the file is damaged"):
        read(tmp_path / "a.h5ad")


def test_a_damaged_chunk(tmp_path):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        where = file["X/data"].id.get_chunk_info(0)
    zeros = bytes(where.size - 20)
    at = where.byte_offset + 10
    change(tmp_path, "a.h5ad", lambda data: data[:at] + zeros + data[at + len(zeros) :])
    with pytest.raises(UserError, match=r"X of a\.h5ad cannot be read: the file is damaged"):
        read(tmp_path / "a.h5ad")


def test_an_unknown_compression_is_no_damage(tmp_path):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        n = len(file["X/data"])
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((n,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # zstd, of a plugin
        space = h5py.h5s.create_simple((n,))
        kind = h5py.h5t.NATIVE_FLOAT
        new = h5py.h5d.create(file["X"].id, b"data", kind, space, dcpl=properties)
        new.write_direct_chunk((0,), b"packed")
    with pytest.raises(UserError, match="compressed in a way that HDF5 does not know here"):
        read(tmp_path / "a.h5ad")


FILTERS = {
    "chunks": {"chunks": (100,)},
    "gzip": {"chunks": (100,), "compression": "gzip"},
    "shuffle": {"chunks": (100,), "shuffle": True},
    "both": {"chunks": (100,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (100,), "compression": "lzf"},
    "one piece": {},
}


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("filters", FILTERS)
def test_column_reads_as_hdf5_does(tmp_path, filters, userblock):
    values = np.random.default_rng(0).integers(0, 1000, 1003).astype(">i4")
    options = FILTERS[filters]
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
        if options:
            dataset = file.create_dataset("x", data=values, maxshape=(None,), **options)
            dataset.resize((1200,))
            dataset[1150:] = 7  # the chunk before was never written
        else:
            file["x"] = np.append(values, values[:197])
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["x"]
        column = Column(dataset)
        assert len(column) == 1200
        spans = [(0, 1200), (0, 100), (37, 41), (95, 730), (1000, 1200), (5, 5)]
        with ThreadPoolExecutor(4) as threads:
            for (start, stop), found in zip(
                spans, threads.map(lambda span: column[slice(*span)], spans), strict=True
            ):
                np.testing.assert_array_equal(found, dataset[start:stop])
                assert found.dtype == np.dtype("i4")


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_is_cut_off_within_a_dataset(tmp_path, compression):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(5000), chunks=(1000,), compression=compression)
    with h5py.File(tmp_path / "a.h5") as file:
        column = Column(file["x"])
        os.truncate(tmp_path / "a.h5", 3000)  # HDF5 itself would not have opened it
        with pytest.raises(EOFError, match="the file ends within a dataset"):
            column[0:5000]


# ------------------------------------------------------------------------------------------- kind


def write_10x(path, X):
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = [f"AAA{i}-1".encode() for i in range(X.shape[0])]
        group["data"], group["indices"] = X.data.astype(np.int32), X.indices
        group["indptr"], group["shape"] = X.indptr, X.shape[::-1]
        for name in ("id", "name"):
            group[f"features/{name}"] = [f"{name}{i}".encode() for i in range(X.shape[1])]


def test_kind_is_told_from_the_content(tmp_path):
    X = counts()
    write_10x(tmp_path / "cells.h5ad", X)
    adata(X).write_h5ad(tmp_path / "cells.h5")
    with open_source(tmp_path / "cells.h5ad") as source:
        assert source.kind == "10x_h5"
    with open_source(tmp_path / "cells.h5") as source:
        assert source.kind == "h5ad"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "a.csv",
            b"gene,cell\n",
            "known kind .it is a table of text; in Python: .*: accepted are an AnnData",
        ),
        ("a.h5ad", b"", "it is empty"),
        ("a.h5ad.gz", gzip.compress(b"x", mtime=0), "it is gzipped: unpack it first"),
        ("matrix.mtx.gz", gzip.compress(b"x", mtime=0), "name the folder that it lies in"),
        ("a.h5ad", b"<!DOCTYPE html>", "it is a web page"),
        ("a.h5ad", b"\x89HDF\r\n\x1a\n" + bytes(50), "does not open as HDF5, it is damaged"),
    ],
)
def test_unknown_files_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        read(tmp_path / name)


def test_cut_off_hdf5_is_refused(tmp_path):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad")
    change(tmp_path, "a.h5ad", lambda data: data[:-3000])
    with pytest.raises(UserError, match="does not open as HDF5, it is damaged or cut off"):
        read(tmp_path / "a.h5ad")


def test_other_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix2"] = [1]
    with pytest.raises(
        UserError, match=r"neither AnnData .* nor 10x .*; it holds matrix2: accepted"
    ):
        read(tmp_path / "a.loom")


def test_a_kind_that_the_file_is_not(tmp_path):
    adata(counts()).write_h5ad(tmp_path / "a.h5ad")
    write_10x(tmp_path / "a.h5", counts())
    with pytest.raises(UserError, match=r"a\.h5ad is no 10x file: it has no group with barcodes"):
        read(tmp_path / "a.h5ad", kind="10x_h5")
    with pytest.raises(UserError, match=r"a\.h5 is no AnnData file: it has no obs and no var"):
        read(tmp_path / "a.h5", kind="h5ad")
    with pytest.raises(UserError, match="has no matrix file"):
        read(tmp_path / "a.h5", kind="10x_mtx")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"a\.h5ad does not exist: check the path in datasets"):
        read(tmp_path / "a.h5ad")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no files"):
        read(tmp_path / "empty")
