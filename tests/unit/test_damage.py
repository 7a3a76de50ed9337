"""Every reader of the workflow's own files against every kind of damage."""

import json
import pickle
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scripts.final import take_over
from scripts.h5ad import h5ad
from scripts.marker_figures import read_table, top_markers
from scripts.matrix import matrix
from scripts.qc_figures import pictures
from scrna import damage, file_list, step
from scrna.atomic import replacing
from scrna.damage import DamagedError
from scrna.data import counts as counts_module
from scrna.data import digests, integrity, step_files
from scrna.data.counts import Counts
from scrna.data.csr_writer import CSRWriter
from scrna.data.matrix import open_matrix
from scrna.data.store import new_store, write_tables
from scrna.errors import UserError
from scrna.plots.saving import save_folder
from scrna.report.results import Results
from scrna.resources import estimates


def remove(file: Path):
    file.unlink()


def empty(file: Path):
    file.write_bytes(b"")


def cut_off(file: Path):
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path, place: int | None = None):
    """Change a bit, by default in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    file.write_bytes(content)


def another_kind(file: Path):
    file.write_text("<html>Not found</html>\n" * 20)


DAMAGES = [remove, empty, cut_off, flip, another_kind]
SAYS = {
    remove: "is missing",
    empty: "is empty",
    cut_off: "is damaged",
    flip: "is damaged",
    another_kind: "is damaged",
}


def files_in(store: Path) -> list[str]:
    names = [file.relative_to(store).as_posix() for file in store.rglob("*") if file.is_file()]
    return sorted(name for name in names if name != "zarr.json")


# ------------------------------------------------------------------------------------- the counts


@pytest.fixture(scope="module")
def intact(tmp_path_factory, prepare):
    """Counts in three shards, and the files of the steps up to the normalisation."""
    rng = np.random.default_rng(3)
    X = sp.csr_matrix(rng.poisson(0.7, (900, 300)), dtype=np.float32)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(list("abc") * 300), "day": np.zeros(900, int)},
        index=[f"cell {i}" for i in range(900)],
    )
    var = pd.DataFrame({"kind": "gene"}, index=[f"gene {i}" for i in range(300)])
    found = prepare(
        tmp_path_factory.mktemp("intact"), ad.AnnData(X, obs, var), min_genes=1, min_cells=1
    )
    assert {"X/data/c/2", "X/indices/c/2"} <= set(files_in(found.counts))
    return found


@pytest.fixture
def copy(intact, tmp_path):
    """A copy of them that may be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(intact.counts.parent, folder)
    paths = {name: folder / getattr(intact, name).name for name in ("counts", "qc")}
    paths |= {name: folder / getattr(intact, name).name for name in ("filtered", "normalized")}
    return intact._replace(**paths)


def in_memory(files):
    nnz = files.adata.X.nnz
    return Counts(files.counts).matrix("cpu", nnz=nnz)


def in_blocks(files):
    return sum(block.data.sum() for block in Counts(files.counts).blocks())


def lazily(files):
    of = files.counts, files.filtered, files.normalized
    with open_matrix("hvg", *of, backend="cpu", asked="blocks") as lazy:
        return sum(block.compute().sum() for block in lazy.blocks)


def tables(files):
    store = Counts(files.counts)
    return store.table("obs"), store.table("var")


def columns(files):
    return Counts(files.counts).obs(["batch", "day"])


