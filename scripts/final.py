"""Gather the results of all steps in one AnnData.

Purpose
    One object that scanpy, rapids-singlecell and other AnnData readers open.

Method
    Slots of the step files are cut to the kept cells and genes. The matrices of ``matrix.zarr`` are
    taken over as hard links, or copied where there are none.

Settings
    ``annotations`` of the dataset: names of clusters, which become obs ``cell_type``.

Inputs
    ``counts.zarr``, ``matrix.zarr`` and all step files.

Outputs
    ``final.zarr``: X (log-normalised), layers ``counts``, and the slots of all steps under the
    names that scanpy's plots use. With two representations the plain names (``X_umap``, ``leiden``,
    ``neighbors``) are those after integration; those before it end in ``_pca`` (``X_umap_pca``,
    ``leiden_pca``, ``neighbors_pca``). uns ``provenance``: parameters, versions and digests of each
    step, as JSON.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from scrna.damage import reading
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.integrity import check_matrices
from scrna.data.store import (
    bytes_on_disk,
    link_folder,
    new_store,
    write_element,
    write_tables,
)
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.cell_types import cell_types
from scrna.provenance import provenance
from scrna.step import step
from scrna.steps import is_clustering
from scrna.workflow.rule import run

#: Parts of a name in uns that sc.pp.neighbors derives from its key.
_GRAPHS = ("distances", "connectivities")

#: Slots of step files that the result does without: every cell and gene in it is kept, and the
#: scores are in uns integration.
_LEFT_OUT = ("keep", "filter_reason", "integration_scores", "integration_label")


@step
def final(
    counts: Path,
    filtered: Path,
    normalized: Path,
    matrix: Path,
    steps: list[Path],
    out: Path,
    *,
    annotations: dict[str, dict[str, str]] | None = None,
) -> None:
    """Gather all steps into one AnnData.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    matrix
        ``matrix.zarr``.
    steps
        All other step files; those of a representation lie in one folder with it (pca, harmony).
    out
        ``final.zarr``.
    annotations
        Clustering → cluster → name, which become obs cell_type; a column of that name in the source
        becomes ``cell_type_source``.

    Raises
    ------
    UserError
        If there is no such clustering or cluster.
    """
    import anndata as ad

    cells, genes = kept(filtered)
    parts = gather([filtered, normalized, *steps], cells, genes)
    store = Counts(counts)
    masks = {"obs": cells, "var": genes}
    obs, var = (readable(store.table(slot).loc[mask]) for slot, mask in masks.items())
    for slot, table in (("obs", obs), ("var", var)):
        if replaced := [name for name in parts[slot] if name in table]:
            log.warning("%s of the source is replaced: %s", slot, ", ".join(replaced))
        for name, values in parts[slot].items():
            table[name] = values
    for clustering, names in (annotations or {}).items():
        obs = annotated(obs, clustering, names)
    if (matrix / "X").is_dir():
        parts["uns"]["log1p"] = {"base": np.e}  # scanpy's own None is unknown to older readers
    parts["uns"]["provenance"]["convert"] = json.dumps(store.summary)
    parts["uns"]["provenance"]["final"] = json.dumps(provenance())
    with new_store(out) as root, ad.settings.override(allow_write_nullable_strings=False):
        take_over(matrix, root)
        write_tables(root, obs, var)
        for slot in ("obsm", "varm", "obsp"):
            write_element(root, slot, parts[slot])
        write_small(root, "uns", parts["uns"])
    log.info(
        "%s: %s cells × %s genes, %s MB; clusters in obs %s; embeddings in obsm %s",
        out,
        *(f"{len(each):,}" for each in (obs, var)),
        f"{bytes_on_disk(out) / 1e6:,.0f}",
        ", ".join(name for name in obs if is_clustering(name.removesuffix("_pca"))),
        ", ".join(parts["obsm"]),
    )


def readable(table):
    """Convert the columns of a table to types that all readers of AnnData files know.

    Parameters
    ----------
    table
        Of the kept cells or genes.

    Returns
    -------
    The table, without categories that none of its rows has, as AnnData cuts one, and without
    pandas' nullable types, which R's readers and the CELLxGENE viewer do not know: numbers with
    missing ones are fractions with NaN, flags with missing ones categories.
    """
    import pandas as pd

    for name, values in table.items():
        dtype = values.dtype
        if isinstance(dtype, pd.BooleanDtype):
            is_whole = not values.hasnans
            table[name] = (
                values.astype(bool) if is_whole else values.astype("str").astype("category")
            )
        elif isinstance(dtype, pd.CategoricalDtype):
            table[name] = values.cat.remove_unused_categories()
        elif pd.api.types.is_integer_dtype(dtype) and not isinstance(dtype, np.dtype):
            table[name] = values.astype(float if values.hasnans else dtype.numpy_dtype)
    return table


def annotated(obs, clustering: str, names: dict[str, str]):
    """Add the names of clusters as a column ``cell_type``.

    Parameters
    ----------
    obs
        Table of the cells.
    clustering
        Its column.
    names
        Cluster → name; several clusters may have one name.

    Returns
    -------
    The table with ``cell_type``, categories in the clusters' order. A cluster without a name is
    called by its clustering and number: ``leiden 7``.

    Raises
    ------
    UserError
        If there is no such column or cluster.
    """
    if clustering not in obs:
        there = [name for name in obs if is_clustering(name.removesuffix("_pca"))]
        msg = f"annotations name {clustering}, which there is not; there are {', '.join(there)}"
        raise UserError(msg)
    types = cell_types(obs[clustering].array, clustering, names)
    if "cell_type" in obs:
        log.info("cell_type of the source is kept as cell_type_source")
        obs = obs.rename(columns={"cell_type": "cell_type_source"})
    n_clusters = len(obs[clustering].cat.categories)
    log.info("%d clusters of %s are %d cell types", n_clusters, clustering, len(types.categories))
    return obs.assign(cell_type=types)


def gather(steps: list[Path], cells: np.ndarray, genes: np.ndarray) -> dict[str, dict[str, Any]]:
    """Read every slot of the step files, cut to the kept cells and genes, under its final name.

    Parameters
    ----------
    steps
        Step files.
    cells, genes
        Masks of the kept ones; what a step before the filter says of all is cut to them.

    Returns
    -------
    ``obs``, ``var``, ``obsm``, ``varm``, ``obsp``, ``uns``: name → value.
    """
    parts = {slot: {} for slot in ("obs", "var", "obsm", "varm", "obsp", "uns")}
    masks = {"obs": cells, "var": genes}
    before = next(path.parent for path in steps if path.stem == "pca")
    integrated = any(path.stem == "harmony" for path in steps)
    records = {}
    for path in steps:
        is_before = path.parent == before and path.stem != "pca" and integrated
        suffix = "_pca" if is_before else ""
        records[path.stem + suffix] = json.dumps(step_files.provenance_of(path))
        for element, value in step_files.read_all(path).items():
            slot, name = element.split("/", 1)
            if name in _LEFT_OUT:
                continue
            mask = masks.get(slot)
            if mask is not None and len(value) == len(mask) != mask.sum():
                value = value[mask]
            if slot == "uns":
                value = renamed(name, value, suffix)
            parts[slot][final_name(slot, name, suffix)] = value
    parts["uns"]["provenance"] = records
    return parts


def final_name(slot: str, name: str, suffix: str) -> str:
    """Return the name of a slot in the final AnnData: X_umap → X_umap_pca."""
    if suffix and slot == "obsp":
        return f"neighbors{suffix}_{name}"
    if name == "leiden_sizes":
        return f"leiden{suffix}_sizes"
    return name + suffix


def renamed(name: str, value: Any, suffix: str) -> Any:
    """Rename what a uns entry refers to, as it is named in the final AnnData."""
    if not suffix:
        return value
    if name == "neighbors":
        keys = {f"{graph}_key": f"neighbors{suffix}_{graph}" for graph in _GRAPHS}
        return value | keys
    if name == "paga":
        return value | {"groups": value["groups"] + suffix}
    if name.startswith("rank_genes_groups"):
        groupby = value["params"]["groupby"]
        if is_clustering(groupby):
            return value | {"params": value["params"] | {"groupby": groupby + suffix}}
    return value


def take_over(matrix: Path, root) -> None:
    """Link the matrices of one store into another; copy them across file systems.

    Parameters
    ----------
    matrix
        The store that has them, as X and layers.
    root
        The root group of the store that gets them.

    Raises
    ------
    DamagedError
        If a file of the matrices is missing or damaged.
    """
    with reading(matrix / "zarr.json", matrix):
        check_matrices(matrix, zarr.open_group(matrix, mode="r", use_consolidated=False))
    for name in ("X", "layers"):
        if (matrix / name).is_dir():
            link_folder(matrix / name, Path(root.store.root, name))


def write_small(root, name: str, value: Any) -> None:
    """Write a slot of many small values: all of it in memory first, then its files.

    Each of some hundred values has attributes, and zarr writes a file again for each of them: that
    took longer than all large arrays.
    """
    import zarr

    files = {}
    group = zarr.open_group(zarr.storage.MemoryStore(files), mode="w", zarr_format=3)
    write_element(group, name, value)
    for key, content in files.items():
        if key.startswith(f"{name}/"):
            path = Path(root.store.root, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.to_bytes())


if __name__ == "__main__":
    run(final, snakemake)
