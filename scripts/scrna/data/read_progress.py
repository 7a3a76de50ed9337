"""Progress of work on blocks that reads all cells, and may do so several times."""

import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

from scrna.progress import Progress


def in_worker() -> bool:
    """Check whether this thread runs a task of a Dask cluster."""
    if "distributed.worker" not in sys.modules:
        return False
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return False
    return True


class _Passes:
    """Progress of work that reads all cells, and may do so several times."""

    def __init__(self, step: str, n_cells: int):
        self._step, self._n_cells = step, n_cells
        self._lock = Lock()
        self._number = 0
        self._stack = ExitStack()
        self._progress: Progress | None = None

    def update(self, n: int) -> None:
        with self._lock:
            if self._progress is None or self._progress.done >= self._n_cells:
                self.close()
                self._number += 1
                label = f"{self._step}, pass {self._number}"
                self._progress = self._stack.enter_context(Progress(label, total=self._n_cells))
            self._progress.update(n)

    def close(self) -> None:
        self._stack.close()


_watched: _Passes | None = None


@contextmanager
def told(step: str, n_cells: int, client) -> Iterator[str | None]:
    """Log how far reading is, wherever it is done.

    Parameters
    ----------
    step, n_cells
        What is logged: the step, and the cells of a pass.
    client
        Dask's, where the workers of a cluster read; None where threads of this process do.

    Yields
    ------
    The Dask event in which the workers tell of the cells that they have read, this step's alone:
    others may run on the same cluster. None without a client.
    """
    global _watched
    passes = _Passes(step, n_cells)
    topic = None if client is None else f"scrna-blocks-{uuid.uuid4().hex}"
    if topic is None:
        _watched = passes
    else:
        client.subscribe_topic(topic, lambda event: passes.update(event[1]))
    try:
        yield topic
        passes.close()
    finally:
        if topic is None:
            _watched = None
        else:
            client.unsubscribe_topic(topic)


def tell(n: int, topic: str | None) -> None:
    """Count cells as read: here, or for the process that follows this topic of a Dask cluster."""
    if topic is not None:
        from distributed import get_worker

        get_worker().log_event(topic, n)
    elif _watched is not None:
        _watched.update(n)
