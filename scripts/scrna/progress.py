"""Progress of long work as a few log lines: several rules share one terminal, so no bars."""

import time
from collections.abc import Callable
from numbers import Integral
from types import TracebackType
from typing import Self

from scrna.log import log

_FIRST = 5.0  # seconds before the first line: what is done by then needs none
_EVERY = 10.0  # seconds between lines


class Progress:
    """Log how far long work has come, how fast it goes and how long it will take.

    The first line comes after about 5 s, then at most one every 10 s, and a closing line where any
    came before; short work logs nothing. An exception ends it without a closing line.

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
        self._has_logged = False

    def __enter__(self) -> Self:
        return self

    def update(self, n: float) -> None:
        """Count `n` more units as done, and log a line if one is due."""
        self.done += n
        now = self._clock()
        if now < self._next or self.done == self.total:  # the closing line tells the end
            return
        self._next = now + _EVERY
        self._has_logged = True
        rate = self._rate(now)
        if not self.total:
            log.info("%s: %s %s, %s", self.label, _number(self.done), self.unit, self._speed(rate))
            return
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        log.info(
            "%s: %s of %s %s (%.0f%%), %s%s",
            self.label,
            _number(self.done),
            _number(self.total),
            self.unit,
            100 * self.done / self.total,
            self._speed(rate),
            left,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._has_logged:
            now = self._clock()
            log.info(
                "%s: %s %s in %s, %s",
                self.label,
                _number(self.done),
                self.unit,
                duration(now - self._start),
                self._speed(self._rate(now)),
            )

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


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, Integral) else f"{value:,.1f}"