def names(files):
    store = Counts(files.counts)
    return store.cell_names(), store.genes()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that neither begin nor end where a chunk does."""
    monkeypatch.setattr(counts_module, "BLOCK_NNZ", 30_011)


@pytest.mark.parametrize("reader", [in_memory, in_blocks, lazily])
@pytest.mark.parametrize("array", ["data/c/0", "data/c/2", "indices/c/1", "indptr/c/0"])
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_matrix_is_not_read(copy, small_blocks, reader, array, harm):
    reader(copy)
    file = copy.counts / "X" / array
    harm(file)
    with pytest.raises(DamagedError) as told:
        reader(copy)
    assert str(file) in told.value.found
    assert SAYS[harm] in told.value.found
    assert told.value.result == copy.counts
    assert "un the same command again" in str(told.value)


@pytest.mark.parametrize("reader", [tables, columns, names])
@pytest.mark.parametrize("harm", DAMAGES)
def test_damaged_tables_are_not_read(copy, reader, harm):
    own = {
        tables: ["obs/day", "var/kind", "var/_index", "obs/batch/categories"],
        columns: ["obs/day", "obs/batch/codes"],
        names: ["obs/_index", "var/_index"],
    }
    for array in own[reader]:
        found = [name for name in files_in(copy.counts) if name.startswith(f"{array}/c")]
        # zeros alone are not written: what is not there was never there
        assert bool(found) == (array != "obs/day")
        for file in [copy.counts / name for name in [*found, f"{array}/zarr.json"]]:
            before = file.read_bytes()
            harm(file)
            with pytest.raises(DamagedError, match=str(file)) as told:
                reader(copy)
            assert told.value.result == copy.counts
            file.write_bytes(before)
    assert reader(copy) is not None


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_store_without_its_root_is_named(copy, harm):
    harm(copy.counts / "zarr.json")
    with pytest.raises(DamagedError, match=r"counts\.zarr/(zarr\.json|X)") as told:
        in_blocks(copy)
    assert told.value.result == copy.counts


def test_a_store_that_lost_its_list_of_files_is_noticed(copy):
    root = copy.counts / "zarr.json"
    root.write_text(root.read_text().replace(integrity.FILES, "other", 1))
    with pytest.raises(DamagedError, match="lists no files"):
        Counts(copy.counts)


def test_a_store_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DamagedError, match=r"counts\.zarr/zarr\.json is missing"):
        Counts(tmp_path / "counts.zarr")


@pytest.mark.parametrize("part", ["data", "indices"])
def test_each_changed_byte_of_a_shard_is_noticed(copy, small_blocks, part):
    """zarrs itself verifies whole shards alone; these are read in pieces."""
    file = copy.counts / "X" / part / "c/1"
    content = file.read_bytes()
    places = [0, 1, len(content) - 1, len(content) - 5, *range(17, len(content), 4001)]
    for place in places:
        flip(file, place)
        with pytest.raises(DamagedError, match=str(file)):
            in_blocks(copy)
        file.write_bytes(content)
    assert in_blocks(copy) == copy.adata.X.sum()


def test_a_store_that_goes_while_it_is_read_is_noticed(copy, small_blocks):
    """Another step may set it aside; zarr would read zeros."""
    store = Counts(copy.counts)
    reading = store.blocks(threads=1)
    next(reading)
    copy.counts.rename(copy.counts.with_name("gone.zarr"))
    with pytest.raises(DamagedError, match="is missing"):
        list(reading)
    with pytest.raises(DamagedError, match="is missing"):
        store.obs(["batch"])


def test_only_what_is_read_again_and_fails_is_called_damaged(copy):
    array = Counts(copy.counts)._data

    def failing(array, span):
        raise RuntimeError("the GPU is gone")

    with pytest.raises(RuntimeError, match="the GPU is gone"):
        array.read(slice(0, 1000), failing)


def older(store: Path):
    """Make a store as it was before there were checksums and lists of files."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    X = ad.read_zarr(store).X
    del group["X"]
    part = group.create_group("X")
    part.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    part.attrs["shape"] = list(X.shape)
    for name in ("data", "indices", "indptr"):
        values = getattr(X, name)
        kwargs = {} if name == "indptr" else {"shards": (2**16,)}
        part.create_array(name, data=values, chunks=(2**12,), **kwargs)
    del group.attrs[integrity.FILES]


def test_an_older_store_is_read_and_its_losses_noticed(copy):
    older(copy.counts)
    np.testing.assert_array_equal(in_memory(copy).toarray(), copy.adata.X.toarray())
    assert tables(copy)[0].shape == (900, 2)
    for name in ("data/c/1", "indices/c/0", "indptr/c/0"):
        file = copy.counts / "X" / name
        content = file.read_bytes()
        for harm in (remove, empty, cut_off):
            harm(file)
            # of row pointers alone it is known that they no longer fit
            with pytest.raises(DamagedError, match=str(copy.counts / "X")):
                in_blocks(copy)
            file.write_bytes(content)
    assert in_blocks(copy) == copy.adata.X.sum()


def test_counts_json_of_another_store_is_noticed(copy):
    summary = copy.counts.with_suffix(".json")
    facts = json.loads(summary.read_text())
    summary.write_text(json.dumps(facts | {"nnz": facts["nnz"] - 1}))
    with pytest.raises(DamagedError, match=r"counts\.json does not belong to .*: its nnz is"):
        Counts(copy.counts)


