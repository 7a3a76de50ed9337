"""Decide when a step starts whether it works in memory or in blocks, and wait for GPU memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from scrna.errors import UserError
from scrna.log import log
from scrna.resources import gpu_memory, gpus, kept_matrices
from scrna.resources.estimates import block_bytes, step_bytes
from scrna.resources.host_memory import GIB
from scrna.resources.plan import Choice, _there_is, blocks_problems, choose, plan_steps
from scrna.steps import MATRIX_STEPS


@dataclass(frozen=True)
class _Limits:
    headroom: int
    wait_s: float
    limit: int | None


_limits = _Limits(headroom=8 * GIB, wait_s=90, limit=None)


def configure(*, headroom_gb: float = 8, wait_s: float = 90, limit_gb: float | None = None) -> None:
    """Set what this process goes by: ``configure(**config["memory"], limit_gb=...)``.

    Called by `scrna.step.perform`, before the step's function.

    Parameters
    ----------
    headroom_gb
        GiB to be left free (memory.headroom_gb).
    wait_s
        Seconds that a GPU step waits for memory (memory.wait_s).
    limit_gb
        Most GiB that a process takes on a GPU (gpu.limit_gb); None: what there is.
    """
    global _limits
    limit = None if limit_gb is None else int(limit_gb * GIB)
    _limits = _Limits(int(headroom_gb * GIB), wait_s, limit)


def check_methods(
    name: str, dataset: Mapping[str, Any], sizes: Mapping[str, Any], backend: str
) -> list[Choice]:
    """Refuse what cannot be done at a dataset's size, on this machine, before the work begins.

    Parameters
    ----------
    name, dataset, sizes, backend
        As in `plan_steps`; ``counts.json`` has the sizes of a dataset just converted.

    Returns
    -------
    The choices.

    Raises
    ------
    UserError
        As `plan_steps` does.
    """
    memory = gpu_memory.available_memory(_gpu(backend), limit=_limit(backend))
    return plan_steps(name, dataset, sizes, backend, memory, _limits.headroom)


def decide(
    step: str,
    *,
    asked: str = "auto",
    backend: str,
    n_obs: int,
    n_vars: int = 0,
    nnz: int = 0,
    kept: Mapping[str, tuple | None] | None = None,
    **settings,
) -> Choice:
    """Choose for the step that runs, and on the GPU wait for the memory that it needs.

    Matrices of earlier steps that are kept in memory go where it takes that. Where the memory does
    not become free and ``auto`` was asked for, the step goes by blocks.

    Parameters
    ----------
    step
        The rule.
    asked, backend
        ``auto``, ``memory`` or ``blocks``; ``gpu`` or ``cpu``.
    n_obs, n_vars, nnz
        Cells, genes and non-zeros of the matrix that the step holds; cells alone for a step
        without a matrix.
    kept
        By mode, under which key `kept_matrices` keeps the step's own matrix, if it does.
    **settings
        The step's settings, as `scrna.resources.estimates.step_bytes` takes them.

    Returns
    -------
    The choice, which is logged and kept in the step's provenance.

    Raises
    ------
    UserError
        As `choose` and `scrna.resources.gpu_memory.wait_for_memory` do.
    """
    from scrna.provenance import note

    gpu = _gpu(backend)
    held = gpu_memory.pool_held() if gpu else 0
    read = partial(gpu_memory.available_memory, gpu, limit=_limit(backend))
    sizes = {"n_obs": n_obs, "n_vars": n_vars, "nnz": nnz, "backend": backend}
    there_is = _there_is(read(), held + kept_matrices.nbytes())
    known = sizes | settings | {"total": there_is, "headroom": _limits.headroom}
    choice = choose(step, asked=asked, **known)
    own = (kept or {}).get(choice.mode)
    make_room(choice.needed - kept_matrices.nbytes_of(own), backend, but=own)
    if gpu is not None:
        held = gpu_memory.pool_held() + kept_matrices.nbytes_of(own)
        wait = partial(gpu_memory.wait_for_memory, gpu, held=held, read=read)
        # where the GPU shares the host's memory, running out of it would freeze the host
        spare = _limits.headroom if gpu.unified else 0
        try:
            wait(choice.needed + spare, _limits.wait_s)
        except UserError as error:
            can_change = choice.mode == "memory" and asked == "auto" and step in MATRIX_STEPS
            if not can_change or next(blocks_problems(step, settings, backend), None):
                raise
            needed = block_bytes(step, **sizes, **settings)
            choice = Choice(step, "blocks", needed, choice.available, f"since {error}")
            wait(needed + spare, 0)
    if step in MATRIX_STEPS:
        log.info("%s", choice)
    note("execution", {key: value for key, value in asdict(choice).items() if key != "step"})
    return choice


def make_room(needed: int, backend: str, *, but: tuple | None = None) -> None:
    """Drop matrices that earlier steps have left in memory, as far as bytes are needed.

    Parameters
    ----------
    needed, backend
        How many, and where.
    but
        The key of one that stays.
    """
    if kept_matrices.nbytes():
        kept_matrices.make_room(needed - usable_memory(backend), but=but)


def make_room_for(step: str, backend: str, settings: dict[str, Any]) -> None:
    """Drop such matrices as far as a step needs it that does not see the matrix.

    Parameters
    ----------
    step, backend, settings
        The rule, where it computes, and its settings. It has no more cells than the matrices.
    """
    n_obs, n_vars, nnz = kept_matrices.largest()
    if n_obs and step not in MATRIX_STEPS:
        sizes = {"n_obs": n_obs, "n_vars": n_vars, "nnz": nnz, "backend": backend}
        make_room(step_bytes(step, **(settings | sizes)), backend)


def usable_memory(backend: str) -> int:
    """Return the bytes that this process may take now, less the headroom.

    Parameters
    ----------
    backend
        ``gpu``: on its first GPU; ``cpu``: on the host.
    """
    gpu = _gpu(backend)
    memory = gpu_memory.available_memory(gpu, limit=_limit(backend))
    held, taken = (gpu_memory.pool_held(), gpu_memory.allocated()) if gpu else (0, 0)
    free = min(memory.available + held, memory.total - taken)
    return max(0, free - min(_limits.headroom, memory.total // 4))


def _gpu(backend: str) -> gpus.Gpu | None:
    """Return the GPU that this process computes on; None on the CPU."""
    if backend != "gpu":
        return None
    found = gpus.visible_gpus()
    if not found:
        raise UserError(f"there is no GPU here: {gpus.gpu_problem()}")
    return found[0]


def _limit(backend: str) -> int | None:
    return _limits.limit if backend == "gpu" else None
