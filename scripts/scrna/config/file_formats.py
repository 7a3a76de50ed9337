"""Recognise files by their first bytes, for downloads and readers."""

from pathlib import Path

HDF5 = b"\x89HDF\r\n\x1a\n"
GZIP = b"\x1f\x8b"
#: As many bytes as `is_web_page` looks at.
HEAD = 512
#: How a file of another program becomes one that is read here.
ADVICE = {
    ".rds": "R's; in R: zellkonverter::writeH5AD(x, 'x.h5ad') of a SingleCellExperiment, which "
    "Seurat::as.SingleCellExperiment makes of a Seurat object",
    ".loom": "loom; in Python: anndata.io.read_loom('x.loom').write_h5ad('x.h5ad')",
    ".h5mu": "MuData; in Python: mudata.read('x.h5mu')['rna'].write_h5ad('x.h5ad')",
    ".h5seurat": "Seurat's; in R: SeuratDisk::Convert('x.h5seurat', dest = 'h5ad')",
    ".zarr": "a zarr store; in Python: anndata.read_zarr('x.zarr').write_h5ad('x.h5ad')",
    ".csv": "a table of text; in Python: anndata.io.read_csv('x.csv').write_h5ad('x.h5ad'), with "
    "cells as rows",
    ".zip": "an archive: unpack it first",
    ".tar": "an archive: unpack it first",
}
ADVICE |= dict.fromkeys([".rdata", ".rda", ".robj"], ADVICE[".rds"])
ADVICE |= dict.fromkeys([".tsv", ".txt", ".tab"], ADVICE[".csv"].replace("csv", "text"))


def is_web_page(head: bytes) -> bool:
    """Check whether the first bytes of a file are those of a web page."""
    return head.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def described(name: str, head: bytes) -> str:
    """Describe a file that is not HDF5, and what to do with it.

    Parameters
    ----------
    name
        Its name.
    head
        Its first `HEAD` bytes, or all.
    """
    lower = name.lower().removesuffix(".gz")
    suffix = lower[lower.rfind(".") :] if "." in lower else ""
    if not head:
        return "it is empty"
    if is_web_page(head):
        return "it is a web page"
    if suffix == ".mtx":
        return "name the folder that it lies in, with its genes and barcodes"
    if suffix in ADVICE:
        return f"it is {ADVICE[suffix]}"
    if head.startswith(GZIP):
        return "it is gzipped: unpack it first"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive: unpack it first"
    return f"it starts with {head[:8]!r}"


def folder_advice(folder: Path) -> str:
    """Describe a folder without a 10x matrix, and what to name instead.

    Parameters
    ----------
    folder
        The folder.

    Returns
    -------
    The end of a sentence; nothing where it is not known.
    """
    names = {file.name for file in folder.iterdir()}
    if {"zarr.json", ".zgroup"} & names:
        return f"; it is {ADVICE['.zarr']}"
    if any(name.endswith("cells_x_genes.mtx") for name in names):
        return (
            "; it is kb-python's, cells × genes: name the .h5ad of kb count --h5ad, or the folder "
            "cellranger of kb count --cellranger"
        )
    if "quants_mat.mtx" in names:
        return "; it is alevin-fry's; in Python: pyroe.load_fry('folder').write_h5ad('x.h5ad')"
    if {"count_matrix.mtx", "DGE.mtx"} & names:
        return "; it is Parse's, cells × genes: name the anndata.h5ad beside its files"
    inner = [file.parent for end in ("", ".gz") for file in folder.glob(f"*/*matrix.mtx{end}")]
    listed = ", ".join(sorted({str(one) for one in inner}))
    return f"; name one of its folders: {listed}" if inner else ""
