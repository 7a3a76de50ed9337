"""Rank marker genes of each group of cells.

Purpose
    Genes that distinguish a cluster, or the groups of an obs column, from all other cells.

Method
    ``rank_genes_groups`` of scanpy or rapids-singlecell on log-normalised values of all kept genes,
    each group against all other cells. Groups under ``min_cells`` are not tested, with a warning;
    they stay among the other cells, as do cells without a group. Logistic regression compares the
    groups with each other, uses only their cells, and has scores but no p-values or fold changes.

    Where ``groupby`` is a list, each grouping is a job of its own.

Settings
    Section ``markers``.

Inputs
    ``counts.zarr``, filter, normalize, and leiden or louvain unless ``groupby`` is a column of obs.

Outputs
    A step file: uns ``rank_genes_groups``, as in scanpy; of a further grouping
    ``rank_genes_groups_NAME``.

    ``markers.csv``, or ``markers_NAME.csv``: group, names, scores, logfoldchanges (log2), pvals,
    pvals_adj, pct_nz_group and pct_nz_reference (fractions of cells that express the gene, in the
    group and outside).
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from scrna.atomic import replacing
from scrna.backend import load
from scrna.data import step_files
from scrna.data.counts import Counts, kept
from scrna.data.groups import check_groups, groups_of
from scrna.data.marker_csv import as_csv
from scrna.data.matrix import open_matrix
from scrna.data.spreadsheet import escape_table
from scrna.data.unnamed import anndata_without_names
from scrna.log import log
from scrna.resources.admission import usable_memory
from scrna.step import step
from scrna.workflow.rule import run

_FIELDS = ["names", "scores", "logfoldchanges", "pvals", "pvals_adj"]
#: Histograms of wilcoxon_binned, the same in memory and in blocks: log1p of counts up to 3 million.
BINS = {"n_bins": 200, "bin_range": "log1p"}
#: As many histograms of a gene, at 4 bytes a bin, are in memory at once: those of four blocks, and
#: the partial sums, of 8 bytes, in Dask's tree.
HISTOGRAMS = 48
_FRACTIONS = {"pts": "pct_nz_group", "pts_rest": "pct_nz_reference"}


@step
def markers(
    counts: Path,
    filtered: Path,
    normalized: Path,
    clusters: Path | list[Path],
    out: Path,
    table: Path,
    *,
    groupby: str,
    method: str,
    corr_method: str,
    tie_correct: bool,
    min_cells: int,
    n_genes: int | None,
    backend: str,
    key_added: str = "rank_genes_groups",
    execution: str = "auto",
) -> None:
    """Rank genes for each group.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    clusters
        The step file of the clustering; an empty list where ``groupby`` is a column of obs.
    out
        The step file: uns `key_added`; obs ``groupby`` is not repeated.
    table
        CSV, a row a group and gene, the highest scores first.
    groupby
        The clustering, or a column of obs.
    method
        ``wilcoxon``, ``wilcoxon_binned`` (GPU), ``t-test``, ``t-test_overestim_var`` or ``logreg``.
    corr_method, tie_correct
        As scanpy's `rank_genes_groups` has them.
    min_cells
        Smaller groups are left out.
    n_genes
        Genes listed for a group, None for all.
    backend
        ``gpu`` or ``cpu``.
    key_added
        The name in uns, as scanpy's function has it.
    execution
        ``memory`` or ``blocks``, or ``auto`` for what the size asks for.

    Raises
    ------
    UserError
        If no group is large enough, or fewer than two for logistic regression.
    """
    import pandas as pd

    genes = kept(filtered)[1]
    labels = groups_of(counts, filtered, clusters, groupby)
    tested = groups_to_test(labels, groupby, min_cells, method)
    if (labels == tested[0]).all():
        log.warning(
            "%s has one group, nothing to compare it with: the table of markers is empty", groupby
        )
        _write(out, table, key_added, {})
        return
    var = pd.DataFrame(index=Counts(counts).genes()[genes])
    own = {"tie_correct": tie_correct} if method.startswith("wilcoxon") else {}
    log1p = {"base": None}
    adata = anndata_without_names(len(labels), obs={groupby: labels}, var=var, uns={"log1p": log1p})
    with open_matrix(
        "markers",
        counts,
        filtered,
        normalized,
        backend=backend,
        asked=execution,
        method=method,
        n_groups=len(tested),
        needs_client=method == "logreg",
    ) as matrix:
        adata.X = matrix
        if method == "wilcoxon_binned":
            own |= BINS | {"chunk_size": genes_at_once(len(tested), adata.n_vars, backend)}
        load(backend).tl.rank_genes_groups(
            adata,
            groupby,
            groups=tested,
            method=method,
            corr_method=corr_method,
            n_genes=n_genes,
            pts=True,
            use_raw=False,
            **own,
        )
    ranked = adata.uns["rank_genes_groups"]
    _write(out, table, key_added, ranked)
    for group in ranked["names"].dtype.names[:60]:
        top = ranked["names"][group][:5]
        log.info("markers of %s %s: %s", groupby, group, ", ".join(top))


def genes_at_once(n_groups: int, n_genes: int, backend: str) -> int:
    """Return the number of genes whose histograms fit in memory, including those summed in blocks.

    The library asks the device what is free, which takes no account of gpu.limit_gb nor of blocks
    that are worked on at the same time.
    """
    bytes_of_gene = (n_groups + 1) * (BINS["n_bins"] + 1) * 4
    return int(min(n_genes, max(1, usable_memory(backend) / HISTOGRAMS // bytes_of_gene)))


def groups_to_test(labels, groupby: str, min_cells: int, method: str) -> list[str]:
    """List the groups with enough cells, in the order of their categories.

    Raises
    ------
    UserError
        If there is none, or only one for logistic regression.
    """
    sizes = labels.value_counts()
    small = {group: int(n) for group, n in sizes.items() if n < min_cells}
    if small:
        said = ", ".join(f"{group} ({n} cells)" for group, n in small.items())
        log.warning(
            "groups left out, with fewer than markers.min_cells (%d) cells: %s", min_cells, said
        )
    large = check_groups(sizes[labels.categories], groupby, min_cells, method)
    if method == "logreg" and len(large) == 2:
        log.warning(
            "logreg has one list for two groups: genes of %s are first, genes of %s last",
            *reversed(large),
        )
    return large


def as_table(ranked: dict):
    """Convert ``rank_genes_groups`` to one table.

    Parameters
    ----------
    ranked
        ``uns["rank_genes_groups"]``.

    Returns
    -------
    DataFrame: group, names (both categorical), scores, logfoldchanges, pvals, pvals_adj (as the
    method has them), pct_nz_group and pct_nz_reference (fractions of cells that have the gene),
    named as in scanpy's `rank_genes_groups_df`.
    """
    import numpy as np
    import pandas as pd

    groups, n = ranked["names"].dtype.names, len(ranked["names"])
    group = np.repeat(np.arange(len(groups)), n)
    gene, genes = pd.factorize(np.concatenate([ranked["names"][name] for name in groups]))
    columns = {
        "group": pd.Categorical.from_codes(group, groups),
        "names": pd.Categorical.from_codes(gene, genes),
    }
    for field in _FIELDS[1:]:
        if field in ranked:
            columns[field] = np.concatenate([ranked[field][name] for name in groups])
    for slot, column in _FRACTIONS.items():
        if slot in ranked:
            fractions = ranked[slot].reindex(index=genes, columns=groups)
            columns[column] = fractions.to_numpy()[gene, group]
    return pd.DataFrame(columns)


def _write(out: Path, table: Path, key: str, ranked: dict) -> None:
    """Write both files at a time: most of it is turning numbers and names into text."""
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(_write_table, table, ranked)
        _write_step(out, key, ranked, written)


def _write_table(table: Path, ranked: dict) -> Path:
    import pandas as pd

    nothing = pd.DataFrame(columns=["group", *_FIELDS, *_FRACTIONS.values()])
    with replacing(table) as temporary, temporary.open("wb") as file:
        file.writelines(as_csv(escape_table(as_table(ranked) if ranked else nothing)))
    return table


def _write_step(out: Path, key: str, ranked: dict, table: Future[Path]) -> None:
    plain = {
        name: {key: value for key, value in item.items() if value is not None}
        if name == "params"
        else item
        for name, item in ranked.items()
    }
    step_files.write(out, {f"uns/{key}": plain} if plain else {}, table=table.result)


if __name__ == "__main__":
    run(markers, snakemake)
