"""Show progress of long work: a bar on a terminal (`scrna.log`), a few lines in logs."""

import time
from collections.abc import Callable
from numbers import Integral
from types import TracebackType
from typing import Self

from scrna.log import BAR, bar_state, progress_log

_FIRST = 5.0  # seconds before the first line: what is done by then needs none
_EVERY = 10.0  # seconds between lines, and
_SHARE = 1 / 6  # of the time so far, so that long work logs few lines, but at most
_RARELY = 300.0
_FIRST_BAR = 1.0
_REDRAW = 0.5


class Progress:
    """Show the progress of long work, its rate and the time left.

    In the log, the first line comes after about 5 s, then at most one every 10 s, less often the
    longer it takes, and a closing line where any came before; short work logs nothing. The bar
    comes after 1 s. An exception ends both without a closing line.

    Parameters
    ----------
    label
        What is being done: ``convert pbmc3k``.
    total
        How much there is to do, in `unit`; None where nobody knows.
    unit
        What is counted, in the plural: ``cells``, ``MB``.
    done
        What was done before this start (a resumed download); it counts as done, not for the rate.
    clock
        Seconds, monotonic; for tests.
    """

    def __init__(
        self,
        label: str,
        *,
        total: float | None,
        unit: str = "cells",
        done: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.label = label
        self.total = total
        self.unit = unit
        self.done = done
        self._before = done
        self._clock = clock
        self._start = clock()
        self._next = self._start + _FIRST
        self._next_bar = self._start + _FIRST_BAR
        self._has_logged = self._has_drawn = False

    def __enter__(self) -> Self:
        return self

    def update(self, n: float) -> None:
        """Count `n` more units as done; log a line and draw the bar anew if they are due."""
        self.done += n
        now = self._clock()
        if now >= self._next_bar:
            self._next_bar = now + _REDRAW
            self._has_drawn = True
            fraction = self.done / self.total if self.total else None
            progress_log.log(BAR, "%s", bar_state(fraction, self.label, self._state(now)))
        if now >= self._next and self.done != self.total:  # the closing line tells the end
            self._next = now + min(max(_EVERY, _SHARE * (now - self._start)), _RARELY)
            self._has_logged = True
            share = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
            progress_log.info("%s: %s", self.label, self._state(now, share))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._has_drawn:
            progress_log.log(BAR, "")
        if kind is None and self._has_logged:
            now = self._clock()
            progress_log.info(
                "%s: %s %s in %s, %s",
                self.label,
                _number(self.done),
                self.unit,
                duration(now - self._start),
                self._speed(self._rate(now)),
            )

    def _state(self, now: float, share: str = "") -> str:
        rate = self._rate(now)
        done, speed = _number(self.done), self._speed(rate)
        if not self.total:
            return f"{done} {self.unit}, {speed}"
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{done} of {_number(self.total)} {self.unit}{share}, {speed}{left}"

    def _rate(self, now: float) -> float:
        return (self.done - self._before) / max(now - self._start, 1e-9)

    def _speed(self, rate: float) -> str:
        return f"{_number(round(rate) if rate >= 10 else round(rate, 1))} {self.unit}/s"


def duration(seconds: float) -> str:
    """Write a duration as a person reads it: ``8 s``, ``4 min 10 s``, ``2 h 05 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def short_duration(seconds: float) -> str:
    """Write a duration as `duration` does, below 10 s with tenths: ``1.4 s``."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, Integral) else f"{value:,.1f}"
