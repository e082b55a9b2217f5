import io
import logging
import re
import threading
import time
from contextlib import contextmanager, redirect_stderr

import pytest

from tptt import progress
from tptt.progress import report_progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "_clock", clock)
    return clock


@pytest.fixture
def log_file(caplog):
    """A context in which stderr is a file; gives a function for the lines logged so far."""

    @contextmanager
    def opened():
        stderr = io.StringIO()
        with caplog.at_level(logging.INFO, "tptt"), redirect_stderr(stderr):
            yield lambda: [record.getMessage() for record in caplog.records]
        assert stderr.getvalue() == "", "a bar was drawn into a file"

    return opened


@pytest.fixture
def terminal(monkeypatch):
    """A context in which stderr is a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return lambda: redirect_stderr(Terminal())


def test_a_log_gets_a_line_at_the_beginning_every_half_minute_and_at_the_end(clock, log_file):
    with log_file() as lines, report_progress("read", 200, "tokens") as stage:
        for _ in range(200):
            clock.sleep(0.5)
            stage.advance()
    assert lines() == [
        "read: 4 of 200 tokens (2 %) after 2 s",
        "read: 64 of 200 tokens (32 %) after 32 s",
        "read: 124 of 200 tokens (62 %) after 62 s",
        "read: 184 of 200 tokens (92 %) after 92 s",
        "read: done, 200 tokens in 100 s",
    ]


def test_a_short_stage_is_not_mentioned(clock, log_file):
    with log_file() as lines, report_progress("read", 3) as stage:
        stage.advance(3)
        clock.sleep(1.9)
    assert lines() == []


def test_without_a_total_there_is_no_share(clock, log_file):
    with log_file() as lines, report_progress("read", unit="documents") as stage:
        clock.sleep(5)
        stage.advance(12_000)
    assert lines() == ["read: 12,000 documents after 5 s", "read: done, 12,000 documents in 5 s"]


def test_a_stage_that_fails_says_how_far_it_came(clock, log_file):
    with log_file() as lines, pytest.raises(KeyError), report_progress("read", 10) as stage:
        stage.advance(4)
        clock.sleep(7)
        raise KeyError
    assert lines() == ["read: stopped, 4 steps in 7 s"]


def test_a_stage_within_another_has_lines_of_its_own(clock, log_file):
    with log_file() as lines, report_progress("outer", 2) as outer:
        with report_progress("inner", 1) as inner:
            clock.sleep(3)
            inner.advance()
        outer.advance()
    assert [line.split(",")[0] for line in lines()] == [
        "inner: 1 of 1 steps (100 %) after 3 s",
        "inner: done",
        "outer: 1 of 2 steps (50 %) after 3 s",
        "outer: done",
    ]


def test_a_stage_that_nobody_advances_is_mentioned_too(log_file, monkeypatch):
    monkeypatch.setattr(progress, "SILENT", 0.05)
    before = set(threading.enumerate())
    with log_file() as lines, report_progress("load"):
        until = time.monotonic() + 10
        while not lines() and time.monotonic() < until:
            time.sleep(0.01)
        assert lines() == ["load: after 0 s"]
    until = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before, "the thread that writes its lines goes on"


def test_a_terminal_shows_a_bar_that_goes_away(clock, terminal, caplog):
    with caplog.at_level(logging.INFO, "tptt"), terminal() as stderr:
        with report_progress("read", 2_000, "tokens") as stage:
            clock.sleep(3)
            stage.advance(500)
            progress._shown[0].refresh()
        assert "read" in stderr.text and "500 of 2,000 tokens" in stderr.text and "0:00:03" in stderr.text
    assert not caplog.records, "what the bar shows is not logged as well"
    assert progress._shown == []


def test_a_terminal_shows_no_bar_for_a_short_stage(clock, terminal):
    with terminal() as stderr, report_progress("read", 10) as stage:
        stage.advance(9)
        progress._shown[0].refresh()
        clock.sleep(1)
    assert "read" not in stderr.text


def test_bars_lie_under_each_other(clock, terminal):
    with terminal() as stderr, report_progress("outer", 2):
        clock.sleep(3)
        with report_progress("inner", 1):
            clock.sleep(3)
            progress._shown[0].refresh()
        both = stderr.text
        progress._shown[0].refresh()
        rest = stderr.text[len(both) :]
        assert "inner" not in rest and "outer" in rest
    lines = both.splitlines()
    assert any("outer" in a and "inner" in b for a, b in zip(lines, lines[1:], strict=False))


@pytest.mark.parametrize("kind", ["torchrun", "worker"])
def test_only_the_first_process_reports(clock, log_file, monkeypatch, kind):
    if kind == "torchrun":
        monkeypatch.setenv("RANK", "1")
    else:
        monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    with log_file() as lines, report_progress("read", 2) as stage:
        clock.sleep(9)
        stage.advance()
    assert lines() == []


def test_the_first_of_several_processes_reports(clock, log_file, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with log_file() as lines, report_progress("read"):
        clock.sleep(9)
    assert lines() == ["read: done in 9 s"]
