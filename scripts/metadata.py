"""Add what a sample sheet says of its samples to the cells.

Purpose
    Every column of the sheet beside ``sample``, ``source`` and ``sha256`` becomes a column of obs.
    The counts are not written again: ``counts.zarr`` has the files of ``merged.zarr`` (hard links).

Settings
    ===========  ==========================================================================
    ``columns``  column → sample → value, null where the sheet has none
    ===========  ==========================================================================

Inputs
    ``merged``: ``merged.zarr``, with ``merged.json`` beside it.

Outputs
    ``counts``, ``summary``: ``counts.zarr`` and ``counts.json``, as ``convert`` makes them of a
    dataset that is one source; the summary also has what ``merged.json`` has, and ``sheet``.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from scrna.damage import reading, write_json
from scrna.data.counts import Counts
from scrna.data.data_checks import check_cells, check_genes, check_new_columns
from scrna.data.encodings import encoding
from scrna.data.store import bytes_on_disk, link_folder, new_store, write_slots
from scrna.ingest.counts_summary import digest_of_all
from scrna.ingest.obs_merge import ObsStore, sheet_column, write_sheet_columns
from scrna.ingest.obs_table import check_columns
from scrna.ingest.tables import add_column, describe_columns
from scrna.log import log
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run


@step
def metadata(
    merged: Path,
    counts: Path,
    summary: Path,
    *,
    dataset: str,
    columns: dict[str, dict[str, Any]],
    required_obs: dict[str, str] | None = None,
    named: dict[str, Any] | None = None,
) -> None:
    """Write the store of the merged counts with the columns of the sheet.

    Parameters
    ----------
    merged
        ``merged.zarr``.
    counts, summary
        The outputs, ``counts.zarr`` and ``counts.json``.
    dataset
        Its name, for messages.
    columns
        As this module's docstring says.
    required_obs, named
        As `convert` has them: what the config names is checked here and not hours later.

    Raises
    ------
    UserError
        If what the config names is not there.
    """
    merged, counts, summary = Path(merged), Path(counts), Path(summary)
    summary.unlink(missing_ok=True)  # never the summary of another store
    store = Counts(merged)
    facts = store.summary
    names = list(facts["samples"])
    codes = np.asarray(store.obs(["sample"])["sample"].cat.codes)
    added = {
        column: sheet_column(codes, [values[name] for name in names])
        for column, values in columns.items()
    }
    there = [name for name in ObsStore(merged).columns if name not in added]
    notes = [
        f"obs {name} of the sources is replaced by that of the sheet."
        for name in added
        if name in facts["obs_columns"]
    ]

    def column(name: str) -> pd.Series:
        return pd.Series(added[name]) if name in added else store.obs([name])[name]

    check_columns([*there, *added], required_obs or {}, dataset=dataset)
    if named:
        check_new_columns(named, [*there, *added])
        check_cells(named, column, lambda: [store.cell_names()], is_filtered=False)
        check_genes(named, store.genes(), store.gene_ids)
    with new_store(counts) as root:
        for part in ("X", "var"):
            link_folder(merged / part, counts_folder(root) / part)
        _write_obs(root, merged, there, added)
        write_slots(root)
    described = describe_columns({name: pd.Series(values) for name, values in added.items()})
    kept = {name: facts["obs_columns"][name] for name in there}
    known = facts | {
        "bytes_on_disk": bytes_on_disk(counts),
        "obs_columns": kept | described,
        "digest": digest_of_all(facts["digest"], _digest(added)),
        "sheet": {"samples": names, "columns": columns},
        "warnings": [*facts["warnings"], *notes],
        "merged": facts["provenance"],
        "provenance": provenance(),
    }
    for note in notes:
        log.warning("%s", note)
    log.info(
        "%s: obs of %s cells has %s from the sheet",
        dataset,
        f"{store.shape[0]:,}",
        ", ".join(["sample", *added]),
    )
    write_json(summary, known)


def counts_folder(root: zarr.Group) -> Path:
    """Return the folder of a store that is open."""
    return Path(root.store.root)


def _write_obs(root: zarr.Group, merged: Path, there: list[str], added: dict[str, Any]) -> None:
    """Write obs: the files of the columns that are there, and the columns that are added."""
    with reading(merged / "obs", merged):
        before = zarr.open_group(merged, mode="r", use_consolidated=False)["obs"].attrs
        index = str(before["_index"])
    group = root.create_group("obs")
    group.attrs.update(encoding("dataframe", **{"_index": index, "column-order": [*there, *added]}))
    for name in [index, *there]:
        link_folder(merged / "obs" / name, counts_folder(root) / "obs" / name)
    write_sheet_columns(group, added)


def _digest(added: dict[str, Any]) -> str:
    sha = hashlib.sha256()
    for name, values in added.items():
        hashes = pd.util.hash_pandas_object(pd.Series(values), index=False)
        add_column(sha, name, hashes.to_numpy())
    return sha.hexdigest()


if __name__ == "__main__":
    run(metadata, snakemake)
