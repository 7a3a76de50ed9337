"""Write the final AnnData as one ``.h5ad`` file.

Purpose
    For tools that do not read zarr; docs/explore.md and docs/r.md say how they open it.

Method
    Only encodings that AnnData 0.8 has, int32 column indices, and what CELLxGENE and R's readers
    need. Matrices are copied shard by shard.

Settings
    ``final.h5ad: true`` asks for it.

Inputs
    ``final.zarr``.

Outputs
    ``final.h5ad``.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from scrna.atomic import replacing
from scrna.damage import reading
from scrna.data.integrity import FILES, ShardedArray, check_there, files_of, reading_elements
from scrna.errors import UserError
from scrna.log import log
from scrna.progress import Progress
from scrna.step import step
from scrna.workflow.rule import run

if TYPE_CHECKING:
    import h5py
    import zarr


@step
def h5ad(store: Path, out: Path) -> None:
    """Write an AnnData store as an h5ad, its matrices a shard at a time.

    Parameters
    ----------
    store
        An AnnData zarr store; X and layers are CSR.
    out
        The h5ad.
    """
    import anndata as ad
    import h5py
    import zarr

    with reading(store / "zarr.json", store):
        source = zarr.open_group(store, mode="r")
    files = files_of(source)
    check_there(store, files)
    matrices = ["X"] if "X" in source else []
    matrices += [f"layers/{name}" for name in source["layers"]]
    total = sum(array.nbytes for name in matrices for _, array in source[name].arrays())
    _check_room(out, total)
    with (
        ad.settings.override(allow_write_nullable_strings=False),
        replacing(out) as temporary,
        h5py.File(temporary, "w") as file,
        Progress("h5ad", total=total / 1e6, unit="MB") as progress,
    ):
        file.attrs.update({key: value for key, value in source.attrs.items() if key != FILES})
        shape = []
        for slot in ("obs", "var", "obsm", "varm", "obsp", "varp", "uns"):
            with reading_elements(store, source, [slot]):
                value = ad.io.read_elem(source[slot])
            ad.io.write_elem(file, slot, value)
            shape += [len(value)] if slot in ("obs", "var") else []
        ad.io.write_elem(file, "layers", {})
        for name in matrices:
            _copy(store, files, source[name], file.create_group(name), progress)
    log.info(
        "%s: %s cells × %s genes, %s MB",
        out,
        *(f"{n:,}" for n in shape),
        f"{out.stat().st_size / 1e6:,.0f}",
    )


def _check_room(out: Path, n_bytes: int) -> None:
    """Refuse a disk that is too small at once: HDF5 crashes the process where it becomes full.

    Parameters
    ----------
    out
        The h5ad.
    n_bytes
        What its matrices take, which is nearly all of it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < n_bytes:
        msg = (
            f"{out} needs {n_bytes / 1e6:,.0f} MB, and the disk of {out.parent} has "
            f"{free / 1e6:,.0f} MB left. Make room, or set final.h5ad to false (final.zarr holds "
            "the same)"
        )
        raise UserError(msg)


def _copy(
    store: Path, files: dict, matrix: "zarr.Group", target: "h5py.Group", progress: Progress
) -> None:
    """Copy a CSR matrix with the types that it has, a shard after another."""
    target.attrs.update(dict(matrix.attrs))
    for part, array in matrix.arrays():
        copied = target.create_dataset(part, shape=array.shape, dtype=array.dtype)
        n = (array.shards or array.chunks)[0]
        checked = ShardedArray(store, array, files)
        for start in range(0, array.shape[0], n):
            span = slice(start, min(start + n, array.shape[0]))
            piece = checked.read(span, lambda array, span: array[span])
            copied[start : start + n] = piece
            progress.update(piece.nbytes / 1e6)


if __name__ == "__main__":
    run(h5ad, snakemake)
