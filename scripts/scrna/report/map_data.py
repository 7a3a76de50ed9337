"""Data of the map of the cells: embeddings, groups, values and a few genes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scrna.data import step_files
from scrna.data.counts import Counts
from scrna.data.expression import of_cells
from scrna.methods.cell_types import cell_types, place_of
from scrna.plots.style import by_number
from scrna.report.cell_map import CellMap, cell_map
from scrna.report.results import Results

#: Genes in the map: the first markers of each group, fewer if there are many groups.
MOST_GENES = 60
GENES_OF_GROUP = 3
#: Name → step and slot.
_EMBEDDINGS = {"UMAP": ("umap", "obsm/X_umap"), "t-SNE": ("tsne", "obsm/X_tsne")}


def map_of(
    results: Results,
    *,
    columns: Sequence[str],
    genes: Sequence[str],
    annotations: Mapping[str, Mapping[str, str]],
    max_cells: int,
    seed: int,
) -> CellMap:
    """Make the map of the kept cells of a dataset.

    Parameters
    ----------
    results
        The results.
    columns
        Columns of obs to colour by: batches, labels.
    genes
        Genes to show in addition to the first markers of each group.
    annotations
        Clustering → cluster → name, from the config; they become cell_type.
    max_cells, seed
        As in `cell_map`.

    Raises
    ------
    UserError
        If a gene in `genes` or a cluster in `annotations` does not exist.
    """
    offered = genes_of(results, genes)
    base = results.counts, results.files["", "filter"], results.files["", "normalize"]

    def expression(cells: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(offered, of_cells(*base, offered, cells).T, strict=True))

    return cell_map(
        embeddings(results),
        groups(results, columns, annotations),
        values(results),
        expression if offered else None,
        max_cells=max_cells,
        seed=seed,
    )


def genes_of(results: Results, asked: Sequence[str]) -> list[str]:
    """List the genes asked for, then the first markers of the main result; each once."""
    tables = results.markers(GENES_OF_GROUP)
    first = next(iter(tables.values()), None)
    by_group = list(first.genes(GENES_OF_GROUP).values()) if first else []
    # the first of every group before the second of any
    ranked = [own[i] for i in range(GENES_OF_GROUP) for own in by_group if i < len(own)]
    return list(dict.fromkeys([*asked, *ranked[:MOST_GENES]]))


def embeddings(results: Results) -> dict[str, np.ndarray]:
    """Read the first two dimensions of the embeddings, those of the main result first."""
    found = {}
    for name, (step, slot) in _EMBEDDINGS.items():
        for rep in results.reps:
            path = results.files.get((rep, step))
            if path and slot in step_files.names(path):
                found[_of(name, rep, results, "{}, {}")] = step_files.read(path, slot)[:, :2]
    return found


def groups(
    results: Results, columns: Sequence[str], annotations: Mapping[str, Mapping[str, str]]
) -> dict[str, pd.Categorical]:
    """Read the groups of the kept cells: named clusters, clusterings, columns of obs."""
    clusterings = {
        (rep, name): found
        for rep in results.reps
        for name, found in results.clusterings(rep).items()
    }
    found = {}
    for asked, names in annotations.items():
        place = place_of(asked, results.reps[::-1])
        found["cell_type"] = cell_types(clusterings[place], asked, names)
    for rep in results.reps:
        if results.has_names(rep):
            auto = step_files.read(results.files[rep, "cell_type_names"], "obs/cell_type_auto")
            found[_of("cell_type_auto", rep, results, "{} ({})")] = auto
    for (rep, name), clusters in clusterings.items():
        found[_of(name, rep, results, "{} ({})")] = clusters
    scored = results.files.get(("", "scores"))
    if scored and "obs/phase" in step_files.names(scored):
        found["phase"] = step_files.read(scored, "obs/phase")
    for name, column in Counts(results.counts).obs(list(columns)).items():
        text = column.loc[results.keep].astype("str").where(column.loc[results.keep].notna())
        # as in `final`, which renames the column of the source
        found[f"{name}_source" if name in found else str(name)] = by_name(text)
    return found


def by_name(text: pd.Series) -> pd.Categorical:
    """Convert text to groups, in the order of their names; missing values stay missing."""
    return pd.Categorical(text, categories=sorted(text.dropna().unique(), key=by_number))


def values(results: Results) -> dict[str, np.ndarray]:
    """Read the numbers that cells can be coloured by: quality, pseudotime."""
    qc = results.files["", "qc"]
    found = {
        "total counts (log10)": np.log10(1 + step_files.read(qc, "obs/total_counts")[results.keep]),
        "genes (log10)": np.log10(1 + step_files.read(qc, "obs/n_genes_by_counts")[results.keep]),
    }
    for name, column in (("mitochondrial", "pct_counts_mt"), ("ribosomal", "pct_counts_ribo")):
        found[f"{name} counts (%)"] = step_files.read(qc, f"obs/{column}")[results.keep]
    for rep in results.reps:
        path, slot = results.files.get((rep, "trajectory")), "obs/dpt_pseudotime"
        if path and slot in step_files.names(path):
            found[_of("pseudotime", rep, results, "{} ({})")] = step_files.read(path, slot)
    if scored := results.files.get(("", "scores")):
        slots = [name for name in step_files.names(scored) if name.startswith("obs/")]
        found |= {
            f"score: {slot.removeprefix('obs/')}": step_files.read(scored, slot)
            for slot in slots
            if slot != "obs/phase"
        }
    return found


def _of(name: str, rep: str, results: Results, both: str) -> str:
    """Return a name with its representation, if there are two."""
    return both.format(name, rep) if len(results.reps) > 1 else name
