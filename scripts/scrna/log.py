"""Logging of a step: to the rule's log file and to the terminal, in one place."""

import logging
import sys
import warnings
from pathlib import Path

log = logging.getLogger("scrna")


def start_logging(path: Path | str | None, label: str) -> None:
    """Send the messages of this process to the rule's log file and to stderr.

    Python's warnings become log lines, so that what a library warns of is read with the step it
    came from.

    Parameters
    ----------
    path
        The rule's log file, overwritten; None logs to stderr alone.
    label
        What the lines on the terminal start with, several rules sharing it: ``umap pbmc3k/pca``.
    """
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[{label}] %(message)s"))
    terminal.addFilter(lambda record: not (record.exc_info or record.exc_text))
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, mode="w", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    send_logs(handlers)


def send_logs(handlers: list[logging.Handler]) -> None:
    """Send the messages and Python's warnings of this process to these handlers, and no others."""
    log.handlers = handlers
    log.setLevel(logging.INFO)
    log.propagate = False
    warnings.showwarning = _log_warning


def _log_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if category.__name__ == "Pandas4Warning":
        return  # what pandas 4 will change is for the libraries to mend, not for the user
    log.warning("%s (%s in %s:%d)", message, category.__name__, Path(filename).name, lineno)
