"""Provenance: what the running step records about its result and writes into its file."""

import functools
import importlib.metadata
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any


def plain(value):
    """Turn a value of the config into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


#: Packages whose versions belong to a result: module → distribution.
_PACKAGES = {
    name: name for name in "anndata harmonypy igraph numba numpy pandas scanpy scipy zarr".split()
}


_record: ContextVar[dict[str, Any] | None] = ContextVar("record", default=None)


#: Returns the facts of the GPU in use; `scrna.resources.gpu_pool` sets it, which knows them.
gpu_facts: Callable[[], dict[str, Any]] = dict
#: Where steps run here, and what samples the memory that they take.
_process: ContextVar[dict[str, Any] | None] = ContextVar("process", default=None)


def provenance() -> dict[str, Any]:
    """Return the provenance of the running step.

    Returns
    -------
    step, backend, parameters, named (what `scrna.data.data_checks` has checked, where it has),
    inputs (digests by name), started (UTC), what `note` was given,
    warnings (what it has warned of so far, where it has), worker (``warm`` or ``own process``),
    code (the digest of the rule's code, where a rule runs the step),
    seconds so far, device, the most memory in use on it so far and the versions of the packages in
    use; empty outside a step.
    """
    record = _record.get()
    if record is None:
        return {}
    known = {key: value for key, value in record.items() if key != "clock"}
    process = _process.get() or {"worker": "own process"}
    known["worker"] = process["worker"]
    if code := process.get("code"):
        known["code"] = code
    if peak := process.get("peak"):
        known["memory_peak_bytes"] = peak.peak_bytes
    known["seconds"] = round(time.perf_counter() - record["clock"], 3)
    known["versions"] = _versions()
    if record["backend"] == "gpu":
        known |= gpu_facts()
    return known


def note(key: str, value: Any) -> None:
    """Add a fact to the provenance of the running step; does nothing outside a step.

    Parameters
    ----------
    key
        Its name, none of `provenance`'s own.
    value
        What JSON holds; mappings and sequences of such values.
    """
    if (record := _record.get()) is not None:
        record[key] = plain(value)


_version = functools.cache(importlib.metadata.version)


def _versions() -> dict[str, str]:
    """Versions of the packages that this process has imported, Python's among them."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for module, distribution in _PACKAGES.items():
        if module in sys.modules:
            versions[distribution] = _version(distribution)
    return versions
