"""What final.h5ad must have for R, by the code and manuals of anndataR 1.x and zellkonverter 1.x.

Neither can be installed here. The comments say what each of them does with the file.
"""

import re

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scripts.h5ad import h5ad
from tests.unit.steps import integrated

pytest_plugins = ["tests.unit.fixtures"]

#: anndataR's readers by encoding, each with the one version that it takes.
READERS = {
    "array": "0.2.0", "categorical": "0.2.0", "csc_matrix": "0.1.0", "csr_matrix": "0.1.0",
    "dataframe": "0.2.0", "dict": "0.1.0", "nullable-boolean": "0.1.0",
    "nullable-integer": "0.1.0", "numeric-scalar": "0.2.0", "rec-array": "0.2.0",
    "string": "0.2.0", "string-array": "0.2.0",
}  # fmt: skip
#: What reticulate converts, beside arrays and numbers; it skips a rec-array with a warning.
CONVERTED = {"csr_matrix", "dataframe", "dict", "rec-array", "string", "string-array"}
R_INTEGER = 2**31 - 1


def text(array) -> list[str]:
    return [value.decode() for value in np.asarray(array)]


def elements(item: h5py.Group | h5py.Dataset):
    """Yield the elements of a file as anndataR reads them: members of dicts and data frames."""
    kind = item.attrs.get("encoding-type")
    yield item.name, item
    if item.name == "/" or kind in ("dict", "dataframe"):
        for child in item.values():
            yield from elements(child)


def unreadable(file: h5py.File) -> list[str]:
    """Find elements that anndataR has no reader for: it stops at them, or leaves them out."""
    found = []
    for name, item in elements(file):
        kind, version = (item.attrs.get(f"encoding-{part}") for part in ("type", "version"))
        if name != "/" and READERS.get(kind) != version:
            found.append(f"{name}: {kind} {version}")
    return found


def no_factor(group: h5py.Group) -> list[str]:
    """Return why a categorical makes no factor: its levels must be unique strings."""
    levels, codes = group["categories"], group["codes"][:]
    found = []
    if levels.attrs["encoding-type"] != "string-array" or len(set(levels[:])) != len(levels):
        found.append(f"{group.name}: levels {levels[:]}")
    if not ((codes >= -1) & (codes < len(levels))).all() or "ordered" not in group.attrs:
        found.append(f"{group.name}: codes or order")
    return found


def no_data_frame(group: h5py.Group) -> list[str]:
    """Return why obs or var makes no data.frame: row and column names must be unique."""
    index, columns = group.attrs["_index"], list(group.attrs["column-order"])
    names = text(group[index])
    found = []
    if len(set(names)) != len(names) or not all(names):
        found.append(f"{group.name}: row names")
    if len(set(columns)) != len(columns) or "" in columns or index in columns:
        found.append(f"{group.name}: column names {columns}")
    for column in columns:
        item = group[column]
        if item.attrs["encoding-type"] == "categorical":
            found += no_factor(item)
        elif item.dtype.kind in "iu" and np.abs(item[:].astype(np.float64)).max() > R_INTEGER:
            found.append(f"{item.name}: more than R's integers hold")
    return found


def problems(path) -> list[str]:
    """Find everything that R cannot read."""
    with h5py.File(path) as file:
        found = unreadable(file)
        return found or no_data_frame(file["obs"]) + no_data_frame(file["var"])


@pytest.fixture(scope="module")
def file(demo):
    path = demo.folder / "for_r.h5ad"
    h5ad(demo.final("for_r.zarr", [*demo.steps, integrated(demo)]), path)
    return path


def test_r_has_a_reader_for_everything(file):
    assert problems(file) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.obs.insert(0, "big", 2**31), "/obs/big: more than R's integers hold"),
        (lambda a: a.obs.insert(0, "number", pd.Categorical([1] * a.n_obs)), "/obs/number: levels"),
        (lambda a: a.uns.update(nothing=None), "/uns/nothing: null 0.1.0"),
        (
            lambda a: setattr(a, "obs_names", ["same"] * a.n_obs),
            "/obs: row names",
        ),
        (
            lambda a: a.uns.update(words=pd.array(["a", None], "string")),
            "/uns/words: nullable-string-array",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_what_r_would_stumble_over_is_noticed(file, tmp_path, change, expected):
    adata = ad.read_h5ad(file)[:20].copy()
    change(adata)
    with ad.settings.override(allow_write_nullable_strings="words" in adata.uns):
        adata.write_h5ad(tmp_path / "changed.h5ad")
    found = problems(tmp_path / "changed.h5ad")
    assert [line for line in found if line.startswith(expected)], found


def test_matrices_become_assays(file):
    """X gets a name in R ("logcounts", "data"), which must not be a layer's; counts is one's."""
    with h5py.File(file) as opened:
        assert set(opened["layers"]) == {"counts"}
    adata = ad.read_h5ad(file)
    for matrix in (adata.X, adata.layers["counts"]):
        # dgRMatrix is valid only with the columns of a row in order, each once
        assert (matrix.format, matrix.has_canonical_format) == ("csr", True)
        assert matrix.shape == adata.shape
        assert matrix.nnz <= R_INTEGER


def test_embeddings_become_reductions(file):
    adata = ad.read_h5ad(file)
    keys = [re.sub("[^a-zA-Z0-9]", "", name) for name in adata.obsm]  # SeuratObject::Key
    assert len(set(keys)) == len(keys)
    assert all(re.match("[a-zA-Z]", key) for key in keys)
    for name, values in adata.obsm.items():
        assert (type(values), values.ndim, values.dtype.kind) == (np.ndarray, 2, "f"), name
    # anndataR lays these loadings to that reduction: as many columns
    assert adata.varm["PCs"].shape == (adata.n_vars, adata.obsm["X_pca"].shape[1])


def test_graphs_become_pairs(file):
    adata = ad.read_h5ad(file)
    assert {"distances", "connectivities"} <= set(adata.obsp)
    for name, graph in adata.obsp.items():
        assert (graph.format, graph.shape) == ("csr", (adata.n_obs, adata.n_obs)), name


def test_zellkonverter_leaves_out_the_records_of_the_markers_and_nothing_else(file):
    """reticulate converts dicts, strings, numbers and arrays, but no array of records."""
    with h5py.File(file) as opened:
        kinds = {name: item.attrs["encoding-type"] for name, item in elements(opened["uns"])}
        records = {name for name, kind in kinds.items() if kind == "rec-array"}
        assert records
        assert all(name.startswith("/uns/rank_genes_groups") for name in records)
        for name, kind in kinds.items():
            if kind in ("array", "numeric-scalar"):
                values = np.asarray(opened[name][()])
                assert values.dtype.kind in "biuf", name
                if values.dtype.kind in "iu":  # R's whole numbers have 32 bits
                    assert np.abs(values.astype(np.float64)).max() <= R_INTEGER, name
            else:
                assert kind in CONVERTED, name
