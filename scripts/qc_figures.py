"""Draw figures of quality control as soon as the filter is known.

Purpose
    Show whether the bounds of the filter are right, long before the clusters are there.

Method
    Drawn from step files and a column of obs, as `figures`.

Settings
    ``dpi`` and ``formats`` of section ``figures``; ``batch_key`` of the dataset.

Inputs
    ``counts.zarr`` (obs), qc, filter, ``filter.csv``.

Outputs
    A folder: ``qc_violins`` (before filtering, with the bounds, per sample if they differ),
    ``qc_scatter`` (kept and removed cells), ``filter`` (cells removed by each bound).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scrna.data import filter_csv, step_files
from scrna.data.counts import Counts, kept
from scrna.data.samples import samples_of
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run


@step
def qc_figures(
    counts: Path,
    qc: Path,
    filtered: Path,
    table: Path,
    out: Path,
    *,
    dpi: int,
    formats: list[str],
    batch_key: list[str],
) -> None:
    """Draw the quality of a dataset's cells.

    Parameters
    ----------
    counts, qc, filtered, table
        ``counts.zarr``, the step files of ``qc`` and ``filter``, ``filter.csv``.
    out
        The folder of figures; an existing one is replaced.
    dpi
        Dots per inch.
    formats
        ``png``, and ``svg`` for figures without a scatter plot.
    batch_key
        obs columns of batches. The violins go by the samples that the filter goes by, else by the
        first of these; none shows the cells as one.
    """
    from scrna.plots.saving import save_folder

    drawn = pictures(counts, qc, filtered, table, batch_key=batch_key)
    save_folder(out, drawn, dpi=dpi, formats=formats, made=provenance())


def pictures(
    counts: Path, qc: Path, filtered: Path, table: Path, *, batch_key: list[str]
) -> Iterator[tuple]:
    """Draw the figures one after another.

    Parameters
    ----------
    counts, qc, filtered, table, batch_key
        As in `qc_figures`.

    Yields
    ------
    The name of a figure and a function that draws it, a `matplotlib.figure.Figure`.
    """
    import pandas as pd

    from scrna.plots import quality_figures as draw
    from scrna.plots.style import as_groups

    cells, _ = kept(filtered)
    rows, of_samples = filter_csv.read(table)
    removed = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
    removed = removed.rename_axis("criterion").reset_index()
    quality = pd.DataFrame({name: step_files.read(qc, f"obs/{name}") for name in draw.QC})
    by = step_files.provenance_of(filtered)["parameters"].get("by")
    batch = None
    if by:
        batch = pd.Categorical.from_codes(*samples_of(Counts(counts), by, "filter.by"))
    elif batch_key:
        batch = as_groups(Counts(counts).obs(batch_key[:1])[batch_key[0]])
    own = {
        sample: {
            name: row["bound"]
            for name, row in found.items()
            if rows[name]["bound"] is None and row["bound"] is not None
        }
        for sample, found in of_samples.items()
    }
    yield "qc_violins", partial(draw.qc_violins, quality, batch, removed, own)
    yield "qc_scatter", partial(draw.qc_scatter, quality, cells, removed)
    yield "filter", partial(draw.filter_bars, removed)


if __name__ == "__main__":
    run(qc_figures, snakemake)
