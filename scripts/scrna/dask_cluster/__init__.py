"""Steps on a Dask cluster that exists (``dask.scheduler``): each is one plain task there.

It may import the modules that all share, resources, data and the layer `step`; no step imports it.
"""

from collections.abc import Mapping
from typing import Any


def scheduler_of(config: Mapping[str, Any]) -> str | None:
    """Return the cluster's address or scheduler file, where the config names one."""
    return config.get("dask", {}).get("scheduler")
