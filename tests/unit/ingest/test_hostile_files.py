"""Files that somebody else made to reach into others, or to fill the memory."""

import gzip
import json
import os
import re
import shutil
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
from scrna.ingest.formats import hdf5, open_source
from scrna.ingest.formats.hdf5 import Column
from tests.unit.ingest.test_formats_10x import change, counts, write_10x, write_mtx
from tests.unit.source_reading import assert_same, read

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

_CONVERT = """
import json, re, sys
sys.path[1:1] = [sys.argv[1]]
sys.path.append(sys.argv[1] + "/scripts")
from pathlib import Path
from scripts.convert import convert
from scrna.errors import UserError
import anndata.io, pandas
import scrna.ingest.formats.h5ad, scrna.ingest.formats.mtx, scrna.ingest.formats.tenx
out = Path(sys.argv[2])
status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", status.read_text())[1])
found = {}
for path in map(Path, sys.argv[3:]):
    clear.write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    try:
        convert(path, out / "c.zarr", out / "c.json", dataset="x")
        said = "converted"
    except UserError as error:
        said = f"refused: {error}"
    found[path.parent.name] = memory("VmHWM") - before, said
print(json.dumps(found))
"""
_PIECE = 2**24
_MTX = b"%%MatrixMarket matrix coordinate integer general\n"


