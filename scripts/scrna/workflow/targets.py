"""Which files a run makes, and which of them a rule reads, as the config has it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scrna.config.datasets import Source
from scrna.config.groupings import grouping_of, suffixes
from scrna.config.settings import batch_keys
from scrna.config.step_parameters import TOPICS_BY_CELL
from scrna.steps import CLUSTERINGS, STEPS, clustering_of, is_clustering, is_made, results

#: The representations of the cells: before and after integration.
REPS = ["pca", "harmony"]
#: The topics of a dataset's figures, with the steps of a representation that each is drawn from.
TOPICS = {
    "genes": ["pca"],
    "clusters": ["leiden", "umap"],
    "tsne": ["leiden", "tsne"],
    "scores": ["leiden", "umap", "scores"],
    "trajectory": ["leiden", "umap", "trajectory"],
}


def named(values: Iterable[str]) -> str:
    """Return a wildcard constraint: one of these values; nothing fits it where there are none."""
    return "|".join(map(re.escape, values)) or "(?!)"


class Targets:
    """The files of a run's datasets: functions of a rule's wildcards, as Snakemake calls them.

    Parameters
    ----------
    datasets
        The datasets that run, of a `scrna.config.settings.complete` config.
    sources
        Where the counts of each come from.
    """

    def __init__(self, datasets: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source]):
        self.datasets, self.sources = datasets, sources

    def source_files(self, wildcards: Any) -> list[str]:
        """List the files that hold a dataset's counts."""
        return self.sources[wildcards.dataset].files

    def representation(self, wildcards: Any) -> str:
        """Return the step file of a representation."""
        return f"results/{wildcards.dataset}/{wildcards.rep}/{wildcards.rep}.h5"

    def marker_groups(self, wildcards: Any) -> str | list[str]:
        """Return the step file of the clusters that markers are of; none for a column of obs."""
        dataset = self.datasets[wildcards.dataset]
        return _clusters(wildcards, grouping_of(dataset, wildcards.grouping))

    def named_groups(self, wildcards: Any) -> str | list[str]:
        """Return the step file of the clusters that get names of cell types, likewise."""
        return _clusters(wildcards, self.datasets[wildcards.dataset]["cell_types"]["by"])

    def doublets(self, wildcards: Any) -> str | list[str]:
        """Return the step file of the doublets that the filter removes; none where they stay."""
        dataset = self.datasets[wildcards.dataset]
        is_read = dataset["filter"]["remove_doublets"]
        return f"results/{wildcards.dataset}/doublets.h5" if is_read else []

    def step_files(self, wildcards: Any) -> list[str]:
        """List the step files that `final` gathers, beside the filter and the normalisation."""
        dataset = self.datasets[wildcards.dataset]
        reps = self._reps(dataset)
        made = {
            level: [step for step in results(level) if is_made(dataset, step)]
            for level in ("dataset", "rep")
        }
        files = [f"{step}.h5" for step in made["dataset"]]
        files += [f"{rep}/{step}.h5" for rep in reps for step in [rep, *made["rep"]]]
        if dataset["markers"]["enabled"]:
            files += [f"{rep}/markers{of}.h5" for rep, of in self._marked(dataset) if of]
        if len(reps) > 1 and dataset["integration"]["enabled"]:
            files += ["integration_scores.h5", "integration.h5"]
        return [f"results/{wildcards.dataset}/{file}" for file in files]

    def figure_files(self, wildcards: Any) -> list[str]:
        """List the step files of the representations that the figures of a topic are drawn from."""
        shown = list(TOPICS[wildcards.topic])
        if wildcards.topic in TOPICS_BY_CELL:
            shown += [*CLUSTERINGS, "doublets", "cell_type_names"]  # Louvain's where it is enabled
        files = map(Path, self.step_files(wildcards))
        places = (*REPS, wildcards.dataset)
        return [str(f) for f in files if f.parent.name in places and f.stem in shown]

    def marker_tables(self, wildcards: Any) -> list[str]:
        """List the tables of markers of a dataset."""
        dataset = self.datasets[wildcards.dataset]
        if not dataset["markers"]["enabled"]:
            return []
        marked = self._marked(dataset)
        return [f"results/{wildcards.dataset}/{rep}/markers{of}.csv" for rep, of in marked]

    def figure_folders(self, wildcards: Any) -> list[str]:
        """List the folders of a dataset's figures."""
        dataset, folder = self.datasets[wildcards.dataset], Path("results", wildcards.dataset)
        if not dataset["figures"]["enabled"]:
            return []
        topics = [topic for topic in TOPICS if topic not in STEPS or is_made(dataset, topic)]
        folders = [folder / "figures" / topic for topic in topics]
        folders += [folder / "qc/figures"]
        if dataset["markers"]["enabled"]:
            folders += [folder / rep / f"figures{of}" for rep, of in self._marked(dataset)]
        return list(map(str, folders))

    def everything(self, wildcards: Any = None) -> list[str]:
        """List what a run makes where nobody asks for less."""
        files = [f"results/{name}/final.zarr" for name in self.datasets]
        for name, dataset in self.datasets.items():
            files += self.figure_folders(SimpleNamespace(dataset=name))
            if dataset["report"]["enabled"]:
                files.append(f"results/{name}/report.html")
        wanted = [name for name, dataset in self.datasets.items() if dataset["final"]["h5ad"]]
        return files + [f"results/{name}/final.h5ad" for name in wanted]

    def downloaded(self) -> str:
        """Return the wildcard constraint of datasets that are downloaded."""
        return named(name for name, source in self.sources.items() if source.url)

    def simulated(self) -> str:
        """Return the wildcard constraint of datasets that are simulated."""
        return named(n for n, dataset in self.datasets.items() if dataset["kind"] == "simulate")

    @staticmethod
    def _reps(dataset: Mapping[str, Any]) -> list[str]:
        """List the representations of a dataset."""
        return REPS if batch_keys(dataset) else REPS[:1]

    @classmethod
    def _marked(cls, dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List the markers of a dataset: representation, and what the names of files end with."""
        reps = cls._reps(dataset)
        return [(rep, of) for rep in reps for of in suffixes(dataset, is_last=rep == reps[-1])]


def _clusters(wildcards: Any, groupby: str) -> str | list[str]:
    """Return the step file of a clustering in a representation; none for a column of obs."""
    if not is_clustering(groupby):
        return []
    return f"results/{wildcards.dataset}/{wildcards.rep}/{clustering_of(groupby)}.h5"
