"""The matrix that `markers` will ask for, read while the clusters are being found.

After a changed resolution a run consists of these two steps. The first leaves the disk and most of
the GPU idle, and the second would wait for the matrix. A warm worker reads it into its cache
meanwhile, where there is room; if it is not there in the end, `markers` reads it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from scrna import cache, slots
from scrna.counts import Counts, kept
from scrna.execution import usable_memory
from scrna.log import log
from scrna.sizes import GPU_MAX_NNZ, step_bytes


@contextmanager
def reading(wanted: Mapping[str, Any] | None, backend: str) -> Iterator[None]:
    """Read a matrix into the cache during the context, which ends when that is done too.

    Parameters
    ----------
    wanted
        counts, filtered, normalized (paths), execution and method of ``markers``; None: nothing.
    backend
        Where to.
    """
    if not wanted:
        yield
        return
    reader = Thread(target=_read, args=(wanted, backend), name="ahead")
    reader.start()
    try:
        yield
    finally:
        reader.join()


def _read(wanted: Mapping[str, Any], backend: str) -> None:
    files = [Path(wanted[name]) for name in ("counts", "filtered", "normalized")]
    try:
        key = cache.key_of(backend, "memory", files)
        if key is None or cache.nbytes_of(key) or wanted["execution"] == "blocks":
            return
        cells, genes = kept(files[1])
        nnz = int(slots.read(files[1], "var/n_cells_kept")[genes].sum())
        sizes = {"n_obs": int(cells.sum()), "n_vars": int(genes.sum()), "nnz": nnz}
        needed = step_bytes("markers", **sizes, backend=backend, method=wanted["method"])
        if nnz > GPU_MAX_NNZ or needed > usable_memory(backend):
            return
        factor = slots.read(files[2], "obs/size_factor")
        store = Counts(files[0])
        whole = store.matrix(backend, nnz=nnz, cells=cells, genes=genes, size_factor=factor)
        cache.put(key, [whole])
        log.info("the matrix is read for the markers")
    except Exception as error:  # `markers` will say what is wrong, if it is
        log.warning("the matrix was not read ahead: %s: %s", type(error).__name__, error)
