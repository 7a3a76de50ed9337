"""The matrix that `markers` will ask for, read while the clusters are being found.

After a changed resolution a run consists of these two steps. The first leaves the disk and most of
the GPU idle, and the second would wait for the matrix. Where there is room a warm worker has it in
its cache as soon as it can: it takes over what `scrna.reader` reads while the worker starts, or
reads it itself; if it is not there in the end, `markers` reads it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scrna import blocks, cache, reader
from scrna.backend import load
from scrna.log import log


def begin(wanted: Mapping[str, Any], backend: str) -> None:
    """Read a matrix into the cache, in a thread of its own: `scrna.cache.settle` waits for it.

    Parameters
    ----------
    wanted
        counts, filtered, normalized (paths), execution and method of ``markers``; reader, where
        there is one: what `scrna.reader.start` tells of it.
    backend
        Where to.
    """
    cache.fill(partial(_read, wanted, backend))


def _read(wanted: Mapping[str, Any], backend: str) -> None:
    files = [Path(wanted[name]) for name in ("counts", "filtered", "normalized")]
    try:
        if wanted.get("reader") and _take_over(wanted["reader"], files):
            log.info("the matrix is there for the markers, read by a process of its own")
            return
        load(backend)  # beside each other, importing and reading took longer than in turn
        if wanted["execution"] != "blocks" and blocks.read_ahead(
            "markers", *files, backend=backend, method=wanted["method"]
        ):
            log.info("the matrix is read for the markers")
    except Exception as error:  # `markers` will say what is wrong, if it is
        log.warning("the matrix was not read ahead: %s: %s", type(error).__name__, error)


def _take_over(about: Mapping[str, Any], files: Sequence[Path]) -> bool:
    """Put the matrix of the reader into the cache; tell whether there was one."""
    key = cache.keys_of("gpu", ["memory"], files)["memory"]
    matrix = reader.take(about, key)
    if matrix is not None:
        cache.put(key, [matrix])
    return matrix is not None
