"""What the rules of rules/samples.smk ask for: files and parameters of a dataset's samples."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scrna.config.converted import READING, current_summary
from scrna.config.datasets import Source, required_obs
from scrna.config.samples import Sheet, identifier, sample_sources, together
from scrna.workflow.job import Job

#: Keys of a dataset that say how the source of a sample is read; a sample has its own digest.
READING_SAMPLE = [key for key in READING if key != "sha256"]


class SampleRules:
    """Input functions and params of the rules, for Snakemake.

    A function that takes ``input`` too gives what is not tracked: Snakemake does not run a rule
    again for it.

    Parameters
    ----------
    datasets
        The datasets of a run, each with its ``sheet`` where it has one.
    sheets
        Dataset → its sheet.
    """

    def __init__(self, datasets: Mapping[str, Mapping[str, Any]], sheets: Mapping[str, Sheet]):
        self._datasets, self._sheets = datasets, sheets
        self._sources: dict[str, dict[str, Source]] = sample_sources(sheets)

    @property
    def datasets(self) -> list[str]:
        """The datasets that have a sheet."""
        return list(self._sheets)

    @property
    def samples(self) -> list[str]:
        """The names of all samples of all datasets."""
        return sorted({name for sources in self._sources.values() for name in sources})

    def sources(self) -> dict[str, Source]:
        """Return the sources of the datasets: all files of their samples."""
        return {name: together(sources) for name, sources in self._sources.items()}

    def _source(self, wildcards: SimpleNamespace) -> Source:
        # a folder of a sample may be left that is in the sheet no more
        return self._sources[wildcards.dataset].get(wildcards.sample, Source(None, []))

    def _sample(self, wildcards: SimpleNamespace):
        there = self._sheets[wildcards.dataset].samples
        return next((one for one in there if one.name == wildcards.sample), None)

    # ----------------------------------------------------------------------- of a sample

    def files(self, wildcards) -> list[str]:
        """List the files that hold a sample's counts."""
        return self._source(wildcards).files

    def address(self, wildcards) -> dict[str, str]:
        """Return what the download of a sample depends on."""
        return self._source(wildcards).address()

    def checksum(self, wildcards, output) -> dict[str, Any]:
        """Return the digest of a sample's download, and under which name its address is kept."""
        sample = self._sample(wildcards)
        kept = identifier(wildcards.dataset, wildcards.sample)
        return {"dataset": kept, "sha256": sample and sample.sha256}

    def reading(self, wildcards) -> dict[str, Any]:
        """Return how a sample is converted."""
        return {key: self._datasets[wildcards.dataset][key] for key in READING_SAMPLE}

    # ---------------------------------------------------------------------- of a dataset

    def dataset(self, wildcards, input) -> dict[str, str]:
        """Return the name of the dataset, for messages."""
        return {"dataset": wildcards.dataset}

    def stores(self, wildcards) -> list[str]:
        """List the converted samples, in the order of the sheet."""
        folder = f"results/{wildcards.dataset}/samples"
        names = self._datasets[wildcards.dataset]["sheet"]["samples"]
        return [f"{folder}/{name}/counts.zarr" for name in names]

    def merging(self, wildcards) -> dict[str, Any]:
        """Return what the merge depends on."""
        dataset = self._datasets[wildcards.dataset]
        keys = {key: dataset[key] for key in ("join", "join_on")}
        return {"samples": dataset["sheet"]["samples"], **keys}

    def columns(self, wildcards) -> dict[str, Any]:
        """Return what the sheet says of the samples, beside their sources."""
        return {"columns": self._datasets[wildcards.dataset]["sheet"]["columns"]}

    # --------------------------------------------------------------------- before a run

    def check(self, jobs: Iterable[Job]) -> list[str]:
        """Look at the sources of samples of which some will be converted.

        Files that are yet to be downloaded are left to the merge.

        Parameters
        ----------
        jobs
            The jobs that are due.

        Returns
        -------
        Lines for the terminal.

        Raises
        ------
        UserError
            As `scrna.ingest.sample_checks.check_samples`.
        """
        due = {job.place[0] for job in jobs if job.rule == "convert_sample"}
        lines = []
        for name in (name for name in self._sheets if name in due):
            from scrna.ingest.sample_checks import check_samples  # which takes a second

            dataset, sources = self._datasets[name], self._sources[name]
            there = {
                sample.name: {"files": sources[sample.name].files, "sha256": sample.sha256}
                for sample in self._sheets[name].samples
                if all(map(os.path.exists, sources[sample.name].files))
            }
            is_all = len(there) == len(sources)
            notes = check_samples(
                there,
                dataset=name,
                required_obs=required_obs(dataset, name) if is_all else {},
                sheet_columns=list(dataset["sheet"]["columns"]),
                **{key: dataset[key] for key in ("join_on", "kind", "matrix", "gene_symbols")},
            )
            lines += [f"{name}: {note}" for note in notes]
        return lines

    # ------------------------------------------------------------------------- to be said

    def lines(self, results: str | Path) -> list[str]:
        """Say of each dataset how many samples it has, their cells, and which will be converted.

        Parameters
        ----------
        results
            The folder with a folder for each dataset.
        """
        return [self._line(name, Path(results, name, "samples")) for name in self._sheets]

    def _line(self, name: str, folder: Path) -> str:
        there, due, cells = [], [], 0
        for sample, source in self._sources[name].items():
            n_obs = self._n_obs(name, source, folder / sample / "counts.json")
            if n_obs is None:
                due.append(sample)
            else:
                there.append(f"{sample} {n_obs:,} cells")
                cells += n_obs
        n = len(self._sources[name])
        said = [f"{n} sample{'s' if n > 1 else ''} in {self._sheets[name].path}"]
        if there:
            said.append(f"converted: {_listed(there)}")
        if due:
            said.append(f"to be converted: {_listed(due)}")
        else:
            said[0] += f", {cells:,} cells"
        if n == 1 and not self._datasets[name]["batch_key"]:
            said.append("one sample alone, so nothing to integrate")
        return f"{name}: {'; '.join(said)}"

    def _n_obs(self, name: str, source: Source, summary: Path) -> int | None:
        """Return the cells of a sample that is converted as the config is now."""
        dataset = {key: self._datasets[name][key] for key in READING_SAMPLE}
        facts = current_summary(summary, source.files, dataset | {"sha256": None})
        return None if facts is None else facts["n_obs"]


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
