"""Write the report of a dataset, one HTML page that needs no network.

Purpose
    All results on one page, to look at first and to send to others: summary and warnings, an
    interactive map of the cells, figures with method and parameters, markers to search, time and
    memory, config, versions, provenance.

Method
    Read from step files, tables and figures. From the matrix only the genes in the map are read.
    Times and the config are shown as they are when the page is written; a change of them alone does
    not write it again.

Settings
    Section ``report``; ``figures.genes``; ``batch_key``, ``label_key``, ``label_missing`` and
    ``annotations`` of the dataset.

Inputs
    ``counts.zarr``, step files, ``filter.csv``, ``markers.csv`` and the folders of figures.

Outputs
    ``report.html``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrna.atomic import replacing
from scrna.file_list import check_content
from scrna.log import log
from scrna.report.map_data import map_of
from scrna.report.page import page
from scrna.report.results import Results
from scrna.step import step
from scrna.workflow.rule import run


@step
def report(
    counts: Path,
    filtered: Path,
    normalized: Path,
    steps: list[Path],
    filter_table: Path,
    marker_tables: list[Path],
    figures: list[Path],
    out: Path,
    *,
    max_cells: int,
    n_markers: int,
    genes: list[str],
    batch_key: list[str],
    label_key: str | None,
    annotations: dict[str, dict[str, str]],
    seed: int,
    label_missing: Sequence[str] = (),
    dataset: str,
    config: dict[str, Any],
    benchmarks: str,
) -> None:
    """Write a dataset's report.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    steps
        All other step files; those of a representation lie in a folder of its name.
    filter_table, marker_tables
        ``filter.csv``, and ``markers.csv`` of the representations.
    figures
        Folders of figures.
    out
        The page.
    max_cells
        Cells in the map; of more, so many are drawn at random.
    n_markers
        Genes of a group in the table of markers.
    genes
        Genes that the map offers beside the first markers.
    batch_key, label_key
        Columns of obs that the map colours by.
    label_missing
        Values of `label_key` that mean none.
    annotations
        Clustering → cluster → name.
    seed
        Of the sample of cells.
    dataset, config, benchmarks
        Its name, its section of the config, and its folder of benchmarks: to be shown.

    Raises
    ------
    UserError
        If one of `genes` is not there, or a cluster that `annotations` name.
    """
    for folder in figures:
        check_content(folder)
    results = Results(
        counts=counts,
        steps=[filtered, normalized, *steps],
        filter_table=filter_table,
        marker_tables=marker_tables,
        figures=figures,
    )
    columns = list(dict.fromkeys([*batch_key, *([label_key] if label_key else [])]))
    cell_map = map_of(
        results,
        columns=columns,
        genes=genes,
        annotations=annotations,
        max_cells=max_cells,
        seed=seed,
    )
    text = page(
        results,
        dataset=dataset,
        config=config,
        usages=results.usages(Path(benchmarks)),
        cell_map=cell_map.html,
        n_markers=n_markers,
        annotations=annotations,
        unlabelled=results.unlabelled(label_key, label_missing) if label_key else None,
    )
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    log.info("%s: %.1f MB; map: %s", out, out.stat().st_size / 1e6, cell_map.note)


if __name__ == "__main__":
    run(report, snakemake)
