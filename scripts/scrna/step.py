"""What every step has: its provenance, and the way from a Snakemake rule into its function.

A step is a function of paths and plain parameters. Its positional parameters are the files that it
reads and writes, its keyword-only parameters the settings. `step` marks it, `run` calls it from a
rule's script; another runner may call the function itself.
"""

import functools
import importlib.metadata
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scrna import slots
from scrna.errors import UserError
from scrna.log import log, start_logging
from scrna.watch import PID_VARIABLE, die_with

#: Packages whose versions belong to a result: module → distribution.
_PACKAGES = {
    name: name for name in "anndata harmonypy igraph numba numpy pandas scanpy scipy zarr".split()
}
_PACKAGES |= {"sklearn": "scikit-learn", "umap": "umap-learn", "cupy": "cupy-cuda13x"}
_PACKAGES |= {name: f"{name}-cu13" for name in ("cugraph", "cuml", "cuvs", "rmm")}
_PACKAGES |= {"rapids_singlecell": "rapids-singlecell-cu13"}
_record: ContextVar[dict[str, Any] | None] = ContextVar("record", default=None)


def step(function: Callable) -> Callable:
    """Mark a step's function: what it writes carries how it came to be.

    Parameters
    ----------
    function
        Positional parameters are files, keyword-only parameters settings.

    Returns
    -------
    The function, which keeps its parameters and the digests of its inputs for `provenance` while
    it runs and logs how long it took.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        files, settings = {}, {}
        for name, parameter in signature.parameters.items():
            value = bound.arguments[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                settings |= value
            else:
                is_setting = parameter.kind is parameter.KEYWORD_ONLY
                (settings if is_setting else files)[name] = value
        backend = settings.pop("backend", "cpu")
        token = _record.set(
            {
                "step": function.__name__,
                "backend": backend,
                "parameters": _plain(settings),
                "inputs": _digests(files),
                "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "clock": time.perf_counter(),
            }
        )
        try:
            result = function(*bound.args, **bound.kwargs)
            log.info(
                "%s done in %.1f s on the %s",
                function.__name__,
                time.perf_counter() - _record.get()["clock"],
                backend.upper(),
            )
            return result
        finally:
            _record.reset(token)

    return wrapped


def provenance() -> dict[str, Any]:
    """Tell how the result of the running step comes to be.

    Returns
    -------
    step, backend, parameters, inputs (digests by name), started (UTC), seconds so far, device and
    the versions of the packages in use; empty outside a step.
    """
    record = _record.get()
    if record is None:
        return {}
    known = {key: value for key, value in record.items() if key != "clock"}
    known["seconds"] = round(time.perf_counter() - record["clock"], 3)
    known["versions"] = _versions()
    if record["backend"] == "gpu":
        from scrna import backend

        known |= backend.gpu_record()
    return known


def run(function: Callable, snakemake) -> None:
    """Call a step's function as its Snakemake rule asks.

    The rule's named inputs and outputs and the entries of its ``params.settings`` become the
    function's arguments. A GPU rule holds the machine's GPU lock while it runs. An error goes to
    the log with its traceback; one that the user can mend reaches the terminal as its message.

    Parameters
    ----------
    function
        A function marked by `step`.
    snakemake
        The object that Snakemake puts into a script.
    """
    where = "/".join(str(value) for value in snakemake.wildcards)
    label = f"{snakemake.rule} {where}".strip()
    start_logging(snakemake.log[0] if snakemake.log else None, label)
    _follow_snakemake()
    os.environ.setdefault("NUMBA_NUM_THREADS", str(snakemake.threads))
    settings = dict(snakemake.params.get("settings", {}))
    files = {
        name: _paths(value)
        for source in (snakemake.input, snakemake.output)
        for name, value in source.items()
    }
    untracked = dict(snakemake.params.get("untracked", {}))
    try:
        if settings.get("backend") == "gpu":
            _take_gpu(label, snakemake.config["gpu"])
        if "threads" in inspect.signature(function).parameters:
            settings["threads"] = snakemake.threads
        function(**files, **settings, **untracked)
        log.info("%.1f s since the process started", _seconds_alive())
    except KeyboardInterrupt:
        log.error("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        log.error("%s%s", kind, error)
        log.exception("the traceback, for whoever mends it")  # the terminal leaves it out
        sys.exit(1)


def _take_gpu(label: str, gpu_settings: Mapping[str, Any]) -> None:
    """Import RAPIDS, then wait for the GPU, then set up its memory.

    The lock is held until the process ends, since only then its memory on the GPU is free.
    """
    from scrna import backend, machine
    from scrna.lock import gpu_lock

    backend.load("gpu")
    gpu = machine.gpus()[0]
    gpu_lock(label, gpu.index)
    log.info("on GPU %d, %s", gpu.index, gpu.name)
    backend.start_gpu(**gpu_settings)


def _follow_snakemake() -> None:
    """End with the Snakemake that started this job, were that one killed outright."""
    if pid := os.environ.get(PID_VARIABLE):
        die_with(int(pid))


def _paths(value) -> Path | list[Path]:
    return Path(value) if isinstance(value, str) else [Path(item) for item in value]


def _plain(value):
    """Turn a settings value into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _digests(files: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Digests of the inputs among a step's files, by parameter name; outputs do not exist yet."""
    found = {}
    for name, value in files.items():
        if isinstance(value, list):
            digest = [known for item in value if (known := slots.digest_of(Path(item)))]
        else:
            digest = slots.digest_of(Path(value))
        if digest:
            found[name] = digest
    return found


def _versions() -> dict[str, str]:
    """Versions of the packages that this process has imported, Python's among them."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for module, distribution in _PACKAGES.items():
        if module in sys.modules:
            versions[distribution] = importlib.metadata.version(distribution)
    return versions


def _seconds_alive() -> float:
    """Seconds since this process started, its imports included."""
    ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
