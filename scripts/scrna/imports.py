"""Libraries that a process imports in the background, while it already works without them.

RAPIDS takes seconds to import; a step asks for what it needs of it, and waits.
"""

import gc
import importlib
import sys
import time
from collections.abc import Callable
from threading import Event, Thread, current_thread
from types import ModuleType

from scrna.log import log

#: Seconds that one thread has the interpreter for while another waits for it; Python's own are 50
#: times as long, and a step waits hundreds of times.
_SWITCH = 0.0001
#: The thread's name, which its log records carry.
THREAD = "imports"
_thread: Thread | None = None
_ready: dict[str, Event] = {}


def begin(library: str, then: Callable[[], None] | None = None, *, is_first: bool = True) -> None:
    """Import a library in a thread of its own, after one that is being imported.

    Parameters
    ----------
    library
        Its name. What fails is logged; who needs the library meets it again.
    then
        Called in the thread at the end.
    is_first
        Whether steps that make much wait for it, so that `freeze` may follow.
    """
    global _thread
    if library in _ready:
        return
    _ready[library] = Event()
    about = library, _thread, then, is_first
    _thread = Thread(target=_run, args=about, name=THREAD, daemon=True)
    _thread.start()


def need(library: str) -> ModuleType:
    """Give a library, imported by now.

    One that no `begin` was called for waits for all of these: two threads that import what
    depends on each other could each see half of a module.
    """
    if _thread is not None and _thread is not current_thread():
        _ready[library].wait() if library in _ready else _thread.join()
    if library not in sys.modules:
        _timed(library)
    return importlib.import_module(library)


def freeze() -> None:
    """Keep what there is out of garbage collections, a quarter of a second each, and begin these.

    What of it is garbage stays as well, so this is for moments in which no step has left any.
    """
    gc.freeze()
    gc.enable()


def _timed(library: str) -> None:
    start = time.perf_counter()
    importlib.import_module(library)
    log.info("%s imported in %.1f s", library, time.perf_counter() - start)


def _run(
    library: str, before: Thread | None, then: Callable[[], None] | None, is_first: bool
) -> None:
    if before is not None:
        before.join()
    gc.disable()  # what an import makes stays
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        _timed(library)
    except Exception:
        log.exception("%s could not be imported", library)
    finally:
        if is_first:
            gc.freeze()
        gc.enable()
        sys.setswitchinterval(interval)
        _ready[library].set()
    if then is not None:
        then()
