import hashlib
import json
import tracemalloc
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scripts.convert import convert
from scrna.data.csr_writer import CSRWriter
from scrna.errors import UserError
from scrna.ingest.formats import base, hdf5

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (base, hdf5):
        monkeypatch.setattr(module, "BLOCK_NNZ", 100)


def counts(n_obs=60, n_vars=40, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.2)
    dense[0, 0] = 3
    return sp.csr_matrix(dense.astype(np.float32))


def adata(X=None, **slots):
    X = counts() if X is None else X
    n = X.shape[0]
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical((["a", "b", "c"] * n)[:n]),
            "donor": ([1, 2] * n)[:n],
            "age": np.where(np.arange(n) % 4, 30.5, np.nan),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(X.shape[1])])
    return ad.AnnData(X, obs=obs, var=var, **slots)


@pytest.fixture
def do(tmp_path):
    """Convert an AnnData or a path; give the store as AnnData, and the summary."""

    def do(source, **options):
        if isinstance(source, ad.AnnData):
            source.write_h5ad(tmp_path / "source.h5ad")
            source = tmp_path / "source.h5ad"
        out = tmp_path / "counts.zarr", tmp_path / "counts.json"
        convert(source, *out, dataset="toy", **options)
        return ad.read_zarr(out[0]), json.loads(out[1].read_text())

    return do


def assert_same(a, b):
    assert a.shape == b.shape
    assert (a != b).nnz == 0


# ------------------------------------------------------------------------------------- the counts


