"""What the rules hand to their scripts: parameters, the code's digest, memory.

Snakemake makes a rule's output again when its parameters change. What must not do that is given by
a function that asks for ``input`` or ``output``: Snakemake does not track those.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scrna.code_digest import code_digest
from scrna.config import datasets as config_datasets
from scrna.config.converted import READING
from scrna.config.datasets import Source
from scrna.config.step_parameters import of_step
from scrna.damage import whole_summary
from scrna.resources.estimates import memory_mb
from scrna.workflow.named_clusters import named_clusters
from scrna.workflow.named_in_data import named_in_data
from scrna.workflow.snakemake_internals import not_known_yet


class RuleParams:
    """The parameters of the rules of a run.

    Parameters
    ----------
    config
        A `scrna.config.settings.complete` config.
    sources
        Where the counts of each dataset that runs come from.
    backend
        ``gpu`` or ``cpu``.
    scripts
        The folder of the rules' scripts.
    """

    def __init__(
        self, config: Mapping[str, Any], sources: Mapping[str, Source], backend: str, scripts: Path
    ):
        self.datasets, self.sources = config["datasets"], sources
        self.backend, self.seed, self.scripts = backend, config["seed"], scripts

    def settings(self, step: str) -> Callable[[Any], dict[str, Any]]:
        """Return the function that gives a step's parameters for a rule's wildcards."""

        def of(wildcards: Any) -> dict[str, Any]:
            return of_step(
                step,
                self.datasets[wildcards.dataset],
                backend=self.backend,
                seed=self.seed,
                rep=getattr(wildcards, "rep", None),
                topic=getattr(wildcards, "topic", None),
                grouping=getattr(wildcards, "grouping", ""),
            )

        return of

    def code(self, script: str) -> str:
        """Return a digest of a rule's script and of the shared modules that it uses."""
        return code_digest(Path(self.scripts, f"{script}.py"))

    def memory(self, step: str) -> Callable[..., Any]:
        """Return the function that gives the MB that a step needs, by the sizes in counts.json."""

        def of(wildcards: Any, attempt: int) -> Any:
            summary = Path("results", wildcards.dataset, "counts.json")
            if whole_summary(summary) is None:
                return not_known_yet()  # asked again once the counts are converted
            dataset = self.datasets[wildcards.dataset]
            is_dense = dataset["pca"]["scale"] or dataset["pca"]["regress_out"]
            dense_genes = dataset["hvg"]["n_top_genes"] if is_dense else 0
            mode = "blocks" if dataset["execution"] == "blocks" else "memory"
            return memory_mb(summary, step, dense_genes=dense_genes, mode=mode) * attempt

        return of

    def address(self, wildcards: Any) -> dict[str, Any]:
        """Return what a download depends on: where the file comes from."""
        return self.sources[wildcards.dataset].address()

    def checksum(self, wildcards: Any, output: Any) -> dict[str, Any]:
        """Return the digest that a download is to have.

        Not tracked: the conversion checks a digest that the config gets later, without another
        download.
        """
        name = wildcards.dataset
        return {"dataset": name, "sha256": self.datasets[name]["sha256"]}

    def reading(self, wildcards: Any) -> dict[str, Any]:
        """Return how a dataset's source is read: the parameters of its conversion."""
        return {key: self.datasets[wildcards.dataset][key] for key in READING}

    def required_columns(self, wildcards: Any, input: Any) -> dict[str, Any]:
        """Return what later steps need of the data.

        Not tracked: another batch_key is no reason to convert again
        (`scrna.workflow.named_in_data.check_converted` looks at what is there).
        """
        name = wildcards.dataset
        columns = config_datasets.required_obs(self.datasets[name], name)
        return {"dataset": name, "required_obs": columns} | self.needed(wildcards, input)

    def needed(self, wildcards: Any, input: Any) -> dict[str, Any]:
        """Return the cells, genes, labels and batches that the settings name. Not tracked."""
        name = wildcards.dataset
        return {"named": named_in_data(self.datasets[name], name, self.seed)}

    def clusters_named(self, step: str) -> Callable[[Any, Any], dict[str, Any]]:
        """Return the function that gives the clusters of a step that settings name. Not tracked."""

        def of(wildcards: Any, input: Any) -> dict[str, Any]:
            name = wildcards.dataset
            return {"named": named_clusters(self.datasets[name], name, step, wildcards.rep)}

        return of

    def in_memory_or_blocks(self, wildcards: Any, input: Any) -> dict[str, Any]:
        """Return how a step is to hold the matrix. Not tracked: the results are the same."""
        return {"execution": self.datasets[wildcards.dataset]["execution"]}

    def as_used(self, wildcards: Any, input: Any) -> dict[str, Any]:
        """Return what a report shows of a dataset's run.

        Not tracked: a setting that changes what there is to show changes what the report is made
        from.
        """
        name = wildcards.dataset
        shown = {"dataset": name, "config": self.datasets[name]}
        return shown | {"benchmarks": f"benchmarks/{name}"}
