"""Estimate how much memory a step needs, from the sizes of its matrix.

The estimates are upper bounds, compared in tests with the peaks measured on an H200
(``docs/measurements.md``), for the memory of the device that computes: GPU or host. What they leave
out, such as a CUDA context, is covered by ``memory.headroom_gb``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scrna.damage import read_summary
from scrna.steps import BLOCK_STEPS, MATRIX_STEPS

#: Non-zeros that a block of cells holds at most, unless one cell alone holds more.
BLOCK_NNZ = 2**24
#: Most non-zeros of a sparse matrix in CuPy, which indexes them with 32 bits.
GPU_MAX_NNZ = 2**31 - 1
#: Bytes on the device for each non-zero of a block that is worked on: the counts as read, as
#: float32, and cut to cells and genes.
BYTES_AT_WORK = 40
#: Non-zeros that lie in the highly variable genes, as a share of all, at most. In data seen so far
#: 5,000 of 20,000 to 30,000 genes hold 0.1 to 0.5 of them.
HVG_SHARE = 0.6

#: MB that a process with scanpy or RAPIDS takes before it has any data.
_PROCESS_MB = 2000
#: Bytes of the work space that the libraries take whatever the size.
_BASE = 2**28
#: Number of groups that markers are computed for, where it is not known.
_GROUPS = 25
#: Variable genes that Scrublet takes, at most; in data seen so far 1,000 to 3,500.
_DOUBLET_GENES = 4000
#: Cells of a sample, at most, if samples are not known: more than one 10x channel yields.
_SAMPLE_CELLS = 50_000
#: Cells of a block, if cells have at least 1,000 non-zeros.
_BLOCK_CELLS = BLOCK_NNZ // 1000


def csr_bytes(n_obs: int, nnz: int) -> int:
    """Compute the bytes of a float32 CSR matrix.

    Parameters
    ----------
    n_obs
        Rows.
    nnz
        Non-zeros; from 2³¹ on column numbers and row pointers have 64 bits instead of 32.
    """
    index = 4 if nnz <= GPU_MAX_NNZ else 8
    return nnz * (4 + index) + (n_obs + 1) * index


def pca_columns(n_obs: int, n_vars: int, nnz: int, n_top_genes: int) -> tuple[int, int]:
    """Bound the part of the matrix that lies in the highly variable genes.

    Parameters
    ----------
    n_obs, n_vars, nnz
        Sizes of the whole matrix.
    n_top_genes
        Highly variable genes asked for.

    Returns
    -------
    Its columns and its non-zeros, the latter at most.
    """
    if n_top_genes >= n_vars:
        return n_vars, nnz
    return n_top_genes, min(int(nnz * HVG_SHARE), n_obs * n_top_genes)


def step_bytes(
    step: str, *, n_obs: int, n_vars: int = 0, nnz: int = 0, backend: str = "gpu", **settings
) -> int:
    """Estimate the memory that a step needs with its matrix in memory.

    Parameters
    ----------
    step
        The rule. Those of `BLOCK_STEPS` need what a few blocks take.
    n_obs
        Cells that stay.
    n_vars, nnz
        Genes and non-zeros of the matrix that the step holds: for pca those of the highly variable
        genes alone (`pca_columns` bounds them), for a step without a matrix none.
    backend
        Where the step computes, ``gpu`` or ``cpu``: the libraries copy differently.
    **settings
        The step's section of the config, or a part of it; what it does not depend on is ignored.
        For hvg ``batch_key`` and ``flavor``, and ``largest_batch``, the share of the cells in the
        largest batch (1 where it is not known); for pca ``dense`` may stand for ``regress_out`` and
        ``scale``; for markers ``method`` and ``n_groups``.

    Returns
    -------
    Bytes on the device where it computes, at most.
    """
    if step in BLOCK_STEPS:
        return block_bytes(step, n_obs=n_obs, n_vars=n_vars, nnz=nnz, backend=backend, **settings)
    base = _BASE if backend == "gpu" else 0
    if step == "doublets":
        return base + _doublets(n_obs, n_vars, nnz)
    if step not in MATRIX_STEPS:
        return base + int(n_obs * _BYTES_PER_CELL.get(step, lambda _: 200)(settings))
    matrix = csr_bytes(n_obs, nnz)
    work = min(nnz, BLOCK_NNZ) * BYTES_AT_WORK
    if step == "hvg":
        needed = matrix * (1 + _hvg_copies(**settings))
    elif step == "markers":
        needed = matrix * (1 + _markers_copies(backend, **settings))
        needed += _markers_tables(n_vars, n_bins=1000, **settings)
    elif step == "scores":
        needed = matrix
    else:
        needed = matrix + _pca_dense(n_obs, n_vars, **settings)
        needed += _pca_tables(n_obs, n_vars, **settings)
    return base + work + int(needed)


def block_bytes(
    step: str,
    *,
    n_obs: int,
    n_vars: int,
    nnz: int,
    backend: str = "gpu",
    threads: int = 4,
    **settings,
) -> int:
    """Estimate the memory that a step needs in blocks, where no block is kept.

    Parameters
    ----------
    step
        A step of `MATRIX_STEPS` or `BLOCK_STEPS`.
    n_obs, n_vars, nnz, backend
        As in `step_bytes`.
    threads
        Blocks that are worked on at the same time.
    **settings
        As in `step_bytes`.

    Returns
    -------
    Bytes on the device where it computes, at most; of a large matrix hardly more than of a small.
    """
    needed = min(nnz, BLOCK_NNZ * threads) * BYTES_AT_WORK + n_obs * 50
    if step == "pca":
        needed += threads * _pca_dense(min(n_obs, _BLOCK_CELLS), n_vars, **settings)
        needed += _pca_tables(n_obs, n_vars, **settings) + threads * n_vars**2 * 8
    if step == "markers":
        needed += (1 + threads) * _markers_tables(n_vars, n_bins=200, **settings)
    return int(needed) + (_BASE if backend == "gpu" else 0)


def memory_mb(summary: Path | str, step: str, *, dense_genes: int = 0, mode: str = "memory") -> int:
    """Estimate the memory of a rule's process on the host, for Snakemake's mem_mb.

    Parameters
    ----------
    summary
        ``counts.json`` of the dataset.
    step
        The rule.
    dense_genes
        Genes that pca holds as a dense matrix, for regress_out and scale.
    mode
        ``memory`` or ``blocks``.

    Returns
    -------
    MB: what the step needs on the CPU, half as much again, and the process itself.

    Raises
    ------
    FileNotFoundError
        If the counts are not converted yet; Snakemake then asks again when they are.
    """
    if not Path(summary).exists():
        raise FileNotFoundError(summary)
    sizes = read_summary(Path(summary))
    n_obs, n_vars, nnz = (sizes[name] for name in ("n_obs", "n_vars", "nnz"))
    if step == "pca":
        n_vars, nnz = pca_columns(n_obs, n_vars, nnz, dense_genes or 5000)
    if step == "doublets" and n_obs > _SAMPLE_CELLS:
        n_obs, nnz = _SAMPLE_CELLS, int(nnz * _SAMPLE_CELLS / n_obs)
    estimate = block_bytes if mode == "blocks" and step in MATRIX_STEPS else step_bytes
    needed = estimate(
        step, n_obs=n_obs, n_vars=n_vars, nnz=nnz, backend="cpu", dense=dense_genes > 0
    )
    return _PROCESS_MB + int(1.5 * needed / 1e6)


# ----------------------------------------------------- what the libraries take beside the matrix


def _hvg_copies(
    *,
    flavor: str = "cell_ranger",
    batch_key: str | None = None,
    largest_batch: float = 1.0,
    **_others,
) -> float:
    """Count the copies beside it: of the largest batch, and what the flavor makes of it."""
    share = largest_batch if batch_key else 1.0
    # cells of the batch, the genes found in it, and the copy in between
    copies = 3 * share if batch_key else 0
    # seurat: a copy and its expm1; seurat_v3: a look for fractions; pearson_residuals: that, the
    # cells, their CSC and the genes found in it (3.5 as measured with scanpy)
    own = {"seurat": 2, "seurat_v3": 1, "pearson_residuals": 4}
    copies += own.get(flavor, 0) * share
    return copies


def _markers_copies(backend: str, *, method: str = "wilcoxon", **_others) -> float:
    """Count the copies of the matrix beside it."""
    if backend == "cpu":
        return 1.5  # scanpy takes the cells of a group, and the others, out of it: 1.4 as measured
    return {"wilcoxon": 1, "logreg": 2}.get(method, 0)  # its CSC; the cells of the groups, sorted


def _markers_tables(
    n_vars: int, *, n_bins: int, method: str = "wilcoxon", n_groups: int = _GROUPS, **_others
) -> int:
    """Bytes of tables of genes × groups: sums, and the counts a bin of wilcoxon_binned."""
    bins = n_bins * (4 + 8) if method == "wilcoxon_binned" else 0
    return n_vars * n_groups * (bins + 8 * 8)


def _pca_dense(
    n_obs: int,
    n_vars: int,
    *,
    regress_out=(),
    scale: bool = False,
    zero_center: bool = True,
    dense: bool = False,
    **_others,
) -> int:
    """Bytes of the dense matrix that regress_out and scale make, with two copies."""
    is_dense = dense or bool(regress_out) or (scale and zero_center)
    return n_obs * n_vars * 4 * 3 if is_dense else 0


def _pca_tables(n_obs: int, n_vars: int, *, n_comps: int = 100, **_others) -> int:
    """Bytes of the components, and of genes × genes with its eigenvectors and work space."""
    return n_obs * n_comps * 4 * 2 + n_vars**2 * 4 * 6


def _doublets(n_obs: int, n_vars: int, nnz: int) -> int:
    """Bytes of a sample's counts with copies, and of its cells and twice as many doublets, dense.

    Both are dense in the variable genes, as the sparse matrix that centring leaves full and as the
    array that the components are computed of.
    """
    dense = 3 * n_obs * min(n_vars, _DOUBLET_GENES)
    return 5 * csr_bytes(n_obs, nnz) + dense * (12 + 8 + 8)


def _graph(settings: Mapping[str, Any], copies: int) -> int:
    """Bytes a cell, of a neighbor graph, values and columns, in several copies."""
    return settings.get("n_neighbors", 15) * 8 * copies


def _neighbors(settings: Mapping[str, Any]) -> int:
    search = settings.get("n_pcs", 40) * 4 * 3 + _graph(settings, 10)
    # the wider graph (128 neighbors) that an approximate search starts from, twice
    is_exact = settings.get("algorithm", "brute") == "brute"
    return search if is_exact else search + 128 * 8 * 2


def _tsne(settings: Mapping[str, Any]) -> int:
    # 3 × perplexity neighbors, values and columns, in seven copies where cuML searches for them and
    # in thirteen where they are given
    return int(settings.get("perplexity", 30) * 3 * 8 * 13) + settings.get("n_pcs", 40) * 4 * 3


#: Bytes a cell, for the steps that do not see the matrix, from their settings.
_BYTES_PER_CELL: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "harmony": lambda settings: settings.get("n_comps", 100) * 4 * 6,
    "neighbors": _neighbors,
    "umap": _neighbors,
    "integration_scores": lambda settings: settings.get("n_comps", 100) * 4 * 2,
    "tsne": _tsne,
    "leiden": lambda settings: _graph(settings, 14),
    "louvain": lambda settings: _graph(settings, 14),
    "trajectory": lambda settings: _graph(settings, 16) + settings.get("n_comps", 15) * 4 * 4,
}
