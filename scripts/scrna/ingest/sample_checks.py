"""Look at the sources of a dataset's samples before any of them is converted.

What would else show after all conversions is refused in seconds: a file that is not the one whose
digest the sheet has, the same file twice, samples of different species or without a gene in common,
columns of obs that the config names and no sample has. Only tables of cells and genes are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scrna.errors import UserError
from scrna.ingest.download import file_sha256
from scrna.ingest.formats import Source, open_source
from scrna.ingest.formats.base import NotMatrix
from scrna.ingest.gene_join import few_in_common
from scrna.ingest.merge import shared_names
from scrna.ingest.obs_table import check_columns
from scrna.ingest.tables import fit_for_disk, name_genes


class _Seen(NamedTuple):
    """What is looked at in a source."""

    names: np.ndarray
    """The hashes of the cells' names."""
    columns: list[str]
    var: pd.DataFrame | None


def check_samples(
    samples: Mapping[str, Mapping[str, Any]],
    *,
    dataset: str,
    join_on: str = "auto",
    kind: str = "auto",
    matrix: str = "auto",
    gene_symbols: str = "auto",
    required_obs: Mapping[str, str] | None = None,
    sheet_columns: Sequence[str] = (),
) -> list[str]:
    """Check the sources of samples, and against each other.

    Parameters
    ----------
    samples
        Sample → its ``files``, and the ``sha256`` of its one file, None where the sheet has none.
    dataset
        Its name, for messages.
    join_on, kind, matrix, gene_symbols
        As `scrna.ingest.gene_join.join_genes` and the conversion have them.
    required_obs
        obs columns that the config names, with the keys that name them.
    sheet_columns
        obs columns that the sheet has.

    Returns
    -------
    What is no error but hardly meant: few genes in common, the same barcodes in two samples.

    Raises
    ------
    UserError
        If a file is not the one that the sheet says, is there twice, or cannot be read; if the
        samples cannot be merged, or lack what the config names.
    """
    check_files(samples)
    seen = {}
    for name, sample in samples.items():
        try:
            seen[name] = _look(sample["files"], kind, matrix, gene_symbols, dataset)
        except UserError as error:
            msg = f"{dataset}, sample {name}: {error}"
            raise UserError(msg) from error
    columns = dict.fromkeys(column for one in seen.values() for column in one.columns)
    known = list(dict.fromkeys([*columns, "sample", *sheet_columns]))
    check_columns(known, required_obs or {}, dataset=dataset)
    _, notes = shared_names({name: one.names for name, one in seen.items()})
    if all(one.var is not None for one in seen.values()):  # else the conversion says what is wrong
        tables = {name: one.var for name, one in seen.items()}
        notes += few_in_common(tables, join_on=join_on, dataset=dataset)
    return notes


def check_files(samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse files that are not those of the sheet, and the same file in two samples.

    Parameters
    ----------
    samples
        As `check_samples`.
    """
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for name, sample in samples.items():
        largest = max(map(Path, sample["files"]), key=lambda file: file.stat().st_size)
        by_size.setdefault(largest.stat().st_size, []).append((name, largest))
        if (wanted := sample["sha256"]) and (found := file_sha256(largest)) != wanted:
            msg = (
                f"sample {name}: {largest} is not the expected file: its SHA-256 is {found}, the "
                f"sheet says {wanted}. Put the sheet right, or get the file anew"
            )
            raise UserError(msg)
    for alike in by_size.values():
        if len(alike) == 1:
            continue
        first: dict[str, tuple[str, Path]] = {}
        for name, file in alike:
            other, before = first.setdefault(file_sha256(file), (name, file))
            if other != name:
                msg = (
                    f"samples {other} and {name} are the same file by content ({before}, {file}): "
                    "name the file of each in the sheet, or remove one of the rows"
                )
                raise UserError(msg)


def _look(files: list[str], kind: str, matrix: str, gene_symbols: str, dataset: str) -> _Seen:
    with open_source(list(map(Path, files)), kind=kind) as source:
        cells = source.cells()
        if not len(cells):
            msg = f"{source.name} has no cells"
            raise UserError(msg)
        names = cells.names.hashes()
        tables = [
            name_genes(fit_for_disk(table, "var")[0], gene_symbols, dataset=dataset)[0]
            for table in _tables(source, matrix)
        ]
        return _Seen(names, cells.columns, max(tables, key=len, default=None))


def _tables(source: Source, matrix: str) -> Iterator[pd.DataFrame]:
    """Read the tables of genes of the matrices that may hold the counts."""
    for name in source.matrices() if matrix == "auto" else [matrix]:
        try:
            yield source.var(name)
        except (NotMatrix, KeyError):
            continue
