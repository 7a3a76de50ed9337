"""Compute the t-SNE embedding of the cells.

Purpose
    Two coordinates per cell, for figures and the map in the report. It is left out for very many
    cells, because it takes long and shows what UMAP shows; the log says so.

Method
    t-SNE (van der Maaten & Hinton 2008): cuML on the GPU, scikit-learn on the CPU, with at least
    three neighbors per unit of perplexity. With few cells the perplexity is lowered, with a
    warning.

Settings
    Section ``tsne``.

Inputs
    pca or harmony.

Outputs
    A step file: obsm ``X_tsne``, uns ``tsne``; empty if it is left out.
"""

if __name__ == "__main__":  # a worker, if there is one, does the step: import nothing first
    from scrna.workflow.rule import hand_over

    hand_over(__file__, snakemake)


from pathlib import Path

import numpy as np

from scrna.data import step_files
from scrna.data.graph import representation
from scrna.errors import UserError
from scrna.log import log
from scrna.methods.tsne import run_tsne
from scrna.resources.admission import decide
from scrna.step import step
from scrna.workflow.rule import run

#: Cells up to which ``max_cells: auto`` computes it: half a minute on an H200, some on 8 cores.
MAX_CELLS = {"gpu": 2_000_000, "cpu": 100_000}
#: Cells from which up ``method: auto`` is fft on the GPU: two to three times as fast as Barnes-Hut.
#: openTSNE changes over at 10,000 cells.
FFT_FROM = 100_000


@step
def tsne(
    representation_of: Path,
    out: Path,
    *,
    max_cells: int | str | None,
    n_pcs: int,
    perplexity: float,
    early_exaggeration: float,
    learning_rate: float | str,
    method: str,
    backend: str,
    seed: int,
    threads: int = 1,
) -> None:
    """Compute the t-SNE embedding.

    Parameters
    ----------
    representation_of
        The step file of ``pca`` or ``harmony``.
    out
        The step file: obsm X_tsne (kept cells × 2, float32), uns tsne; empty where it is left out.
    max_cells
        With more cells it is left out; ``auto`` is `MAX_CELLS`, None no limit.
    n_pcs
        Components used.
    perplexity
        Effective number of neighbors; at most a third of the other cells.
    early_exaggeration
        How far clusters are pulled apart at first.
    learning_rate
        A number; ``auto`` is cells / early_exaggeration / 4 (Belkina et al. 2019), at least 200.
        With 200 for 180,000 cells the embedding keeps a fifth of the neighbors kept with auto.
    method
        ``barnes_hut``, or on the GPU ``fft``; ``auto`` is fft from `FFT_FROM` cells up there.
    backend, seed
        Where, and from which seed.
    threads
        CPU threads.

    Raises
    ------
    UserError
        If there is one component alone.
    ArithmeticError
        If a coordinate is not finite.
    """
    key, array = representation(representation_of, n_pcs)
    limit = MAX_CELLS[backend] if max_cells == "auto" else max_cells
    if limit is not None and len(array) > limit:
        log.warning(
            "t-SNE is left out: %s cells are more than tsne.max_cells (%s). tsne.enabled: true "
            "computes it anyway",
            f"{len(array):,}",
            f"{limit:,}",
        )
        step_files.write(out, {})
        return
    if array.shape[1] < 2:
        msg = "t-SNE needs two components, and there is one: raise tsne.n_pcs"
        raise UserError(msg)
    most = (len(array) - 1) / 3
    if perplexity > most:
        log.warning(
            "perplexity is %g, but %s cells allow at most %.1f, which is used",
            perplexity,
            f"{len(array):,}",
            most,
        )
        perplexity = most
    method = method_of(method, len(array), backend)
    if learning_rate == "auto":
        learning_rate = max(len(array) / early_exaggeration / 4, 200)
    decide("tsne", backend=backend, n_obs=len(array), n_pcs=n_pcs, perplexity=perplexity)
    embedding = run_tsne(
        array,
        perplexity=perplexity,
        early_exaggeration=early_exaggeration,
        learning_rate=learning_rate,
        method=method,
        backend=backend,
        seed=seed,
        threads=threads,
    )
    if not np.isfinite(embedding).all():
        msg = "t-SNE returned coordinates that are not finite; try a smaller tsne.learning_rate"
        raise ArithmeticError(msg)
    params = {
        "perplexity": perplexity,
        "early_exaggeration": early_exaggeration,
        "learning_rate": learning_rate,
        "method": method,
        "metric": "euclidean",
        "use_rep": key,
    }
    step_files.write(out, {"obsm/X_tsne": embedding, "uns/tsne": {"params": params}})
    log.info(
        "t-SNE of %s cells, %.1f units across",
        f"{len(embedding):,}",
        np.ptp(embedding, axis=0).max(),
    )


def method_of(asked: str, n_cells: int, backend: str) -> str:
    """Choose how t-SNE is computed: what was asked for, and under ``auto`` by the cells."""
    if asked != "auto":
        return asked
    return "fft" if backend == "gpu" and n_cells >= FFT_FROM else "barnes_hut"


if __name__ == "__main__":
    run(tsne, snakemake)
