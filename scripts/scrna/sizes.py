"""How much memory a step needs, from the sizes of the count matrix."""

import json
from pathlib import Path

#: Bytes of a float32 value with its int32 column in a CSR matrix.
_CSR = 8
#: MB that a process with scanpy or RAPIDS takes before it has any data.
_BASE = 2000


def memory_mb(summary: Path | str, step: str, *, dense_genes: int = 0) -> int:
    """Estimate the memory of a step.

    Parameters
    ----------
    summary
        ``counts.json`` of the dataset.
    step
        The rule.
    dense_genes
        Genes that pca holds as a dense matrix, for regress_out and scale.

    Returns
    -------
    MB: the step's matrices, and once more as much for the copies that libraries make.

    Raises
    ------
    FileNotFoundError
        If the counts are not converted yet; Snakemake then asks again when they are.
    """
    sizes = json.loads(Path(summary).read_text())
    n_obs, nnz = sizes["n_obs"], sizes["nnz"]
    matrix = nnz * _CSR
    graph = n_obs * 15 * 4 * _CSR  # distances and connectivities of 15 neighbors, and a transpose
    components = n_obs * 100 * 4
    held = {
        "hvg": matrix,
        "pca": matrix + components + n_obs * min(dense_genes, sizes["n_vars"]) * 4,
        "markers": matrix * 1.5,
        "harmony": components * 3,
        "neighbors": components + graph,
        "umap": components + graph,
        "tsne": components * 2,
        "trajectory": graph * 2,
        "leiden": graph * 2,
        "louvain": graph * 2,
        "final": components + graph * 4,
    }.get(step, n_obs * 200)
    return _BASE + int(2 * held / 1e6)
