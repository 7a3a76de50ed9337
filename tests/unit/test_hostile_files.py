"""Files that somebody else made to reach into others, or to fill the memory."""

import gzip
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scrna.errors import UserError
from scrna.sources import hdf5, open_source
from scrna.sources.hdf5 import Column
from tests.unit.source_reading import assert_same, read
from tests.unit.test_sources_10x import change, counts, write_10x, write_mtx

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]
SECRET = 4242


@pytest.fixture
def h5ad(tmp_path) -> Path:
    X = counts()
    obs = pd.DataFrame({"n": 1}, index=[f"cell{i}" for i in range(60)])
    ad.AnnData(X, obs=obs).write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


@pytest.fixture
def other(tmp_path) -> Path:
    """A file of this machine that is nobody's business: numbers, bare and in HDF5."""
    values = np.full(2400, SECRET, np.int32)
    values.tofile(tmp_path / "private.bin")
    with h5py.File(tmp_path / "private.h5", "w") as file:
        file["X"] = values.reshape(60, 40)
    return tmp_path / "private"


# -------------------------------------------------------------------------- links to other files


def external_link(file, other):
    del file["X"]
    file["X"] = h5py.ExternalLink(f"{other}.h5", "/X")


def external_link_in_a_table(file, other):
    file["obs/secret"] = h5py.ExternalLink(f"{other}.h5", "/X")


def external_link_by_a_soft_one(file, other):
    file["uns/there"] = h5py.ExternalLink(f"{other}.h5", "/")
    del file["X"]
    file["X"] = h5py.SoftLink("/uns/there/X")


def external_storage(file, other):
    del file["X"]
    bare = [(f"{other}.bin", 0, 2400 * 4)]
    file.create_dataset("X", (60, 40), np.int32, external=bare)


def virtual_dataset(file, other):
    del file["X"]
    layout = h5py.VirtualLayout((60, 40), np.int32)
    layout[:] = h5py.VirtualSource(f"{other}.h5", "X", (60, 40))
    file.create_virtual_dataset("X", layout)


REACHING = [
    (external_link, "/X is a link to another file, .*private.h5"),
    (external_link_in_a_table, "/obs/secret is a link to another file, .*private.h5"),
    (external_link_by_a_soft_one, "/uns/there is a link to another file"),
    (external_storage, "/X has its values in another file, .*private.bin"),
    (virtual_dataset, "/X is a virtual dataset"),
]


@pytest.mark.parametrize("kind", ["auto", "h5ad"])
@pytest.mark.parametrize(("damage", "match"), REACHING)
def test_an_h5ad_that_reaches_into_other_files(h5ad, other, kind, damage, match):
    with h5py.File(h5ad, "a") as file:
        damage(file, other)
    with pytest.raises(UserError, match=f"a.h5ad is refused: {match}"):
        read(h5ad, kind=kind)


@pytest.mark.parametrize("name", ["matrix", "matrix/data", "matrix/features/name"])
def test_a_10x_file_that_reaches_into_other_files(tmp_path, other, name):
    write_10x(tmp_path / "a.h5", counts())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink(f"{other}.h5", "/X")
    for kind in ("auto", "10x_h5"):
        with pytest.raises(UserError, match=f"/{name} is a link to another file"):
            read(tmp_path / "a.h5", kind=kind)


# ------------------------------------------------------------------------------------------ loops


def soft_loop(file):
    del file["X"]
    file["X"] = h5py.SoftLink("/Y")
    file["Y"] = h5py.SoftLink("/X")


def soft_loop_through_groups(file):
    file["obs/up"] = h5py.SoftLink("/var")
    file["var/up"] = h5py.SoftLink("/obs")


def hard_loop(file):
    file["obs/self"] = file["obs"]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (soft_loop, "/[XY] is a soft link to /[XY], which leads nowhere or in a circle"),
        (lambda file: file.move("X", "Z") or soft_to(file), "leads nowhere"),
        (lambda file: soft_to(file, "obs/up", "/obs"), "groups that contain each other"),
        (soft_loop_through_groups, "groups that contain each other"),
        (hard_loop, "groups that contain each other"),
    ],
)
def test_loops_are_refused(h5ad, damage, match):
    with h5py.File(h5ad, "a") as file:
        damage(file)
    with pytest.raises(UserError, match=match):
        read(h5ad)


def soft_to(file, name="X", target="/nowhere"):
    file[name] = h5py.SoftLink(target)


def test_links_within_the_file_are_followed(h5ad):
    """A layer that is X by another name; nothing is wrong with it."""
    with h5py.File(h5ad, "a") as file:
        file["layers/soft"] = h5py.SoftLink("/X")
        file["layers/hard"] = file["X"]
    for matrix in ("X", "layers/soft", "layers/hard"):
        assert_same(read(h5ad, matrix)[2], counts())


