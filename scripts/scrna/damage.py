"""Results that are damaged: they are noticed, named, and set aside so that a run makes them again.

Only what the workflow itself has made is called damaged here. A user's own file that cannot be read
is a plain `UserError`, and is never moved.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from scrna.atomic import SET_ASIDE, remove, replacing
from scrna.errors import UserError
from scrna.log import log

_CHECKSUM = "checksum"


class DamagedError(UserError):
    """A result of the workflow is incomplete, or has changed since it was written.

    Parameters
    ----------
    result
        The output of a rule that must be made again: a file or a folder.
    found
        The damaged file and what is wrong with it.
    file
        The damaged file within `result`, where that is a folder.
    advice
        What to do; None: remove `result` and run again.
    """

    def __init__(
        self, result: Path, found: str, file: Path | None = None, advice: str | None = None
    ):
        super().__init__(result, found, file, advice)  # with all of them it can be pickled
        self.result, self.found = Path(result), found
        self.file = Path(file or result)
        removed = f"Remove {result} and run" if self.result.exists() else "Run"
        self.advice = advice or f"{removed} the same command again, which makes it"

    def __str__(self) -> str:
        return f"{self.found}. {self.advice}"


@contextmanager
def setting_aside() -> Iterator[None]:
    """Set aside a result that is found to be damaged, so that the same command makes it again."""
    try:
        yield
    except DamagedError as error:
        raise set_aside(error) from error


def set_aside(error: DamagedError) -> DamagedError:
    """Rename a damaged result to ``NAME.damaged``, which the next run then makes again.

    Parameters
    ----------
    error
        The damage.

    Returns
    -------
    The error with what has been done, to be raised instead.
    """
    moved = []
    for path in _to_make_again(error):
        target = path.with_name(path.name + SET_ASIDE)
        if not path.exists():
            continue  # another step has found it, too
        try:
            remove(target)
            path.rename(target)
        except FileNotFoundError:
            continue
        except OSError as failure:
            log.warning("%s could not be set aside: %s", path, failure)
            return error
        moved.append(f"{path} is now {target.name}")
    advice = f"Run the same command again: it makes {error.result.name} anew"
    if moved:
        advice = f"{'; '.join(moved)}. {advice}"
    return DamagedError(error.result, error.found, error.file, advice)


def _to_make_again(error: DamagedError) -> list[Path]:
    """List the outputs that go with a damaged one.

    A store goes with its summary, and with the store of the same folder that shares the damaged
    file: ``final.zarr`` has hard links to the files of ``matrix.zarr``.
    """
    result, found = error.result, [error.result]
    if result.suffix != ".zarr":
        return found
    if (summary := result.with_suffix(".json")).is_file():
        found.append(summary)
    if result in error.file.parents and error.file.is_file():
        within = error.file.relative_to(result)
        for store in sorted(result.parent.glob("*.zarr")):
            other = store / within
            if store != result and other.is_file() and os.path.samefile(other, error.file):
                found.append(store)
    return found


@contextmanager
def reading(file: Path, result: Path | None = None) -> Iterator[None]:
    """Name the file that cannot be read, and call it damaged where its content is the reason.

    Parameters
    ----------
    file
        A file of the workflow's own.
    result
        The output that it belongs to, by default itself.

    Raises
    ------
    DamagedError
        If what is read from it makes no sense, or it is not there.
    UserError
        If the machine does not let it be read: no permission, a failing disk.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DamagedError(result or file, f"{file} is missing") from error
    except OSError as error:
        if error.errno is not None:
            msg = f"{file} cannot be read: {error}"
            raise UserError(msg) from error
        not_readable(file, error, result)
    except Exception as error:
        not_readable(file, error, result)


def not_readable(file: Path, error: Exception, result: Path | None = None) -> NoReturn:
    """Raise the error of a damaged file; what a library says of it is given in brackets."""
    size = file.stat().st_size if file.is_file() else None
    said = " ".join(str(error).split()) or type(error).__name__
    what = "is empty" if size == 0 else f"is damaged ({said})"
    raise DamagedError(result or file, f"{file} {what}", file) from error


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON file, whole at once, with a checksum of its content.

    Parameters
    ----------
    path
        The file; one that is there is replaced.
    facts
        What JSON holds.
    """
    facts = json.loads(json.dumps(facts))
    facts[_CHECKSUM] = _checksum(facts)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_summary(path: Path) -> dict[str, Any]:
    """Read ``counts.json``.

    Parameters
    ----------
    path
        The file; ``counts.zarr`` lies beside it.

    Returns
    -------
    What `write_json` was given.

    Raises
    ------
    DamagedError
        If it is missing, empty, no JSON object, or does not have its checksum.
    """
    path = Path(path)
    result = path.with_suffix(".zarr")
    try:
        return read_json(path, result)
    except DamagedError as error:  # no rule asks for the summary, so that it comes with the store
        advice = f"Remove {path} and {result} and run the same command again, which makes them"
        raise DamagedError(result, error.found, path, advice) from error


def read_json(path: Path, result: Path) -> dict[str, Any]:
    """Read a JSON file of `write_json`.

    Parameters
    ----------
    path
        The file.
    result
        The output that it belongs to.

    Returns
    -------
    What `write_json` was given.

    Raises
    ------
    DamagedError
        If it is missing, empty, no JSON object, or does not have its checksum.
    """
    with reading(path, result):
        facts = json.loads(path.read_text("utf-8"))
    if not isinstance(facts, dict):
        raise DamagedError(result, f"{path} is damaged (it holds no JSON object)", path)
    checksum = facts.pop(_CHECKSUM, None)  # older files have none
    if checksum is not None and checksum != _checksum(facts):
        raise DamagedError(result, f"{path} is damaged (it does not have its checksum)", path)
    return facts


def whole_summary(summary: Path) -> dict[str, Any] | None:
    """Read ``counts.json``, if it is there and whole.

    Parameters
    ----------
    summary
        The file.

    Returns
    -------
    What it says; None where it is not there, or damaged: a run then makes it again with the counts
    (`scrna.workflow.records`).
    """
    try:
        return read_summary(summary) if summary.exists() else None
    except DamagedError:
        return None


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
