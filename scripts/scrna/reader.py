"""The process that reads the markers' matrix onto the GPU while the worker imports its libraries.

In one process the two would wait for each other: importing holds Python's lock, and so does part of
reading. The engine (`scrna.cluster`) starts this file as a program of its own. CUDA lets another
process open what one has allocated (IPC): the worker copies the matrix from GPU memory to GPU
memory, which takes milliseconds, and this process ends. Where a GPU does not offer it, the worker
reads the matrix itself.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from scrna.files import write_private
from scrna.log import log, send_logs
from scrna.watch import die_with_parent, process_start

#: Non-zeros from which on reading takes longer than another process is worth.
MIN_NNZ = 2**27
#: Bytes from which on an array has an allocation of its own: what CUDA shares is allocations.
_LARGE = 2**28
_POLL = 0.01  # seconds between looks at what the other process does
#: What has been shared, which stays as long as this process.
_given: list = []


def start(
    wanted: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> tuple[subprocess.Popen | None, dict[str, Any] | None]:
    """Start reading a matrix in a process of its own; does not wait.

    Parameters
    ----------
    wanted
        counts, filtered, normalized (paths), execution and method of ``markers``.
    config
        ``gpu`` and ``memory`` of the config.
    folder
        Where the two processes meet; only this user may enter it.

    Returns
    -------
    The process, and what `take` asks for: pid, started, and the file that is handed over. Both None
    where there is too little to read, or it is not to be in memory.
    """
    nnz = json.loads(Path(wanted["counts"]).with_suffix(".json").read_text())["nnz"]
    if nnz < MIN_NNZ or wanted["execution"] == "blocks":
        return None, None
    file = folder / "matrix.json"
    about = {"wanted": dict(wanted), "config": dict(config), "file": str(file)}
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps(about)], stdin=subprocess.DEVNULL
    )
    known = {"pid": process.pid, "started": process_start(process.pid), "file": str(file)}
    return process, known


def take(about: Mapping[str, Any], key: tuple):
    """Take over the matrix that the reader has read, once it has.

    Parameters
    ----------
    about
        Of `start`.
    key
        Under which the matrix is kept, which names the files that it comes from.

    Returns
    -------
    CuPy's CSR; None where the reader ended without it, or read other files, or there is no room for
    a second one.

    Raises
    ------
    ValueError
        If what arrived is not what was sent.
    """
    from scrna import cache, execution
    from scrna.backend import csr_matrix

    file = Path(about["file"])
    while not file.exists():
        if process_start(about["pid"]) != about["started"]:
            return None
        time.sleep(_POLL)
    try:
        sent = json.loads(file.read_text())
        if tuple(sent["key"]) != key or sent["nbytes"] > execution.usable_memory("gpu"):
            return None
        parts = [_copied(**part) for part in sent["parts"]]
    finally:
        file.unlink()  # which ends the reader
    matrix = csr_matrix(tuple(parts), tuple(sent["shape"]), "gpu")
    if cache.fingerprint(matrix) != sent["fingerprint"]:
        raise ValueError("the matrix that another process read did not arrive as it was sent")
    return matrix


def main(about: dict[str, Any]) -> None:
    """Read the matrix, hand it over, and end when it has been taken."""
    die_with_parent()
    os.nice(5)  # decompressing takes all cores, and the worker's imports are waited for
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("%(asctime)s - the reader: %(message)s"))
    send_logs([own])
    start = time.perf_counter()
    file = Path(about["file"])
    try:
        sent = _read(about["wanted"], about["config"])
    except Exception as error:  # the worker reads instead
        log.warning("the matrix was not read: %s: %s", type(error).__name__, error)
        return
    if sent is None:
        log.info("there is no room for the matrix twice")
        return
    write_private(file, sent)
    log.info("the matrix is on the GPU after %.1f s", time.perf_counter() - start)
    while file.exists():
        time.sleep(_POLL)


def _read(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the matrix; give what another process needs to open it, None where there is no room."""
    import cupy

    from scrna import blocks, cache, execution, machine

    machine.remember()
    execution.configure(**config["memory"], limit_gb=config["gpu"]["limit_gb"])
    _handle(_alone(2**21))  # a GPU without IPC says so here
    pool = cupy.get_default_memory_pool()
    cupy.cuda.set_allocator(lambda n: _alone(n) if n >= _LARGE else pool.malloc(n))
    cache.start()
    files = [Path(wanted[name]) for name in ("counts", "filtered", "normalized")]
    method = wanted["method"]
    blocks.read_ahead("markers", *files, backend="gpu", copies=2, method=method)
    key = cache.keys_of("gpu", ["memory"], files)["memory"]
    if (kept := cache.get(key)) is None:
        return None
    cupy.cuda.Device().synchronize()
    matrix = kept.blocks[0]
    return {
        "key": key,
        "nbytes": kept.nbytes,
        "shape": matrix.shape,
        "fingerprint": kept.fingerprints[0],
        "parts": [_shared(part) for part in cache.parts(matrix)],
    }


def _shared(array) -> dict[str, Any]:
    """Tell what another process needs to open an array."""
    import cupy

    if array.nbytes < _LARGE:  # it may lie within an allocation
        copy = cupy.ndarray(array.shape, array.dtype, _alone(array.nbytes))
        copy[:] = array
        cupy.cuda.Device().synchronize()
        array = copy
    _given.append(array)
    return {"handle": _handle(array.data), "size": array.size, "dtype": array.dtype.name}


def _alone(nbytes: int):
    """Allocate memory that shares its allocation with nothing else."""
    import cupy

    return cupy.cuda.MemoryPointer(cupy.cuda.Memory(nbytes), 0)


def _handle(memory) -> str:
    import cupy

    return cupy.cuda.runtime.ipcGetMemHandle(memory.ptr).hex()


def _copied(handle: str, size: int, dtype: str):
    """Copy an array of another process into memory of this one's."""
    import cupy

    dtype = cupy.dtype(dtype)
    pointer = cupy.cuda.runtime.ipcOpenMemHandle(bytes.fromhex(handle))
    try:
        memory = cupy.cuda.UnownedMemory(pointer, size * dtype.itemsize, None)
        theirs = cupy.ndarray(size, dtype, cupy.cuda.MemoryPointer(memory, 0))
        ours = theirs.copy()
        cupy.cuda.get_current_stream().synchronize()
    finally:
        cupy.cuda.runtime.ipcCloseMemHandle(pointer)
    return ours


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # the driver frees the GPU's memory sooner than Python does
