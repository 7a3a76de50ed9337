"""10x files and folders as sources; AnnData files are in test_sources.py."""

import gzip
import shutil

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scrna.errors import UserError
from scrna.ingest.formats import base, hdf5, mtx, open_source
from tests.unit.source_reading import assert_same, counts, read


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Let small matrices be read in many blocks."""
    for module in (base, hdf5, mtx):
        monkeypatch.setattr(module, "BLOCK_NNZ", 100)


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
        assert source.cells().names.one(1) == "AAA1-1"
        assert source.notes == [
            "37 genes are used; other features are left out: 2 of type Antibody Capture, "
            "1 of type CRISPR Guide Capture."
        ]


def test_what_cellbender_writes(tmp_path):
    """Cell Ranger's layout, with CellBender's own findings beside the matrix and within it."""
    X = counts()
    write_10x(tmp_path / "a.h5", X, types=["Gene Expression"] * X.shape[1])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["droplet_latents/cell_probability"] = np.full(X.shape[0], 0.9)
        file["global_latents/ambient_expression"] = np.full(X.shape[1], 0.1)
        file["metadata/fraction_data_used_for_testing"] = 0.1
        file["matrix/latent_cell_probability"] = np.full(X.shape[0], 0.9)
    _, var, found, _ = read(tmp_path / "a.h5")
    assert_same(found, X)
    assert var["gene_symbols"].iloc[3] == "SYM3"


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
        ("40 60 5", "has more entries where it announces 5:"),
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