# ---------------------------------------------------------------------------- the matrix and final


def changed_in_place(file: Path):
    with file.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\x00\xff\x00\xff")


@pytest.mark.parametrize("harm", [*DAMAGES, changed_in_place])
@pytest.mark.parametrize("name", ["X/data/c/0", "layers/counts/indices/c/0", "X/indptr/c/0"])
def test_a_damaged_matrix_does_not_become_the_result(copy, tmp_path, harm, name):
    of = copy.counts, copy.filtered, copy.normalized
    store = tmp_path / "matrix.zarr"
    matrix(*of, store, X=True, counts_layer=True)
    harm(store / name)
    with (
        pytest.raises(DamagedError, match=str(store / name)) as told,
        new_store(tmp_path / "final.zarr") as root,
    ):
        take_over(store, root)
    assert told.value.result == store
    assert not (tmp_path / "final.zarr").exists()


@pytest.fixture
def final(copy, tmp_path):
    """A final store with the matrices of a matrix.zarr, as the rule makes it."""
    of = copy.counts, copy.filtered, copy.normalized
    matrix(*of, tmp_path / "matrix.zarr", X=True, counts_layer=True)
    with new_store(tmp_path / "final.zarr") as root:
        take_over(tmp_path / "matrix.zarr", root)
        write_tables(root, copy.adata.obs, copy.adata.var)
    return tmp_path / "final.zarr"


def test_any_reader_reads_final_and_zarr_refuses_a_changed_one(final):
    """anndata takes zarrs where it is there, which verifies no part of a shard."""
    whole = ad.read_zarr(final)
    plain = zarr.open_group(final, mode="r")["X/data"][:]
    np.testing.assert_array_equal(plain, whole.X.data)
    for name in ("X/data/c/0", "layers/counts/indices/c/0", "obs/batch/codes/c/0"):
        content = (final / name).read_bytes()
        flip(final / name)
        with pytest.raises(Exception, match=r"hecksum|crc|orrupt"):
            zarr.open_group(final, mode="r")[name.split("/c/")[0]][:]
        (final / name).write_bytes(content)


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("name", ["X/data/c/0", "layers/counts/data/c/0", "obs/batch/codes/c/0"])
def test_no_h5ad_is_made_of_a_damaged_final(final, tmp_path, harm, name):
    harm(final / name)
    with pytest.raises(DamagedError, match=str(final / name)) as told:
        h5ad(final, tmp_path / "final.h5ad")
    assert told.value.result == final
    assert not (tmp_path / "final.h5ad").exists()


def test_no_h5ad_is_begun_where_it_does_not_fit(final, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    store = zarr.open_group(final, mode="r")
    n_bytes = sum(a.nbytes for m in ("X", "layers/counts") for _, a in store[m].arrays())
    for free in (n_bytes - 1, n_bytes):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage._replace(free=free))
        if free < n_bytes:
            with pytest.raises(
                UserError, match=r"final\.h5ad needs .* MB left\. Make room, or set"
            ):
                h5ad(final, tmp_path / "final.h5ad")
            assert not (tmp_path / "final.h5ad").exists()
        else:
            h5ad(final, tmp_path / "final.h5ad")
            assert ad.read_h5ad(tmp_path / "final.h5ad").n_obs == len(ad.read_zarr(final))


# ----------------------------------------------------------------------------------- step files


ELEMENTS = {
    "obs/leiden": step_files.Categories(np.arange(500) % 3, ["0", "1", "2"]),
    "obsm/X_pca": np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32),
    "obsp/connectivities": sp.random(80, 80, 0.1, "csr", np.float32, rng=0),
    "uns/neighbors": {"params": {"n_neighbors": 15, "metric": "cosine"}, "key": np.arange(3)},
    "uns/names": np.rec.fromarrays([np.array(["a", "b"], object)] * 2, names=["0", "1"]),
}


@step.step
def some_step(out, *, seed):
    step_files.write(out, ELEMENTS)


@pytest.fixture
def step_file(tmp_path):
    path = tmp_path / "results/toy/pca/neighbors.h5"
    some_step(path, seed=0)
    return path


