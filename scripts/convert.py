"""Convert a dataset to the store that all steps read.

Purpose
    Find the raw counts of a source, check every value, and write them once as ``counts.zarr``: an
    AnnData store (zarr v3) with X as CSR counts, obs and var. Cells are streamed in blocks, on all
    cores, and obs a column at a time: 1 GB of memory, 2 GB where cells are not stored together
    (CSC, read in several passes), of which some 70 bytes a cell.

Settings
    =================  =========================================================================
    ``kind``           ``h5ad``, ``10x_h5``, ``10x_mtx``; ``auto`` tells it from the file
    ``matrix``         where the counts are: ``X``, ``raw.X``, ``layers/NAME``; ``auto`` takes
                       the first of these that holds non-negative integers alone
    ``gene_symbols``   the var column with gene symbols, or ``index``; ``auto`` takes the first
                       known one (`scrna.ingest.tables.SYMBOL_COLUMNS`), else the index
    ``keep_obs``       cells to keep by obs values: ``{column: [values]}``
    ``sha256``         digest that the source file must have
    ``required_obs``   obs columns that the config names, with the keys that name them: missing
                       ones are told here and not hours later
    ``named``          cells, genes, labels and batches that the config names: likewise
    =================  =========================================================================

Inputs
    ``source``: an ``.h5ad`` file (CSR, CSC or dense, AnnData 0.5 or later), a 10x ``.h5`` file, or
    a 10x mtx folder or its files. Features other than gene expression are left out.

Outputs
    ``counts.zarr``: X uint16 (uint32 if a count exceeds 65,535), cells × genes; obs as in the
    source; var indexed by unique symbols, the source's index in ``gene_ids``.

    ``counts.json``: ``n_obs``, ``n_vars``, ``nnz``, ``dtype``, ``max``, ``bytes_on_disk``,
    ``bytes_in_memory`` (of the CSR), ``chunk`` and ``shard`` (elements), ``source`` (path, bytes,
    time of change and a digest of the ends of each file), ``kind``, ``matrix``, ``gene_symbols``,
    ``n_obs_source``, ``n_empty`` (cells without a count), ``obs_columns``, ``digest`` (of counts,
    obs and var), ``warnings``, ``provenance``.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from scrna.config.converted import as_read
from scrna.damage import write_json
from scrna.data.block import in_order
from scrna.data.csr_writer import CSRWriter, MatrixInfo, Rows
from scrna.data.data_checks import check_cells, check_genes, check_new_columns
from scrna.data.store import new_store, write_slots, write_table
from scrna.errors import UserError
from scrna.ingest.counts_summary import digest_of_all, digest_of_genes, sizes
from scrna.ingest.download import file_sha256
from scrna.ingest.formats import Block, Source, open_source
from scrna.ingest.formats.base import BLOCK_NNZ, NotMatrix, n_threads
from scrna.ingest.obs_table import CellTable, Text, check_columns, kept_cells, write_cells
from scrna.ingest.tables import fit_for_disk, name_genes
from scrna.log import log
from scrna.progress import Progress
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run

_MAX_COUNT = np.iinfo(np.uint32).max


class _NotCounts(Exception):  # noqa: N818 - a finding, told to the user with the others
    """What a matrix holds that counts cannot be; completes "X: …"."""


@step
def convert(
    source: Path | list[Path],
    counts: Path,
    summary: Path,
    *,
    dataset: str,
    kind: str = "auto",
    matrix: str = "auto",
    gene_symbols: str = "auto",
    keep_obs: dict[str, list[Any]] | None = None,
    sha256: str | None = None,
    required_obs: dict[str, str] | None = None,
    named: dict[str, Any] | None = None,
) -> None:
    """Write a source's raw counts as a zarr store, and a summary of it.

    Parameters
    ----------
    source
        File, folder, or the files of an mtx folder.
    counts, summary
        The outputs, ``counts.zarr`` and ``counts.json``.
    dataset
        Its name, for messages.
    kind, matrix, gene_symbols, keep_obs, sha256, required_obs, named
        As this module's docstring says.

    Raises
    ------
    UserError
        If the source is damaged or of no known kind, holds no counts, or lacks what the config
        names; the message says what there is.
    """
    counts, summary = Path(counts), Path(summary)
    summary.unlink(missing_ok=True)  # never the summary of another store
    _check_sha256(source, sha256, dataset)
    with open_source(source, kind=kind) as opened:
        files = [as_read(file) for file in opened.files]  # before they are read
        obs = opened.cells()
        n_obs_source = len(obs)
        check_columns(obs.columns, required_obs or {}, dataset=dataset)
        cells = kept_cells(obs, keep_obs or {}, dataset=dataset)
        _check_not_empty(int(cells.sum()), n_obs_source, dataset)
        if keep_obs:
            log.info("keep_obs: %s of %s cells stay", f"{cells.sum():,}", f"{n_obs_source:,}")
        with new_store(counts) as root:
            written = write_cells(root, obs, cells)
            if named:
                names = written.names.pieces
                check_new_columns(named, obs.columns)
                check_cells(named, _columns_of(obs, cells), names, is_filtered=False)
                _check_genes(opened, matrix, gene_symbols, named)
            notes = [*opened.notes, *obs.notes, *written.notes]
            used, info = _write_counts(opened, root, matrix, cells, dataset)
            var, more = fit_for_disk(opened.var(used), "var")
            notes += more
            var, symbols, more = name_genes(var, gene_symbols, dataset=dataset)
            notes += more + _doubts(info, used)
            if named:
                check_genes(named, var.index, lambda: var["gene_ids"].astype(str))
            write_table(root, "var", var)
            write_slots(root)
    facts = {
        "dataset": dataset,
        **sizes(counts, info),
        "source": files,
        "kind": opened.kind,
        "matrix": used,
        "gene_symbols": symbols,
        "n_obs_source": n_obs_source,
        "n_empty": info.empty_rows,
        "obs_columns": written.columns,
        "digest": digest_of_all(info.digest, written.digest, digest_of_genes(var)),
        "warnings": notes,
        "provenance": provenance(),
    }
    _tell(facts)
    write_json(summary, facts)


def _columns_of(obs: CellTable, cells: np.ndarray) -> Callable[[str], pd.Series]:
    """Make a function that reads a column of obs of some cells."""

    def column(name: str) -> pd.Series:
        values = obs.read(name, cells)
        return pd.Series(np.concatenate([*values.pieces()])) if isinstance(values, Text) else values

    return column


def _check_genes(source: Source, matrix: str, gene_symbols: str, named: dict[str, Any]) -> None:
    """Refuse genes that no matrix has which may hold the counts, before these are read."""
    problems = []
    for candidate in source.matrices() if matrix == "auto" else [matrix]:
        try:
            var, _ = fit_for_disk(source.var(candidate), "var")
            var, _, _ = name_genes(var, gene_symbols, dataset=named["dataset"])
            return check_genes(named, var.index, lambda var=var: var["gene_ids"].astype(str))
        except (UserError, NotMatrix, KeyError) as problem:
            problems.append(problem)
    for problem in problems:
        if isinstance(problem, UserError):
            raise problem
    return None


def _write_counts(
    source: Source, root: zarr.Group, matrix: str, cells: np.ndarray, dataset: str
) -> tuple[str, MatrixInfo]:
    """Write the first matrix that holds counts, or the one named; tell which and what it is."""
    there = source.matrices()
    if matrix != "auto" and matrix not in there:
        msg = (
            f"datasets.{dataset}.matrix: {source.name} has no {matrix}; "
            f"there are {', '.join(there) or 'none'}"
        )
        raise UserError(msg)
    findings = []
    for candidate in there if matrix == "auto" else [matrix]:
        try:
            return candidate, _write_matrix(source, root, candidate, cells, dataset)
        except (_NotCounts, NotMatrix) as finding:
            findings.append(f"{candidate}: {finding}")
            log.info("%s", findings[-1])
            if "X" in root:
                del root["X"]
    others = [name for name in there if name != matrix]
    advice = (
        "Counts are whole numbers from 0 up. If they are elsewhere, name the matrix with "
        f"datasets.{dataset}.matrix, or get the file with raw counts"
    )
    if matrix != "auto" and others:
        advice += f"; {source.name} also has {', '.join(others)}"
    msg = f"{source.name} has no counts:\n  " + "\n  ".join(findings or ["no matrix"])
    raise UserError(f"{msg}\n{advice}")


def _write_matrix(
    source: Source, root: zarr.Group, matrix: str, cells: np.ndarray, dataset: str
) -> MatrixInfo:
    """Stream a matrix into X: uint16, or from the start again as uint32 if a count needs it."""
    if not (n_vars := len(source.var(matrix))):
        msg = "it has no genes"
        raise NotMatrix(msg)
    for dtype in (np.uint16, np.uint32):

        def prepared(block: Block, dtype=dtype) -> Rows:
            _check_counts(block, source)
            return Rows.of(block.counts, dtype)

        try:
            with (
                CSRWriter(root, "X", n_vars=n_vars, dtype=dtype) as writer,
                closing(source.blocks(matrix, cells)) as blocks,
                Progress(f"convert {dataset}", total=int(cells.sum())) as progress,
            ):
                for rows in in_order(prepared, blocks, n_threads(BLOCK_NNZ)):
                    writer.append(rows)
                    progress.update(len(rows.sizes))
                return writer.close()
        except OverflowError:
            log.info("%s has counts above 65,535: it is written as uint32", matrix)
            del root["X"]
    msg = f"it has a count above {_MAX_COUNT:,}"
    raise _NotCounts(msg)


def _check_counts(block: Block, source: Source) -> None:
    """Refuse a value that is no count, naming its cell."""
    values = block.counts.data
    if values.dtype.kind == "u":
        return
    if values.dtype.kind == "i":
        is_wrong = values < 0
    else:
        is_wrong = ~((values >= 0) & (values == np.floor(values)) & (values < np.inf))
    if is_wrong.any():
        first = int(np.argmax(is_wrong))
        row = np.searchsorted(block.counts.indptr, first, side="right") - 1
        cell = source.cells().names.one(int(block.cells[row]))
        msg = f"it has the value {values[first]:.6g} in cell {cell!r}"
        raise _NotCounts(msg)


def _doubts(info: MatrixInfo, matrix: str) -> list[str]:
    """Say what in a matrix is no error but hardly meant."""
    notes = []
    if not info.nnz:
        notes.append(f"{matrix} has no count at all: every value is 0.")
    elif info.max == 1:
        notes.append(f"No count in {matrix} is above 1: it may tell presence alone, not counts.")
    if info.empty_rows > info.shape[0] / 2:
        notes.append(
            f"{info.empty_rows:,} of {info.shape[0]:,} cells have no count: this may be the raw "
            "matrix of all barcodes; the filtered one holds the cells."
        )
    return notes


def _check_sha256(source: Path | list[Path], sha256: str | None, dataset: str) -> None:
    if sha256 is None:
        return
    paths = [Path(path) for path in (source if isinstance(source, list) else [source])]
    key = f"datasets.{dataset}.sha256"
    if len(paths) > 1 or paths[0].is_dir():
        msg = f"{key} is the digest of one file, and {paths[0].parent} is a folder: take it away"
        raise UserError(msg)
    if paths[0].is_file() and (found := file_sha256(paths[0])) != sha256.lower():
        msg = (
            f"{paths[0]} is not the expected file: its SHA-256 is {found}, {key} says {sha256}. "
            "Put the key right, or get the file anew"
        )
        raise UserError(msg)


def _check_not_empty(n_kept: int, n_obs: int, dataset: str) -> None:
    if n_kept:
        return
    why = f"keep_obs keeps none of its {n_obs:,} cells" if n_obs else "it has no cells"
    msg = f"{dataset}: {why}"
    raise UserError(msg)


def _tell(facts: dict[str, Any]) -> None:
    log.info(
        "%s: %s cells × %s genes, %s non-zeros from %s (%s, gene symbols from %s); "
        "%s, %.1f MB on disk, %.1f MB in memory",
        facts["dataset"],
        f"{facts['n_obs']:,}",
        f"{facts['n_vars']:,}",
        f"{facts['nnz']:,}",
        facts["matrix"],
        facts["kind"],
        facts["gene_symbols"],
        facts["dtype"],
        facts["bytes_on_disk"] / 1e6,
        facts["bytes_in_memory"] / 1e6,
    )
    for warning in facts["warnings"]:
        log.warning("%s", warning)


if __name__ == "__main__":
    run(convert, snakemake)
