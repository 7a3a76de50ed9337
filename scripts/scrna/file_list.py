"""The list of the files of a folder of results: none of them may be missing or changed.

A folder that one rule makes is one output to Snakemake, which does not look into it. Stores have a
list of their own (`scrna.data.integrity`).
"""

import hashlib
from pathlib import Path
from typing import Any

from scrna.damage import DamagedError, read_json, reading, write_json

#: The list's name in its folder: JSON, a file's name to its bytes and SHA-256.
FILES = "files.json"


def write_list(folder: Path) -> None:
    """List the files of a folder that is complete, in the folder itself."""
    listed = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        listed[file.name] = {"bytes": len(content), "sha256": digest}
    write_json(folder / FILES, listed)


def check_there(folder: Path) -> dict[str, dict[str, Any]]:
    """Check that the files of a folder are there and as large as they were written.

    Parameters
    ----------
    folder
        A folder with a list of `write_list`.

    Returns
    -------
    The list.

    Raises
    ------
    DamagedError
        For the first file that is not; also where the list is missing or damaged.
    """
    listed = read_json(folder / FILES, folder)
    for name, about in listed.items():
        file = folder / name
        with reading(file, folder):
            size = file.stat().st_size
        if size != about["bytes"]:
            what = f"is damaged (it has {size:,} bytes of {about['bytes']:,})"
            raise DamagedError(folder, f"{file} {what if size else 'is empty'}", file)
    return listed


def check_content(folder: Path) -> None:
    """Check that the files of a folder hold what was written; raise as `check_there` does."""
    for name, about in check_there(folder).items():
        file = folder / name
        with reading(file, folder):
            content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise DamagedError(folder, f"{file} is damaged (it does not have its checksum)", file)
