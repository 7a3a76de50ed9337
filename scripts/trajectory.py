"""Diffusion map, PAGA over the clusters, and pseudotime from a root.

``obsm/X_diffmap`` with ``uns/diffmap_evals`` (Haghverdi et al. 2015), ``uns/paga`` (Wolf et al.
2019) and, with a root, ``obs/dpt_pseudotime`` (Haghverdi et al. 2016) and ``uns/iroot``. The root
is a cell by name; a Leiden cluster or a label, which start at their tip, the cell farthest from all
others in the diffusion map; or the cell highest in a marker gene. PAGA and DPT are scanpy's on
either backend: rapids-singlecell has neither, and they take seconds.

Settings: section ``trajectory`` and the dataset's ``label_key``. Inputs: ``counts.zarr``, filter,
normalize, neighbors, leiden. Output: a step file.
"""

from pathlib import Path

import numpy as np

from scrna import slots
from scrna.backend import load, to_host
from scrna.counts import Counts, kept
from scrna.errors import UserError
from scrna.graphs import open_graph
from scrna.log import log
from scrna.step import run, step


@step
def trajectory(
    counts: Path,
    filtered: Path,
    normalized: Path,
    neighbors: Path,
    leiden: Path,
    out: Path,
    *,
    n_comps: int,
    n_dcs: int,
    root: dict[str, str] | None,
    label_key: str | None,
    backend: str,
    seed: int,
) -> None:
    """Order the cells.

    Parameters
    ----------
    counts, filtered, normalized, neighbors, leiden
        ``counts.zarr`` and the step files.
    out
        The step file: obsm X_diffmap (kept cells × n_comps), uns diffmap_evals, paga,
        leiden_sizes; with a root obs dpt_pseudotime, uns iroot.
    n_comps
        Components of the diffusion map; the first is constant over a connected graph.
    n_dcs
        Components that the pseudotime uses.
    root
        ``{"cell": name}``, ``{"cluster": name}``, ``{"label": value}``, ``{"gene": symbol}`` or
        None.
    label_key
        obs column that a label is looked up in.
    backend, seed
        Where, and from which seed.

    Raises
    ------
    UserError
        If the root is not among the cells, clusters, labels or genes.
    """
    import scanpy
    from scipy.sparse.csgraph import connected_components

    adata = open_graph(neighbors)
    adata.obs["leiden"] = slots.read(leiden, "obs/leiden")
    pieces, piece_of = connected_components(adata.obsp["connectivities"], directed=False)
    if pieces > 1:
        log.warning(
            "the neighbor graph has %d separate pieces; pseudotime spans the root's alone", pieces
        )
    n_comps = min(n_comps, adata.n_obs - 2)
    load(backend).tl.diffmap(adata, n_comps=n_comps, random_state=seed)
    diffmap = np.asarray(to_host(adata.obsm["X_diffmap"]), dtype=np.float32)
    adata.obsm["X_diffmap"] = diffmap
    adata.uns["diffmap_evals"] = np.asarray(to_host(adata.uns["diffmap_evals"]))
    scanpy.tl.paga(adata, groups="leiden")
    found = {
        "obsm/X_diffmap": diffmap,
        "uns/diffmap_evals": adata.uns["diffmap_evals"],
        "uns/paga": dict(adata.uns["paga"]),
        "uns/leiden_sizes": np.asarray(adata.uns["leiden_sizes"]),
    }
    if root is not None:
        (kind, wanted), *_ = root.items()
        iroot = {"cell": _cell, "cluster": _cluster, "label": _label, "gene": _gene}[kind](
            str(wanted),
            adata=adata,
            store=Counts(counts),
            filtered=filtered,
            normalized=normalized,
            label_key=label_key,
        )
        found |= pseudotime(adata, iroot, min(n_dcs, n_comps), piece_of)
        log.info("pseudotime from cell %d of the kept ones (%s %s)", iroot, kind, wanted)
    slots.write(out, found)
    log.info(
        "diffusion map of %d components, PAGA over %d clusters",
        diffmap.shape[1],
        adata.obs["leiden"].nunique(),
    )


def pseudotime(adata, iroot: int, n_dcs: int, piece_of: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the diffusion pseudotime from a root cell.

    Parameters
    ----------
    adata
        The graph, with its diffusion map.
    iroot
        The root's place among the cells.
    n_dcs
        Components used.
    piece_of
        The connected piece of the graph that each cell is in.

    Returns
    -------
    ``obs/dpt_pseudotime``: float32 in [0, 1], NaN in pieces without the root; ``uns/iroot``.
    """
    import scanpy

    adata.uns["iroot"] = iroot
    scanpy.tl.dpt(adata, n_dcs=n_dcs)
    values = adata.obs["dpt_pseudotime"].to_numpy(dtype=np.float32, copy=True)
    reached = piece_of == piece_of[iroot]
    values[~reached] = np.nan
    values[reached] /= values[reached].max() or 1
    return {"obs/dpt_pseudotime": values, "uns/iroot": np.array(iroot)}


def tip(diffmap: np.ndarray, members: np.ndarray) -> int:
    """Find the member of a group that is farthest from all cells' centre in the diffusion map.

    Parameters
    ----------
    diffmap
        Cells × components.
    members
        bool (cells).

    Returns
    -------
    The cell's place.
    """
    away = np.linalg.norm(diffmap - diffmap.mean(axis=0), axis=1)
    return int(np.flatnonzero(members)[np.argmax(away[members])])


def _cell(name: str, *, store: Counts, filtered: Path, **_) -> int:
    cells, _genes = kept(filtered)
    names = store.cell_names()
    places = np.flatnonzero(names[cells] == name)
    if len(places) == 0:
        why = "did not pass the filter" if name in names else "is not among the cells"
        msg = f"trajectory.root.cell {name!r} {why} (cells are named like {names[0]!r})"
        raise UserError(msg)
    return int(places[0])


def _cluster(name: str, *, adata, **_) -> int:
    members = (adata.obs["leiden"] == name).to_numpy()
    if not members.any():
        known = ", ".join(adata.obs["leiden"].cat.categories)
        msg = f"trajectory.root.cluster {name!r} is no Leiden cluster; there are {known}"
        raise UserError(msg)
    return tip(adata.obsm["X_diffmap"], members)


def _label(name: str, *, adata, store: Counts, filtered: Path, label_key: str, **_) -> int:
    cells, _genes = kept(filtered)
    labels = store.obs([label_key])[label_key].astype(str).to_numpy()[cells]
    members = labels == name
    if not members.any():
        known = ", ".join(sorted(set(labels))[:20])
        msg = f"trajectory.root.label {name!r} is not in obs {label_key!r}; there are {known}"
        raise UserError(msg)
    return tip(adata.obsm["X_diffmap"], members)


def _gene(symbol: str, *, store: Counts, filtered: Path, normalized: Path, **_) -> int:
    cells, _genes = kept(filtered)
    wanted = store.genes() == symbol
    if not wanted.any():
        msg = f"trajectory.root.gene {symbol!r} is not among the gene symbols"
        raise UserError(msg)
    factor = slots.read(normalized, "obs/size_factor")
    values = store.matrix("cpu", cells=cells, genes=wanted, size_factor=factor)
    if values.nnz == 0:
        msg = f"trajectory.root.gene {symbol!r} is in none of the kept cells"
        raise UserError(msg)
    return int(values.toarray().argmax())


if __name__ == "__main__":
    run(trajectory, snakemake)