def test_the_store_and_its_summary(do, tmp_path, small_blocks):
    X = counts()
    found, summary = do(adata(X))
    assert_same(found.X, X)
    assert found.X.dtype == np.uint16
    assert found.X.has_canonical_format
    assert list(found.obs["batch"].cat.categories) == ["a", "b", "c"]
    files = [f for f in (tmp_path / "counts.zarr").rglob("*") if f.is_file()]
    source = tmp_path / "source.h5ad"
    expected = {
        "dataset": "toy",
        "n_obs": 60,
        "n_vars": 40,
        "nnz": X.nnz,
        "dtype": "uint16",
        "max": 8,
        "bytes_on_disk": sum(file.stat().st_size for file in files),
        "bytes_in_memory": X.nnz * 6 + 61 * 8,
        "chunk": zarr.open_group(tmp_path / "counts.zarr", mode="r")["X/data"].chunks[0],
        "shard": zarr.open_group(tmp_path / "counts.zarr", mode="r")["X/data"].shards[0],
        "source": [
            {
                "path": str(source),
                "bytes": source.stat().st_size,
                "mtime_ns": source.stat().st_mtime_ns,
                "ends": hashlib.sha256(2 * source.read_bytes()).hexdigest(),  # it is small
            }
        ],
        "kind": "h5ad",
        "matrix": "X",
        "gene_symbols": "index",
        "n_obs_source": 60,
        "n_empty": 0,
        "obs_columns": {
            "batch": {"dtype": "category", "distinct": 3, "missing": 0},
            "donor": {"dtype": "int64", "distinct": 2, "missing": 0},
            "age": {"dtype": "float64", "distinct": None, "missing": 15},
        },
        "warnings": [],
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["provenance"]["parameters"]["dataset"] == "toy"
    assert set(summary) == {*expected, "checksum", "digest", "provenance"}


def with_raw(X, **slots):
    """An AnnData whose X is normalised, with more genes in raw."""
    a = adata(X)
    a.raw = a.copy()
    a = a[:, :10].copy()
    a.X = a.X.multiply(0.5).tocsr()
    for name, layer in slots.items():
        a.layers[name] = layer
    return a


def test_counts_are_found_in_raw_with_its_genes(do, caplog):
    caplog.set_level("INFO", logger="scrna")
    X = counts()
    found, summary = do(with_raw(X))
    assert_same(found.X, X)
    assert summary["matrix"] == "raw.X"
    assert found.var_names[-1] == "gene39"
    assert "X: it has the value 1.5 in cell 'cell0'" in caplog.messages


def test_counts_are_found_in_a_layer(do):
    X = counts()
    a = adata(X.multiply(0.5).tocsr())
    a.layers["logged"] = np.log1p(X)
    a.layers["spliced"] = X.toarray()
    found, summary = do(a)
    assert_same(found.X, X)
    assert summary["matrix"] == "layers/spliced"


def test_the_named_matrix_is_used(do):
    X = counts()
    a = adata(X)
    a.layers["other"] = X * 2
    found, summary = do(a, matrix="layers/other")
    assert_same(found.X, X * 2)
    assert summary["matrix"] == "layers/other"


def test_the_named_matrix_is_refused(do):
    with pytest.raises(UserError) as caught:
        do(with_raw(counts()), matrix="X")
    message = str(caught.value)
    assert "source.h5ad has no counts:\n  X: it has the value 1.5 in cell 'cell0'" in message
    assert "datasets.toy.matrix" in message
    assert "source.h5ad also has raw.X" in message


def test_a_matrix_that_is_not_there(do):
    match = r"datasets\.toy\.matrix: source\.h5ad has no layers/raw; there are X, layers/spliced"
    with pytest.raises(UserError, match=match):
        do(adata(layers={"spliced": counts()}), matrix="layers/raw")


def test_no_counts_anywhere_lists_what_was_found(do, tmp_path):
    X = counts()
    layers = {"big": X * 1e9, "inf": X * np.inf, "mask": X > 0, "nan": X * np.nan, "neg": X * -1}
    a = adata(X.multiply(0.25).tocsr(), layers=layers)
    with pytest.raises(UserError) as caught:
        do(a)
    assert str(caught.value).splitlines()[1:7] == [
        "  X: it has the value 0.75 in cell 'cell0'",
        "  layers/big: it has a count above 4,294,967,295",
        "  layers/inf: it has the value inf in cell 'cell0'",
        "  layers/mask: it holds true and false, not numbers",
        "  layers/nan: it has the value nan in cell 'cell0'",
        "  layers/neg: it has the value -3 in cell 'cell0'",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["source.h5ad"]


@pytest.mark.parametrize("position", [(59, 39), (0, 0), (30, 20)])
def test_every_value_is_looked_at(do, position, small_blocks):
    dense = counts().toarray()
    dense[position] = 2.5
    with pytest.raises(UserError, match=rf"X: it has the value 2\.5 in cell 'cell{position[0]}'"):
        do(adata(sp.csr_matrix(dense)))


def test_a_bad_value_in_a_cell_that_goes_is_no_matter(do):
    dense = counts().toarray()
    dense[4, 0] = 2.5
    found, _ = do(adata(sp.csr_matrix(dense)), keep_obs={"batch": ["a", "c"]})
    assert found.n_obs == 40


def test_large_counts_take_uint32(do, caplog, small_blocks):
    caplog.set_level("INFO", logger="scrna")
    dense = counts().toarray()
    dense[59, 0] = 70_000
    found, summary = do(adata(sp.csr_matrix(dense)))
    assert_same(found.X, sp.csr_matrix(dense))
    assert summary["dtype"] == found.X.dtype.name == "uint32"
    assert summary["max"] == 70_000
    assert "X has counts above 65,535: it is written as uint32" in caplog.messages


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64])
def test_counts_of_any_type(do, dtype):
    X = counts().astype(dtype)
    assert_same(do(adata(X))[0].X, X)


def test_explicit_zeros_and_unsorted_columns(do):
    X = sp.csr_matrix(([5.0, 0.0, 1.0], [2, 1, 0], [0, 3, 3]), shape=(2, 3), dtype=np.float32)
    found, summary = do(adata(X))
    assert summary["nnz"] == 2
    assert summary["n_empty"] == 1
    assert found.X.toarray().tolist() == [[1, 0, 5], [0, 0, 0]]


def test_memory_does_not_grow_with_cells(tmp_path, monkeypatch):
    for module in (base, hdf5):
        monkeypatch.setattr(module, "BLOCK_NNZ", 2**14)
    monkeypatch.setattr("scripts.convert.CSRWriter", partial(CSRWriter, chunk=2**12))
    peaks = []
    for n_obs in (200, 2_000):
        adata(counts(n_obs, 2_000)).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
        tracemalloc.start()
        convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", tmp_path / "a.json", dataset="toy")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert json.loads((tmp_path / "a.json").read_text())["nnz"] * 8 > 6e6  # bytes, held whole
    assert peaks[1] < peaks[0] + 2e6


