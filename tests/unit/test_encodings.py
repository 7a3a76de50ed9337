"""What we write has the attributes that anndata itself writes."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.sparse import csr_matrix

from scrna.encodings import _VERSIONS, encoding

# anndata 0.13 asks pandas for options that pandas 3.1 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string'"),
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment'"),
]
ELEMENTS = {
    "anndata": ad.AnnData(np.ones((2, 3), np.float32)),
    "array": np.ones(3),
    "categorical": pd.Categorical(["a", "b"]),
    "csr_matrix": csr_matrix(np.eye(3)),
    "dataframe": pd.DataFrame({"a": [1, 2]}, index=["x", "y"]),
    "dict": {"a": np.ones(2)},
    "numeric-scalar": 0.5,
    "string": "X_pca",
    "string-array": np.array(["a", "b"], dtype=object),
}


@pytest.mark.parametrize("kind", _VERSIONS)
@pytest.mark.parametrize("library", ["h5py", "zarr"])
def test_attributes_are_those_of_anndata(tmp_path, library, kind):
    if library == "h5py":
        root = h5py.File(tmp_path / "a.h5", "w")
    else:
        root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    ad.io.write_elem(root, "element", ELEMENTS[kind])
    attributes = dict(root["element"].attrs)
    assert encoding(kind).items() <= attributes.items()
    assert set(attributes) - set(encoding(kind)) <= {"shape", "ordered", "_index", "column-order"}
