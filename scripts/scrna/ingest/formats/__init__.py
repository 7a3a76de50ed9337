"""Sources of counts: h5ad, 10x ``.h5`` and 10x mtx folders, read by blocks of cells.

`open_source` tells the format from the file itself and gives a `Source`: the tables of cells and
genes, and each matrix in the file as row blocks of bounded size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scrna.config.file_formats import ADVICE, HDF5, HEAD, described
from scrna.config.source_address import check_file
from scrna.errors import UserError
from scrna.ingest.formats.base import Block, Source

__all__ = ["Block", "Source", "open_source"]

KINDS = ("h5ad", "10x_h5", "10x_mtx")
_ACCEPTED = (
    "accepted are an AnnData file (.h5ad), a 10x .h5 file (Cell Ranger 2 or later), and a folder "
    "with matrix.mtx, features.tsv or genes.tsv, and barcodes.tsv, gzipped or not"
)


@contextmanager
def open_source(
    paths: Path | list[Path], *, kind: str = "auto", memory: int = 3 * 2**28
) -> Iterator[Source]:
    """Open a source of counts.

    Parameters
    ----------
    paths
        A file, a folder, or the files of an mtx folder.
    kind
        ``h5ad``, ``10x_h5``, ``10x_mtx``; ``auto`` tells it from the content.
    memory
        Bytes that may be held for a matrix whose cells do not lie together on disk.

    Yields
    ------
    The source, open while the context lasts.

    Raises
    ------
    UserError
        If there is no such file, it is damaged, or of no known kind.
    """
    files = [Path(path) for path in (paths if isinstance(paths, list) else [paths])]
    for file in files:
        if not file.exists():
            msg = f"{file} does not exist: check the path in datasets.NAME.source"
            raise UserError(msg)
        check_file("the source", str(file))
    if len(files) == 1 and files[0].is_dir():
        files = sorted(file for file in files[0].iterdir() if file.is_file())
        if not files:
            msg = f"the folder {Path(paths[0] if isinstance(paths, list) else paths)} has no files"
            raise UserError(msg)
        kind = "10x_mtx" if kind == "auto" else kind
    source = _make(files, _told_kind(files) if kind == "auto" else kind, memory)
    try:
        yield source
    finally:
        source.close()


def _make(files: list[Path], kind: str, memory: int) -> Source:
    if kind == "10x_mtx":
        from scrna.ingest.formats.mtx import MtxSource

        return MtxSource(files, memory=memory)
    if len(files) > 1:
        msg = f"{files[0].parent}: a dataset of kind {kind} is one file, not {len(files)}"
        raise UserError(msg)
    if kind == "10x_h5":
        from scrna.ingest.formats.tenx import TenxSource

        return TenxSource(files[0])
    from scrna.ingest.formats.h5ad import H5adSource

    return H5adSource(files[0], memory=memory)


def _told_kind(files: list[Path]) -> str:
    """Look into the file: its name may say anything."""
    if len(files) > 1:
        return "10x_mtx"
    from scrna.ingest.formats.hdf5 import open_hdf5

    file = files[0]
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if not head.startswith(HDF5):
        found = described(file.name, head)
        msg = f"{file.name} is not a file of a known kind ({found}): {_ACCEPTED}"
        raise UserError(msg)
    with open_hdf5(file) as hdf5:
        if "obs" in hdf5 and "var" in hdf5:
            return "h5ad"
        if any("barcodes" in group for group in hdf5.values() if hasattr(group, "keys")):
            return "10x_h5"
        msg = (
            f"{file.name} is HDF5, but neither AnnData (no obs and var) nor 10x (no group with "
            f"barcodes); it holds {', '.join(hdf5) or 'nothing'}{_other_hdf5(hdf5)}: {_ACCEPTED}"
        )
        raise UserError(msg)


def _other_hdf5(file) -> str:
    """Say which other program's file this is, where its groups tell."""
    marks = {".loom": {"row_attrs", "col_attrs"}, ".h5mu": {"mod"}, ".h5seurat": {"cell.names"}}
    found = [suffix for suffix, groups in marks.items() if groups <= set(file)]
    return f"; it is {ADVICE[found[0]]}" if found else ""
