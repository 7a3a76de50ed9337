"""Logging of a step: to the rule's log file and to the terminal, in one place.

On a terminal the progress of long work (`scrna.progress`) is a bar, one line at the bottom that is
overwritten. It is sent as log records, so that it also comes from a worker. The steps of a run
share one terminal: the first step with progress holds a lock on the terminal and has the bar, the
others log lines.
"""

import fcntl
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

log = logging.getLogger("scrna")
#: What `scrna.progress` logs: lines, and records of the level `BAR`.
progress_log = logging.getLogger("scrna.progress")
#: The level of a record that is a bar's new state: what `bar_state` makes, empty at its end.
BAR = 15
_CLEAR = "\r\x1b[K"  # to the line's first column, and erase the line
_BAR_WIDTH = 24


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
    terminal = Terminal(sys.stderr, label)
    terminal.addFilter(lambda record: not (record.exc_info or record.exc_text))
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, mode="w", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        file.setLevel(logging.INFO)
        handlers.append(file)
    send_logs(handlers)
    # matplotlib tells at its first import that it looks for fonts
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def send_logs(handlers: list[logging.Handler]) -> None:
    """Send the messages and Python's warnings of this process to these handlers, and no others."""
    log.handlers = handlers
    log.setLevel(BAR)
    log.propagate = False
    warnings.showwarning = _log_warning


def log_with_times() -> None:
    """Send the messages of this process to stderr, each with the time: the log of a worker."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s - %(message)s"))
    send_logs([handler])


def share_terminal(logger: logging.Logger) -> None:
    """Make Snakemake's log lines clear a progress bar on the terminal first.

    Parameters
    ----------
    logger
        Its logger, the handlers in place.
    """
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        if stream is not None and is_terminal(stream):
            handler.addFilter(_cleared(stream))


def is_terminal(stream: TextIO) -> bool:
    """Check whether a progress bar can be drawn on a stream."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def bar_state(fraction: float | None, label: str, text: str) -> str:
    """Write the state of a bar as the message of a log record, which is all that a worker sends.

    Parameters
    ----------
    fraction
        What is done of all; None where nobody knows.
    label, text
        What is being done, and how far it is.
    """
    return "\t".join(["" if fraction is None else f"{fraction:.4f}", label, text])


class Terminal(logging.StreamHandler):
    """Lines that start with a label and, where there is a terminal, a bar below them.

    Parameters
    ----------
    stream
        Where they go.
    label
        Of the lines, and of the bar.
    """

    def __init__(self, stream: TextIO, label: str):
        super().__init__(stream)
        self._label = label
        self._can_draw = is_terminal(stream)
        self._bar: int | None = None  # holds the terminal's lock while the bar is this step's
        self.setFormatter(logging.Formatter(f"[{label}] %(message)s"))
        self.setLevel(BAR if self._can_draw else logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or draw the bar."""
        if record.levelno == BAR:
            self._draw(record.getMessage())
        elif self._bar is None or record.name != progress_log.name:  # else the bar shows it
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a line that replaces the bar."""
        line = super().format(record)
        return _CLEAR + line if self._can_draw else line

    def close(self) -> None:
        """Remove the bar."""
        self._draw("")
        super().close()

    def _draw(self, state: str) -> None:
        if state and self._bar is None:
            self._bar = _hold(self.stream)
        if self._bar is None:
            return
        line = ""
        with suppress(OSError, ValueError):  # a terminal that was closed ends no step
            if state:
                columns = os.get_terminal_size(self.stream.fileno()).columns or 80
                line = bar_line(self._label, state, columns - 1)
            self.stream.write(f"{_CLEAR}{line}\r")  # what another program writes goes over it
            self.flush()
        if not state:
            os.close(self._bar)
            self._bar = None


def bar_line(label: str, state: str, width: int) -> str:
    """Draw a bar as text.

    Parameters
    ----------
    label
        Of the step.
    state
        What `bar_state` made.
    width
        Columns that there are.

    Returns
    -------
    As ``[convert toy] |██████      |  50 %, 40 of 80 cells, 10 cells/s, 4 s left``, cut to the
    width.
    """
    fraction, what, text = state.split("\t")
    line = f"[{label}] " if label.startswith(what) else f"[{label}] {what}: "
    if fraction:
        done = min(1.0, float(fraction))
        percent = f"{100 * done:3.0f} %, "
        room = min(_BAR_WIDTH, width - len(line) - len(percent) - len(text) - 3)
        if room > 5:
            filled = round(done * room)
            line += f"|{'█' * filled}{' ' * (room - filled)}| "
        line += percent
    return (line + text)[:width]


def _hold(stream: TextIO) -> int | None:
    """Lock the terminal; return a descriptor that holds it, None while another step has it."""
    try:
        terminal = os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NOCTTY)
    except OSError:  # one that has no name here
        return None
    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(terminal)
        return None
    return terminal


def _cleared(stream: TextIO) -> Callable[[logging.LogRecord], bool]:
    def clear(record: logging.LogRecord) -> bool:
        with suppress(OSError, ValueError):
            stream.write(_CLEAR)
        return True

    return clear


def _log_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if category.__name__ == "Pandas4Warning":
        return  # what pandas 4 will change is for the libraries to mend, not for the user
    log.warning("%s (%s in %s:%d)", message, category.__name__, Path(filename).name, lineno)
