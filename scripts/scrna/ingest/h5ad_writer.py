"""An h5ad file written block by block, so that its counts need not be in memory."""

import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from anndata import AnnData
from scipy import sparse

from scrna.atomic import replacing
from scrna.data.encodings import encoding
from scrna.progress import Progress
from scrna.provenance import provenance

_CHUNK = 2**18  # entries of an HDF5 chunk, 1 MB
_CHUNK_CACHE = 2**26  # bytes: a chunk that is filled by several blocks is written once


def write_h5ad(
    path: Path, tables: AnnData, blocks: Iterable[sparse.csr_matrix], progress: Progress
) -> int:
    """Write an AnnData whose X comes in blocks of rows.

    Parameters
    ----------
    path
        The file; it has this name when it is complete. Its attribute ``provenance`` says how it was
        made.
    tables
        All but X.
    blocks
        X, CSR, int32, in the order of the cells.
    progress
        Is told how many cells are written.

    Returns
    -------
    The number of non-zero counts.
    """
    with replacing(path) as temporary:
        tables.write_h5ad(temporary)
        with h5py.File(temporary, "r+", rdcc_nbytes=_CHUNK_CACHE) as file:
            file.attrs["provenance"] = json.dumps(provenance())
            return _write_csr(file.create_group("X"), tables.shape, blocks, progress)


def _write_csr(
    group: h5py.Group,
    shape: tuple[int, int],
    blocks: Iterable[sparse.csr_matrix],
    progress: Progress,
) -> int:
    """Append block after block to a CSR matrix as AnnData encodes it."""
    group.attrs.update(encoding("csr_matrix", shape=shape))
    for name in ("data", "indices"):
        group.create_dataset(name, (0,), dtype=np.int32, chunks=(_CHUNK,), maxshape=(None,))
    indptr = np.zeros(shape[0] + 1, dtype=np.int64)
    row = end = 0
    for X in blocks:
        n = X.shape[0]
        indptr[row + 1 : row + 1 + n] = end + X.indptr[1:].astype(np.int64)
        for name in ("data", "indices"):
            group[name].resize(end + X.nnz, axis=0)
            group[name][end:] = getattr(X, name)
        row, end = row + n, end + X.nnz
        progress.update(n)
    group.create_dataset("indptr", data=indptr)
    return end