READERS = {
    "read": lambda path: step_files.read(path, "obsm/X_pca"),
    "read_all": step_files.read_all,
    "names": step_files.names,
    "provenance": step_files.provenance_of,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("harm", [h for h in DAMAGES if h is not flip])
def test_a_damaged_step_file_is_named(step_file, reader, harm):
    if harm is cut_off:
        step_file.write_bytes(step_file.read_bytes()[:-2000])
    else:
        harm(step_file)
    with pytest.raises(DamagedError) as told:
        reader(step_file)
    assert told.value.found.startswith(f"{step_file} {SAYS[harm]}")
    assert told.value.result == step_file
    removed = "Run" if harm is remove else f"Remove {step_file} and run"
    assert str(told.value).endswith(f". {removed} the same command again, which makes it")


def test_a_changed_coordinate_is_noticed(step_file):
    with h5py.File(step_file) as file:
        place = file["obsm/X_pca"].id.get_offset()
    flip(step_file, place + 123)
    with pytest.raises(DamagedError, match=r"\(obsm/X_pca is not as it was written\)"):
        step_files.read(step_file, "obsm/X_pca")
    with pytest.raises(DamagedError, match="obsm/X_pca"):
        step_files.read_all(step_file)
    assert step_files.read(step_file, "obs/leiden").codes.tolist() == [i % 3 for i in range(500)]


def same(found, expected) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    if sp.issparse(expected):
        return found.shape == expected.shape and (found != expected).nnz == 0
    if isinstance(expected, pd.Categorical):
        return found.equals(expected)
    return np.array_equal(found, expected)


def test_each_changed_byte_of_a_step_file_is_noticed_or_changes_nothing(step_file):
    before = step_files.read_all(step_file)
    provenance = step_files.provenance_of(step_file)
    content = step_file.read_bytes()
    noticed = 0
    for place in range(0, len(content), 307):
        flip(step_file, place)
        try:
            found = step_files.read_all(step_file)
            about = step_files.provenance_of(step_file)
        except UserError as error:
            noticed += str(step_file) in str(error)
        else:
            assert same(found, before)
            assert about == provenance
        step_file.write_bytes(content)
    assert noticed > len(content) // 307 / 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: file.pop("obsm/X_pca"), r"\(obsm/X_pca is missing\)"),
        (lambda file: file["obsp/connectivities"].pop("indices"), "damaged"),
        (lambda file: file.attrs.pop("digest"), "it has no digest"),
        (lambda file: file.attrs.pop("digests"), "does not have its digest"),
        (lambda file: file.attrs.modify("digest", "0" * 64), "its digests were changed"),
        (lambda file: file.attrs.modify("digests", '{"obs/leiden": '), "damaged"),
        (lambda file: file["uns/neighbors"].attrs.modify("encoding-type", "x"), "damaged"),
        (lambda file: file["obs/leiden"].attrs.modify("ordered", True), "obs/leiden is not as"),
    ],
)
def test_what_is_lost_within_a_step_file_is_told(step_file, change, told):
    with h5py.File(step_file, "r+") as file:
        change(file)
    with pytest.raises(DamagedError, match=told) as error:
        step_files.read_all(step_file)
    assert str(step_file) in str(error.value)


def test_a_changed_provenance_is_noticed(step_file):
    with h5py.File(step_file, "r+") as file:
        file.attrs["provenance"] = file.attrs["provenance"].replace('"seed": 0', '"seed": 1')
    with pytest.raises(DamagedError, match="its provenance was changed"):
        step_files.provenance_of(step_file)


def test_an_older_step_file_is_checked_as_a_whole(step_file):
    with h5py.File(step_file, "r+") as file:
        del file.attrs["digests"]
        file.attrs["digest"] = digests.slot_digest(file, {})
        place = file["obsm/X_pca"].id.get_offset()
    assert same(step_files.read(step_file, "obsm/X_pca"), ELEMENTS["obsm/X_pca"])
    assert step_files.provenance_of(step_file)["step"] == "some_step"
    flip(step_file, place)
    with pytest.raises(DamagedError, match="does not have its digest"):
        step_files.read(step_file, "obs/leiden")


