import gzip
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scrna.errors import UserError
from scrna.sources import base, hdf5, mtx, open_source
from scrna.sources.base import NotMatrix
from scrna.sources.hdf5 import Column, thread_pool

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


def counts(n_obs=60, n_vars=40, density=0.2, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < density)
    dense[[5, -1]] = 0  # cells without a count
    dense[1, 0] = 1
    return sp.csr_matrix(dense.astype(np.float32))


def adata(X, **slots):
    obs = pd.DataFrame(
        {"batch": pd.Categorical(["a", "b"] * (X.shape[0] // 2)), "age": 1.5},
        index=[f"cell{i}" for i in range(X.shape[0])],
    )
    var = pd.DataFrame({"n": 1}, index=[f"gene{i}" for i in range(X.shape[1])])
    return ad.AnnData(X, obs=obs, var=var, **slots)


def read(path, matrix="X", cells=None, **options):
    """All that a source gives: obs, var, the matrix of the cells asked for, number of blocks."""
    with open_source(path, **options) as source:
        obs = source.obs()
        cells = np.ones(len(obs), bool) if cells is None else cells
        blocks = list(source.blocks(matrix, cells))
        numbers = np.concatenate([block.cells for block in blocks])
        np.testing.assert_array_equal(numbers, np.flatnonzero(cells))
        return obs, source.var(matrix), sp.vstack([b.counts for b in blocks], "csr"), len(blocks)


def assert_same(a, b):
    assert a.shape == b.shape
    assert (a != b).nnz == 0


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
    memory = 8 * (X.nnz // n_passes + 20)
    cells = np.arange(60) % 7 != 0
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
    _, _, new, _ = read(real_data / "pbmc1k/pbmc1k_10x_v3_with_antibodies.h5")
    assert found.sum() < new.sum()


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


@pytest.mark.parametrize("filters", [{}, {"compression": "gzip"}, {"shuffle": True}, "both"])
def test_column_reads_as_hdf5_does(tmp_path, filters):
    filters = {"compression": "gzip", "shuffle": True} if filters == "both" else filters
    values = np.random.default_rng(0).integers(0, 1000, 1003).astype(">i4")
    with h5py.File(tmp_path / "a.h5", "w") as file, thread_pool() as threads:
        dataset = file.create_dataset("x", data=values, chunks=(100,), maxshape=(None,), **filters)
        dataset.resize((1200,))
        dataset[1150:] = 7  # the chunk before was never written
        column = Column(dataset, threads)
        assert len(column) == 1200
        for start, stop in [(0, 1200), (0, 100), (37, 41), (95, 730), (1000, 1200), (5, 5)]:
            np.testing.assert_array_equal(column[start:stop], dataset[start:stop])
            assert column[start:stop].dtype == np.dtype("i4")


# -------------------------------------------------------------------------------------------- 10x


def write_10x(path, X, *, types=None, genomes=None):
    """Write as Cell Ranger 3 does; with genomes, as Cell Ranger 2 does."""
    with h5py.File(path, "w") as file:
        for name in genomes or ["matrix"]:
            group = file.create_group(name)
            group["barcodes"] = [f"AAA{i}-1".encode() for i in range(X.shape[0])]
            group["data"], group["indices"] = X.data.astype(np.int32), X.indices
            group["indptr"], group["shape"] = X.indptr, X.shape[::-1]
            ids = [f"ENSG{i}".encode() for i in range(X.shape[1])]
            names = [f"SYM{i}".encode() for i in range(X.shape[1])]
            if genomes:
                group["genes"], group["gene_names"] = ids, names
            else:
                group["features/id"], group["features/name"] = ids, names
                if types is not None:
                    group["features/feature_type"] = [kind.encode() for kind in types]


def test_10x_of_cell_ranger_3(tmp_path):
    X = counts()
    types = np.array(["Gene Expression"] * 40, dtype=object)
    types[[3, 20]], types[39] = "Antibody Capture", "CRISPR Guide Capture"
    write_10x(tmp_path / "a.h5", X, types=types)
    _, var, found, n_blocks = read(tmp_path / "a.h5")
    is_gene = types == "Gene Expression"
    assert_same(found, X[:, is_gene])
    assert n_blocks >= 4
    assert var.index[3] == "ENSG4"
    assert var["gene_symbols"].iloc[3] == "SYM4"
    with open_source(tmp_path / "a.h5") as source:
        assert source.kind == "10x_h5"
        assert source.obs().index[1] == "AAA1-1"
        assert source.notes == [
            "37 genes are used; other features are left out: 2 of type Antibody Capture, "
            "1 of type CRISPR Guide Capture."
        ]


def test_10x_of_cell_ranger_2(tmp_path):
    X = counts()
    write_10x(tmp_path / "a.h5", X, genomes=["GRCh38"])
    obs, var, found, _ = read(tmp_path / "a.h5")
    assert_same(found, X)
    assert list(var.columns) == ["gene_symbols"]
    assert len(obs) == 60


def test_several_genomes_are_refused(tmp_path):
    write_10x(tmp_path / "a.h5", counts(), genomes=["GRCh38", "mm10"])
    with pytest.raises(UserError, match=r"a\.h5 holds the genomes GRCh38, mm10"):
        read(tmp_path / "a.h5")


def test_no_genes_are_refused(tmp_path):
    write_10x(tmp_path / "a.h5", counts(), types=["Antibody Capture"] * 40)
    with pytest.raises(UserError, match=r"no features of type Gene Expression: it has 40 of type"):
        read(tmp_path / "a.h5")


def test_10x_that_does_not_fit_together(tmp_path):
    write_10x(tmp_path / "a.h5", counts())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = [b"AAA-1"]
    with pytest.raises(UserError, match="its matrix is 40 × 60, with 40 features and 1 barcodes"):
        read(tmp_path / "a.h5")


def test_a_10x_file_without_features(tmp_path):
    write_10x(tmp_path / "a.h5", counts())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/features/id"]
    with pytest.raises(UserError, match=r"a\.h5 cannot be read: the file is damaged"):
        read(tmp_path / "a.h5")


# -------------------------------------------------------------------------------------------- mtx


def write_mtx(folder, X, *, version=3, order=None, header=None, prefix="", types=True):
    """Write as Cell Ranger does: genes × cells, cell by cell."""
    folder.mkdir(exist_ok=True)
    coo = X.T.tocsc().tocoo()
    entries = np.column_stack([coo.row + 1, coo.col + 1, coo.data]).astype(int)
    entries = entries if order is None else entries[order(entries)]
    header = header or f"{X.shape[1]} {X.shape[0]} {len(entries)}"
    lines = ["%%MatrixMarket matrix coordinate integer general", "%", header]
    lines += [" ".join(map(str, entry)) for entry in entries]
    kind = "\tGene Expression" if types and version == 3 else ""
    genes = [f"ENSG{i}\tSYM{i}{kind}" for i in range(X.shape[1])]
    cells = [f"AAA{i}-1" for i in range(X.shape[0])]
    names = ["matrix.mtx", "features.tsv" if version == 3 else "genes.tsv", "barcodes.tsv"]
    for name, text in zip(names, (lines, genes, cells), strict=True):
        data = ("\n".join(text) + "\n").encode()
        if version == 3:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"{prefix}{name}").write_bytes(data)
    return folder


@pytest.mark.parametrize("version", [2, 3])
def test_mtx_folders(tmp_path, version):
    X = counts()
    folder = write_mtx(tmp_path / "mtx", X, version=version)
    obs, var, found, n_blocks = read(folder)
    assert_same(found, X)
    assert n_blocks >= 4
    assert obs.index[-1] == "AAA59-1"
    assert (var.index[1], var["gene_symbols"].iloc[1]) == ("ENSG1", "SYM1")
    assert_same(read(sorted(folder.iterdir()))[2], X)


def test_some_cells_of_an_mtx_folder(tmp_path):
    X = counts()
    cells = np.arange(60) % 3 == 0
    assert_same(read(write_mtx(tmp_path / "mtx", X), cells=cells)[2], X[cells])


def test_files_as_geo_names_them(tmp_path):
    X = counts()
    folder = write_mtx(tmp_path / "mtx", X, prefix="GSM123_sample1_")
    (folder / "readme.txt").write_text("from GEO")
    assert_same(read(folder)[2], X)


def test_one_cell_longer_than_a_block(tmp_path):
    X = sp.csr_matrix(np.arange(1, 1001).reshape(2, 500))
    assert_same(read(write_mtx(tmp_path / "mtx", X))[2], X)


def test_mtx_without_any_count(tmp_path):
    X = sp.csr_matrix((4, 3))
    assert_same(read(write_mtx(tmp_path / "mtx", X))[2], X)


def by_gene(entries):
    return np.argsort(entries[:, 0], kind="stable")


def test_mtx_in_another_order_is_sorted(tmp_path, caplog):
    caplog.set_level("INFO", logger="scrna")
    X = counts()
    folder = write_mtx(tmp_path / "mtx", X, order=by_gene)
    assert_same(read(folder)[2], X)
    assert "not sorted by cell" in caplog.text


def test_mtx_in_another_order_that_does_not_fit(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts(), order=by_gene)
    with pytest.raises(UserError, match=r"not sorted by cell; .* convert it to \.h5ad"):
        read(folder, memory=1000)


def test_mtx_that_is_sorted_at_first(tmp_path):
    def end_reversed(entries):
        n = len(entries)
        return np.concatenate([np.arange(n - 20), np.arange(n - 1, n - 21, -1)])

    folder = write_mtx(tmp_path / "mtx", counts(), order=end_reversed)
    with pytest.raises(UserError, match="sorted by cell at first and not further down"):
        read(folder)


def test_transposed_mtx_is_refused(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts(), header="60 40 100")
    with pytest.raises(
        UserError, match=r"has 40 features and .* has 60 barcodes: it is transposed"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("40 61 100", "says that its size is '40 61 100', but"),
        ("40 60 5000", "has [0-9]+ entries where it announces 5,000: it is cut off"),
        ("40 60 5", "has [0-9]+ entries where it announces 5"),
        ("nonsense", "says that its size is 'nonsense'"),
    ],
)
def test_wrong_sizes_are_refused(tmp_path, header, match):
    with pytest.raises(UserError, match=match):
        read(write_mtx(tmp_path / "mtx", counts(), header=header))


def change(folder, name, function):
    path = folder / name
    path.write_bytes(function(path.read_bytes()))


def test_cut_off_mtx_is_refused(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts())
    change(folder, "matrix.mtx.gz", lambda data: data[: len(data) // 2])
    with pytest.raises(UserError, match=r"matrix\.mtx\.gz cannot be read: the file is damaged or"):
        read(folder)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"integer general", b"pattern general", "holds pattern general entries, not counts"),
        (b"coordinate", b"array", "is no sparse Matrix Market file: it starts with"),
        (b"\n1 2 ", b"\n1 x ", "has a line that is not three numbers"),
        (b"\n1 2 ", b"\n41 2 ", "has an entry for feature 41, but there are 40"),
        (b"\n1 2 ", b"\n1 0 ", "has an entry for barcode 0, but there are 60"),
    ],
)
def test_damaged_mtx_is_refused(tmp_path, old, new, match):
    folder = write_mtx(tmp_path / "mtx", counts(), version=2)
    change(folder, "matrix.mtx", lambda data: data.replace(old, new, 1))
    with pytest.raises(UserError, match=match):
        read(folder)


def test_mtx_parts_must_be_there_once(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts())
    (folder / "barcodes.tsv").write_text("A\n")
    with pytest.raises(UserError, match=r"has several barcodes files; it holds barcodes.tsv, barc"):
        read(folder)
    (folder / "barcodes.tsv").unlink()
    (folder / "features.tsv.gz").unlink()
    with pytest.raises(UserError, match=r"no features file \(features\.tsv or .*genes\.tsv"):
        read(folder)


def test_names_are_taken_as_they_are(tmp_path):
    """NA is a gene of Drosophila, and nobody means a quote to open a string."""
    folder = write_mtx(tmp_path / "mtx", counts(8, 3), version=2)
    (folder / "genes.tsv").write_text("FB1\tNA\nFB2\tY'\"q\nFB3\tnull\n")
    assert list(read(folder)[1]["gene_symbols"]) == ["NA", "Y'\"q", "null"]


# ------------------------------------------------------------------------------------------- kind


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
        ("a.csv", b"gene,cell\n", "known kind .it starts with b'gene,cel'.: accepted are an AnnD"),
        ("a.h5ad", b"", "it is empty"),
        ("a.h5ad.gz", gzip.compress(b"x"), "it is gzipped: unpack it first"),
        ("matrix.mtx.gz", gzip.compress(b"x"), "name the folder that it lies in"),
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


def test_mtx_and_h5_of_the_same_cells_agree(real_data, tmp_path, monkeypatch):
    for module in (base, hdf5, mtx):
        monkeypatch.setattr(module, "BLOCK_NNZ", 2**19)
    obs, var, h5, _ = read(real_data / "pbmc1k/pbmc1k_10x_v3_with_antibodies.h5")
    obs2, var2, text, n_blocks = read(real_data / "pbmc1k/mtx_v3")
    assert_same(h5, text)
    assert h5.shape == (892, 36_601)
    assert n_blocks > 2
    assert obs.index.equals(obs2.index)
    assert var["gene_symbols"].equals(var2["gene_symbols"])
    copy = tmp_path / "v2"  # Cell Ranger 2's way
    copy.mkdir()
    for name, new in (("matrix.mtx", "matrix.mtx"), ("features.tsv", "genes.tsv")):
        with gzip.open(real_data / f"pbmc1k/mtx_v3/{name}.gz") as packed:
            (copy / new).write_bytes(packed.read())
    shutil.copy(real_data / "pbmc1k/mtx_v3/barcodes.tsv.gz", copy)
    assert_same(read(copy)[2], h5)
