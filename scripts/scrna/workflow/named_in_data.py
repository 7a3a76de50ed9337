"""What a dataset's settings name in its data, held against data that are already converted.

The conversion and the filter check what the settings name as they run. A setting that changes
later is no reason to run them again, so the start of a run looks at what they left.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scrna.config.converted import current_summary
from scrna.config.datasets import Source, covariates, required_obs
from scrna.config.gene_sets import named_genes
from scrna.config.groupings import groupings
from scrna.config.schema import nearest
from scrna.config.settings import batch_keys
from scrna.config.step_parameters import of_step
from scrna.damage import DamagedError
from scrna.errors import UserError
from scrna.provenance import plain
from scrna.steps import is_clustering


def named_in_data(dataset: Mapping[str, Any], name: str, seed: int) -> dict[str, Any]:
    """List what a dataset's settings name among its cells and genes.

    Parameters
    ----------
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    name
        Its name.
    seed
        The run's: simulated data depend on it.

    Returns
    -------
    dataset, simulate (what simulated data are made from), batch_key, missing_batch,
    min_batch_cells, regress_out (those not from qc), label_key, root, markers (where they are of a
    columns of obs), genes, gene_sets (`scrna.config.gene_sets.named_genes`).
    """
    markers, trajectory = dataset["markers"], dataset["trajectory"]
    columns = [name for name in groupings(dataset) if not is_clustering(name)]
    are_shown = dataset["figures"]["enabled"] or dataset["report"]["enabled"]
    is_simulated = dataset["kind"] == "simulate"
    return {
        "dataset": name,
        "simulate": {**dataset["simulate"], "seed": seed} if is_simulated else None,
        "batch_key": batch_keys(dataset),
        "missing_batch": dataset["harmony"]["missing_batch"],
        "min_batch_cells": dataset["harmony"]["min_batch_cells"],
        "regress_out": covariates(dataset),
        "label_key": dataset["label_key"],
        "root": trajectory["root"] if trajectory["enabled"] else None,
        "markers": [
            {"groupby": name, "min_cells": markers["min_cells"], "method": markers["method"]}
            for name in columns
            if markers["enabled"]
        ],
        "genes": list(dataset["figures"]["genes"]) if are_shown else [],
        "gene_sets": named_genes(dataset),
    }


def check_converted(
    datasets: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Source],
    results: str,
    *,
    backend: str,
    seed: int,
) -> None:
    """Refuse settings that name what converted data do not have, before anything runs.

    Data that the run will convert or filter anew are left to these steps, as are settings that
    these steps have seen.

    Parameters
    ----------
    datasets
        Datasets of a `scrna.config.settings.complete` config.
    found
        Their `scrna.config.datasets.sources`.
    results
        The folder with a folder for each dataset.
    backend, seed
        The run's.

    Raises
    ------
    UserError
        For the first such setting.
    """
    for name, dataset in datasets.items():
        folder = Path(results, name)
        named = plain(named_in_data(dataset, name, seed))
        summary, files = folder / "counts.json", found[name].files
        facts = current_summary(summary, files, dataset, named["simulate"])
        if facts is None:
            continue
        _check_columns(name, dataset, facts["obs_columns"], summary)
        with suppress(DamagedError):  # the first step that reads it says so and sets it aside
            if facts["provenance"].get("named") != named:
                _check_counts(folder / "counts.zarr", named)
            if (folder / "filter.h5").exists():
                settings = plain(of_step("filter", dataset, backend=backend, seed=seed))
                _check_filtered(folder, facts["digest"], settings, named)


def _check_columns(
    name: str, dataset: Mapping[str, Any], columns: Iterable[str], summary: Path
) -> None:
    """Do what the conversion does with the columns that the settings name."""
    columns = list(columns)
    for column, key in required_obs(dataset, name).items():
        if column not in columns:
            msg = (
                f"{key} names {column!r}, which obs of {name} does not have (if its source is "
                f"another by now, remove {summary}); {nearest(column, columns)}"
            )
            raise UserError(msg)


def _check_counts(counts: Path, named: Mapping[str, Any]) -> None:
    """Do what the conversion does, with the store that it left."""
    from scrna.data.counts import Counts
    from scrna.data.data_checks import check_cells, check_genes, check_new_columns

    store = Counts(counts)

    def column(name: str):
        return store.obs([name])[name]

    check_new_columns(named, store.summary["obs_columns"])
    check_cells(named, column, lambda: [store.cell_names()], is_filtered=False)
    if _names_genes(named):
        check_genes(named, store.genes(), store.gene_ids)


def _check_filtered(
    folder: Path, digest: str, settings: Mapping[str, Any], named: Mapping[str, Any]
) -> None:
    """Do what the filter does at its end, with the step file that it left, if it is current."""
    from scrna.data import step_files

    filtered = folder / "filter.h5"
    record = step_files.provenance_of(filtered)
    stands = record["parameters"] == settings and record["inputs"].get("counts") == digest
    if not stands or record.get("named") == named:
        return
    from scrna.data.counts import Counts, kept
    from scrna.data.data_checks import check_cells, check_kept_genes

    store = Counts(folder / "counts.zarr")
    cells, genes = kept(filtered)

    def column(name: str):
        return store.obs([name])[name][cells]

    check_cells(named, column, lambda: [store.cell_names()[cells]], is_filtered=True)
    if _names_genes(named):
        n_cells = step_files.read(filtered, "var/n_cells_kept")
        check_kept_genes(named, store.genes(), store.gene_ids, n_cells, genes)


def _names_genes(named: Mapping[str, Any]) -> bool:
    sets = named["gene_sets"]
    return bool(named["genes"] or sets["scores"] or sets["markers"]) or "gene" in (
        named["root"] or {}
    )