# -------------------------------------------------------------------------------------- the cells


def test_cells_are_kept_by_obs_values(do, caplog):
    caplog.set_level("INFO", logger="scrna")
    X = counts()
    found, summary = do(adata(X), keep_obs={"batch": ["a", "c"], "donor": ["1"]})
    kept = (np.arange(60) % 3 != 1) & (np.arange(60) % 2 == 0)
    assert_same(found.X, X[kept])
    assert list(found.obs["batch"].cat.categories) == ["a", "c"]
    assert (summary["n_obs"], summary["n_obs_source"]) == (20, 60)
    assert summary["obs_columns"]["batch"]["distinct"] == 2
    assert "keep_obs: 20 of 60 cells stay" in caplog.messages


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        ({"bacth": ["a"]}, r"keep_obs: toy has no obs column 'bacth'; did you mean batch\?"),
        ({"batch": ["A"]}, r"no cell of toy has 'A' in obs column batch; did you mean a\? .* a, b"),
        ({"donor": [7]}, r"no cell of toy has 7 in obs column donor; there are 1, 2"),
        ({"batch": ["a"], "donor": [3]}, "no cell of toy has 3"),
    ],
)
def test_what_no_cell_has_is_refused(do, keep, match):
    with pytest.raises(UserError, match=match):
        do(adata(), keep_obs=keep)


def test_no_cell_left(do):
    a = adata()
    a.obs["only_a"] = a.obs["batch"].astype(str).replace({"b": "x", "c": "x"})
    with pytest.raises(UserError, match="toy: keep_obs keeps none of its 60 cells"):
        do(a, keep_obs={"batch": ["b"], "only_a": ["a"]})


def test_columns_that_the_config_names_must_be_there(do):
    a = adata()
    do(a, required_obs={"batch": "datasets.toy.batch_key"})
    match = r"datasets\.toy\.label_key: toy has no obs column 'cell_type'; there are batch, donor"
    with pytest.raises(UserError, match=match):
        do(a, required_obs={"cell_type": "datasets.toy.label_key"})


def test_a_missing_column_is_told_before_the_counts_are_read(do):
    with pytest.raises(UserError, match="no obs column"):
        do(adata(counts() * 0.5), required_obs={"Batch": "datasets.toy.batch_key"})


def test_repeated_cell_names_become_unique(do):
    a = adata()
    a.obs_names = ["A", "B"] * 30
    found, summary = do(a)
    assert found.obs_names.is_unique
    assert list(found.obs_names[:4]) == ["A", "B", "A-1", "B-1"]
    assert summary["warnings"] == [
        "2 cell names occur more than once (A, B): the 58 repeats have a number added (-1, -2, …)."
    ]


def test_few_cells_are_no_matter(do):
    assert do(adata(counts(n_obs=45)))[1]["n_obs"] == 45


def test_no_cells_or_no_genes_are_refused(do):
    with pytest.raises(UserError, match="toy: it has no cells"):
        do(adata(sp.csr_matrix((0, 5), dtype=np.float32)))
    with pytest.raises(UserError, match="X: it has no genes"):
        do(adata(sp.csr_matrix((5, 0), dtype=np.float32)))


def test_empty_cells_stay_and_many_are_doubted(do):
    X = counts()
    X = sp.vstack([X[:5], sp.csr_matrix((55, 40), dtype=np.float32)], "csr")
    found, summary = do(adata(X))
    assert found.n_obs == 60
    assert summary["n_empty"] == 55
    assert "55 of 60 cells have no count: this may be the raw matrix" in summary["warnings"][0]


def test_presence_alone_is_doubted(do):
    _, summary = do(adata((counts() > 0).astype(np.float32)))
    assert "No count in X is above 1" in summary["warnings"][0]


def test_strings_with_missing_ones_can_be_written(do):
    a = adata()
    a.obs["note"] = pd.array([None, *[f"n{i}" for i in range(59)]], dtype="string")
    a.obs["flag"] = pd.array([None, *[True] * 59], dtype="boolean")
    with ad.settings.override(allow_write_nullable_strings=True):
        found, summary = do(a)
    assert found.obs["note"].isna().sum() == 1
    assert found.obs["note"].iloc[1] == "n0"
    assert found.obs["flag"].isna().sum() == 1
    assert summary["obs_columns"]["note"] == {"dtype": "category", "distinct": 59, "missing": 1}


