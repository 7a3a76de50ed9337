"""Keep the log-normalised matrix of the kept cells in a worker, from one step to the next.

Its key are the digests of the files that it was read from, so that an outdated matrix is never
used. A process that keeps nothing reads the same values from the files. If a step needs the memory,
the matrix that was used longest ago is dropped first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from scrna.log import log


class Kept(NamedTuple):
    """A matrix as row blocks, or as a single one."""

    blocks: Sequence[Any]
    nbytes: int
    fingerprints: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return sum(block.shape[0] for block in self.blocks), self.blocks[0].shape[1]

    @property
    def nnz(self) -> int:
        """Non-zeros."""
        return sum(block.nnz for block in self.blocks)


_kept: OrderedDict[tuple, Kept] = OrderedDict()
_is_on = False


def start() -> None:
    """Keep matrices in this process from now on."""
    global _is_on
    _is_on = True


def stop() -> None:
    """Stop keeping matrices, and drop all."""
    global _is_on
    _is_on = False
    _kept.clear()


def is_on() -> bool:
    """Return whether this process keeps matrices."""
    return _is_on


def keys_of(
    backend: str, modes: Sequence[str], digests: Sequence[str | None]
) -> dict[str, tuple | None]:
    """Return the keys of a matrix by mode; None where it cannot be kept.

    Parameters
    ----------
    backend, modes
        Where it lies, and how: in ``memory`` or in ``blocks``.
    digests
        Those of the files that it is made of; None for one that has none.
    """
    if not _is_on:
        return dict.fromkeys(modes)
    return {mode: None if None in digests else (backend, mode, *digests) for mode in modes}


def get(key: tuple | None) -> Kept | None:
    """Look for a matrix; one that a library has written into is dropped instead."""
    if key not in _kept:
        return None
    kept = _kept[key]
    if [fingerprint(block) for block in kept.blocks] != kept.fingerprints:
        log.info("the matrix in memory was written into by the last step: it is read again")
        del _kept[key]
        return None
    _kept.move_to_end(key)
    return kept


def put(key: tuple | None, blocks: Sequence[Any]) -> None:
    """Keep a matrix for the next steps.

    Parameters
    ----------
    key
        Of `keys_of`; nothing is kept under None.
    blocks
        CSR row blocks, scipy's or CuPy's.
    """
    if key is not None:
        nbytes = sum(part.nbytes for block in blocks for part in parts(block))
        _kept[key] = Kept(list(blocks), nbytes, [fingerprint(block) for block in blocks])


def nbytes() -> int:
    """Return the number of bytes kept."""
    return sum(kept.nbytes for kept in _kept.values())


def nbytes_of(key: tuple | None) -> int:
    """Return the number of bytes kept under a key."""
    return _kept[key].nbytes if key in _kept else 0


def largest() -> tuple[int, int, int]:
    """Return cells, genes and non-zeros of the matrix with the most cells; zeros without any."""
    sizes = [(*kept.shape, kept.nnz) for kept in _kept.values()]
    return max(sizes, default=(0, 0, 0))


def make_room(nbytes: int, *, but: tuple | None = None) -> None:
    """Drop matrices until as many bytes are free, those used longest ago first.

    Parameters
    ----------
    nbytes
        How many; nothing happens where it is not positive.
    but
        The key of one that stays.
    """
    for key in [key for key in _kept if key != but]:
        if nbytes <= 0:
            return
        nbytes -= _kept.pop(key).nbytes


def parts(matrix) -> tuple[Any, Any, Any]:
    """Return the arrays of a CSR matrix."""
    return matrix.data, matrix.indices, matrix.indptr


def fingerprint(matrix) -> int:
    """Sum the bits of a float32 matrix's values, whatever their order; milliseconds on a GPU."""
    return int(matrix.data.view("uint32").sum(dtype="uint64"))
