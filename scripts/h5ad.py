"""The final AnnData as one ``.h5ad`` file, for tools that do not read zarr.

Settings: ``final.h5ad`` asks for it. Input: ``final.zarr``. Output: ``final.h5ad``.
"""

from pathlib import Path

from scrna.files import replacing
from scrna.log import log
from scrna.step import run, step


@step
def h5ad(store: Path, out: Path) -> None:
    """Write an AnnData store as an h5ad, its matrices block by block.

    Parameters
    ----------
    store
        An AnnData zarr store.
    out
        The h5ad.
    """
    import h5py
    import zarr
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem, write_elem

    group = zarr.open_group(store, mode="r")
    with replacing(out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(dict(group.attrs))
        for slot in group:
            if slot == "X":
                write_elem(file, slot, read_elem_lazy(group[slot]))
            elif slot == "layers":
                layers = {name: read_elem_lazy(group[slot][name]) for name in group[slot]}
                write_elem(file, slot, layers)
            else:
                write_elem(file, slot, read_elem(group[slot]))
    log.info("%s: %s MB", out, f"{out.stat().st_size / 1e6:,.0f}")


if __name__ == "__main__":
    run(h5ad, snakemake)
