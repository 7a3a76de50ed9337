"""Check a Dask cluster that exists, before a run sends steps to it."""

import os
import platform
import tempfile
from contextlib import suppress
from pathlib import Path

from scrna.code_digest import SCRIPTS, tree_digest
from scrna.dask_cluster import tasks
from scrna.errors import UserError
from scrna.resources.gpus import gpu_problem

#: Packages that the run and the workers need in the same version.
PACKAGES = "dask distributed numpy zarr anndata scanpy".split()
GPU_PACKAGES = ["rapids-singlecell-cu13"]


def check_scheduler(scheduler: str, backend: str) -> str:
    """Refuse a cluster whose workers cannot do a run's steps as this process would.

    Parameters
    ----------
    scheduler
        Its address, or its scheduler file.
    backend
        ``gpu`` or ``cpu``.

    Returns
    -------
    A line that describes the cluster.

    Raises
    ------
    UserError
        If it cannot be reached or has no worker; or, with the worker's address, if one does not see
        the working directory or these scripts, has other versions or another state of the code, or
        no GPU.
    """
    expected = _facts(backend)
    with tempfile.NamedTemporaryFile("w", prefix=".scrna-", dir=".") as token:
        token.write(expected["code"])
        token.flush()
        path = os.path.abspath(token.name)
        with tasks.connected(scheduler) as client:
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
            if not n_workers:
                raise UserError(f"the cluster at {scheduler}, dask.scheduler, has no worker")
            found = client.run(_question(), str(SCRIPTS), backend, path, on_error="return")
    for address, facts in sorted(found.items()):
        if isinstance(facts, Exception):
            what = f"does not run this workflow's code in {SCRIPTS}: {facts!r}"
            raise UserError(f"dask.scheduler: the worker {address} {what}")
        for name, value in expected.items():
            if facts[name] != value:
                raise UserError(_difference(address, name, facts[name], value))
        if facts["token"] != expected["code"]:
            msg = (
                f"dask.scheduler: the worker {address} on {facts['host']} does not see this run's "
                f"folder, {os.getcwd()}: the folder has to be shared, under the same path"
            )
            raise UserError(msg)
        if facts["gpu"]:
            msg = (
                f"dask.scheduler: the worker {address} has no GPU for backend: gpu: {facts['gpu']}"
            )
            raise UserError(msg)
    return f"worker: {n_workers} of the cluster at {scheduler}"


def _question():
    """Return the function that asks a worker for its facts; nested as in `tasks`."""
    put_on_path = tasks.path_setup()

    def ask(scripts: str, backend: str, token: str) -> dict[str, str | None]:
        put_on_path(scripts)
        from scrna.dask_cluster.check import facts

        return facts(backend, token)

    return ask


def facts(backend: str, token: str) -> dict[str, str | None]:
    """Return what a worker has: versions, code, whether it sees a file, what its GPU lacks."""
    seen = None
    with suppress(OSError):
        seen = Path(token).read_text()
    more = {"token": seen, "host": os.uname().nodename}
    return _facts(backend) | more | {"gpu": gpu_problem() if backend == "gpu" else None}


def _facts(backend: str) -> dict[str, str | None]:
    """Return versions and code; of a worker, the code as it was when loaded there."""
    import importlib.metadata

    packages = PACKAGES + (GPU_PACKAGES if backend == "gpu" else [])
    known: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        known[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known | {"code": tree_digest(SCRIPTS)}


def _difference(address: str, name: str, found: str | None, expected: str | None) -> str:
    where = f"dask.scheduler: the worker {address}"
    if name == "code":
        return (
            f"{where} has loaded another state of this workflow's code ({found}) than this run's "
            f"({expected}): restart the cluster's workers"
        )
    return (
        f"{where} has {name} {found or 'not installed'}, this run has {expected or 'none'}: "
        "start the workers from the environment that this run is started from"
    )
