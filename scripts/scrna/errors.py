"""Errors that a user can fix, and how the error of a step is logged."""

from collections.abc import Iterable
from pathlib import Path

from scrna.log import log


class UserError(ValueError):
    """Something in the data, the config or the machine that the user can fix.

    The message names the dataset, file or config key, says what was found and what was expected,
    and what to do next. `report` shows it without a traceback; the log has both.
    """


def did_you_mean(word: object, known: Iterable[str], most: int = 3) -> str:
    """Return ``did you mean A or B?`` with the known words most like a word, or nothing.

    Parameters
    ----------
    word
        What was found; upper and lower case are the same.
    known
        What could have been meant.
    most
        How many to name.
    """
    from difflib import get_close_matches

    folded = {name.casefold(): name for name in known}
    close = get_close_matches(str(word).casefold(), folded, n=most)
    return f"did you mean {' or '.join(folded[name] for name in close)}?" if close else ""


def report(error: Exception) -> None:
    """Log what a step failed of, and its traceback, which the terminal leaves out."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    log.error("%s%s", kind, error)
    log.error("the traceback, for developers", exc_info=error)


def worker_died(its_log: Path | str) -> UserError:
    """Return the error of a step whose worker died while it ran the step.

    Parameters
    ----------
    its_log
        The worker's log, or where it is.
    """
    return UserError(
        "the worker's process died while it ran this step: out of memory (dmesg shows it), or a "
        f"library or the driver crashed. Its log: {its_log}. The next step gets a new worker"
    )
