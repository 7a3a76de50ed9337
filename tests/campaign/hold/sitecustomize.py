"""Stop a process that is about to write a certain file, until a test lets it go on.

Python imports this at its start in every process of a run whose PYTHONPATH has this folder. In the
folder that SCRNA_TEST_HOLD names, a test writes the end of a path into ``target``. The process that
opens such a path for writing, or renames a finished file to it, puts its number into the link
``held`` and waits until the link is gone.
"""

import os
import sys
import time

_FOLDER = os.environ.get("SCRNA_TEST_HOLD")
_LONGEST = 120  # seconds, for a test that died


def _hook(event: str, arguments: tuple) -> None:
    if event == "os.rename":
        path = arguments[1]
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = arguments[0]
    else:
        return
    if isinstance(path, str | bytes | os.PathLike):
        _hold(os.path.abspath(os.fsdecode(path)))


def _hold(path: str) -> None:
    held = os.path.join(_FOLDER, "held")
    try:
        with open(os.path.join(_FOLDER, "target")) as file:
            target = file.read()
        if not target or not path.endswith("/" + target):
            return
        os.symlink(str(os.getpid()), held)
    except FileNotFoundError:  # nothing is to be held
        return
    except FileExistsError:  # another process is
        return
    end = time.monotonic() + _LONGEST
    while os.path.islink(held) and time.monotonic() < end:
        time.sleep(0.01)


if _FOLDER:
    sys.addaudithook(_hook)
