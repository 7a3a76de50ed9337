"""Find the files of a dataset's counts, and the columns that its settings name."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from scrna.config.file_formats import folder_advice
from scrna.config.groupings import groupings
from scrna.config.settings import batch_keys
from scrna.config.source_address import (
    address_digest,
    check_file,
    check_variables,
    local_path,
    scheme_of,
    without_credentials,
)
from scrna.errors import UserError
from scrna.steps import is_clustering, is_made

#: The files of a 10x folder, as they begin.
MTX_FILES = ["matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv"]
#: What a source that is Cell Ranger's folder ``outs`` stands for: the first that is there. The raw
#: matrix, of all barcodes, has to be named itself.
FILTERED = ["filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix"]
FILTERED += [f"sample_{name}" for name in FILTERED]  # of one sample of cellranger multi


#: Columns that qc adds to obs, which regress_out may name.
QC_COLUMNS = re.compile(
    r"(log1p_)?(total_counts(_mt|_ribo|_hb)?|n_genes_by_counts)"
    r"|pct_counts_(mt|ribo|hb)"
)


def required_obs(dataset: Mapping[str, Any], name: str) -> dict[str, str]:
    """List the obs columns that a dataset's settings name.

    Parameters
    ----------
    dataset
        A dataset of a `complete` config.
    name
        Its name.

    Returns
    -------
    Column → the config key that names it.
    """
    where = f"datasets.{name}"
    wanted = dict.fromkeys(batch_keys(dataset), f"{where}.batch_key")
    if dataset["label_key"]:
        wanted[dataset["label_key"]] = f"{where}.label_key"
    if dataset["hvg"]["batch_key"] not in (None, "auto"):
        wanted[dataset["hvg"]["batch_key"]] = "hvg.batch_key"
    for step in ("filter", *(["doublets"] if is_made(dataset, "doublets") else [])):
        if (by := dataset[step]["by"]) not in ("auto", "none"):
            wanted.setdefault(by, f"{step}.by")
    wanted |= dict.fromkeys(covariates(dataset), "pca.regress_out")
    if dataset["markers"]["enabled"]:
        wanted |= {
            name: "markers.groupby" for name in groupings(dataset) if not is_clustering(name)
        }
    by = dataset["cell_types"]["by"]
    if dataset["cell_types"]["markers"] and not is_clustering(by):
        wanted[by] = "cell_types.by"
    return wanted


def covariates(dataset: Mapping[str, Any]) -> list[str]:
    """List the columns of pca.regress_out that are the source's, not those that qc adds."""
    top = {f"pct_counts_in_top_{n}_genes" for n in dataset["qc"]["percent_top"]}
    return [
        key
        for key in dataset["pca"]["regress_out"]
        if not QC_COLUMNS.fullmatch(key) and key not in top
    ]


class Source(NamedTuple):
    """The source of a dataset: a URL to download, and the files that hold the counts.

    The URL has no credentials, and its variables are not filled in; where it has any, `version` is
    a digest of what they make of it.
    """

    url: str | None
    files: list[str]
    version: str | None = None

    def address(self) -> dict[str, str]:
        """Return what the download depends on."""
        version = {} if self.version is None else {"version": self.version}
        return {"url": self.url, **version}


def sources(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Find the files of every dataset.

    Parameters
    ----------
    datasets
        Datasets of a `complete` config.

    Returns
    -------
    Dataset → its source; what is downloaded or simulated lies in ``resources/``. Datasets of a
    sample sheet are left out: `scrna.config.samples.sample_sources` finds theirs.

    Raises
    ------
    UserError
        If a path's variable is not set, nothing is there, a folder is no 10x folder, or a URL's
        file has no suffix that tells what it is.
    """
    return {
        name: Source(None, [f"resources/{name}.h5ad"])
        if dataset["kind"] == "simulate"
        else locate(f"datasets.{name}.source", name, dataset["source"], f"resources/{name}")
        for name, dataset in datasets.items()
        if not dataset.get("samples")
    }


def locate(key: str, name: str, source: str, target: str, beside: Path | None = None) -> Source:
    """Find the files of a source.

    Parameters
    ----------
    key
        What names the source, for messages.
    name
        Under which its address is kept (`scrna.config.source_address.full_address`).
    source
        Path or URL.
    target
        Where a URL's file is downloaded to, without its suffix.
    beside
        The folder that a relative path starts from; None: the working directory.

    Raises
    ------
    UserError
        As `sources`.
    """
    given = without_credentials(source)
    beside = beside or Path()
    is_literal = scheme_of(given) is None and (beside / given).exists()  # it may have a $ or ~
    address = given if is_literal else check_variables(key, name, given)
    if (path := local_path(key, address)) is None:
        suffix = Path(urlsplit(address).path).suffix
        if suffix not in (".h5ad", ".h5"):
            msg = f"{key} is {given!r}; a URL has to end in .h5ad or .h5 (10x)"
            raise UserError(msg)
        version = address_digest(address) if address != given else None
        return Source(given, [f"{target}{suffix}"], version)
    path = path if beside == Path() else os.path.join(beside, path)
    if wildcard := re.search(r"\{[^{}]*\}", path):
        msg = (
            f"{key} is {given!r}, but Snakemake takes {wildcard[0]} in a path for a wildcard; "
            "rename the file or folder, or name a symbolic link to it"
        )
        raise UserError(msg)
    if Path(path).is_dir():
        return _in_folder(key, given, _of_cell_ranger(Path(path)))
    if not Path(path).exists():
        msg = f"{key} is {given!r}, but there is no such file or folder"
        if not os.path.isabs(path):
            msg += f" in {beside.resolve()}"
        raise UserError(msg)
    check_file(key, path)
    return Source(None, [path])


def _of_cell_ranger(folder: Path) -> Path:
    """Return the filtered matrix of Cell Ranger in its folder ``outs``; else the folder."""
    return next((folder / name for name in FILTERED if (folder / name).exists()), folder)


def _in_folder(key: str, given: str, path: Path) -> Source:
    """Find the file or the three files of 10x that a folder stands for."""
    if path.is_file():
        return Source(None, [str(path)])
    there = sorted(file for file in path.iterdir() if file.is_file())
    ends = [(stem, f"{stem}.gz") for stem in MTX_FILES]
    files = [str(file) for end in ends for file in there if file.name.endswith(end)]
    if len(files) != 3:
        msg = (
            f"{key} is {given!r}, a folder without the three files of 10x (matrix.mtx, "
            "barcodes.tsv, features.tsv or genes.tsv, each maybe .gz); "
            f"found {', '.join(files) or 'none'}{folder_advice(path)}"
        )
        raise UserError(msg)
    return Source(None, files)