def test_names_lose_the_name_of_their_index(do):
    a = adata()
    a.obs.index.name, a.var.index.name = "batch_", "barcode"
    found, _ = do(a)
    assert found.obs.index.name is None
    assert found.var.index.name is None


# ------------------------------------------------------------------------------- digest and source


def test_the_digest_follows_the_content(do):
    a = adata()
    first = do(a)[1]["digest"]
    assert do(a)[1]["digest"] == first
    other = a.copy()
    other.obs["batch"] = other.obs["batch"].cat.rename_categories({"a": "z"})
    other_genes = a.copy()
    other_genes.var_names = [f"g{i}" for i in range(40)]
    X = a.X.copy()
    X.data[3] += 1
    digests = [do(b)[1]["digest"] for b in (other, other_genes, adata(X))]
    assert len({first, *digests}) == 4


def test_the_layout_of_the_source_is_no_matter(do):
    X = counts()
    assert len({do(adata(M))[1]["digest"] for M in (X, X.tocsc(), X.toarray())}) == 1


def test_sha256_of_the_source(do, tmp_path):
    adata().write_h5ad(tmp_path / "a.h5ad")
    digest = hashlib.sha256((tmp_path / "a.h5ad").read_bytes()).hexdigest()
    do([tmp_path / "a.h5ad"], sha256=digest)
    with pytest.raises(UserError, match=rf"is {digest}, datasets\.toy\.sha256 says {'0' * 64}"):
        do(tmp_path / "a.h5ad", sha256="0" * 64)
    with pytest.raises(UserError, match="is a folder: take it away"):
        do(tmp_path, sha256=digest)


def test_a_failure_leaves_no_summary_of_another_store(do, tmp_path):
    do(adata())
    with pytest.raises(UserError):
        do(adata(counts() * 0.5))
    assert not (tmp_path / "counts.json").exists()
    assert not list(tmp_path.glob(".*"))


# -------------------------------------------------------------------------------------- real data


def test_pbmc3k(do, real_data):
    found, summary = do(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    source = ad.read_h5ad(real_data / "pbmc3k/pbmc3k_raw.h5ad")
    assert_same(found.X, source.X)
    assert found.var_names.str.startswith("MT-").sum() == 13
    assert found.var["gene_ids"].str.startswith("ENSG").all()
    pd.testing.assert_frame_equal(found.obs, source.obs)
    assert (summary["nnz"], summary["max"], summary["dtype"]) == (2_286_884, 419, "uint16")


def test_celllines(do, real_data):
    found, summary = do(real_data / "celllines/celllines_5batch.h5ad")
    source = ad.read_h5ad(real_data / "celllines/celllines_5batch.h5ad")
    assert_same(found.X, source.X)
    assert summary["gene_symbols"] == "feature_name"
    assert list(found.var["gene_ids"]) == list(source.var_names)
    assert found.var_names.is_unique
    assert summary["warnings"][0].startswith("20 gene symbols occur more than once (Y_RNA, ")
    assert summary["obs_columns"]["batch"]["distinct"] == 5


def test_pbmc1k_from_h5_and_from_mtx(do, real_data):
    h5, summary = do(real_data / "pbmc1k/pbmc1k_10x_v3_with_antibodies.h5")
    text, _ = do(sorted((real_data / "pbmc1k/mtx_v3").iterdir()))
    assert_same(h5.X, text.X)
    assert h5.shape == (892, 36_601)
    assert h5.var_names.equals(text.var_names)
    assert h5.obs_names.equals(text.obs_names)
    assert "10 of type Antibody Capture" in summary["warnings"][0]


def test_the_old_file_and_the_worm(do, real_data):
    old, _ = do(real_data / "pbmc1k/pbmc1k_300cells_anndata0.6.22_format.h5ad")
    assert list(old.obs["batch"].cat.categories) == ["a", "b"]
    worm, summary = do(real_data / "worm_l2/worm_l2_cao.h5ad", required_obs={"plate": "x"})
    assert summary["gene_symbols"] == "gene_short_name"
    assert np.median(np.asarray(worm.X.sum(1))) == 93
