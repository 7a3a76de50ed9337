"""Progress: lines in the logs, and the bar of a terminal that several steps share."""

import fcntl
import io
import json
import logging
import os
import pty
import struct
import termios
from contextlib import suppress

import pytest

from scrna.engine import client
from scrna.log import (
    BAR,
    Terminal,
    bar_line,
    bar_state,
    log,
    progress_log,
    send_logs,
    share_terminal,
    start_logging,
)
from scrna.progress import Progress, duration
from scrna.warm_process import _Sender


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


def test_a_night_of_work_is_no_thousand_lines(clock, caplog):
    with Progress("download x", total=36_001, unit="MB", clock=clock) as progress:
        for _ in range(36_000):
            clock.now += 1
            progress.update(1)
    assert 100 < len(caplog.messages) < 160
    assert len([line for line in caplog.messages if " (0%)" in line]) > 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ----------------------------------------------------------------------------------- the terminal


_END = "\x06"


class Screen:
    """A terminal of 24 lines and some columns; what is on it can be read."""

    def __init__(self, columns=110):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self._lines, self._column = [""], 0

    @property
    def lines(self) -> list[str]:
        self.stream.write(_END)
        self.stream.flush()
        text = b""
        while not text.endswith(_END.encode()):  # the kernel hands it over in its own time
            text += os.read(self._master, 2**16)
        text = text.decode().removesuffix(_END)
        while text:
            if text.startswith("\x1b[K"):
                self._lines[-1] = self._lines[-1][: self._column]
                text = text[3:]
                continue
            if text[0] == "\r":
                self._column = 0
            elif text[0] == "\n":
                self._lines.append("")
                self._column = 0
            else:
                line, at = self._lines[-1], self._column
                self._lines[-1] = line[:at] + text[0] + line[at + 1 :]
                self._column += 1
            text = text[1:]
        return self._lines

    def close(self):
        with suppress(OSError):
            self.stream.close()
        with suppress(OSError):
            os.close(self._master)

    def hang_up(self):
        with suppress(OSError):
            os.close(self._master)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    made = Screen()
    yield made
    made.close()


