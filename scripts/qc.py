"""Compute the quality of cells and genes from the counts.

Purpose
    Quality metrics by which `filter` chooses cells and genes.

Method
    The metrics, names and values of scanpy's ``calculate_qc_metrics``, in row blocks. Sums are
    exact (64 bits), where float32 sums over millions of cells are not.

Settings
    Section ``qc``.

Inputs
    ``counts.zarr``.

Outputs
    A step file. obs, per cell: ``total_counts``, ``n_genes_by_counts`` and their ``log1p_``;
    ``total_counts_{mt,ribo,hb}`` and ``pct_counts_{mt,ribo,hb}`` (%) of mitochondrial, ribosomal
    and haemoglobin genes; ``pct_counts_in_top_50_genes`` (%). var, per gene: ``n_cells_by_counts``,
    ``mean_counts``, ``pct_dropout_by_counts`` (%), ``total_counts`` and the flags ``mt``, ``ribo``,
    ``hb``.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


import re
from pathlib import Path

import numpy as np

from scrna.backend import arrays, to_host
from scrna.data import row_blocks, step_files
from scrna.data.block import Block
from scrna.data.counts import Counts
from scrna.errors import UserError
from scrna.log import log
from scrna.step import step
from scrna.workflow.rule import run


@step
def qc(
    counts: Path,
    out: Path,
    *,
    mt: str | list[str],
    ribo: str | list[str],
    hb: str | list[str],
    ignore_case: bool,
    percent_top: list[int],
    backend: str,
) -> None:
    """Compute the quality of every cell and gene, in row blocks.

    Parameters
    ----------
    counts
        ``counts.zarr``.
    out
        The step file: obs columns (n_obs), var columns (n_vars).
    mt, ribo, hb
        Families of genes: a regular expression for symbols, or a list of symbols.
    ignore_case
        Whether the expressions match in either case.
    percent_top
        Sizes of the sets of a cell's highest genes.
    backend
        ``gpu`` or ``cpu``.

    Raises
    ------
    UserError
        If a listed gene is not among the symbols.
    """
    store = Counts(counts)
    symbols = store.genes()
    families = {
        name: find_genes(symbols, wanted, ignore_case=ignore_case, key=f"qc.{name}")
        for name, wanted in (("mt", mt), ("ribo", ribo), ("hb", hb))
    }
    if not families["mt"].any():
        log.warning(
            "no mitochondrial gene: %s matches none of the %s symbols (var column %s; e.g. %s); "
            "pct_counts_mt is 0 everywhere",
            mt,
            f"{len(symbols):,}",
            store.summary["gene_symbols"],
            ", ".join(symbols[:3]),
        )
    n_cells = np.zeros(store.shape[1], dtype=np.int64)
    totals = np.zeros(store.shape[1], dtype=np.float64)
    cells = []
    for of_cells, in_cells, total in row_blocks.each(
        block_sums, store, backend, families, percent_top, backend, label="qc"
    ):
        cells.append(of_cells)
        n_cells += in_cells
        totals += total
    sums = {name: np.concatenate([part[name] for part in cells]) for name in cells[0]}
    obs = cell_metrics(sums, families, percent_top)
    var = gene_metrics(n_cells, totals, store.shape[0]) | families
    step_files.write(
        out,
        {f"obs/{name}": values for name, values in obs.items()}
        | {f"var/{name}": values for name, values in var.items()},
    )
    log.info(
        "%s cells: median %s counts, %s genes, %.1f %% mitochondrial (%d such genes)",
        f"{store.shape[0]:,}",
        f"{np.median(obs['total_counts']):,.0f}",
        f"{np.median(obs['n_genes_by_counts']):,.0f}",
        np.nanmedian(obs["pct_counts_mt"]) if sums["total_counts"].any() else 0,
        families["mt"].sum(),
    )


def find_genes(
    symbols: np.ndarray, wanted: str | list[str], *, ignore_case: bool, key: str
) -> np.ndarray:
    """Flag the genes of a family.

    Parameters
    ----------
    symbols
        Gene symbols (n_vars,).
    wanted
        Regular expression, matched at a symbol's beginning, or a list of symbols.
    ignore_case
        Whether the expression matches in either case.
    key
        The config key, for messages.

    Returns
    -------
    bool (n_vars,).

    Raises
    ------
    UserError
        If the expression is none, or a listed symbol is not there.
    """
    if isinstance(wanted, list):
        flags = np.isin(symbols, wanted)
        if missing := sorted(set(wanted) - set(symbols[flags])):
            there = ", ".join(symbols[:3])
            msg = (
                f"{key} lists genes that are not among the symbols ({there}, …): "
                f"{', '.join(missing[:10])}"
            )
            raise UserError(msg)
        return flags
    try:
        pattern = re.compile(wanted, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        msg = f"{key} is {wanted!r}, which is not a valid regular expression: {error}"
        raise UserError(msg) from error
    return np.array([pattern.match(symbol) is not None for symbol in symbols], dtype=bool)


def block_sums(
    block: Block, families: dict[str, np.ndarray], percent_top: list[int], backend: str
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Sum up the cells and the genes of a block.

    Parameters
    ----------
    block
        Cells of the count matrix.
    families
        Name → flags of genes (n_vars).
    percent_top
        Sizes of the sets of a cell's highest genes.
    backend
        Where the block's arrays lie.

    Returns
    -------
    The sums of `cell_sums`; for each gene the cells that have it, int64, and its counts, float64.
    """
    xp = arrays(backend)
    n_vars = len(next(iter(families.values())))
    cells = cell_sums(block, {k: xp.asarray(v) for k, v in families.items()}, percent_top, xp)
    n_cells = xp.bincount(block.indices, minlength=n_vars)
    totals = xp.bincount(block.indices, weights=block.data, minlength=n_vars)
    return cells, to_host(n_cells), to_host(totals)


