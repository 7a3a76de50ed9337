"""Write the matrices of the final AnnData: the kept cells and genes.

Purpose
    Write the two large matrices while other steps use the GPU. They depend only on filter and
    normalisation, so a new clustering does not write them again: ``final.zarr`` links the files.

Method
    Row blocks are read, cut and log-normalised by all cores and written in order, as CSR.

Settings
    ``X`` and ``counts_layer`` of section ``final``.

Inputs
    ``counts.zarr``, filter, normalize.

Outputs
    ``matrix.zarr``: X (log-normalised) and layers ``counts``, without tables.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.data.block import in_order, log_normalize, row_ranges
from scrna.data.counts import Counts, kept
from scrna.data.csr_writer import CSRWriter, Rows
from scrna.data.encodings import encoding
from scrna.data.store import bytes_on_disk, new_store
from scrna.log import log
from scrna.progress import Progress
from scrna.step import step
from scrna.workflow.rule import run

#: Non-zeros of a block: each thread holds some 100 MB while it makes one.
_BLOCK_NNZ = 2**21
_MOST_THREADS = 16


@step
def matrix(
    counts: Path, filtered: Path, normalized: Path, out: Path, *, X: bool, counts_layer: bool
) -> None:
    """Write the matrices of the kept cells and genes.

    Parameters
    ----------
    counts, filtered, normalized
        ``counts.zarr`` and the step files of ``filter`` and ``normalize``.
    out
        ``matrix.zarr``: X and layers/counts, float32 CSR; one that is there is replaced.
    X
        Whether X is there, the log-normalised values.
    counts_layer
        Whether ``layers["counts"]`` is there, the counts.
    """
    cells, genes = kept(filtered)
    with new_store(out) as root:
        if X or counts_layer:
            _write(root, Counts(counts), cells, genes, normalized, X, counts_layer)
    log.info(
        "%s: %s cells × %s genes, %s MB",
        out,
        f"{cells.sum():,}",
        f"{genes.sum():,}",
        f"{bytes_on_disk(out) / 1e6:,.0f}",
    )


def _write(
    root, store: Counts, cells, genes, normalized: Path, log_normalized: bool, counts_layer: bool
) -> None:
    """Stream the matrices: several blocks are made at a time, and written in their order."""
    factor = step_files.read(normalized, "obs/size_factor")
    columns = None if genes.all() else np.flatnonzero(genes)
    first = np.cumsum(cells) - cells  # of the kept cells before each cell
    options = {"n_vars": int(genes.sum()), "dtype": np.float32}

    def made(span: tuple[int, int]) -> tuple[Rows | None, Rows]:
        counts = store.take(*span, "cpu", cells[slice(*span)], columns)
        sizes = np.diff(counts.indptr).astype(np.int32)
        rows = Rows(counts.data, counts.indices, sizes)  # canonical, as the store is
        if not log_normalized:
            return None, rows
        start = int(first[span[0]])
        block = counts._replace(start=start, stop=start + counts.stop)
        return rows._replace(data=log_normalize(block, factor)), rows

    with ExitStack() as stack:
        x_writer = counts_writer = None
        if log_normalized:
            x_writer = stack.enter_context(CSRWriter(root, "X", **options))
        if counts_layer:
            layers = root.create_group("layers")
            layers.attrs.update(encoding("dict"))
            counts_writer = stack.enter_context(
                CSRWriter(layers, "counts", **options, pattern=x_writer)
            )
        progress = stack.enter_context(Progress("matrix", total=int(cells.sum()), unit="cells"))
        spans = [s for s in row_ranges(store.indptr, _BLOCK_NNZ) if cells[slice(*s)].any()]
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        for values, rows in in_order(made, spans, threads):
            if x_writer:
                x_writer.append(values)
            if counts_writer:
                counts_writer.append(rows)
            progress.update(len(rows.sizes))
        for writer in (x_writer, counts_writer):  # the second copies from the first
            if writer:
                writer.close()


if __name__ == "__main__":
    run(matrix, snakemake)
