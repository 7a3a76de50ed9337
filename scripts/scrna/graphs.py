"""The neighbor graph of a step file, as the AnnData that scanpy and rapids-singlecell work on."""

from pathlib import Path

import numpy as np

from scrna import slots


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
    import pandas as pd
    from anndata import AnnData

    graph = slots.read(neighbors, "obsp/connectivities")
    obs = pd.DataFrame(index=cell_numbers(graph.shape[0]))
    uns = {"neighbors": slots.read(neighbors, "uns/neighbors")}
    return AnnData(obs=obs, obsp={"connectivities": graph}, uns=uns)


def cell_numbers(n: int):
    """Name cells by their number, for steps to which names mean nothing: AnnData asks for text.

    Thousands and the rest are put together from a few strings, which takes a third of the time
    that ``pandas.RangeIndex(n).astype(str)`` does.

    Parameters
    ----------
    n
        How many.

    Returns
    -------
    Index of text: 0, 1, and so on.
    """
    import pandas as pd

    thousands = np.array(["", *map(str, range(1, n // 1000 + 1))], dtype=object)
    rest = np.array([f"{i:03d}" for i in range(1000)], dtype=object)
    names = np.add.outer(thousands, rest).ravel()[:n]
    names[:1000] = [str(i) for i in range(min(n, 1000))]
    return pd.Index(names, dtype=object)


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

    (name,) = [name for name in slots.names(path) if name.startswith("obsm/X_pca")]
    array = slots.read(path, name)
    if n_pcs > array.shape[1]:
        log.warning("n_pcs is %d, but there are %d components: all are used", n_pcs, array.shape[1])
    return name.removeprefix("obsm/"), np.ascontiguousarray(array[:, :n_pcs], dtype=np.float32)
