"""What numba compiles for a neighbor graph on the CPU, kept from one process to the next."""

import warnings
from contextlib import suppress


def keep() -> None:
    """Have numba keep the functions of UMAP that turn distances into a graph.

    UMAP has it keep others, but not these, and compiling them takes five seconds in each process.
    They lie beside the library, or where that cannot be written to in the user's cache
    (``NUMBA_CACHE_DIR``). Where nothing can be written, they are compiled each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of what UMAP can also do, and not here
        from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    for function in (smooth_knn_dist, compute_membership_strengths):
        if hasattr(function, "enable_caching"):  # not where NUMBA_DISABLE_JIT leaves it to Python
            with suppress(RuntimeError):
                function.enable_caching()
