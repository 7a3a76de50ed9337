"""Draw the figures of a dataset, a folder per topic, as soon as the steps of the topic are done.

Purpose
    Figures of genes, clusters, t-SNE, scores and trajectory. Those of quality control are
    `qc_figures`, those of markers `marker_figures`.

Method
    Drawn from step files and columns of obs, never from the matrix. Up to 100,000 cells are drawn
    as points; more are counted in small squares. Embeddings are coloured by cluster, batch, label,
    quality and doublets, before and after integration side by side; by Louvain clusters as well,
    where they are computed. Clusters with names in ``annotations`` are also shown as
    ``cell_type``, names by marker genes as ``cell_type_auto``. Figures without a scatter plot are
    written as SVG as well.

Settings
    ``dpi`` and ``formats`` of section ``figures``; for clusters and tsne ``batch_key``,
    ``label_key`` and ``annotations`` of the dataset, for trajectory its ``label_key``.

Inputs
    ``counts.zarr`` (obs) and step files.

Outputs
    A folder:

    ==========  =====================================================================
    topic       figures
    ==========  =====================================================================
    genes       ``hvg``, ``pca_variance``
    clusters    ``umap``, ``clusters_by_COLUMN`` for batch columns and the label, and
                ``cell_types_heatmap`` if clusters are named by marker genes
    tsne        ``tsne``, if it is computed
    scores      ``scores_umap``, ``scores_violins``, and ``clusters_by_phase`` if the cell cycle
                is scored
    trajectory  ``trajectory`` and ``diffmap``, if they are computed
    ==========  =====================================================================
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.graph import STATIONARY
from scrna.methods.cell_types import cell_types, place_of
from scrna.provenance import provenance
from scrna.step import step
from scrna.workflow.rule import run

if TYPE_CHECKING:
    import pandas as pd

#: Step files by representation and step; groups of cells by name.
type Files = dict[tuple[str, str], Path]
type Groups = dict[str, "pd.Categorical"]
#: Characters of a column's name that stand in the name of a file.
LONGEST_NAME = 60
#: Column of qc → its name and unit in a figure.
SHOWN = {"total_counts": "log10(1 + counts)", "pct_counts_mt": "mitochondrial counts (%)"}


@step
def figures(
    counts: Path,
    qc: Path,
    filtered: Path,
    hvg: Path,
    steps: list[Path],
    out: Path,
    *,
    topic: str,
    dpi: int,
    formats: list[str],
    batch_key: Sequence[str] = (),
    label_key: str | None = None,
    annotations: dict[str, dict[str, str]] | None = None,
) -> None:
    """Draw the figures of a topic.

    Parameters
    ----------
    counts, qc, filtered, hvg
        ``counts.zarr`` and step files.
    steps
        The step files of the representations that the topic shows, each in its representation's
        folder: of genes pca; of clusters leiden and umap; of tsne leiden and tsne; of trajectory
        leiden, umap and trajectory; of scores leiden and umap, and the dataset's scores; and the
        clusterings that the annotations name. Of clusters and tsne also those of doublets and of
        cell_type_names, if there are any.
    out
        The folder of figures; an existing one is replaced.
    topic
        genes, clusters, tsne, scores or trajectory.
    dpi
        Dots per inch.
    formats
        ``png``, and ``svg`` for figures without a scatter plot.
    batch_key, label_key
        obs columns: batches; known cell types, or None.
    annotations
        Clustering of the final object → cluster → name.

    Raises
    ------
    UserError
        If the annotations name a cluster that there is not.
    """
    from scrna.plots.saving import save_folder

    doublets = next((file for file in steps if file.stem == "doublets"), None)
    files = {(file.parent.name, file.stem): file for file in steps if file != doublets}
    if topic == "genes":
        drawn = genes(hvg, filtered, files["pca", "pca"])
    elif topic == "trajectory":
        labels = cell_groups(counts, filtered, [label_key] if label_key else [], files, {})[0]
        drawn = trajectories(files, labels)
    elif topic == "scores":
        drawn = scored(files)
    else:
        columns = list(dict.fromkeys([*batch_key, *([label_key] if label_key else [])]))
        groups, types = cell_groups(counts, filtered, columns, files, annotations or {})
        draw_topic = clusters if topic == "clusters" else tsne
        drawn = draw_topic(files, groups, types, qc, filtered, doublets)
    save_folder(out, drawn, dpi=dpi, formats=formats, made=provenance())


def genes(hvg: Path, filtered: Path, pca: Path) -> Iterator[tuple]:
    """Yield the figures of genes and components: name and function that draws it."""
    from scrna.plots import dataset_figures as draw

    var = {
        name[4:]: step_files.read(hvg, name) for name in step_files.names(hvg) if name[:4] == "var/"
    }
    yield "hvg", partial(draw.hvg_dispersion, var, step_files.read(hvg, "uns/hvg")["flavor"])
    ratio = step_files.read(pca, "uns/pca/variance_ratio")
    yield "pca_variance", partial(draw.pca_variance, ratio, kept(filtered)[0].sum())


def clusters(
    files: Files,
    groups: Groups,
    types: Groups,
    qc: Path,
    filtered: Path,
    doublets: Path | None = None,
) -> Iterator[tuple]:
    """Yield the figures of clusters: name and function that draws it."""
    from scrna.plots import dataset_figures as draw

    yield from embedding("UMAP", files, types | groups, qc, filtered, doublets)
    for name, of in groups.items():
        safe = re.sub(r"[^\w.-]+", "_", name)[:LONGEST_NAME]
        yield f"clusters_by_{safe}", partial(draw.cluster_table, clusters_of(files), of, name)
    if named := {rep: file for (rep, name), file in files.items() if name == "cell_type_names"}:
        yield "cell_types_heatmap", partial(type_heatmap, named)


def type_heatmap(named: dict[str, Path]):
    """Draw the scores of cell types in the clusters of each representation."""
    from scrna.plots import score_figures as draw

    found = {}
    for rep, file in named.items():
        own = step_files.read(file, "uns/cell_type_names")
        names = own["table"]["cell_type"].tolist()
        found[rep] = draw.TypeScores(own["groups"], own["types"], own["scores"], names)
    return draw.type_heatmap(found, own["params"]["by"])


def scored(files: Files) -> Iterator[tuple]:
    """Yield the figures of scores on the main representation: name and function that draws it."""
    from scrna.plots import dataset_figures, score_figures

    path = next(file for (_, name), file in files.items() if name == "scores")
    slots = {
        name.removeprefix("obs/"): step_files.read(path, name)
        for name in step_files.names(path)
        if name.startswith("obs/")
    }
    phase = slots.pop("phase", None)
    xy, leiden = coordinates(files, "umap"), clusters_of(files)
    rep = list(leiden)[-1]
    yield "scores_umap", partial(score_figures.scores_embedding, rep, xy[rep], slots, phase)
    yield "scores_violins", partial(score_figures.score_violins, rep, leiden[rep], slots)
    if phase is not None:
        yield (
            "clusters_by_phase",
            partial(dataset_figures.cluster_table, leiden, phase, "phase"),
        )


def tsne(
    files: Files,
    groups: Groups,
    types: Groups,
    qc: Path,
    filtered: Path,
    doublets: Path | None = None,
) -> Iterator[tuple]:
    """Draw the t-SNE, where it was computed."""
    yield from embedding("t-SNE", files, types | groups, qc, filtered, doublets)


def embedding(
    name: str,
    files: Files,
    shown: Groups,
    qc: Path,
    filtered: Path,
    doublets: Path | None = None,
) -> Iterator[tuple]:
    """Draw an embedding by clusters, groups, qc columns and doublets, where it was computed."""
    from scrna.plots import dataset_figures as draw

    of = coordinates(files, name.lower().replace("-", ""))
    if not of:
        return
    cells, _ = kept(filtered)
    values = {label: step_files.read(qc, f"obs/{name}")[cells] for name, label in SHOWN.items()}
    values[SHOWN["total_counts"]] = np.log10(1 + values[SHOWN["total_counts"]])
    if doublets:
        shown = shown | {"doublets": flagged(doublets, cells)}
        values["doublet score"] = step_files.read(doublets, "obs/doublet_score")[cells]
    points = draw.Embedding(name, of)
    louvain = clusters_of(files, "louvain")
    drawn = partial(draw.embedding, points, clusters_of(files), shown, values, louvain)
    yield name.lower().replace("-", ""), drawn


def flagged(doublets: Path, cells: np.ndarray) -> "pd.Categorical":
    """Read which of the kept cells are predicted doublets."""
    import pandas as pd

    flags = step_files.read(doublets, "obs/predicted_doublet")[cells]
    return pd.Categorical.from_codes(flags.astype(int), ["single cell", "doublet"])


def trajectories(files: Files, labels: Groups) -> Iterator[tuple]:
    """Draw PAGA and pseudotime in one figure, the diffusion map by cluster and label in another."""
    from scrna.plots import trajectory_figures as draw

    found = {rep: file for (rep, name), file in files.items() if name == "trajectory"}
    links = {
        rep: np.asarray(step_files.read(file, "uns/paga")["connectivities"].todense())
        for rep, file in found.items()
    }
    times = {
        rep: step_files.read(file, "obs/dpt_pseudotime")
        for rep, file in found.items()
        if "obs/dpt_pseudotime" in step_files.names(file)
    }
    maps = {rep: diffusion_map(file) for rep, file in found.items()}
    points = draw.Embedding("UMAP", coordinates(files, "umap"))
    shown = points, clusters_of(files), links, times, {rep: maps[rep] for rep in times}
    yield "trajectory", partial(draw.trajectory, *shown)
    if any(len(components) == 2 for _, components in maps.values()):
        yield "diffmap", partial(draw.diffusion_map, maps, clusters_of(files), labels)


def cell_groups(
    counts: Path,
    filtered: Path,
    columns: list[str],
    files: Files,
    annotations: dict[str, dict[str, str]],
) -> tuple[Groups, Groups]:
    """Read the columns of obs that the kept cells are shown by, and the types by annotations."""
    from scrna.plots.style import as_groups

    cells, _ = kept(filtered)
    found = {}
    for name, column in Counts(counts).obs(columns).items():
        groups = as_groups(column)[cells].remove_unused_categories()
        is_replaced = annotations and name == "cell_type"  # as in the final object
        found["cell_type_source" if is_replaced else name] = groups
    return found, annotated(files, annotations)


def clusters_of(files: Files, clustering: str = "leiden") -> dict[str, "pd.Categorical"]:
    """Read the clusters of each representation, where they are computed."""
    return {
        rep: step_files.read(file, f"obs/{clustering}")
        for (rep, name), file in files.items()
        if name == clustering
    }


def coordinates(files: Files, name: str) -> dict[str, np.ndarray]:
    """Read the first two columns of an embedding by representation, where it is computed."""
    slot = f"obsm/X_{name}"
    return {
        rep: step_files.read(file, slot)[:, :2]
        for (rep, stem), file in files.items()
        if stem == name and slot in step_files.names(file)
    }


def diffusion_map(trajectory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the first two components of a diffusion map along which its cells lie.

    Left out are the stationary ones, which tell how densely cells lie and pieces of the graph
    apart. With a pseudotime the map is of its cells: components that order the cells of another
    piece are left out as well.

    Returns
    -------
    Coordinates (kept cells × 2, or fewer components), NaN for cells without a pseudotime where
    there is one; and which components they are, counted from 0.
    """
    pseudotime = "obs/dpt_pseudotime"
    has_root = pseudotime in step_files.names(trajectory)
    points = step_files.read(trajectory, "obsm/X_diffmap").astype(float)
    known = np.ones(len(points), bool)
    if has_root:
        known = np.isfinite(step_files.read(trajectory, pseudotime))
    moving = step_files.read(trajectory, "uns/diffmap_evals") < STATIONARY
    own = points[known].std(axis=0) > 0.1 * points.std(axis=0)
    components = np.flatnonzero(moving & own)[:2]
    points[~known] = np.nan
    return points[:, components], components


def annotated(files: Files, annotations: dict[str, dict[str, str]]) -> Groups:
    """Return ``cell_type`` of the cells from the names of their clusters, if there are any."""
    reps = [rep for rep, name in files if name == "leiden"]
    found = {}
    for clustering, names in annotations.items():
        rep, name = place_of(clustering, reps)
        clusters = step_files.read(files[rep, name.split("_")[0]], f"obs/{name}")
        found["cell_type"] = cell_types(clusters, clustering, names)
    if reps and (path := files.get((reps[-1], "cell_type_names"))):
        found["cell_type_auto"] = step_files.read(path, "obs/cell_type_auto")
    return found


if __name__ == "__main__":
    run(figures, snakemake)