def test_a_file_that_may_not_be_read_is_not_called_damaged(step_file, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(
        UserError, match=r"neighbors\.h5 cannot be read: .*Permission denied"
    ) as told:
        step_files.read(step_file, "obsm/X_pca")
    assert not isinstance(told.value, DamagedError)


# ------------------------------------------------------------------------- JSON, tables, pictures


@pytest.fixture
def summary(tmp_path):
    """A counts.json as the conversion writes it."""
    path = tmp_path / "results/toy/counts.json"
    facts = {"n_obs": 900, "n_vars": 300, "nnz": 5000, "digest": "ab", "obs_columns": {}, "β": 0.1}
    damage.write_json(path, facts)
    assert damage.read_summary(path) == facts
    return path


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", "\udcff", "5000 -> 5001", "0.1 -> 0.2", None]
)
def test_a_damaged_summary_is_named(summary, content):
    if content is None:
        summary.unlink()
    elif "->" in content:
        summary.write_text(summary.read_text().replace(*content.split(" -> ")))
    else:
        summary.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DamagedError) as told:
        damage.read_summary(summary)
    assert str(summary) in told.value.found
    assert told.value.result == summary.with_suffix(".zarr")
    assert f"Remove {summary} and {summary.with_suffix('.zarr')} and run" in str(told.value)
    if content is not None:
        with pytest.raises(DamagedError):
            estimates.memory_mb(summary, "qc")
        with pytest.raises(DamagedError):
            step_files.digest_of(summary.with_suffix(".zarr"))
        summary.with_suffix(".zarr").mkdir()
        said = str(damage.set_aside(told.value))
        assert "counts.zarr.damaged" in said
        assert "counts.json.damaged" in said
        assert {path.name for path in summary.parent.iterdir()} == {
            "counts.zarr.damaged",
            "counts.json.damaged",
        }
    assert damage.whole_summary(summary) is None
    assert counts_module.sizes_of(summary.parent) is None


@pytest.fixture
def table(tmp_path, copy):
    """A filter.csv with the step file of its step."""
    assert step_files.check_table(copy.filtered.with_suffix(".csv")) is None
    return copy.filtered.with_suffix(".csv")


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_filter_table_is_named(copy, table, harm):
    harm(table)
    results = Results(copy.counts, [copy.filtered], table)
    for read in (
        lambda: results.filtered,
        lambda: list(pictures(copy.counts, copy.qc, copy.filtered, table, batch_key=[])),
    ):
        with pytest.raises(DamagedError, match=rf"{table} {SAYS[harm]}") as told:
            read()
        assert told.value.result == table


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_table_of_markers_is_named(tmp_path, harm):
    table = tmp_path / "markers.csv"
    table.write_text("group,names,scores\n0,CD3E,1.5\n0,CD8A,1\n1,NA,2\n")
    step_files.write(table.with_suffix(".h5"), {}, table=lambda: table)
    results = Results(tmp_path, [], tmp_path, [table])
    assert top_markers(read_table(table), ["0", "1"], 2)[0] == {"0": ["CD3E", "CD8A"], "1": ["NA"]}
    harm(table)
    for read in (lambda: read_table(table), lambda: results_of(results, table)):
        with pytest.raises(DamagedError, match=rf"{table} {SAYS[harm]}"):
            read()


def results_of(results, table):
    from scrna.report.results import read_markers

    return read_markers(table, 2)


@pytest.mark.parametrize("content", ["", "group\n", "a,b\n1\n"])
def test_a_table_without_its_step_file_is_at_least_read_whole(tmp_path, content):
    (tmp_path / "markers.csv").write_text(content)
    with pytest.raises(DamagedError, match=r"markers\.csv is (empty|damaged)"):
        read_table(tmp_path / "markers.csv")


@pytest.fixture
def pictures_folder(tmp_path) -> Path:
    """A folder as the rules of figures make it."""
    from matplotlib.figure import Figure

    folder = tmp_path / "figures"
    save_folder(folder, [("umap", Figure()), ("pca", Figure())], dpi=20, formats=["png"], made={})
    file_list.check_content(folder)
    return folder


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("name", ["umap.png", file_list.FILES])
def test_a_broken_picture_is_named(pictures_folder, harm, name):
    harm(pictures_folder / name)
    with pytest.raises(DamagedError, match=rf"{pictures_folder / name} {SAYS[harm]}") as told:
        file_list.check_content(pictures_folder)
    assert told.value.result == pictures_folder


def test_what_a_folder_of_pictures_lacks_is_seen_without_reading_it(pictures_folder):
    assert file_list.check_there(pictures_folder).keys() == {"pca.png", "umap.png"}
    flip(pictures_folder / "umap.png")
    file_list.check_there(pictures_folder)
    cut_off(pictures_folder / "umap.png")
    with pytest.raises(DamagedError, match=r"umap\.png is damaged \(it has "):
        file_list.check_there(pictures_folder)
    (pictures_folder / "umap.png").unlink()
    with pytest.raises(DamagedError, match=r"umap\.png is missing"):
        file_list.check_there(pictures_folder)


