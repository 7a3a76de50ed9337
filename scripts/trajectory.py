"""Compute the diffusion map, PAGA over the clusters, and pseudotime from a root.

Purpose
    The order of cells along a process, and how clusters are connected.

Method
    Diffusion map (Haghverdi et al. 2015) of scanpy or rapids-singlecell. PAGA (Wolf et al. 2019)
    and diffusion pseudotime (Haghverdi et al. 2016) are computed on the CPU with either backend,
    because rapids-singlecell has neither. Pseudotime is scanpy's; PAGA has the numbers of scanpy,
    from counts of edges (`links`).

    The root is a cell by name, the cell with the highest expression of a gene, or the `tip` of a
    Leiden cluster or label: its cell with the largest diffusion distance from the centre of all
    cells. Pseudotime is computed for the connected piece of the graph that has the root (if a
    cluster lies in several, the piece with most of it); cells of other pieces have NaN.

Settings
    Section ``trajectory``; ``label_key`` of the dataset.

Inputs
    ``counts.zarr``, filter, normalize, neighbors, leiden.

Outputs
    A step file: obsm ``X_diffmap``; uns ``diffmap_evals``, ``paga``, ``leiden_sizes``; with a root
    obs ``dpt_pseudotime`` (0 to 1) and uns ``iroot``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import load, to_host
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.graph import STATIONARY, open_graph
from scrna.data.matrix import gene_values
from scrna.data.unnamed import anndata_without_names
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.nearest import connected_pieces
from scrna.resources.admission import decide
from scrna.step import step
from scrna.workflow.rule import run

#: Cells that a diffusion map of three components takes.
FEWEST_CELLS = 5


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
    """Compute diffusion map, PAGA and, with a root, pseudotime.

    Parameters
    ----------
    counts, filtered, normalized, neighbors, leiden
        ``counts.zarr`` and the step files.
    out
        The step file: obsm X_diffmap (kept cells × n_comps), uns diffmap_evals, paga,
        leiden_sizes; with a root obs dpt_pseudotime, uns iroot.
    n_comps
        Components of the diffusion map; the first only tells how densely the cells lie.
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
    adata = open_graph(neighbors)
    adata.obs["leiden"] = step_files.read(leiden, "obs/leiden")
    n_pieces, piece_of = connected_pieces(adata.obsp["connectivities"], backend=backend)
    if n_pieces > 1:
        log.warning(
            "the neighbor graph has %s separate pieces, the largest with %s cells; pseudotime "
            "is computed only for the piece with the root. A larger neighbors.n_neighbors "
            "may connect them",
            f"{n_pieces:,}",
            f"{np.bincount(piece_of).max():,}",
        )
    decide("trajectory", backend=backend, n_obs=adata.n_obs, n_comps=n_comps)
    diffusion_map(adata, n_comps, backend, seed)
    found = {
        "obsm/X_diffmap": adata.obsm["X_diffmap"],
        "uns/diffmap_evals": adata.uns["diffmap_evals"],
        "uns/paga": links(step_files.read(neighbors, "obsp/distances"), adata.obs["leiden"].array),
        "uns/leiden_sizes": adata.obs["leiden"].value_counts(sort=False).to_numpy(),
    }
    log.info(
        "diffusion map with %d components, PAGA of %d clusters",
        adata.obsm["X_diffmap"].shape[1],
        adata.obs["leiden"].nunique(),
    )
    if root is not None:
        (kind, wanted), *_ = root.items()
        candidates = {"cell": _cell, "cluster": _cluster, "label": _label, "gene": _gene}[kind](
            str(wanted),
            adata=adata,
            store=Counts(counts),
            filtered=filtered,
            normalized=normalized,
            label_key=label_key,
            backend=backend,
        )
        piece = piece_of == np.bincount(piece_of[candidates]).argmax()
        if n_pieces > 1:
            # what adata[piece].copy() makes, which cuts the graph twice
            graph = adata.obsp["connectivities"][piece][:, piece]
            parts = {"obsp": {"connectivities": graph}, "uns": adata.uns}
            adata = anndata_without_names(graph.shape[0], obs=adata.obs[piece], **parts)
            diffusion_map(adata, n_comps, backend, seed)
        values, start = pseudotime(adata, candidates[piece], n_dcs)
        found["obs/dpt_pseudotime"] = np.full(len(piece), np.nan, dtype=np.float32)
        found["obs/dpt_pseudotime"][piece] = values
        found["uns/iroot"] = np.array(np.flatnonzero(piece)[start])
        log.info(
            "pseudotime of %s cells; the root is kept cell %s (%s %s)",
            f"{piece.sum():,}",
            f"{found['uns/iroot']:,}",
            kind,
            wanted,
        )
    step_files.write(out, found)


def diffusion_map(adata, n_comps: int, backend: str, seed: int) -> None:
    """Compute the diffusion map of a graph, in the CPU's memory.

    Parameters
    ----------
    adata
        The graph; gets obsm X_diffmap (cells × n_comps, float32) and uns diffmap_evals.
    n_comps
        Components, at most two less than there are cells.
    backend, seed
        Where, and from which seed.

    Raises
    ------
    UserError
        If there are too few cells.
    """
    if adata.n_obs < FEWEST_CELLS:
        msg = (
            f"the piece of the neighbor graph that the root is in has {adata.n_obs} cells, too few "
            "for a trajectory. Raise neighbors.n_neighbors, or set another trajectory.root"
        )
        raise UserError(msg)
    load(backend).tl.diffmap(adata, n_comps=min(n_comps, adata.n_obs - 2), random_state=seed)
    adata.obsm["X_diffmap"] = np.asarray(to_host(adata.obsm["X_diffmap"]), dtype=np.float32)
    adata.uns["diffmap_evals"] = np.asarray(to_host(adata.uns["diffmap_evals"]))


def links(distances, clusters) -> dict:
    """Compute how strongly Leiden clusters are connected: PAGA (Wolf et al. 2019).

    These are the numbers of ``scanpy.tl.paga`` (1.12, model v1.2), without the igraph graph that it
    makes of all edges, which takes thirty times as long. A link's strength is the number of edges
    between clusters *i* and *j*, both ways, over the number expected where edges end at random,
    (e_i n_j + e_j n_i) / (n - 1), and at most 1: e_i edges leave the n_i cells of *i*, those among
    its own cells included, and n is the number of cells.

    Parameters
    ----------
    distances
        The graph, CSR (cells × cells): an edge from a cell to each of its nearest neighbors.
    clusters
        `pandas.Categorical` (cells).

    Returns
    -------
    ``uns["paga"]``: connectivities (clusters × clusters, CSR, float64), connectivities_tree (the
    links of the spanning tree with the strongest links, each in one direction), groups.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    codes, k = clusters.codes.astype(np.int64), len(clusters.categories)
    pairs = np.repeat(codes, np.diff(distances.indptr)) * k + codes[distances.indices]
    counts = np.bincount(pairs, minlength=k * k).reshape(k, k)
    leaving, sizes = counts.sum(axis=1), np.bincount(codes, minlength=k)

    between = counts + counts.T
    np.fill_diagonal(between, 0)
    i, j = between.nonzero()
    expected = (leaving[i] * sizes[j] + leaving[j] * sizes[i]) / (len(codes) - 1)
    strength = csr_matrix((np.minimum(between[i, j] / expected, 1), (i, j)), shape=(k, k))
    weakness = csr_matrix((1 / strength.data, strength.indices, strength.indptr), shape=(k, k))
    tree = strength.multiply(minimum_spanning_tree(weakness) > 0).tocsr()
    return {"connectivities": strength, "connectivities_tree": tree, "groups": "leiden"}


def pseudotime(adata, candidates: np.ndarray, n_dcs: int) -> tuple[np.ndarray, int]:
    """Compute the diffusion pseudotime over a connected graph.

    Parameters
    ----------
    adata
        The graph in one piece, with its diffusion map; gets obs dpt_pseudotime.
    candidates
        bool (cells): the cells that the root is one of.
    n_dcs
        Components used.

    Returns
    -------
    The pseudotime, float32 in [0, 1] (cells), and the root's place.
    """
    import scanpy

    n_dcs = min(n_dcs, adata.obsm["X_diffmap"].shape[1])
    start = tip(adata.obsm["X_diffmap"][:, :n_dcs], adata.uns["diffmap_evals"][:n_dcs], candidates)
    adata.uns["iroot"] = start
    # scanpy looks for pieces in a graph that it finds: 2 s a million cells, though there is one
    graph = adata.obsp.pop("connectivities")
    try:
        scanpy.tl.dpt(adata, n_dcs=n_dcs)
    except (AttributeError, KeyError, TypeError):  # a scanpy that cannot do without the graph
        adata.obsp["connectivities"] = graph
        scanpy.tl.dpt(adata, n_dcs=n_dcs)
    return adata.obs["dpt_pseudotime"].to_numpy(dtype=np.float32), start


def tip(diffmap: np.ndarray, evals: np.ndarray, members: np.ndarray) -> int:
    """Find the member of a group that is farthest from all cells' centre in diffusion distance.

    Components weigh λ / (1 − λ), as in the pseudotime; the stationary ones, which tell pieces of
    the graph and density apart, are left out.

    Parameters
    ----------
    diffmap
        Cells × components.
    evals
        The components' eigenvalues λ.
    members
        bool (cells).

    Returns
    -------
    The cell's place.
    """
    moving = evals < STATIONARY
    scaled = diffmap[:, moving] * (evals[moving] / (1 - evals[moving]))
    away = np.linalg.norm(scaled - scaled.mean(axis=0), axis=1)
    return int(np.flatnonzero(members)[np.argmax(away[members])])


def _cell(name: str, *, store: Counts, filtered: Path, **_) -> np.ndarray:
    cells, _genes = kept(filtered)
    names = store.cell_names()
    members = names[cells] == name
    if not members.any():
        why = "did not pass the filter" if name in names else "is not among the cells"
        msg = f"trajectory.root.cell {name!r} {why} (cells are named like {names[0]!r})"
        raise UserError(msg)
    return members


def _cluster(name: str, *, adata, **_) -> np.ndarray:
    members = (adata.obs["leiden"] == name).to_numpy()
    if not members.any():
        known = ", ".join(adata.obs["leiden"].cat.categories)
        msg = f"trajectory.root.cluster {name!r} is no Leiden cluster; there are {known}"
        raise UserError(msg)
    return members


def _label(name: str, *, adata, store: Counts, filtered: Path, label_key: str, **_) -> np.ndarray:
    cells, _genes = kept(filtered)
    labels = store.obs([label_key])[label_key][cells].astype(str)
    members = (labels == name).to_numpy()
    if not members.any():
        known = ", ".join(sorted(labels.dropna().unique())[:20])
        msg = f"trajectory.root.label {name!r} is not in obs {label_key!r}; there are {known}"
        raise UserError(msg)
    return members


def _gene(
    symbol: str, *, store: Counts, filtered: Path, normalized: Path, backend: str, **_
) -> np.ndarray:
    numbers = np.flatnonzero(store.genes() == symbol)
    if not len(numbers):
        msg = f"trajectory.root.gene {symbol!r} is not among the gene symbols"
        raise UserError(msg)
    values = gene_values(store.path, filtered, normalized, numbers[0], backend=backend)
    if not values.any():
        msg = f"trajectory.root.gene {symbol!r} is expressed in none of the kept cells"
        raise UserError(msg)
    return np.arange(len(values)) == values.argmax()


if __name__ == "__main__":
    run(trajectory, snakemake)
