"""Highly variable genes where scanpy and rapids-singlecell have different calls."""

from scrna.backend import load


def pearson_residual_genes(adata, *, backend: str, **settings) -> None:
    """Rank genes by Pearson residuals (Lause et al. 2021) of the counts in X, into ``var``."""
    tools = load(backend)
    if backend == "gpu":
        tools.pp.highly_variable_genes(adata, flavor="pearson_residuals", **settings)
    else:
        import scanpy

        scanpy.experimental.pp.highly_variable_genes(adata, **settings)