def test_a_link_to_the_file_itself_is_no_harm(h5ad, tmp_path):
    (tmp_path / "mine.h5ad").symlink_to(h5ad)
    assert_same(read(tmp_path / "mine.h5ad")[2], counts())


@pytest.mark.parametrize("name", ["matrix.mtx", "genes.tsv", "barcodes.tsv"])
def test_links_out_of_an_mtx_folder(tmp_path, name):
    folder = write_mtx(tmp_path / "mtx", counts(), version=2)
    (folder / name).rename(tmp_path / "private")
    (folder / name).symlink_to("../private")
    match = f"{name} is a link that leads out of its folder, to .*private: .*cp -rL"
    for paths in (folder, sorted(folder.iterdir())):
        with pytest.raises(UserError, match=match):
            read(paths)


def test_links_within_an_mtx_folder_and_to_it(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts(), version=2)
    (folder / "matrix.mtx").rename(folder / "blob")
    (folder / "matrix.mtx").symlink_to("blob")
    (tmp_path / "mine").symlink_to(folder)
    assert_same(read(tmp_path / "mine")[2], counts())


# ----------------------------------------------------------------------------------- memory bombs

_BOUNDED = """
import sys
sys.path[1:1] = [sys.argv[1]]
sys.path.append(sys.argv[1] + "/scripts")
import re
from pathlib import Path
from scripts.convert import convert
from scrna.errors import UserError
import scrna.sources.h5ad, scrna.sources.mtx, scrna.sources.tenx, anndata.io
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, out = peak(), Path(sys.argv[3])
try:
    convert(Path(sys.argv[2]), out / "c.zarr", out / "c.json", dataset="x")
    said = "converted"
except UserError as error:
    said = f"refused: {error}"
print(peak() - before, said)
"""


