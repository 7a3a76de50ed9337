"""Read the results of a dataset's steps for its report."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scrna.damage import read_summary, reading
from scrna.data import filter_csv, step_files
from scrna.data.benchmarks import Usage, usage_of
from scrna.data.counts import Counts
from scrna.data.labels import numbered_labels
from scrna.data.spreadsheet import unescaped
from scrna.steps import CLUSTERINGS

#: Representation → its name in the report; the last one that exists is the main result.
REPRESENTATIONS = {"pca": "PCA, before integration", "harmony": "Harmony, after integration"}
#: Clusterings: their step files hold obs columns of the same name, one more for each resolution.


@dataclass(frozen=True)
class Markers:
    """The first rows of every group in a ``markers.csv``.

    Parameters
    ----------
    columns
        Names of the columns: group, names, and those of numbers.
    rows
        Text in the first two columns, then numbers; None for a missing one.
    """

    columns: list[str]
    rows: list[list]

    def genes(self, most: int) -> dict[str, list[str]]:
        """Return the first genes of each group."""
        found: dict[str, list[str]] = {}
        for group, gene, *_ in self.rows:
            known = found.setdefault(group, [])
            if len(known) < most:
                known.append(gene)
        return found


def read_markers(path: Path, most: int) -> Markers:
    """Read the first genes of each group of a ``markers.csv``, which has its groups one by one.

    Parameters
    ----------
    path
        The table.
    most
        Genes of a group.
    """
    n_read: dict[str, int] = {}
    rows = []
    step_files.check_table(path)
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader)
        for group, gene, *numbers in reader:
            n_read[group] = n = n_read.get(group, 0) + 1
            if n <= most:
                rows.append([unescaped(group), unescaped(gene), *map(_number, numbers)])
    return Markers(columns, rows)


def _number(text: str) -> float | None:
    number = float(text or "nan")
    return number if isfinite(number) else None  # JSON has no others


@dataclass(frozen=True)
class Results:
    """The result files of a dataset and their contents.

    Parameters
    ----------
    counts
        ``counts.zarr``, with ``counts.json`` beside it.
    steps
        Step files; those of a representation lie in a folder of its name.
    filter_table
        ``filter.csv``.
    marker_tables
        ``markers.csv`` of representations, in a folder of its name; further groupings have theirs
        in ``markers_NAME.csv``.
    figures
        Folders of figures: of the dataset, and of its representations, those of further groupings
        ``figures_NAME``.
    """

    counts: Path
    steps: list[Path]
    filter_table: Path
    marker_tables: list[Path] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)

    def rep_of(self, path: Path) -> str:
        """Return the representation in whose folder a file or folder lies; empty for none.

        The dataset's own folder is none, whatever the dataset is called.
        """
        folder = path.parent
        is_own = folder == self.counts.parent
        return "" if is_own or folder.name not in REPRESENTATIONS else folder.name

    @cached_property
    def files(self) -> dict[tuple[str, str], Path]:
        """Representation (empty if none) and step → step file."""
        return {(self.rep_of(path), path.stem): path for path in self.steps}

    @cached_property
    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Representation and step → provenance, conversion first."""
        found = {("", "convert"): self.source["provenance"]}
        return found | {key: step_files.provenance_of(path) for key, path in self.files.items()}

    @cached_property
    def source(self) -> dict[str, Any]:
        """The contents of ``counts.json``."""
        return read_summary(self.counts.with_suffix(".json"))

    @cached_property
    def reps(self) -> list[str]:
        """The representations that exist, the main result first."""
        there = {rep for rep, _ in self.files}
        return [rep for rep in reversed(REPRESENTATIONS) if rep in there]

    @cached_property
    def filter_rows(self) -> filter_csv.Table:
        """What ``filter.csv`` says of all cells, and of each sample."""
        return filter_csv.read(self.filter_table)

    @property
    def filtered(self) -> filter_csv.Rows:
        """Rows of ``filter.csv`` of all cells: bound, cells, cells_by_this_alone, genes."""
        return self.filter_rows.everything

    @cached_property
    def keep(self) -> np.ndarray:
        """Mask of the kept cells."""
        return step_files.read(self.files["", "filter"], "obs/keep")

    @cached_property
    def doublets(self) -> np.ndarray | None:
        """Flags of the predicted doublets among the kept cells, where they are looked for."""
        path = self.files.get(("", "doublets"))
        return step_files.read(path, "obs/predicted_doublet")[self.keep] if path else None

    @cached_property
    def integration(self) -> dict[str, Any] | None:
        """The scores of the integration and the verdict, if they were computed."""
        path = self.files.get(("", "integration"))
        return step_files.read(path, "uns/integration") if path else None

    def unlabelled(self, label_key: str, missing: Sequence[str]) -> tuple[str, int]:
        """Count the kept cells without a label.

        Parameters
        ----------
        label_key
            Column of obs.
        missing
            Values that mean no label.

        Returns
        -------
        The column and the number.
        """
        labels = Counts(self.counts).obs([label_key])[label_key][self.keep]
        return label_key, int((numbered_labels(labels, missing) < 0).sum())

    @cached_property
    def not_drawn(self) -> list[tuple[str, str, str]]:
        """Step, figure and reason of each figure that could not be drawn."""
        found = []
        for folder in self.figures:
            listed, rep = folder / "not_drawn.json", self.rep_of(folder)
            step = f"marker_figures ({rep})" if rep else "figures"
            if folder.parent.name == "qc" and folder.parent.parent == self.counts.parent:
                step = "qc_figures"
            if listed.exists():
                with reading(listed, folder):
                    reasons = json.loads(listed.read_text())
                found += [(step, name, why) for name, why in reasons.items()]
        return found

    def markers(self, most: int) -> dict[tuple[str, str], "Markers"]:
        """Read the first genes of every group of each table, the main result first.

        Parameters
        ----------
        most
            Genes of a group.

        Returns
        -------
        Representation and step (``markers``, ``markers_cell_type``) → the rows.
        """
        return {
            (rep, path.stem): read_markers(path, most)
            for rep in self.reps
            for path in self.marker_tables
            if self.rep_of(path) == rep
        }

    def parameters(self, step: str, rep: str | None = None) -> dict[str, Any]:
        """Return the parameters that a step ran with, by default in the main representation.

        Parameters
        ----------
        step
            The step.
        rep
            The representation, if there are several.

        Returns
        -------
        The parameters; empty if the step did not run.
        """
        reps = [rep] if rep else ["", *self.reps]
        record = next((self.records[r, step] for r in reps if (r, step) in self.records), {})
        return record.get("parameters", {})

    def has(self, step: str, slot: str) -> bool:
        """Check whether a step has written a slot, in any representation."""
        return any(
            slot in step_files.names(path) for (_, name), path in self.files.items() if name == step
        )

    def clusterings(self, rep: str) -> dict[str, pd.Categorical]:
        """Read the clusterings of a representation, by name: leiden, leiden_0.6, louvain, ..."""
        return {
            name.removeprefix("obs/"): step_files.read(path, name)
            for step in CLUSTERINGS
            if (path := self.files.get((rep, step)))
            for name in sorted(step_files.names(path), key=len)
            if name.startswith("obs/")
        }

    def has_names(self, rep: str) -> bool:
        """Return whether groups of a representation have names from marker genes."""
        return (rep, "cell_type_names") in self.files

    def usages(self, benchmarks: Path) -> list[Usage]:
        """Read time and memory of the steps, in the order in which they started.

        Parameters
        ----------
        benchmarks
            The dataset's folder of benchmarks.
        """
        names = ("convert", "merge", "metadata", "qc_figures")
        files = [benchmarks / f"{name}.tsv" for name in names]
        files += [*benchmarks.glob("samples/*/*.tsv"), *benchmarks.glob("*/figures.tsv")]
        files += [*benchmarks.glob("download.*.tsv"), benchmarks / "simulate.tsv"]
        for rep, step in self.files:
            folder = benchmarks if step in REPRESENTATIONS else benchmarks / rep
            files.append(folder / f"{step}.tsv")
        files += [file for rep in self.reps for file in (benchmarks / rep).glob("marker_fig*.tsv")]
        return sorted(_usages(files, benchmarks), key=lambda usage: usage.started)


def _usages(files: list[Path], benchmarks: Path) -> Iterator[Usage]:
    for file in files:
        parts = file.relative_to(benchmarks).with_suffix("").parts
        label = " ".join(part for part in reversed(parts) if part != "samples")
        try:
            yield usage_of(file, label)
        except (OSError, ValueError, KeyError):
            continue  # missing, or being written
