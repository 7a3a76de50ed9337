"""What each step depends on: the parameters that its rule has, and no more.

A change of the config reruns the steps whose parameters change by it, and what follows them.
"""

from collections.abc import Mapping
from typing import Any

from scrna.config import gene_sets
from scrna.config.groupings import grouping_of
from scrna.config.settings import annotations, batch_keys, sample_key
from scrna.steps import STEPS, section_of

#: Topics of the pictures that show cells by batch, label and named clusters.
TOPICS_BY_CELL = ("clusters", "tsne")
#: Columns of qc that filter.mad bounds.
MAD_COLUMNS = ("total_counts", "n_genes_by_counts", "pct_counts_mt")
#: Keys of a section that say whether something is made, not how.
_SWITCHES = ("enabled", "h5ad")


def of_step(
    step: str,
    dataset: Mapping[str, Any],
    *,
    backend: str,
    seed: int,
    rep: str | None = None,
    topic: str | None = None,
    grouping: str = "",
) -> dict[str, Any]:
    """Give a step's parameters: its section of the dataset's config, and what else it goes by.

    Parameters
    ----------
    step
        The rule.
    dataset
        A dataset of a `scrna.config.settings.complete` config.
    backend, seed
        The run's.
    rep
        The representation, for a rule that is there for each.
    topic
        The topic, for a rule that is there for each.
    grouping
        What the names of the files end with, for a rule that is there for each grouping of
        ``markers.groupby``.

    Returns
    -------
    In the order of their names: Snakemake compares texts, and YAML's order of keys is no change.
    """
    section = dataset[section_of(step)]
    found = {key: value for key, value in section.items() if key not in _SWITCHES}
    batches = batch_keys(dataset)
    known = {
        "backend": backend,
        "seed": seed,
        "label_key": dataset["label_key"],
        "label_missing": [str(value) for value in dataset["label_missing"]],
        "batch_key": batches,
        "annotations": annotations(dataset),
    }
    found |= {name: known[name] for name in STEPS[step].uses}
    if step == "filter":
        found |= _of_filter(found, dataset)
    elif step == "doublets":
        found["by"] = sample_key(dataset, found["by"])
    elif step == "hvg" and found["batch_key"] == "auto":
        found["batch_key"] = next(iter(batches), None)
    elif step == "scores":  # the genes themselves: a file that changes changes the scores
        found["sets"] = gene_sets.scored_sets(dataset)
        found["cell_cycle"] = gene_sets.cell_cycle(dataset)
    elif step == "cell_type_names":
        found["markers"] = gene_sets.marker_sets(dataset)
    elif step == "integration":
        del found["n_cells"]
    elif step == "integration_scores":
        found["n_pcs"] = dataset["neighbors"]["n_pcs"]
    elif step == "tsne" and dataset["tsne"]["enabled"] is True:
        found["max_cells"] = None  # asked for, however many they are
    elif step == "final":
        del found["X"], found["counts_layer"]
    elif step in ("qc_figures", "figures"):
        del found["genes"], found["n_markers"]
        if step == "figures":
            found["topic"] = topic
            if topic not in TOPICS_BY_CELL:
                del found["batch_key"], found["annotations"]
            if topic == "genes":
                del found["label_key"]
    elif step == "markers":
        found["groupby"] = grouping_of(dataset, grouping)
        if grouping:
            found["key_added"] = f"rank_genes_groups{grouping}"
    elif step == "marker_figures":
        found["groupby"] = groupby = grouping_of(dataset, grouping)
        if grouping:
            found["on_umap"] = False  # the picture of the first grouping shows the genes there
        in_final = f"{groupby}_pca" if rep == "pca" and batches else groupby
        found["names"] = annotations(dataset).get(in_final, {})
    elif step == "report":
        found["genes"] = dataset["figures"]["genes"]
    return dict(sorted(found.items()))


def _of_filter(section: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``mad`` with every column, and the column that samples are told apart by.

    Where nothing goes by samples there is none, so that another batch_key filters nothing anew.
    """
    mad = {column: (section["mad"] or {}).get(column) for column in MAD_COLUMNS}
    goes_by_samples = section["by"] != "auto" or any(mad.values())
    return {"mad": mad, "by": sample_key(dataset, section["by"]) if goes_by_samples else None}