# ------------------------------------------------------------------------------ what becomes of it


def job(settings, **files):
    return {
        "label": "qc toy",
        "files": {name: str(path) for name, path in files.items()},
        "settings": settings,
        "untracked": {},
        "threads": 1,
        "config": {},
    }


def test_a_step_sets_aside_what_it_finds_damaged(copy):
    @step.step
    def sums(counts, out, *, seed):
        step_files.write(out, {"uns/sum": np.array(in_blocks(copy))})

    out = copy.counts.parent / "sums.h5"
    remove(copy.counts / "X/data/c/1")
    with pytest.raises(DamagedError) as told:
        step.perform(sums, job({"seed": 0}, counts=copy.counts, out=out))
    assert "counts.zarr/X/data/c/1 is missing" in str(told.value)
    assert f"{copy.counts} is now counts.zarr.damaged" in str(told.value)
    assert str(told.value).endswith("Run the same command again: it makes counts.zarr anew")
    left = {file.name for file in copy.counts.parent.iterdir()}
    assert {"counts.zarr.damaged", "counts.json.damaged"} <= left
    assert not {"counts.zarr", "counts.json", "sums.h5"} & left
    for name in ("counts.zarr", "counts.json"):  # made again
        with replacing(copy.counts.with_name(name)) as temporary:
            temporary.write_text("whole")
    assert not {file for file in copy.counts.parent.iterdir() if file.suffix == ".damaged"}


def test_a_shared_file_is_damaged_in_both_stores(final):
    flip_in_place = final / "layers/counts/data/c/0"
    assert flip_in_place.samefile(final.with_name("matrix.zarr") / "layers/counts/data/c/0")
    changed_in_place(flip_in_place)
    with pytest.raises(DamagedError) as told:
        h5ad(final, final.with_suffix(".h5ad"))
    after = damage.set_aside(told.value)
    assert "final.zarr.damaged" in str(after)
    assert "matrix.zarr.damaged" in str(after)
    assert {path.name for path in final.parent.iterdir()} >= {
        "final.zarr.damaged",
        "matrix.zarr.damaged",
        "copy",
    }
    assert not final.exists()


def test_a_file_of_one_store_alone_leaves_the_other(final):
    remove(final / "X/data/c/0")
    with pytest.raises(DamagedError) as told:
        h5ad(final, final.with_suffix(".h5ad"))
    damage.set_aside(told.value)
    assert final.with_name("matrix.zarr").exists()


def test_two_steps_may_find_the_same_damage(step_file):
    error = DamagedError(step_file, f"{step_file} is damaged")
    first, second = damage.set_aside(error), damage.set_aside(error)
    assert f"{step_file} is now neighbors.h5.damaged" in str(first)
    assert str(second).endswith("damaged. Run the same command again: it makes neighbors.h5 anew")
    assert step_file.with_name("neighbors.h5.damaged").exists()


def test_what_cannot_be_set_aside_stays_with_the_advice_to_remove_it(step_file, monkeypatch):
    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    error = DamagedError(step_file, f"{step_file} is damaged")
    assert str(damage.set_aside(error)) == str(error)
    assert f"Remove {step_file}" in str(error)


def test_the_error_comes_from_another_process_as_it_is():
    error = DamagedError(Path("a.zarr"), "a.zarr/b is missing", Path("a.zarr/b"), "Do this")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.zarr/b is missing. Do this"
    assert (again.result, again.file) == (error.result, error.file)


def test_a_writer_lists_what_it_wrote(tmp_path):
    X = sp.random(60, 40, 0.3, "csr", np.float32, rng=1)
    with new_store(tmp_path / "a.zarr") as root:
        with CSRWriter(root, "X", n_vars=40, dtype=np.float32) as writer:
            writer.append(X)
        write_tables(
            root,
            pd.DataFrame(index=list(map(str, range(60)))),
            pd.DataFrame(index=list(map(str, range(40)))),
        )
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    files = integrity.files_of(group)
    assert sorted(files) == files_in(tmp_path / "a.zarr")
    assert {name for name, (_, crc) in files.items() if crc is None} == {
        "X/data/c/0",
        "X/indices/c/0",
    }
    integrity.check_matrices(tmp_path / "a.zarr", group)
