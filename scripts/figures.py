"""Pictures of a dataset, in one folder; those of the cells' quality are in another (`qc_figures`).

``hvg``, ``pca_variance``, ``umap`` and, where it is computed, ``tsne`` (by cluster, batch, label
and qc columns; before and after integration side by side), ``clusters_by_COLUMN`` for each batch
column and the label, and ``trajectory`` where it is computed. They are drawn from step files and
columns of obs, never from the matrix. Up to 100,000 cells each is drawn as a point; more are
counted in small squares. Pictures without a cloud of points are there as SVG too.
Clusters that ``annotations`` name show as ``cell_type`` as well.

Settings: ``dpi`` and ``formats`` of section ``figures``, ``batch_key``, ``label_key`` and
``annotations``. Inputs: ``counts.zarr`` (obs) and step files. Output: a folder.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrna import slots
from scrna.celltypes import cell_types, place_of
from scrna.counts import Counts, kept
from scrna.step import provenance, run, step

if TYPE_CHECKING:
    import pandas as pd

#: As in `trajectory`: eigenvalues from here on are one.
STATIONARY = 0.9994
#: Column of qc → its name and unit in a picture.
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
    dpi: int,
    formats: list[str],
    batch_key: list[str],
    label_key: str | None,
    annotations: dict[str, dict[str, str]] | None = None,
) -> None:
    """Draw a dataset.

    Parameters
    ----------
    counts, qc, filtered, hvg
        ``counts.zarr`` and step files.
    steps
        The step files of the representations, each in its representation's folder: pca, umap,
        leiden; louvain, tsne and trajectory where there are some.
    out
        The folder of pictures; one that is there is replaced.
    dpi
        Dots an inch.
    formats
        ``png``, and ``svg`` for pictures without a cloud of points.
    batch_key, label_key
        obs columns: batches; known cell types, or None.
    annotations
        Clustering of the final object → cluster → name.

    Raises
    ------
    UserError
        If the annotations name a cluster that there is not.
    """
    from scrna.drawing import save_folder

    drawn = pictures(
        *(counts, qc, filtered, hvg, steps),
        batch_key=batch_key,
        label_key=label_key,
        annotations=annotations or {},
    )
    save_folder(out, drawn, dpi=dpi, formats=formats, made=provenance())


def pictures(
    counts: Path,
    qc: Path,
    filtered: Path,
    hvg: Path,
    steps: list[Path],
    *,
    batch_key: list[str],
    label_key: str | None,
    annotations: dict[str, dict[str, str]],
) -> Iterator[tuple]:
    """Draw the pictures of a dataset one after another.

    Parameters
    ----------
    counts, qc, filtered, hvg, steps, batch_key, label_key, annotations
        As in `figures`.

    Yields
    ------
    The name of a picture and its `matplotlib.figure.Figure`.
    """
    from scrna import figures as draw
    from scrna.drawing import as_groups

    cells, _ = kept(filtered)
    columns = list(dict.fromkeys([*batch_key, *([label_key] if label_key else [])]))
    groups = {name: as_groups(of) for name, of in Counts(counts).obs(columns).items()}
    if annotations and "cell_type" in groups:  # as in the final object
        groups["cell_type_source"] = groups.pop("cell_type")
    genes = {name[4:]: slots.read(hvg, name) for name in slots.names(hvg) if name[:4] == "var/"}
    yield "hvg", draw.hvg_dispersion(genes, slots.read(hvg, "uns/hvg")["flavor"])

    files = {(file.parent.name, file.stem): file for file in steps}
    yield (
        "pca_variance",
        draw.pca_variance(slots.read(files["pca", "pca"], "uns/pca/variance_ratio"), cells.sum()),
    )
    groups = {name: of[cells].remove_unused_categories() for name, of in groups.items()}
    clusters = {
        rep: slots.read(file, "obs/leiden")
        for (rep, name), file in files.items()
        if name == "leiden"
    }
    values = {label: slots.read(qc, f"obs/{name}")[cells] for name, label in SHOWN.items()}
    values[SHOWN["total_counts"]] = np.log10(1 + values[SHOWN["total_counts"]])
    embeddings = {
        name: draw.Embedding(name, coordinates(files, slot))
        for name, slot in {"UMAP": "umap", "t-SNE": "tsne"}.items()
    }
    shown = annotated(files, annotations) | groups
    for name, points in embeddings.items():
        if points.of:
            yield name.lower().replace("-", ""), draw.embedding(points, clusters, shown, values)
    for name, of in groups.items():
        safe = re.sub(r"[^\w.-]+", "_", name)
        yield f"clusters_by_{safe}", draw.cluster_table(clusters, of, name)
    if links := {
        rep: np.asarray(slots.read(file, "uns/paga")["connectivities"].todense())
        for (rep, name), file in files.items()
        if name == "trajectory"
    }:
        times = {
            rep: slots.read(files[rep, "trajectory"], "obs/dpt_pseudotime")
            for rep in links
            if "obs/dpt_pseudotime" in slots.names(files[rep, "trajectory"])
        }
        diffmaps = {rep: diffusion_map(files[rep, "trajectory"]) for rep in times}
        drawn = draw.trajectory(embeddings["UMAP"], clusters, links, times, diffmaps)
        yield "trajectory", drawn


def coordinates(files: dict[tuple[str, str], Path], name: str) -> dict[str, np.ndarray]:
    """Read the first two columns of an embedding by representation, where it is computed."""
    slot = f"obsm/X_{name}"
    return {
        rep: slots.read(file, slot)[:, :2]
        for (rep, stem), file in files.items()
        if stem == name and slot in slots.names(file)
    }


def diffusion_map(trajectory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the first two components of a diffusion map along which the cells of a pseudotime lie.

    Left out are the stationary ones, which tell how densely cells lie and pieces of the graph
    apart, and those that order the cells of another piece.

    Returns
    -------
    Coordinates (kept cells × 2, or fewer components), NaN for cells without pseudotime; and which
    components they are, counted from 0.
    """
    known = np.isfinite(slots.read(trajectory, "obs/dpt_pseudotime"))
    points = slots.read(trajectory, "obsm/X_diffmap").astype(float)
    moving = slots.read(trajectory, "uns/diffmap_evals") < STATIONARY
    own = points[known].std(axis=0) > 0.1 * points.std(axis=0)
    components = np.flatnonzero(moving & own)[:2]
    points[~known] = np.nan
    return points[:, components], components


def annotated(
    files: dict[tuple[str, str], Path], annotations: dict[str, dict[str, str]]
) -> dict[str, "pd.Categorical"]:
    """Give the cells' types by the names of their clusters, as ``cell_type``, where some are."""
    reps = [rep for rep, name in files if name == "leiden"]
    found = {}
    for clustering, names in annotations.items():
        rep, name = place_of(clustering, reps)
        clusters = slots.read(files[rep, name.split("_")[0]], f"obs/{name}")
        found["cell_type"] = cell_types(clusters, clustering, names)
    return found


if __name__ == "__main__":
    run(figures, snakemake)
