"""Decisions of the main process, passed to jobs, perhaps on other machines, by the environment."""

import os
from collections.abc import Callable


def decided(
    name: str, decide: Callable[[], tuple[str, str | None]], *, is_main: bool
) -> tuple[str, str | None]:
    """Decide in the run's own process, or hear from the environment what was decided there.

    Parameters
    ----------
    name
        What is decided: ``backend``.
    decide
        Returns the decision and a line that says it.
    is_main
        Whether this is the run's own process, not that of one of its jobs, which get its
        environment.

    Returns
    -------
    The decision, and the line; None for the line where it was decided elsewhere.
    """
    variable = f"SCRNA_{name.upper()}"
    if not is_main and variable in os.environ:
        return os.environ[variable], None
    decision, line = decide()
    os.environ[variable] = decision
    return decision, line