def convert_apart(path: Path) -> tuple[int, str]:
    """Convert in a process of its own: by how many bytes its peak grew, and what it said."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _BOUNDED, str(root), str(path), str(path.parent)]
    limits = (resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(*limits),
    )
    grown, _, said = done.stdout.partition(" ")
    return int(grown), said


def bomb(file, name: str, n_bytes: int, shape, dtype, chunks) -> None:
    """Write one chunk of zeros that inflates to so many bytes, whatever the dataset says."""
    if name in file:
        del file[name]
    dataset = file.create_dataset(name, shape, dtype, chunks=chunks, compression="gzip")
    packer = zlib.compressobj(9)
    zeros = bytes(2**24)
    parts = [packer.compress(zeros) for _ in range(n_bytes // len(zeros))]
    dataset.id.write_direct_chunk((0,) * len(shape), b"".join(parts) + packer.flush())


def test_a_chunk_as_large_as_it_says(h5ad):
    with h5py.File(h5ad, "a") as file:
        n = 700_000_000
        bomb(file, "X/data", 4 * n // 2**24 * 2**24, (n,), "i4", (n,))
    grown, said = convert_apart(h5ad)
    assert "/X/data is stored in chunks of 2.80 GB: reading one takes some 16.8 GB" in said
    assert "a conversion has 2.0 GB" in said
    assert grown < 2**28


@pytest.mark.parametrize("name", ["X/data", "obs/n", "X"])
def test_a_chunk_larger_than_it_says(h5ad, name):
    n = 2_816_000_000 if name == "X" else 2**31
    shape = (60, 40) if name == "X" else (counts().nnz if name == "X/data" else 60,)
    with h5py.File(h5ad, "a") as file:
        attributes = dict(file[name].attrs)
        bomb(file, name, n, shape, "i4", shape)
        if name == "obs/n":
            file[name].attrs.update(attributes)
    grown, said = convert_apart(h5ad)
    assert f"/{name} has a chunk of 2." in said
    assert "MB of values; rewrite it" in said
    assert grown < 2**28


def test_a_chunk_larger_than_it_says_by_less(tmp_path):
    """Of 8 MB said and 1.2 GB inside: no more is packed than 8 MB may take."""
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "obs", pd.DataFrame(index=[f"c{i}" for i in range(2000)]))
        ad.io.write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(1000)]))
        bomb(file, "X", 1_200_000_000, (2000, 1000), "i4", (2000, 1000))
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    grown, said = convert_apart(tmp_path / "a.h5ad")
    assert "/X has a chunk of 1.2 MB that inflates to 1.1 GB or more, for 8.0 MB of values" in said
    assert grown < 2**28


def test_a_column_inflates_to_its_size_and_no_further(tmp_path):
    values = np.arange(1000, dtype="i4")
    for raw, match in ((values.tobytes() + b"x", "inflates to more"), (b"x" * 10, "to less")):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            column = file.create_dataset("x", (1000,), "i4", chunks=(1000,), compression="gzip")
            column.id.write_direct_chunk((0,), zlib.compress(raw))
        with h5py.File(tmp_path / "a.h5") as file, pytest.raises(zlib.error, match=match):
            Column(file["x"])[0:10]


def test_large_chunks_are_read_by_blocks(tmp_path, monkeypatch):
    """R's rhdf5 writes a dataset as one chunk; it is inflated once and not for every block."""
    monkeypatch.setattr(hdf5, "BLOCK_NNZ", 20)
    X = counts()
    write_10x(tmp_path / "a.h5", X)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name in ("data", "indices"):
            values = file["matrix"][name][:]
            del file["matrix"][name]
            file["matrix"].create_dataset(
                name, data=values, chunks=(300,), compression="gzip", shuffle=True
            )
    inflated = []
    real = Column._inflated

    def spy(column, *where):
        inflated.append(column.dataset.name)
        return real(column, *where)

    monkeypatch.setattr(Column, "_inflated", spy)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    _, _, found, n_blocks = read(tmp_path / "a.h5")
    assert_same(found, X)
    assert n_blocks > 12
    assert len(inflated) == 2 * -(-X.nnz // 300)


@pytest.mark.parametrize("chunks", [None, True])
def test_a_declared_matrix_that_is_empty(tmp_path, chunks):
    n_obs, n_vars = 2_000_000, 30_000
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        for name, n in (("obs", n_obs), ("var", n_vars)):
            ad.io.write_elem(file, name, pd.DataFrame(index=pd.RangeIndex(n).astype(str)))
        file.create_dataset("X", (n_obs, n_vars), "f4", chunks=chunks)
    with pytest.raises(UserError, match=r"/X is 2,000,000 × 30,000 values, 240\.0 GB, and none"):
        read(tmp_path / "a.h5ad")


@pytest.mark.parametrize("chunks", [None, (3000, 3000)])
def test_a_dense_matrix_is_read_within_the_plan(tmp_path, chunks):
    """Cells × genes as wide as they get, of which one value is written; high chunks or none."""
    shape = (12_000, 30_000)
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        for name, n in zip(("obs", "var"), shape, strict=True):
            ad.io.write_elem(file, name, pd.DataFrame(index=pd.RangeIndex(n).astype(str)))
        X = file.create_dataset("X", shape, "f4", chunks=chunks)
        X[-1, -1] = 7
        X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    grown, said = convert_apart(tmp_path / "a.h5ad")
    assert said.strip() == "converted"
    assert grown < 2e9
    found = ad.read_zarr(tmp_path / "c.zarr").X
    assert (found.nnz, found[-1, -1]) == (1, 7)


def empty_column(file):
    file.create_dataset("obs/huge", (10**12,), "f8", chunks=(1000,))


def long_column(file):
    column = file.create_dataset("obs/huge", (2 * 10**8,), "f8", chunks=(1000,))
    column[0] = 1


def many_genes(file):
    column = file.create_dataset("var/huge", (6_000_000,), "i1", chunks=(1000,))
    column[0] = 1


def long_text(file):
    file.create_dataset("obs/huge", (60,), f"S{2**21}")[0] = b"x"


def compressed_twice(file):
    place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    place.set_chunk((60,))
    place.set_deflate(9)
    place.set_deflate(9)
    space = h5py.h5s.create_simple((60,))
    made = h5py.h5d.create(file["obs"].id, b"huge", h5py.h5t.NATIVE_INT32, space, place)
    h5py.Dataset(made)[:] = 1


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (empty_column, r"/obs/huge is 1,000,000,000,000 values, 8,000\.0 GB, and none was ever"),
        (long_column, r"/obs/huge is 200,000,000 values, 1\.6 GB, to be read at once"),
        (many_genes, "/var/huge has 6,000,000 genes, of 5,000,000 at most"),
        (long_text, r"/obs/huge has values of 2\.1 MB each"),
        (compressed_twice, "/obs/huge is compressed twice"),
    ],
)
def test_tables_that_would_fill_the_memory(h5ad, damage, match):
    with h5py.File(h5ad, "a") as file:
        damage(file)
    with pytest.raises(UserError, match=match):
        read(h5ad)


# -------------------------------------------------------------------------------------------- mtx


