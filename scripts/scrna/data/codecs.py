"""Let zarrs compress and decompress, on all cores and without Python's lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Have arrays that are opened or made within use zarrs' codecs, then and later.

    zarr's settings are those of the whole process: threads take turns, or the one that leaves last
    would put back what the first had set.
    """
    import zarr
    import zarrs  # noqa: F401 - registers itself

    with _lock, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield
