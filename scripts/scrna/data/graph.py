"""Read a neighbor graph as an AnnData for scanpy and rapids-singlecell."""

from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.data.unnamed import anndata_without_names

#: Eigenvalues of a diffusion map from here on count as 1, as in DPT: float32 cannot separate them.
STATIONARY = 0.9994


def open_graph(neighbors: Path):
    """Open a neighbor graph with its weights; the distances stay in the file.

    Parameters
    ----------
    neighbors
        The step file of the rule ``neighbors``.

    Returns
    -------
    AnnData of the kept cells without genes: ``obsp["connectivities"]`` and ``uns["neighbors"]``.
    """
    graph = step_files.read(neighbors, "obsp/connectivities")
    uns = {"neighbors": step_files.read(neighbors, "uns/neighbors")}
    return anndata_without_names(graph.shape[0], obsp={"connectivities": graph}, uns=uns)


def representation(path: Path, n_pcs: int) -> tuple[str, np.ndarray]:
    """Read the cells' representation: principal components, integrated or not.

    Parameters
    ----------
    path
        The step file of ``pca`` or ``harmony``.
    n_pcs
        Components wanted.

    Returns
    -------
    Its key in obsm and the array, cells × min(n_pcs, components there are), float32.
    """
    from scrna.log import log

    (name,) = [name for name in step_files.names(path) if name.startswith("obsm/X_pca")]
    array = step_files.read(path, name)
    if n_pcs > array.shape[1]:
        log.warning("n_pcs is %d, but there are %d components: all are used", n_pcs, array.shape[1])
    return name.removeprefix("obsm/"), np.ascontiguousarray(array[:, :n_pcs], dtype=np.float32)
