"""Import UMAP on the CPU with numba's compiled code kept between processes.

This uses private parts of both libraries; where they are missing, only time is lost.
The first neighbors and UMAP of a process take 0.9 s of processor time, without this 10 to 12.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: UMAP's own functions that are compiled when they are first called; nothing public keeps them.
_COMPILED = (
    ("umap.umap_", "smooth_knn_dist"),
    ("umap.umap_", "compute_membership_strengths"),
    ("umap.layouts", "_nb_optimize_layout_euclidean_single_epoch"),
)


def import_umap() -> None:
    """Import UMAP, and have numba keep what it and pynndescent compile.

    Both tell numba to keep much of it, but not what they compile as they are imported, which takes
    3 s in each process, nor what makes a graph of distances (5 s) and lays it out (0.6 s). It lies
    where the rest does: beside the libraries, or where that cannot be written to in the user's
    cache (``NUMBA_CACHE_DIR``).
    """
    with _keeping_what_has_a_signature(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of what UMAP can also do, and not here
        import umap  # noqa: F401 - with its modules
    for module, name in _COMPILED:  # what another version has not is compiled in each process
        function = getattr(sys.modules.get(module), name, None)
        if hasattr(function, "enable_caching"):  # not where NUMBA_DISABLE_JIT leaves it to Python
            function.enable_caching()


@contextmanager
def _keeping_what_has_a_signature() -> Iterator[None]:
    """Have numba keep the functions that it compiles as it meets them.

    Those are the ones whose signature is given. Others may take functions as their arguments,
    which numba would keep once more in each process.
    """
    import numba

    plain = numba.njit

    def njit(*args, **options) -> Callable:
        has_signature = args and not callable(args[0])
        return plain(*args, **({"cache": True} if has_signature else {}) | options)

    numba.njit = njit
    try:
        yield
    finally:
        numba.njit = plain
