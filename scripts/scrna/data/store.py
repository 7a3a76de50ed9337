"""Stores: AnnData objects in zarr v3, written under a temporary name."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import ZstdCodec
from zarr.errors import ZarrUserWarning

from scrna.atomic import replacing
from scrna.data.encodings import encoding
from scrna.data.integrity import FILES, list_files
from scrna.log import log

if TYPE_CHECKING:
    import pandas as pd


#: Of tables and all else: zarr's own, with a checksum that every reader verifies.
TABLE_COMPRESSOR = ZstdCodec(level=0, checksum=True)


@contextmanager
def new_store(path: Path) -> Iterator[zarr.Group]:
    """Make an AnnData store under a temporary name, and rename it once it is complete.

    Parameters
    ----------
    path
        The store, ``*.zarr``; one that is there is replaced at the end.

    Yields
    ------
    The root group, zarr v3, with AnnData's attributes. An error within removes the store; what a
    killed process left behind goes with the next try.
    """
    with replacing(path) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        root.attrs.update(encoding("anndata"))
        yield root
        root.attrs.update({FILES: list_files(temporary)})
        _consolidate(temporary)


def _consolidate(store: Path) -> None:
    """List the store's parts in its zarr.json, as anndata does.

    Readers then look into no folder, where they would come upon `.snakemake_timestamp` and warn.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # not in zarr's specification yet
        zarr.consolidate_metadata(store)


def write_tables(root: zarr.Group, obs: "pd.DataFrame", var: "pd.DataFrame") -> None:
    """Write obs and var into a store, and the empty slots that make it a whole AnnData.

    Parameters
    ----------
    root
        The root group of the store.
    obs, var
        Tables with unique string indices, in the order of the matrix's rows and columns.
    """
    write_table(root, "obs", obs)
    write_table(root, "var", var)
    write_slots(root)


def write_table(root: zarr.Group, name: str, table: "pd.DataFrame") -> None:
    """Write ``obs`` or ``var`` into a store.

    Strings go in the encoding that every AnnData since 0.7 reads; a column of strings with missing
    ones, which that encoding does not know, becomes categorical.
    """
    import anndata as ad
    import pandas as pd

    with ad.settings.override(allow_write_nullable_strings=False):
        is_text = [isinstance(dtype, pd.StringDtype) for dtype in table.dtypes]
        partial = [c for c in table.columns[is_text] if table[c].hasnans]
        write_element(root, name, table.astype(dict.fromkeys(partial, "category")))


def write_element(group: zarr.Group, name: str, value: Any) -> None:
    """Write whatever an AnnData holds, as `anndata.io.write_elem` does, with checksums."""
    from anndata.io import write_elem

    write_elem(group, name, value, dataset_kwargs={"compressor": TABLE_COMPRESSOR})


def write_slots(root: zarr.Group) -> None:
    """Write the slots that are not there, empty, so that a store is a whole AnnData."""
    for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        if slot not in root:
            write_element(root, slot, {})


def bytes_on_disk(path: Path) -> int:
    """Sum the sizes of a store's files, in bytes."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def link_folder(source: Path, target: Path) -> None:
    """Give a store a folder of another one, without copying what lies on one file system.

    zarr never writes into a file, it puts a new one in its place: what is later changed in one
    store does not change in the other.

    Parameters
    ----------
    source, target
        The folder that is there, and the one that is made.
    """
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        log.info("%s is copied: its file system has no hard links", source)
        shutil.copytree(source, target)
