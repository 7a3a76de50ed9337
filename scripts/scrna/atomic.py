"""Write files and folders that are complete or do not exist: temporary name, then rename."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What the name of a damaged result that is set aside ends in, until it is made again.
SET_ASIDE = ".damaged"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name that becomes its own when all went well.

    Parameters
    ----------
    path
        The file or folder; one that is there is replaced at the end.

    Yields
    ------
    The temporary path, beside the final one. An error within removes it; what a killed process
    left behind goes with the next try, and so does a damaged one that was set aside.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        if not Path("/proc", leftover.name.rpartition("-")[2]).exists():
            remove(leftover)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        remove(path.with_name(path.name + SET_ASIDE))
    finally:
        remove(temporary)


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that only this user can read, whole at once."""
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
    temporary.rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
