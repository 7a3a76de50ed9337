"""The h5ad: the same AnnData as the zarr store."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scripts.h5ad import h5ad
from scrna.data.csr_writer import CSRWriter
from scrna.data.store import new_store, write_tables
from scrna.errors import UserError

pytest_plugins = ["tests.unit.fixtures"]


@pytest.fixture(scope="module", params=[{}, {"X": False}])
def both(demo, request):
    """The demo as zarr and as h5ad."""
    name = "-".join(request.param) or "all"
    store = demo.final(f"{name}.zarr", **request.param)
    out = demo.folder / f"{name}.h5ad"
    h5ad(store, out)
    return ad.read_zarr(store), ad.read_h5ad(out)


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif hasattr(a, "nnz"):
        assert a.shape == b.shape, where
        assert a.dtype == b.dtype, where
        assert (a != b).nnz == 0, where
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    else:
        assert a == b, where


def test_both_hold_the_same(both):
    zarr, hdf5 = both
    for a, b in ((zarr.obs, hdf5.obs), (zarr.var, hdf5.var)):
        text = {name: object for name in a if pd.api.types.is_string_dtype(a[name])}
        pd.testing.assert_frame_equal(a.astype(text), b.astype(text))  # of the same kind of text
    if zarr.X is None:
        assert hdf5.X is None
    else:
        assert_same(zarr.X, hdf5.X)
    for slot in ("layers", "obsm", "varm", "obsp", "uns"):
        assert_same(dict(getattr(zarr, slot)), dict(getattr(hdf5, slot)), slot)


def test_a_matrix_of_many_shards(tmp_path):
    X = sparse.random(90, 40, 0.3, "csr", dtype=np.float32, rng=np.random.default_rng(0))
    names = [pd.DataFrame(index=[f"{i}" for i in range(n)]) for n in X.shape]
    with new_store(tmp_path / "a.zarr") as root:
        with CSRWriter(root, "X", n_vars=40, dtype=np.float32, chunk=50, chunks_per_shard=2) as out:
            out.append(X)
            out.close()
        write_tables(root, *names)
    h5ad(tmp_path / "a.zarr", tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    assert_same(found.X, X)
    assert list(found.obs_names) == list(names[0].index)


def test_an_older_file_is_replaced(demo, tmp_path):
    out = tmp_path / "final.h5ad"
    out.write_bytes(b"old")
    h5ad(demo.final("replaced.zarr", [demo["qc"], demo["pca/pca"]]), out)
    assert ad.read_h5ad(out).n_obs == 634
    assert [path.name for path in tmp_path.iterdir()] == ["final.h5ad"]


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "final.h5ad"
    out.write_bytes(b"old")
    with pytest.raises(UserError, match=r"none\.zarr/zarr\.json is missing"):
        h5ad(tmp_path / "none.zarr", out)
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["final.h5ad"]