def packed(start: bytes, fill: bytes, n_bytes: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Compress a start and what goes on with the same bytes, as one piece that is repeated."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(fill * (_PIECE // len(fill))) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + piece * (n_bytes // _PIECE) + packer.flush()  # which has a wrong checksum


def bomb(file, name: str, n_bytes: int, shape, chunks=None) -> None:
    """Replace a dataset by one whose first chunk inflates to so many bytes."""
    attributes = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    dataset = file.create_dataset(name, shape, "i4", chunks=chunks or shape, compression="gzip")
    dataset.id.write_direct_chunk((0,) * len(shape), packed(b"", b"\0", n_bytes))
    dataset.attrs.update(attributes)


def of_shape(path: Path, n_obs: int, n_vars: int) -> h5py.File:
    """Begin an AnnData file without X."""
    file = h5py.File(path, "w")
    for name, n in (("obs", n_obs), ("var", n_vars)):
        ad.io.write_elem(file, name, pd.DataFrame(index=pd.RangeIndex(n).astype(str)))
    return file


def large_chunk(path):
    with h5py.File(path, "a") as file:
        bomb(file, "X/data", _PIECE, (700_000_000,))


def hidden_in_data(path):
    with h5py.File(path, "a") as file:
        bomb(file, "X/data", 2_800_000_000, (counts().nnz,))


def hidden_in_obs(path):
    with h5py.File(path, "a") as file:
        bomb(file, "obs/n", 2_800_000_000, (60,))


def hidden_in_dense(path):
    with h5py.File(path, "a") as file:
        bomb(file, "X", 2_800_000_000, (60, 40))
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def hidden_in_a_larger_chunk(path):
    """No more is packed than what the chunk says may take."""
    with of_shape(path, 2000, 1000) as file:
        bomb(file, "X", 1_200_000_000, (2000, 1000))
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def one_value(path, chunks=None):
    """As wide as matrices get, with one value written."""
    with of_shape(path, 12_000, 30_000) as file:
        X = file.create_dataset("X", (12_000, 30_000), "f4", chunks=chunks)
        X[-1, -1] = 7
        X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def one_value_in_high_chunks(path):
    one_value(path, (3000, 3000))


def text(name: str, start: bytes, fill: bytes):
    def write(folder: Path) -> None:
        write_mtx(folder, counts())
        (folder / f"{name}.gz").write_bytes(packed(start, fill, 2**28, zlib.MAX_WBITS | 16))

    return write


_LINE = "has a line of more than 65,536 bytes after"
#: Name → what writes it, what is said, and by how much the memory may grow: a quarter of a GB where
#: nothing is read, else 2 GB, the conversion's part of what its rule asks for.
BOMBS = {
    "large chunk": (
        large_chunk,
        r"/X/data is stored in chunks of 2\.80 GB: reading one takes some 16\.8 GB, and a "
        r"conversion has 2\.0 GB",
        2**28,
    ),
    "data": (hidden_in_data, r"/X/data has a chunk of 2\.\d MB, for 0\.0 MB of values", 2**28),
    "obs": (hidden_in_obs, r"/obs/n has a chunk of 2\.\d MB, for 0\.0 MB of values", 2**28),
    "dense": (hidden_in_dense, r"/X has a chunk of 2\.\d MB, for 0\.0 MB of values", 2**28),
    "larger chunk": (
        hidden_in_a_larger_chunk,
        r"/X has a chunk of 1\.\d MB that inflates to 1\.1 GB or more, for 8\.0 MB of values",
        2**28,
    ),
    "one value": (one_value, "converted", 2e9),
    "high chunks": (one_value_in_high_chunks, "converted", 2e9),
    "first line": (text("matrix.mtx", b"%%MatrixMarket", b"x"), f"{_LINE} 0 lines", 2**28),
    "comment": (text("matrix.mtx", _MTX + b"%", b"x"), f"{_LINE} 1 lines", 2**28),
    "comments": (text("matrix.mtx", _MTX, b"%\n"), "has more than .* lines", 2**28),
    "entry": (text("matrix.mtx", _MTX + b"40 60 9\n1 1 ", b"1"), f"{_LINE} 2 lines", 2**28),
    "entries": (text("matrix.mtx", _MTX + b"40 60 9\n", b"1 1 1\n"), "has more", 2**28),
    "no entries": (text("matrix.mtx", _MTX + b"40 60 9\n", b"\n"), "has more", 2**28),
    "barcode": (text("barcodes.tsv", b"A", b"x"), f"{_LINE} 0 lines", 2**28),
    "barcodes": (text("barcodes.tsv", b"A\n", b"x\n"), r"has more than 16,\S+ lines", 2e9),
    "genes": (text("features.tsv", b"A\tB\n", b"A\tB\n"), r"has more than 5,0\S+ lines", 2e9),
}


def test_what_would_fill_the_memory(h5ad, tmp_path):
    """One process converts all, since it takes its time to start."""
    paths = []
    for name, (write, _, _) in BOMBS.items():
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "a.h5ad")
        if write in (one_value, one_value_in_high_chunks, hidden_in_a_larger_chunk):
            write(paths[-1])
        elif paths[-1].suffix and write.__name__ == "write":
            paths[-1] = tmp_path / name / "mtx"
            write(paths[-1])
        else:
            shutil.copy(h5ad, paths[-1])
            write(paths[-1])
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", _CONVERT, root, tmp_path, *paths]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, timeout=300)
    found = json.loads(done.stdout)
    wrong = {
        name: found[name]
        for name, (_, said, grows) in BOMBS.items()
        if not re.search(said, found[name][1]) or found[name][0] > grows
    }
    assert wrong == {}
    X = ad.read_zarr(tmp_path / "c.zarr").X  # of the last that was converted
    assert (X.shape, X.nnz, X[-1, -1]) == ((12_000, 30_000), 1, 7)


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
def test_a_declared_matrix_that_is_empty(h5ad, chunks):
    with h5py.File(h5ad, "a") as file:
        del file["X"]
        file.create_dataset("X", (2_000_000, 30_000), "f4", chunks=chunks)
    with pytest.raises(UserError, match=r"/X is 2,000,000 × 30,000 values, 240\.0 GB, and none"):
        read(h5ad)


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
        ("a.rds", gzip.compress(b"X", mtime=0), "zellkonverter::writeH5AD"),
        ("a.RData", b"RDX3\n", "zellkonverter::writeH5AD"),
        ("a.csv.gz", gzip.compress(b"a,b", mtime=0), r"anndata\.io\.read_csv"),
        ("a.zip", b"PK\x03\x04", "an archive: unpack it first"),
        ("a", b"PK\x03\x04", "a zip archive: unpack it first"),
        ("a.tar.gz", gzip.compress(b"", mtime=0), "an archive: unpack it first"),
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
