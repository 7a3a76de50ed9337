"""What ``counts.json`` says of a store of counts: sizes and digests."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from scrna.data.csr_writer import MatrixInfo
from scrna.data.store import bytes_on_disk
from scrna.ingest.tables import add_column


def sizes(counts: Path, info: MatrixInfo) -> dict[str, Any]:
    """List the sizes of a store of counts.

    Parameters
    ----------
    counts
        The store.
    info
        What the writer of its X says.

    Returns
    -------
    n_obs, n_vars, nnz, dtype, max, bytes_on_disk, bytes_in_memory, chunk and shard.
    """
    return {
        "n_obs": info.shape[0],
        "n_vars": info.shape[1],
        "nnz": info.nnz,
        "dtype": info.dtype,
        "max": int(info.max),
        "bytes_on_disk": bytes_on_disk(counts),
        "bytes_in_memory": info.bytes_in_memory,
        "chunk": info.chunk,
        "shard": info.shard,
    }


def digest_of_genes(var: pd.DataFrame) -> str:
    """Digest a table of genes."""
    sha = hashlib.sha256()
    for name, values in var.reset_index(names="_index").items():
        add_column(sha, name, pd.util.hash_pandas_object(values, index=False).to_numpy())
    return sha.hexdigest()


def digest_of_all(*digests: str) -> str:
    """Digest digests."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
