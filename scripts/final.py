"""One AnnData of everything: the kept cells and genes, and what every step found about them.

``final.zarr`` opens with ``anndata.read_zarr``. X holds log-normalised values and
``layers["counts"]`` the counts, both CSR, streamed by row blocks on all cores; all other slots
have the names that scanpy's plots look for. Where there are two representations the plain names
(``X_umap``, ``leiden``, ``neighbors``) are those after integration, and the ones before it end in
``_pca`` (``X_umap_pca``, ``leiden_pca``, ``neighbors_pca``). ``uns["provenance"]`` tells how each
step came to its result, as JSON by step. The names that ``annotations`` give to clusters become
``obs/cell_type``.

Settings: section ``final``. Inputs: ``counts.zarr`` and all step files. Output: ``final.zarr``.
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from scrna import slots
from scrna.counts import Block, Counts, in_order, kept, log_normalize, row_ranges
from scrna.errors import UserError
from scrna.log import log
from scrna.names import is_clustering
from scrna.progress import Progress
from scrna.step import provenance, run, step
from scrna.store import CSRWriter, Rows, bytes_on_disk, new_store, write_tables

#: Parts of a name in uns that sc.pp.neighbors derives from its key.
_GRAPHS = ("distances", "connectivities")
#: Non-zeros of a block: each thread holds some 100 MB while it makes one.
_BLOCK_NNZ = 2**21
_MOST_THREADS = 16


@step
def final(
    counts: Path,
    filtered: Path,
    normalized: Path,
    steps: list[Path],
    out: Path,
    *,
    X: bool,
    counts_layer: bool,
    annotations: dict[str, dict[str, str]] | None = None,
) -> None:
    """Gather all steps into one AnnData.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    steps
        All other step files; those of a representation lie in one folder with it (pca, harmony).
    out
        ``final.zarr``.
    X
        Whether X holds the log-normalised values.
    counts_layer
        Whether ``layers["counts"]`` holds the counts.
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
    if X:
        parts["uns"]["log1p"] = {"base": np.e}  # scanpy's own None is unknown to older readers
    parts["uns"]["provenance"]["convert"] = json.dumps(store.summary)
    parts["uns"]["provenance"]["final"] = json.dumps(provenance())
    with new_store(out) as root, ad.settings.override(allow_write_nullable_strings=False):
        _write_matrices(root, store, cells, genes, normalized, X, counts_layer)
        write_tables(root, obs, var)
        for slot in ("obsm", "varm", "obsp", "uns"):
            ad.io.write_elem(root, slot, parts[slot])
    log.info(
        "%s: %s cells × %s genes, %s MB; clusters in obs %s; embeddings in obsm %s",
        out,
        *(f"{len(each):,}" for each in (obs, var)),
        f"{bytes_on_disk(out) / 1e6:,.0f}",
        ", ".join(name for name in obs if is_clustering(name.removesuffix("_pca"))),
        ", ".join(parts["obsm"]),
    )


def readable(table):
    """Give the columns of a table types that every reader of AnnData files knows.

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
    """Name the clusters of a clustering, in a column ``cell_type``.

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
    import pandas as pd

    if clustering not in obs:
        there = [name for name in obs if is_clustering(name.removesuffix("_pca"))]
        msg = f"annotations name {clustering}, which there is not; there are {', '.join(there)}"
        raise UserError(msg)
    clusters = obs[clustering].cat
    if unknown := sorted(set(names) - set(clusters.categories)):
        msg = (
            f"annotations.{clustering} names {', '.join(unknown)}, which {clustering} does not "
            f"have; there are {', '.join(clusters.categories)}"
        )
        raise UserError(msg)
    called = [names.get(cluster, f"{clustering} {cluster}") for cluster in clusters.categories]
    types = list(dict.fromkeys(called))
    codes = pd.Index(types).get_indexer(called)[clusters.codes]
    if "cell_type" in obs:
        log.info("the source's cell_type is kept as cell_type_source")
        obs = obs.rename(columns={"cell_type": "cell_type_source"})
    log.info("%d clusters of %s are %d cell types", len(called), clustering, len(types))
    return obs.assign(cell_type=pd.Categorical.from_codes(codes, types))


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
        records[path.stem + suffix] = json.dumps(slots.provenance_of(path))
        for element, value in slots.read_all(path).items():
            slot, name = element.split("/", 1)
            if name in ("keep", "filter_reason"):
                continue  # every cell and gene here is kept
            mask = masks.get(slot)
            if mask is not None and len(value) == len(mask) != mask.sum():
                value = value[mask]
            if slot == "uns":
                value = renamed(name, value, suffix)
            parts[slot][final_name(slot, name, suffix)] = value
    parts["uns"]["provenance"] = records
    return parts


def final_name(slot: str, name: str, suffix: str) -> str:
    """Name a slot of a representation as scanpy's functions derive it: X_umap → X_umap_pca."""
    if suffix and slot == "obsp":
        return f"neighbors{suffix}_{name}"
    if name == "leiden_sizes":
        return f"leiden{suffix}_sizes"
    return name + suffix


def renamed(name: str, value: Any, suffix: str) -> Any:
    """Let what a uns entry refers to follow the names in the final object."""
    if not suffix:
        return value
    if name == "neighbors":
        keys = {f"{graph}_key": f"neighbors{suffix}_{graph}" for graph in _GRAPHS}
        return value | keys
    if name == "paga":
        return value | {"groups": value["groups"] + suffix}
    if name == "rank_genes_groups":
        groupby = value["params"]["groupby"]
        if is_clustering(groupby):
            return value | {"params": value["params"] | {"groupby": groupby + suffix}}
    return value


def _write_matrices(
    root, store: Counts, cells, genes, normalized: Path, log_normalized: bool, counts_layer: bool
) -> None:
    """Stream X and layers/counts: several blocks are made at a time, and written in their order."""
    if not log_normalized and not counts_layer:
        return
    factor = slots.read(normalized, "obs/size_factor")
    columns = None if genes.all() else np.flatnonzero(genes)
    first = np.cumsum(cells) - cells  # of the kept cells before each cell
    options = {"n_vars": int(genes.sum()), "dtype": np.float32}

    def made(span: tuple[int, int]) -> tuple[Rows | None, Rows]:
        counts = store.take(*span, "cpu", cells[slice(*span)], columns)
        sizes = np.diff(counts.indptr).astype(np.int32)
        rows = Rows(counts.data, counts.indices, sizes)  # canonical, as the store is
        if not log_normalized:
            return None, rows
        start = int(first[span[0]])
        stop = start + counts.shape[0]
        block = Block(start, stop, counts.data, counts.indices, counts.indptr)
        return rows._replace(data=log_normalize(block, factor)), rows

    with ExitStack() as stack:
        x_writer = counts_writer = None
        if log_normalized:
            x_writer = stack.enter_context(CSRWriter(root, "X", **options))
        if counts_layer:
            layers = root.create_group("layers")
            layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            counts_writer = stack.enter_context(
                CSRWriter(layers, "counts", **options, pattern=x_writer)
            )
        progress = stack.enter_context(Progress("final", total=int(cells.sum()), unit="cells"))
        spans = [s for s in row_ranges(store.indptr, _BLOCK_NNZ) if cells[slice(*s)].any()]
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        for values, rows in in_order(made, spans, threads):
            if x_writer:
                x_writer.append(values)
            if counts_writer:
                counts_writer.append(rows)
            progress.update(len(rows.sizes))
        for writer in (x_writer, counts_writer):  # the second copies from the first
            if writer:
                writer.close()


if __name__ == "__main__":
    run(final, snakemake)
