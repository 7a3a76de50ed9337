"""Check before a run that its folders can be written to."""

import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from scrna.errors import UserError

#: What a run writes to in its working directory, which is itself the first.
WRITTEN = (".", ".snakemake", "results", "resources", "logs", "benchmarks")


def check_writable(folders: Iterable[str | Path] = WRITTEN) -> None:
    """Refuse a working directory that cannot be written to.

    Parameters
    ----------
    folders
        Folders; those that are not there will be made in the first.

    Raises
    ------
    UserError
        If one of them cannot be written to by this user, or is a file.
    """
    for folder in map(Path, folders):
        where = f"{folder.resolve()}, which the run writes to,"
        if folder.exists() and not folder.is_dir():
            msg = f"{where} is no folder: remove it, or run in another folder (--directory)"
            raise UserError(msg)
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            user, owner = _name(os.geteuid()), _name(folder.stat().st_uid)
            msg = (
                f"{where} cannot be written to by {user}; it belongs to {owner}. Run in a folder "
                "of your own (snakemake --directory FOLDER), or have its permissions changed"
            )
            raise UserError(msg)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of another machine or of a container
        return f"user {uid}"
