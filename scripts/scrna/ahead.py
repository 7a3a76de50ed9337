"""The matrix that `markers` will ask for, read while the clusters are being found.

After a changed resolution a run consists of these two steps. The first leaves the disk and most of
the GPU idle, and the second would wait for the matrix. A warm worker reads it into its cache as
soon as it starts, where there is room; if it is not there in the end, `markers` reads it.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scrna import blocks, cache
from scrna.backend import load
from scrna.log import log


def begin(wanted: Mapping[str, Any], backend: str) -> None:
    """Read a matrix into the cache, in a thread of its own: `scrna.cache.settle` waits for it.

    Parameters
    ----------
    wanted
        counts, filtered, normalized (paths), execution and method of ``markers``.
    backend
        Where to.
    """
    cache.fill(partial(_read, wanted, backend))


def _read(wanted: Mapping[str, Any], backend: str) -> None:
    files = [Path(wanted[name]) for name in ("counts", "filtered", "normalized")]
    try:
        load(backend)  # beside each other, importing and reading took longer than in turn
        if wanted["execution"] != "blocks" and blocks.read_ahead(
            "markers", *files, backend=backend, method=wanted["method"]
        ):
            log.info("the matrix is read for the markers")
    except Exception as error:  # `markers` will say what is wrong, if it is
        log.warning("the matrix was not read ahead: %s: %s", type(error).__name__, error)
