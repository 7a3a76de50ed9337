"""What the readers of all formats share."""

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scrna.errors import UserError
from scrna.ingest.obs_table import CellTable

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

#: Values in a block: 2**20 float32 and int32 are 8 MB, and some copies of them while they are
#: worked on; several blocks are worked on at the same time.
BLOCK_NNZ = 2**20
_BYTES_AT_WORK = 100  # of a value, from the file to the writer


class Block(NamedTuple):
    """Some cells of a matrix."""

    cells: np.ndarray
    """Their row numbers in the source, ascending."""
    counts: "csr_matrix"
    """Their values, cells × genes, as the source has them."""


class Source(ABC):
    """A file or folder with counts.

    Attributes
    ----------
    kind
        ``h5ad``, ``10x_h5`` or ``10x_mtx``.
    files
        What it consists of.
    notes
        What was left out on the way, a sentence each.
    """

    kind: str
    files: list[Path]
    notes: list[str]

    @property
    def name(self) -> str:
        """The file's or folder's name, for messages."""
        return self.files[0].name if len(self.files) == 1 else self.files[0].parent.name

    @property
    def n_obs(self) -> int:
        """Cells in the source."""
        return len(self.cells())

    @abstractmethod
    def matrices(self) -> list[str]:
        """Name the matrices of cells by genes, in the order in which to look for counts."""

    @abstractmethod
    def cells(self) -> CellTable:
        """Open the table of cells."""

    @abstractmethod
    def var(self, matrix: str) -> "pd.DataFrame":
        """Read the table of a matrix's genes, in the order of its columns."""

    @abstractmethod
    def blocks(self, matrix: str, cells: np.ndarray) -> Iterator[Block]:
        """Read a matrix in blocks of cells, in their order.

        Parameters
        ----------
        matrix
            One of `matrices`.
        cells
            Mask of the cells asked for, (n_obs,); each of them is in one block.

        Raises
        ------
        UserError
            If the file is damaged.
        NotMatrix
            If what is there cannot be cells by genes.
        """

    def close(self) -> None:  # noqa: B027 - not every source holds something open
        """Let go of the files."""


def n_threads(n_values: int, memory: int = 2**30) -> int:
    """Tell how many threads may work on blocks: one a core, as far as memory goes.

    Parameters
    ----------
    n_values
        Values in a block.
    memory
        Bytes that all of them may hold.
    """
    fit = memory // (_BYTES_AT_WORK * max(1, n_values))
    return max(1, min(len(os.sched_getaffinity(0)), fit))


class NotMatrix(Exception):  # noqa: N818 - a finding, told to the user with the others
    """What has a matrix's name is none; the message completes "X: …"."""


@contextmanager
def intact(where: str) -> Iterator[None]:
    """Turn what a damaged file raises into a message."""
    try:
        yield
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error, KeyError, RuntimeError) as error:
        why = "the file is damaged or cut off; get it again"
        if "filter" in str(error) or "plugin" in str(error):
            why = "it is compressed in a way that HDF5 does not know here; write it with gzip"
        msg = f"{where} cannot be read: {why} ({error})"
        raise UserError(msg) from error