def cell_sums(block: Block, families: dict, percent_top: list[int], xp) -> dict[str, np.ndarray]:
    """Sum up the cells of a block.

    Parameters
    ----------
    block
        Cells of the count matrix.
    families
        Name → flags of genes (n_vars), where the block's arrays lie.
    percent_top
        Sizes of the sets of highest genes.
    xp
        Array module of the block.

    Returns
    -------
    ``total_counts``, ``n_genes_by_counts``, ``total_counts_{family}`` and ``top_{n}`` (counts in
    the n highest genes), int64 (cells of the block), in the CPU's memory.
    """
    counts = block.data.astype(xp.int64)
    sums = {"total_counts": block.row_sums(counts)}
    sums["n_genes_by_counts"] = block.indptr[1:] - block.indptr[:-1]
    for name, flags in families.items():
        sums[f"total_counts_{name}"] = block.row_sums(counts * flags[block.indices])
    if percent_top and len(counts):
        # one sort for all rows: the row in the key's high digits, the count, falling, in the low
        base = counts.max() + 1
        highest_first = (
            base - 1 - xp.sort(block.rows * base + (base - 1 - counts), kind="stable") % base
        )
    for n in percent_top:
        places = block.indptr[:-1, None] + xp.arange(n)
        inside = places < block.indptr[1:, None]
        values = (
            highest_first[xp.where(inside, places, 0)] if len(counts) else xp.zeros_like(places)
        )
        sums[f"top_{n}"] = (values * inside).sum(axis=1)
    return {name: to_host(values) for name, values in sums.items()}


def cell_metrics(
    sums: dict[str, np.ndarray], families: dict[str, np.ndarray], percent_top: list[int]
) -> dict[str, np.ndarray]:
    """Derive the obs columns from the cells' sums, named as scanpy names them."""
    total = sums["total_counts"].astype(np.float64)
    obs = {"total_counts": total, "n_genes_by_counts": sums["n_genes_by_counts"]}
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty cell is NaN, as in scanpy
        for n in percent_top:
            obs[f"pct_counts_in_top_{n}_genes"] = sums[f"top_{n}"] / total * 100
        for name in families:
            obs[f"total_counts_{name}"] = sums[f"total_counts_{name}"].astype(np.float64)
            obs[f"pct_counts_{name}"] = obs[f"total_counts_{name}"] / total * 100
    logged = [name for name in obs if not name.startswith("pct")]
    return obs | {f"log1p_{name}": np.log1p(obs[name]) for name in logged}


def gene_metrics(n_cells: np.ndarray, totals: np.ndarray, n_obs: int) -> dict[str, np.ndarray]:
    """Derive the var columns from the genes' sums, named as scanpy names them."""
    var = {
        "n_cells_by_counts": n_cells,
        "mean_counts": totals / n_obs,
        "pct_dropout_by_counts": (1 - n_cells / n_obs) * 100,
        "total_counts": totals,
    }
    return var | {f"log1p_{name}": np.log1p(var[name]) for name in ("mean_counts", "total_counts")}


if __name__ == "__main__":
    run(qc, snakemake)
