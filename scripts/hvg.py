"""Select highly variable genes.

Purpose
    The genes that the principal components are computed from.

Method
    ``highly_variable_genes`` of scanpy or rapids-singlecell: ``cell_ranger`` (Zheng et al. 2017)
    and ``seurat`` (Satija et al. 2015) on log-normalised values, ``seurat_v3`` (Stuart et al. 2019)
    and ``pearson_residuals`` (Lause et al. 2021) on counts. With ``batch_key`` genes are ranked
    within each batch and the ranks combined.

Settings
    Section ``hvg``.

Inputs
    ``counts.zarr``, filter, normalize.

Outputs
    A step file: var ``highly_variable`` and the statistics of the flavor (means and dispersions;
    variances and normalised variances; residual variances), uns ``hvg``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import computed, load, to_host
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.matrix import open_matrix
from scrna.data.unnamed import anndata_without_names
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.variable_genes import pearson_residual_genes
from scrna.step import step
from scrna.workflow.rule import run

#: Smaller batches do not rank genes: a mean over them says too little.
FEWEST_CELLS = 25
ON_COUNTS = ("seurat_v3", "pearson_residuals")


@step
def hvg(
    counts: Path,
    filtered: Path,
    normalized: Path,
    out: Path,
    *,
    flavor: str,
    n_top_genes: int,
    batch_key: str | None,
    n_bins: int,
    span: float,
    theta: float,
    backend: str,
    execution: str = "auto",
) -> None:
    """Find the highly variable genes.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    out
        The step file: var columns of the kept genes.
    flavor
        ``cell_ranger`` (Zheng et al. 2017), ``seurat`` (Satija et al. 2015), ``seurat_v3``
        (Stuart et al. 2019) or ``pearson_residuals`` (Lause et al. 2021).
    n_top_genes
        How many genes to take; all, if there are no more.
    batch_key
        obs column with batches, or None.
    n_bins, span, theta
        Settings of one flavor each: seurat, seurat_v3, pearson_residuals.
    backend
        ``gpu`` or ``cpu``.
    execution
        ``memory`` or ``blocks``, or ``auto`` for what the size asks for.

    Raises
    ------
    UserError
        If the flavor cannot rank the genes.
    """
    cells, genes = kept(filtered)
    store = Counts(counts)
    batches = store.obs([batch_key])[batch_key].to_numpy()[cells] if batch_key else None
    n_genes = int(genes.sum())
    n_top = min(n_top_genes, n_genes)
    if n_top < n_top_genes:
        log.warning(
            "n_top_genes is %s, but %s genes passed the filter: all are used",
            f"{n_top_genes:,}",
            f"{n_genes:,}",
        )
    own = {
        "seurat": {"n_bins": n_bins},
        "seurat_v3": {"span": span},
        "pearson_residuals": {"theta": theta},
    }.get(flavor, {})
    values = None if flavor in ON_COUNTS else normalized
    with open_matrix(
        "hvg",
        counts,
        filtered,
        values,
        backend=backend,
        asked=execution,
        flavor=flavor,
        batch_key=batch_key,
        largest_batch=largest_share(batches),
    ) as matrix:
        var = rank_genes(
            matrix, store.genes()[genes], batches, batch_key, flavor, n_top, own, backend
        )
    columns = {f"var/{name}": var[name].to_numpy() for name in var}
    step_files.write(out, columns | {"uns/hvg": {"flavor": flavor}})
    n_chosen = np.sum(columns["var/highly_variable"])
    log.info("%s of %s genes are highly variable", f"{n_chosen:,}", f"{n_genes:,}")


def rank_genes(
    matrix,
    genes: np.ndarray,
    batches: np.ndarray | None,
    batch_key: str | None,
    flavor: str,
    n_top_genes: int,
    settings: dict[str, float],
    backend: str,
):
    """Rank the genes of a matrix with the backend's library.

    Parameters
    ----------
    matrix
        Cells × genes, CSR or in blocks: counts or log-normalised values, as the flavor needs.
    genes
        Their symbols, unique.
    batches, batch_key
        The batch of each cell and the column's name; both None for none.
    flavor, n_top_genes
        As in `hvg`.
    settings
        Those of the flavor alone.
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    DataFrame, a row a gene: ``highly_variable`` and the statistics of the flavor.

    Raises
    ------
    UserError
        If the flavor cannot rank the genes.
    """
    import pandas as pd

    adata = anndata_without_names(matrix.shape[0], matrix, var=pd.DataFrame(index=genes))
    if batch_key:
        adata, batch_key = in_batches(adata, batches, batch_key)
    if flavor == "pearson_residuals":
        pearson_residual_genes(
            adata, n_top_genes=n_top_genes, batch_key=batch_key, backend=backend, **settings
        )
    else:
        _rank_by_library(adata, flavor, n_top_genes, batch_key, settings, backend)
    if n_top_genes == len(genes):
        adata.var["highly_variable"] = True
    return adata.var


def _rank_by_library(
    adata,
    flavor: str,
    n_top_genes: int,
    batch_key: str | None,
    settings: dict[str, float],
    backend: str,
) -> None:
    """Rank genes into var; genes that are all taken need no ranks, where there cannot be any."""
    n_genes = adata.n_vars
    problem: Exception | None = None
    # loess without a point ends the process
    can_fit = flavor != "seurat_v3" or settings["span"] * n_genes >= 1
    if can_fit:
        try:
            load(backend).pp.highly_variable_genes(
                adata, flavor=flavor, n_top_genes=n_top_genes, batch_key=batch_key, **settings
            )
        except (ValueError, IndexError) as error:
            problem = error
        else:
            if n_top_genes == n_genes or adata.var["highly_variable"].any():
                return
    if n_top_genes < n_genes:
        msg = (
            f"flavor {flavor} cannot rank these {n_genes:,} genes: they are too few, or too "
            "many have the same few counts. Raise filter.min_cells, set hvg.batch_key to null or "
            "take another flavor (pearson_residuals ranks any)"
        )
        raise UserError(msg) from problem
    for name, values in moments(adata.X, flavor).items():
        adata.var[name] = values
    log.info("flavor %s has no ranks for these %s genes; none are needed", flavor, f"{n_genes:,}")


def moments(matrix, flavor: str) -> dict[str, np.ndarray]:
    """Compute the statistics of single genes that a flavor starts with.

    Parameters
    ----------
    matrix
        Cells × genes, CSR or in blocks: counts or log-normalised values, as the flavor needs.
    flavor
        ``cell_ranger``, ``seurat`` or ``seurat_v3``.

    Returns
    -------
    means, and dispersions (variances for seurat_v3), as scanpy has them; float64 (genes).
    """
    from fast_array_utils import stats

    if flavor == "seurat":
        matrix = matrix.map_blocks(_expm1) if hasattr(matrix, "map_blocks") else _expm1(matrix)
    found = stats.mean_var(matrix, axis=0, correction=1)
    mean, variance = (np.asarray(to_host(computed(of)), np.float64).ravel() for of in found)
    if flavor == "seurat_v3":
        return {"means": mean, "variances": variance}
    with np.errstate(divide="ignore"):
        dispersion = variance / np.where(mean == 0, 1e-12, mean)
        if flavor == "seurat":
            return {
                "means": np.log1p(mean),
                "dispersions": np.log(np.where(dispersion == 0, np.nan, dispersion)),
            }
    return {"means": mean, "dispersions": dispersion}


def _expm1(block):
    """Undo log1p; sparse matrices of the GPU have a method alone, Dask tries it on an array."""
    return block.expm1() if hasattr(block, "expm1") else np.expm1(block)


def largest_share(batches: np.ndarray | None) -> float:
    """Return the share of cells in the largest batch, which libraries copy; 1 without batches."""
    import pandas as pd

    shares = pd.Series(batches).value_counts(normalize=True)
    return float(shares.max()) if len(shares) else 1.0


def in_batches(adata, batches: np.ndarray, batch_key: str):
    """Cut cells to the batches large enough to rank genes in.

    Parameters
    ----------
    adata
        The kept cells.
    batches
        The batch of each; may have missing values.
    batch_key
        The column's name.

    Returns
    -------
    AnnData of the cells in batches of at least `FEWEST_CELLS`, with the batches in obs, and the
    column's name; all cells and None where fewer than two batches are that large.
    """
    import pandas as pd

    batches = pd.Series(batches, index=adata.obs_names)
    sizes = batches.value_counts()
    large = batches.isin(sizes.index[sizes >= FEWEST_CELLS]).to_numpy()
    if batches[large].nunique() < 2:
        log.warning("genes are ranked over all cells: %s has fewer than two batches", batch_key)
        return adata, None
    if not large.all():
        log.warning(
            "genes are ranked without %s cells: their %s is missing or has under %d cells",
            f"{(~large).sum():,}",
            batch_key,
            FEWEST_CELLS,
        )
        adata = adata[large].copy()
    adata.obs[batch_key] = batches[large].astype(str).astype("category")
    return adata, batch_key


if __name__ == "__main__":
    run(hvg, snakemake)
