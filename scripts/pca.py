"""Compute principal components of the log-normalised values.

Purpose
    A representation of the cells in few dimensions, before integration.

Method
    PCA of scanpy or rapids-singlecell on the highly variable genes. The matrix stays sparse and is
    centred implicitly, unless ``regress_out`` or ``scale`` is set: both are done here, in memory.

Settings
    Section ``pca``.

Inputs
    ``counts.zarr``, qc, filter, normalize, hvg.

Outputs
    A step file: obsm ``X_pca``, varm ``PCs`` (loadings, 0 for genes that were not used), uns
    ``pca`` (variance and share of the variance per component).
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.backend import arrays, computed, load, to_host
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.covariates import as_numbers
from scrna.data.matrix import open_matrix
from scrna.data.unnamed import anndata_without_names
from scrna.errors import UserError
from scrna.log import log
from scrna.step import step
from scrna.workflow.rule import run


@step
def pca(
    counts: Path,
    qc: Path,
    filtered: Path,
    normalized: Path,
    hvg: Path,
    out: Path,
    *,
    n_comps: int,
    use_highly_variable: bool,
    regress_out: list[str],
    scale: bool,
    max_value: float | None,
    zero_center: bool,
    solver: str,
    backend: str,
    seed: int,
    execution: str = "auto",
) -> None:
    """Compute principal components.

    Parameters
    ----------
    counts, qc, filtered, normalized, hvg
        ``counts.zarr`` and the step files.
    out
        The step file: obsm X_pca (kept cells × n_comps, float32), varm PCs (kept genes × n_comps),
        uns pca.
    n_comps
        Components, fewer where there are not as many cells and genes.
    use_highly_variable
        Whether to use these genes alone.
    regress_out
        obs columns, of qc or of the counts, whose linear effect is taken out of each gene.
    scale, max_value
        Whether to bring each gene to unit variance, clipped at max_value.
    zero_center
        Whether to centre each gene.
    solver
        As the schema has them; ``auto`` is the library's choice.
    backend, seed
        Where, and from which seed.
    execution
        ``memory`` or ``blocks``, or ``auto`` for what the size asks for.

    Raises
    ------
    UserError
        If a column of regress_out is not there, not numeric or has missing values, or a single
        gene is left to compute components of.
    """
    tools = load(backend)
    n_genes = int(kept(filtered)[1].sum())
    used = (
        step_files.read(hvg, "var/highly_variable")
        if use_highly_variable
        else np.ones(n_genes, bool)
    )
    covariates = {name: _covariate(counts, qc, filtered, name) for name in regress_out}
    with open_matrix(
        "pca",
        counts,
        filtered,
        normalized,
        backend=backend,
        asked=execution,
        genes=used,
        regress_out=regress_out,
        scale=scale,
        zero_center=zero_center,
        solver=solver,
    ) as matrix:
        adata = anndata_without_names(matrix.shape[0], matrix, obs=covariates)
        if regress_out:
            tools.pp.regress_out(adata, regress_out)
        if scale:
            _scale(adata, tools, max_value=max_value, zero_center=zero_center)
        n_comps = possible_components(n_comps, *adata.shape)
        tools.pp.pca(
            adata,
            n_comps=n_comps,
            zero_center=zero_center,
            svd_solver=None if solver == "auto" else solver,
            mask_var=None,
            random_state=seed,
        )
        components = np.asarray(to_host(computed(adata.obsm["X_pca"])), dtype=np.float32)
    loadings = np.zeros((n_genes, n_comps), dtype=np.float32)
    loadings[used] = to_host(adata.varm["PCs"])
    variance = {name: np.asarray(adata.uns["pca"][name]) for name in ("variance", "variance_ratio")}
    if zero_center:
        # that of the sample, n - 1: some solvers of both libraries give it divided by n
        there = arrays(backend).asarray(components)  # a GPU takes a fifth of the time
        variance["variance"] = to_host(there.var(axis=0, ddof=1, dtype=np.float64))
    # as scanpy names them: sc.tl.ingest looks for the first two
    params = {"zero_center": zero_center, "use_highly_variable": use_highly_variable}
    params |= {"mask_var": "highly_variable"} if use_highly_variable else {}
    params["svd_solver"] = solver
    step_files.write(
        out,
        {
            "obsm/X_pca": components,
            "varm/PCs": loadings,
            "uns/pca": variance | {"params": params},
        },
    )
    log.info(
        "%d components of %s cells × %s genes explain %.1f %% of the variance",
        len(variance["variance"]),
        *(f"{n:,}" for n in adata.shape),
        100 * variance["variance_ratio"].sum(),
    )


def possible_components(n_comps: int, n_cells: int, n_genes: int) -> int:
    """Cap the number of components below that of cells and genes, and say so.

    Raises
    ------
    UserError
        If there are none.
    """
    most = min(n_cells, n_genes) - 1
    if most < 1:
        msg = (
            f"{n_cells:,} cells × {n_genes:,} genes have no principal components: "
            "raise hvg.n_top_genes or loosen the filter"
        )
        raise UserError(msg)
    if n_comps > most:
        log.warning(
            "n_comps is %d, but %s cells × %s genes have %d components: these are computed",
            n_comps,
            f"{n_cells:,}",
            f"{n_genes:,}",
            most,
        )
    return min(n_comps, most)


def _scale(adata, tools, *, max_value: float | None, zero_center: bool) -> None:
    """Bring each gene to unit variance; centred, the matrix has no zeros left and is made dense."""
    if zero_center and hasattr(adata.X, "toarray"):
        adata.X = adata.X.toarray()
    tools.pp.scale(adata, max_value=max_value, zero_center=zero_center)


def _covariate(counts: Path, qc: Path, filtered: Path, name: str) -> np.ndarray:
    """Read a numeric obs column of the kept cells, from qc or from the counts."""
    cells, _ = kept(filtered)
    columns = [
        slot.removeprefix("obs/") for slot in step_files.names(qc) if slot.startswith("obs/")
    ]
    if name in columns:
        values = step_files.read(qc, f"obs/{name}")[cells]
    else:
        table = Counts(counts).table("obs")
        if name not in table:
            msg = (
                f"pca.regress_out names {name!r}, which is not a column of obs; there are "
                f"{', '.join([*columns, *table])}"
            )
            raise UserError(msg)
        values = table[name].to_numpy()[cells]
    return as_numbers(values, name)


if __name__ == "__main__":
    run(pca, snakemake)
