import logging

import pytest

from scrna.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="scrna")


@pytest.fixture
def clock():
    return Clock()


def test_short_work_logs_nothing(clock, caplog):
    with Progress("convert demo", total=1000, clock=clock) as progress:
        for _ in range(10):
            clock.now += 0.4
            progress.update(100)
    assert caplog.messages == []


def test_lines_tell_rate_and_time_left(clock, caplog):
    with Progress("convert demo", total=120_000, clock=clock) as progress:
        for _ in range(12):
            clock.now += 2
            progress.update(10_000)
    assert caplog.messages == [
        "convert demo: 30,000 of 120,000 cells (25%), 5,000 cells/s, 18 s left",
        "convert demo: 80,000 of 120,000 cells (67%), 5,000 cells/s, 8 s left",
        "convert demo: 120,000 cells in 24 s, 5,000 cells/s",
    ]


def test_total_may_be_unknown(clock, caplog):
    with Progress("download x", total=None, unit="MB", clock=clock) as progress:
        clock.now += 6
        progress.update(33.3)
    assert caplog.messages == [
        "download x: 33.3 MB, 5.5 MB/s",
        "download x: 33.3 MB in 6 s, 5.5 MB/s",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(clock, caplog):
    with Progress("download x", total=1000, unit="MB", done=900, clock=clock) as progress:
        clock.now += 10
        progress.update(50)
    assert caplog.messages[0] == "download x: 950 of 1,000 MB (95%), 5.0 MB/s, 10 s left"


def test_an_error_ends_without_a_closing_line(clock, caplog):
    def fail():
        with Progress("convert demo", total=10, clock=clock) as progress:
            clock.now += 6
            progress.update(1)
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the error itself is not what is tested
        fail()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
