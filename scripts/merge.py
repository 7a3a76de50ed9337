"""Merge the counts of a dataset's samples into one store.

Purpose
    Put the cells of all samples of a sheet one below the other, with one list of genes: those in
    all samples, or in any. The counts are streamed in blocks, on all cores, and obs a column at a
    time: some 1 GB of memory at any size. What the sheet says of the samples is added by
    ``metadata``, so that a change of it merges nothing again.

Settings
    ===========  ==========================================================================
    ``samples``  their names, in the order of the sheet
    ``join``     ``inner``: genes in all samples; ``outer``: genes in any
    ``join_on``  ``ids``, ``symbols``; ``auto``: ids where all samples have Ensembl ids
    ===========  ==========================================================================

Inputs
    ``stores``: ``counts.zarr`` of each sample, in the order of ``samples``.

Outputs
    ``counts``: ``merged.zarr``, as ``convert`` writes a store. obs has ``sample`` and all columns
    of the samples; cells are named as in the samples, ``NAME-SAMPLE`` for all of them if a name is
    there in two samples.

    ``summary``: ``merged.json``, as ``convert`` writes ``counts.json``; also ``reading`` (how the
    samples were converted), ``samples`` (of each its cells and genes), ``joined`` (join, on, and
    how many genes are in all samples and in any).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scrna.damage import write_json
from scrna.data.counts import Counts
from scrna.data.store import new_store, write_slots, write_table
from scrna.errors import UserError
from scrna.ingest.counts_summary import digest_of_all, digest_of_genes, sizes
from scrna.ingest.gene_join import Joined, join_genes
from scrna.ingest.merge import merge_counts, shared_names
from scrna.ingest.obs_merge import ObsStore, joined_names, merged_table
from scrna.ingest.obs_table import CellTable, write_cells
from scrna.log import log
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run


@step
def merge(
    stores: Path | list[Path],
    counts: Path,
    summary: Path,
    *,
    dataset: str,
    samples: list[str],
    join: str = "inner",
    join_on: str = "auto",
) -> None:
    """Write the counts of samples as one store, and a summary of it.

    Parameters
    ----------
    stores
        ``counts.zarr`` of each sample, in their order; its ``counts.json`` lies beside it.
    counts, summary
        The outputs, ``merged.zarr`` and ``merged.json``.
    dataset
        Its name, for messages.
    samples, join, join_on
        As this module's docstring says.

    Raises
    ------
    UserError
        If samples have no gene in common, are of different species, or hold the same counts.
    """
    counts, summary = Path(counts), Path(summary)
    summary.unlink(missing_ok=True)  # never the summary of another store
    stores = stores if isinstance(stores, list) else [stores]
    opened = {name: Counts(path) for name, path in zip(samples, stores, strict=True)}
    facts = {name: store.summary for name, store in opened.items()}
    check_distinct(facts, dataset)
    tables = {name: store.table("var") for name, store in opened.items()}
    joined = join_genes(tables, join=join, join_on=join_on, dataset=dataset)
    cells, notes = _cells(stores, samples)
    notes = [*_notes_of(facts), *joined.notes, *notes]
    with new_store(counts) as root:
        written = write_cells(root, cells, np.ones(len(cells), bool))
        info = merge_counts(root, opened, joined.places, len(joined.var), label=f"merge {dataset}")
        write_table(root, "var", joined.var)
        write_slots(root)
    notes += written.notes
    if info.empty_rows > (before := sum(one["n_empty"] for one in facts.values())):
        notes.append(
            f"{info.empty_rows - before:,} cells have no count in the genes that all samples have."
        )
    known = {
        "dataset": dataset,
        **sizes(counts, info),
        **_of_sources(facts),
        "n_empty": info.empty_rows,
        "obs_columns": written.columns,
        "digest": digest_of_all(info.digest, written.digest, digest_of_genes(joined.var)),
        "samples": {
            name: {key: one[key] for key in ("n_obs", "n_vars")} for name, one in facts.items()
        },
        "joined": {
            "join": join,
            "on": joined.on,
            "n_common": joined.n_common,
            "n_either": joined.n_either,
        },
        "warnings": notes,
        "provenance": provenance(),
    }
    _tell(known, joined)
    write_json(summary, known)


def check_distinct(facts: dict[str, dict[str, Any]], dataset: str) -> None:
    """Refuse samples that hold the same cells with the same counts, of different files maybe."""
    first: dict[str, str] = {}
    for name, one in facts.items():
        if (other := first.setdefault(one["digest"], name)) != name:
            files = [", ".join(f["path"] for f in facts[n]["source"]) for n in (other, name)]
            msg = (
                f"{dataset}: samples {other} and {name} hold the same cells and counts "
                f"({files[0]}; {files[1]}): name the file of each in the sheet, or remove one"
            )
            raise UserError(msg)


def _cells(stores: Sequence[Path], samples: Sequence[str]) -> tuple[CellTable, list[str]]:
    """Open the table of all cells; what is worth saying of it comes with it."""
    tables = [ObsStore(path) for path in stores]
    do_clash, notes = shared_names(
        {name: table.names().hashes() for name, table in zip(samples, tables, strict=True)}
    )
    if do_clash:
        notes.append(
            "Cells are named BARCODE-SAMPLE: some barcodes are there in more than one sample."
        )
    names = joined_names(tables, samples, with_sample=do_clash)
    return merged_table(tables, samples, names, notes), notes


def _notes_of(facts: dict[str, dict[str, Any]]) -> list[str]:
    """List what the conversions of the samples have warned of, once where all say the same."""
    said: dict[str, list[str]] = {}
    for name, one in facts.items():
        for text in one["warnings"]:
            said.setdefault(text, []).append(name)
    return [
        text if len(names) == len(facts) else f"{', '.join(names)}: {text}"
        for text, names in said.items()
    ]


def _of_sources(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join what the samples' summaries say of their sources."""
    kinds, matrices, symbols = (
        ", ".join(dict.fromkeys(one[key] for one in facts.values()))
        for key in ("kind", "matrix", "gene_symbols")
    )
    return {
        "source": [file for one in facts.values() for file in one["source"]],
        "kind": kinds,
        "matrix": matrices,
        "gene_symbols": symbols,
        "n_obs_source": sum(one["n_obs_source"] for one in facts.values()),
        "reading": next(iter(facts.values()))["provenance"]["parameters"],
    }


def _tell(facts: dict[str, Any], joined: Joined) -> None:
    log.info(
        "%s: %d samples, %s cells × %s genes (%s join on %s: %s in all samples, %s in any), "
        "%s non-zeros, %.1f MB on disk",
        facts["dataset"],
        len(facts["samples"]),
        f"{facts['n_obs']:,}",
        f"{facts['n_vars']:,}",
        facts["joined"]["join"],
        joined.on,
        f"{joined.n_common:,}",
        f"{joined.n_either:,}",
        f"{facts['nnz']:,}",
        facts["bytes_on_disk"] / 1e6,
    )
    for warning in facts["warnings"]:
        log.warning("%s", warning)


if __name__ == "__main__":
    run(merge, snakemake)