@pytest.fixture
def logging_to():
    """Send the log to handlers, as a step does."""
    handlers, level, propagate = log.handlers, log.level, log.propagate
    yield send_logs
    for handler in log.handlers:
        handler.close()
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def test_a_bar_is_drawn_over_itself_and_cleared(clock, screen, logging_to, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stderr", screen.stream)
    start_logging(tmp_path / "convert.log", "convert toy")
    with Progress("convert toy", total=100, clock=clock) as progress:
        clock.now += 2
        progress.update(20)
        line = (
            "[convert toy] |█████                   |  20 %, 20 of 100 cells, 10 cells/s, 8 s left"
        )
        assert screen.lines == [line]
        log.info("found %d", 7)
        assert screen.lines == ["[convert toy] found 7", ""]
        clock.now += 4
        progress.update(40)
        assert len(screen.lines) == 2
        assert "60 %, 60 of 100 cells" in screen.lines[1]
    end = "[convert toy] convert toy: 60 cells in 6 s, 10 cells/s"
    assert screen.lines == ["[convert toy] found 7", end, ""]
    written = (tmp_path / "convert.log").read_text()
    assert [line.split(" INFO ")[1] for line in written.splitlines()] == [
        "found 7",
        "convert toy: 60 of 100 cells (60%), 10 cells/s, 4 s left",
        "convert toy: 60 cells in 6 s, 10 cells/s",
    ]
    assert written.replace("\n", "").isprintable()


def test_an_error_clears_the_bar(clock, screen, logging_to):
    def fail():
        with Progress("hvg", total=9, clock=clock) as progress:
            clock.now += 2
            progress.update(1)
            assert "|" in screen.lines[0]
            raise OSError

    logging_to([Terminal(screen.stream, "hvg toy")])
    with pytest.raises(OSError):  # noqa: PT011 - the error itself is not what is tested
        fail()
    assert screen.lines == [""]


def test_the_first_of_two_steps_has_the_bar(clock, screen):
    terminals = {name: Terminal(screen.stream, f"convert {name}") for name in "ab"}

    def tell(name, kind, text):
        about = {"name": progress_log.name, "levelno": kind, "msg": text}
        terminals[name].handle(logging.makeLogRecord(about))

    state = bar_state(0.5, "convert", "5 of 10 cells")
    try:
        for name in "ab":
            tell(name, BAR, state)
            tell(name, logging.INFO, f"{name}: 5 of 10 cells")
        assert screen.lines == ["[convert b] b: 5 of 10 cells", ""]
        tell("a", BAR, state)
        assert screen.lines[1].startswith("[convert a] |████████████            |  50 %")
        tell("a", BAR, "")
        assert screen.lines[1] == ""
        tell("b", BAR, state)
        assert screen.lines[1].startswith("[convert b] |")
    finally:
        for terminal in terminals.values():
            terminal.close()
    assert screen.lines[1] == ""


def test_a_bar_comes_from_a_warm_worker(clock, screen, logging_to):
    sent = []
    logging_to([_Sender(lambda about: sent.append(json.loads(json.dumps(about))))])
    with Progress("hvg, pass 2", total=10, clock=clock) as progress:
        clock.now += 6
        progress.update(5)
    logging_to([Terminal(screen.stream, "hvg toy")])
    client.log_record(sent[0])
    bar = "[hvg toy] hvg, pass 2: |████████████            |  50 %, 5 of 10 cells, 0.8 cells/s"
    assert screen.lines == [f"{bar}, 6 s left"]
    for about in sent[1:]:
        client.log_record(about)
    assert screen.lines == ["[hvg toy] hvg, pass 2: 5 cells in 6 s, 0.8 cells/s", ""]


def test_lines_of_another_program_take_the_place_of_a_bar(screen, logging_to):
    other = logging.Logger("snakemake")
    other.addHandler(logging.StreamHandler(screen.stream))
    share_terminal(other)
    logging_to([Terminal(screen.stream, "convert toy")])
    progress_log.log(BAR, bar_state(None, "download", "12.0 MB, 3.0 MB/s"))
    assert screen.lines == ["[convert toy] download: 12.0 MB, 3.0 MB/s"]
    other.warning("Finished jobid: 1")
    assert screen.lines == ["Finished jobid: 1", ""]


@pytest.mark.parametrize("terminal", ["dumb", "file"])
def test_lines_where_no_bar_can_be_drawn(
    clock, screen, logging_to, monkeypatch, tmp_path, terminal
):
    if terminal == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    stream = screen.stream if terminal == "dumb" else io.StringIO()
    logging_to([Terminal(stream, "convert toy")])
    with Progress("convert toy", total=10, clock=clock) as progress:
        clock.now += 6
        progress.update(5)
    lines = screen.lines if terminal == "dumb" else stream.getvalue().split("\n")
    assert lines == [
        "[convert toy] convert toy: 5 of 10 cells (50%), 0.8 cells/s, 6 s left",
        "[convert toy] convert toy: 5 cells in 6 s, 0.8 cells/s",
        "",
    ]


def test_a_terminal_that_is_closed_ends_no_step(clock, screen, logging_to, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging_to([Terminal(screen.stream, "convert toy")])
    with Progress("convert toy", total=10, clock=clock) as progress:
        for _ in range(2):
            clock.now += 2
            progress.update(4)
            screen.hang_up()
        log.info("a line")
    assert progress.done == 8


def test_a_bar_fits_its_terminal():
    state = bar_state(0.333, "convert toy", "1 of 3 cells")
    assert bar_line("convert toy", state, 60) == (
        "[convert toy] |████████                |  33 %, 1 of 3 cells"
    )
    assert bar_line("convert toy", state, 45) == "[convert toy] |███      |  33 %, 1 of 3 cells"
    assert bar_line("convert toy", state, 38) == "[convert toy]  33 %, 1 of 3 cells"
    assert bar_line("convert toy", state, 20) == "[convert toy]  33 %,"
    assert bar_line("x", bar_state(1.2, "x", "all"), 60).count("█") == 24
