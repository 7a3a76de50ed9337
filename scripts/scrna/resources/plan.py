"""Plan whether a step works in memory or in blocks, from its sizes and the memory there is.

The results are the same, so the choice is not a parameter of a rule and nothing runs again because
of it. Before a run, `scrna.workflow.session.plan_lines` plans from ``counts.json``, to show the
plan and to refuse early what cannot be done. The step decides again (`decide`) when it knows what
the filter kept, and records the choice in its provenance.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scrna.errors import UserError
from scrna.resources.estimates import (
    GPU_MAX_NNZ,
    block_bytes,
    pca_columns,
    step_bytes,
)
from scrna.resources.host_memory import Memory, gib
from scrna.steps import BLOCK_STEPS, MATRIX_STEPS, is_made


@dataclass(frozen=True)
class Choice:
    """How a step works on its matrix, and why.

    Parameters
    ----------
    step
        The rule.
    mode
        ``memory`` or ``blocks``.
    needed
        Bytes that it needs so, at most, on the device where it computes.
    available
        Bytes that there are for it: the memory less the headroom.
    reason
        The same for a person, with the arithmetic.
    """

    step: str
    mode: str
    needed: int
    available: int
    reason: str

    def __str__(self) -> str:
        where = "in memory" if self.mode == "memory" else "in blocks"
        return f"{self.step}: {where}, {self.reason}"


# ---------------------------------------------------------------------------------- the choice


def choose(
    step: str,
    *,
    n_obs: int,
    n_vars: int,
    nnz: int,
    asked: str,
    backend: str,
    total: int,
    headroom: int,
    at_most: bool = False,
    **settings,
) -> Choice:
    """Choose between memory and blocks.

    Parameters
    ----------
    step
        The rule; one that always goes by blocks, or has no matrix, gets no choice.
    n_obs, n_vars, nnz
        Cells, genes and non-zeros of the matrix that the step holds.
    asked, backend
        ``auto``, ``memory`` or ``blocks``; ``gpu`` or ``cpu``.
    total, headroom
        Bytes of memory that there are, and to be left free; the latter is a quarter of the memory
        at most, or a small machine could do nothing.
    at_most
        Whether the sizes are bounds, the filter not yet being known; changes the words alone.
    **settings
        The step's settings, as `scrna.resources.estimates.step_bytes` takes them.

    Returns
    -------
    The choice.

    Raises
    ------
    UserError
        If ``memory`` is asked for and cannot be had, or blocks are needed and the step's method
        cannot go by them.
    """
    headroom = min(headroom, total // 4)
    room = total - headroom
    sizes = {"n_obs": n_obs, "n_vars": n_vars, "nnz": nnz, "backend": backend}
    needed = step_bytes(step, **sizes, **settings)
    most = "at most " if at_most else ""
    figures = f"{most}{gib(needed)} of {gib(room)} ({gib(total)} less {gib(headroom)} headroom)"
    if step in BLOCK_STEPS:
        return Choice(step, "blocks", needed, room, f"as always: needs {figures}")
    if step not in MATRIX_STEPS:
        return Choice(step, "memory", needed, room, f"needs {figures}")
    too_many = (
        f"{most}{nnz:,} non-zeros are more than a sparse matrix on the GPU holds ({GPU_MAX_NNZ:,})"
    )
    if backend == "gpu" and nnz > GPU_MAX_NNZ:
        obstacle = too_many
    elif needed > room:
        obstacle = f"in memory it needs {figures}"
    else:
        obstacle = None
    if asked == "memory" and obstacle:
        msg = f"{step} cannot be done in memory, as execution: memory asks: {obstacle}. "
        raise UserError(msg + "Set execution: auto (or blocks), or keep fewer cells")
    if asked == "memory" or (asked == "auto" and obstacle is None):
        return Choice(step, "memory", needed, room, f"needs {figures}")
    if asked == "blocks":
        obstacle = "as execution: blocks asks"
    if problem := next(blocks_problems(step, settings, backend), None):
        raise UserError(f"{step} has to work in blocks, {obstacle}. But {problem}")
    return Choice(step, "blocks", block_bytes(step, **sizes, **settings), room, obstacle)


def blocks_problems(step: str, settings: Mapping[str, Any], backend: str) -> Iterator[str]:
    """Find settings of a step that cannot be done in blocks, with what to use instead.

    Parameters
    ----------
    step, settings, backend
        The rule, its section of the config or a part of it, ``gpu`` or ``cpu``.

    Yields
    ------
    A sentence a setting.
    """
    where = f"cannot work in blocks on the {backend.upper()}"
    if step == "markers":
        method = settings.get("method", "wilcoxon")
        instead = "wilcoxon_binned" if backend == "gpu" else "t-test"
        if method == "wilcoxon" or (backend == "cpu" and method == "logreg"):
            yield f"markers.method {method} {where}: take {instead}"
    elif step == "hvg":
        if settings.get("flavor") == "pearson_residuals":
            yield f"hvg.flavor pearson_residuals {where}: take seurat_v3"
    elif step == "pca":
        solver = settings.get("solver", "auto")
        if solver not in ("auto", "covariance_eigh"):
            yield f"pca.solver {solver} {where}: take auto"
        if backend == "cpu":
            if settings.get("regress_out") or settings.get("dense"):
                yield f"pca.regress_out {where}: leave it empty, or take the GPU"
            if settings.get("scale") or settings.get("dense"):
                yield f"pca.scale {where}: set it to false, or take the GPU"
            if not settings.get("zero_center", True):
                yield f"pca.zero_center false {where}: set it to true"


def check_graph(n_obs: int, n_neighbors: int, backend: str) -> None:
    """Refuse a neighbor graph that the GPU's libraries cannot number.

    Parameters
    ----------
    n_obs, n_neighbors
        Cells, and neighbors of each, itself among them.
    backend
        ``gpu`` or ``cpu``; scipy and igraph take any graph.

    Raises
    ------
    UserError
        With the number of neighbors that can be had.
    """
    entries = 2 * n_obs * (n_neighbors - 1)
    if backend == "gpu" and entries > GPU_MAX_NNZ:
        most = GPU_MAX_NNZ // (2 * n_obs) + 1
        msg = (
            f"{n_obs:,} cells with {n_neighbors} neighbors make a graph of up to {entries:,} "
            f"entries, more than a sparse matrix on the GPU holds ({GPU_MAX_NNZ:,}): set "
            f"neighbors.n_neighbors to {most} at most, or backend: cpu"
        )
        raise UserError(msg)


# ------------------------------------------------------------------------------- before the run


def plan_steps(
    name: str,
    dataset: Mapping[str, Any],
    sizes: Mapping[str, Any],
    backend: str,
    memory: Memory,
    headroom: int,
) -> list[Choice]:
    """Choose for the steps of a dataset that work on the matrix.

    Parameters
    ----------
    name, dataset
        A dataset of a `scrna.config.settings.complete` config.
    sizes
        n_obs, n_vars, nnz; at_most as in `sizes_of`.
    backend
        ``gpu`` or ``cpu``.
    memory, headroom
        The memory that there is, and the bytes of it to be left free.

    Returns
    -------
    hvg's, pca's and, unless they are not wanted, markers' choice.

    Raises
    ------
    UserError
        As `choose` does: the config key, and what to use instead.
    """
    at_most = sizes.get("at_most", False)
    if not at_most:
        check_graph(sizes["n_obs"], dataset["neighbors"]["n_neighbors"], backend)
    whole = {key: sizes[key] for key in ("n_obs", "n_vars", "nnz")}
    used = whole
    if dataset["pca"]["use_highly_variable"]:
        n_vars, nnz = pca_columns(**whole, n_top_genes=dataset["hvg"]["n_top_genes"])
        used = whole | {"n_vars": n_vars, "nnz": nnz}
    choices = []
    for step in MATRIX_STEPS:
        if not is_made(dataset, step):
            continue
        settings = {key: value for key, value in dataset[step].items() if key != "enabled"}
        if step == "hvg" and settings["batch_key"] == "auto":
            settings["batch_key"] = dataset["batch_key"]
        try:
            choice = choose(
                step,
                **(used if step == "pca" else whole),
                asked=dataset["execution"],
                backend=backend,
                total=_there_is(memory),
                headroom=headroom,
                at_most=at_most or (step == "pca" and used is not whole),
                **settings,
            )
        except UserError as error:
            hint = (
                ". If far fewer cells will stay, make results/"
                f"{name}/filter.h5 first: what stays counts then"
            )
            raise UserError(f"datasets.{name}: {error}{hint if at_most else ''}") from None
        choices.append(choice)
    return choices


# --------------------------------------------------------------------------------- in the step


def _there_is(memory: Memory, held: int = 0) -> int:
    """Return the bytes to plan with: all of a GPU's own memory, for which a step waits.

    Of the host's, which others use too and which must not run out, what is available.
    """
    own = memory.source.endswith("NVML")
    return memory.total if own else min(memory.total, memory.available + held)
