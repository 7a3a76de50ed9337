"""GPU and CPU behind one interface.

A step gets its library from `load`, and its code is written once. Where rapids-singlecell and
scanpy offer the same call, the step makes that call; where they do not, the function is here, under
one name for both.
"""

import importlib
from functools import cache
from types import SimpleNamespace

import numpy as np


@cache
def load(backend: str) -> SimpleNamespace:
    """Import the tools of a backend.

    Parameters
    ----------
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    ``pp`` and ``tl`` (rapids-singlecell's or scanpy's), ``on_gpu``.
    """
    library = importlib.import_module({"gpu": "rapids_singlecell", "cpu": "scanpy"}[backend])
    return SimpleNamespace(pp=library.pp, tl=library.tl, on_gpu=backend == "gpu")


def arrays(backend: str):
    """Return the array module of a backend: cupy or numpy."""
    if backend == "gpu":
        import cupy

        return cupy
    return np


def csr_matrix(parts: tuple, shape: tuple[int, int], backend: str):
    """Make a CSR matrix of a backend from (data, indices, indptr) that are already canonical."""
    if backend == "gpu":
        from cupyx.scipy.sparse import csr_matrix as make
    else:
        from scipy.sparse import csr_matrix as make
    matrix = make(parts, shape=shape)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def to_host(array) -> np.ndarray:
    """Bring an array or sparse matrix into the CPU's memory; one that is there stays as it is."""
    return array.get() if hasattr(array, "get") and not isinstance(array, dict) else array


def computed(array):
    """Compute an array in blocks; one in memory stays as it is."""
    return array.compute() if hasattr(array, "dask") else array


# ------------------------------------------------------------------------------------------- GPU


# ----------------------------------------------------------------- what the libraries do not share