def endless(start: bytes, fill: bytes, n: int = 2**28) -> bytes:
    """Gzip a text that goes on with the same bytes for a quarter of a GB."""
    packer = zlib.compressobj(9, wbits=31)
    piece = fill * (2**24 // len(fill))
    parts = [packer.compress(start), *(packer.compress(piece) for _ in range(n // 2**24))]
    return b"".join(parts) + packer.flush()


_HEADER = b"%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("name", "start", "fill", "match"),
    [
        ("matrix.mtx", b"%%MatrixMarket", b"x", "a line of more than 65,536 bytes after 0 lines"),
        ("matrix.mtx", _HEADER + b"%", b"x", "a line of more than 65,536 bytes after 1 lines"),
        ("matrix.mtx", _HEADER, b"%\n", "has more than .* lines"),
        ("matrix.mtx", _HEADER + b"40 60 9\n1 1 ", b"1", "a line of more than 65,536 bytes after"),
        ("matrix.mtx", _HEADER + b"40 60 9\n", b"1 1 1\n", "has more entries where it announces 9"),
        ("matrix.mtx", _HEADER + b"40 60 9\n", b"\n", "has more than .* lines"),
        ("barcodes.tsv", b"A", b"x", "a line of more than 65,536 bytes after 0 lines"),
        ("barcodes.tsv", b"A\n", b"x\n", "has more than 16,77.* lines"),
        ("features.tsv", b"A\n", b"ENSG00000000\tA\n", "has more than 5,00.* lines"),
    ],
)
def test_text_without_an_end(tmp_path, name, start, fill, match):
    folder = write_mtx(tmp_path / "mtx", counts())
    (folder / f"{name}.gz").write_bytes(endless(start, fill))
    grown, said = convert_apart(folder)
    assert said.startswith("refused: "), said
    with pytest.raises(UserError, match=match):
        raise UserError(said)
    assert grown < 1.5e9


def test_a_header_of_three_words(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts(), version=2)
    change(folder, "matrix.mtx", lambda data: data.replace(b" integer general", b""))
    with pytest.raises(
        UserError, match=r"matrix\.mtx holds unnamed entries, not counts; its first"
    ):
        read(folder)


def test_numbers_of_thousands_of_digits(tmp_path):
    folder = write_mtx(tmp_path / "mtx", counts(), header="40 60 " + "9" * 5000)
    with pytest.raises(UserError, match="says that its size is '40 60 999"):
        read(folder)


# ------------------------------------------------------------------------------- other programs'


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.rds", gzip.compress(b"X"), "zellkonverter::writeH5AD"),
        ("a.RData", b"RDX3\n", "zellkonverter::writeH5AD"),
        ("a.csv.gz", gzip.compress(b"a,b"), r"anndata\.io\.read_csv"),
        ("a.zip", b"PK\x03\x04", "an archive: unpack it first"),
        ("a", b"PK\x03\x04", "a zip archive: unpack it first"),
        ("a.tar.gz", gzip.compress(b""), "an archive: unpack it first"),
    ],
)
def test_files_of_other_programs(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (["matrix", "row_attrs", "col_attrs"], r"it is loom; in Python: anndata\.io\.read_loom"),
        (["mod/rna"], "it is MuData"),
    ],
)
def test_hdf5_of_other_programs(tmp_path, groups, match):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for group in groups:
            file.create_group(group)
    with pytest.raises(UserError, match=match):
        read(tmp_path / "a.h5")


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.h5ad")
    match = r"a named pipe \(FIFO\), not a file"
    with pytest.raises(UserError, match=match), open_source(tmp_path / "a.h5ad"):
        pass


def test_starsolo_and_kb_folders(tmp_path):
    """STARsolo writes features of three columns, kb --cellranger real counts and genes.tsv."""
    X = counts()
    star = write_mtx(tmp_path / "star", X, version=2)
    (star / "genes.tsv").unlink()
    features = [f"ENSG{i}\tSYM{i}\tGene Expression" for i in range(40)]
    (star / "features.tsv").write_text("\n".join(features) + "\n")
    (star / "UniqueAndMult-EM.mtx").write_bytes((star / "matrix.mtx").read_bytes())
    kb = write_mtx(tmp_path / "kb", sp.csr_matrix(X), version=2)
    change(kb, "matrix.mtx", lambda data: data.replace(b"integer", b"real"))
    alone = write_mtx(tmp_path / "alone", X, version=2)
    (alone / "genes.tsv").write_text("".join(f"ENSG{i}\n" for i in range(40)))
    for folder in (star, kb, alone):
        _, var, found, _ = read(folder)
        assert_same(found, X)
        assert var.index[1] == "ENSG1"
        if folder != alone:
            assert var["gene_symbols"].iloc[1] == "SYM1"
