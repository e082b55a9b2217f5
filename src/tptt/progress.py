"""How far a stage has come: a bar on a terminal, a line now and then in a log. Imports nothing of tptt."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

logger = logging.getLogger("tptt.progress")

SILENT = 2.0  # seconds: a stage that takes less is not mentioned
EVERY = 30.0  # seconds between two lines of a stage
_clock = time.monotonic


class Progress(Protocol):
    """What a stage tells how far it has come."""

    def advance(self, amount: float = 1) -> None:
        """``amount`` more is done, in the unit that the stage was begun with."""
        ...


@contextmanager
def report_progress(name: str, total: float | None = None, unit: str = "steps") -> Iterator[Progress]:
    """Report how far the stage of the ``with`` block has come.

    Where stderr is a terminal, a bar on it lasts as long as the stage. Elsewhere the logger ``tptt.progress`` gets a
    line (level INFO) when the stage begins, one every 30 seconds, and one with the seconds it took when it ends.
    A stage that takes less than 2 seconds is not mentioned. Stages may contain others. Where several processes work on
    a run (``RANK`` of torchrun, workers of a pool), the first one alone reports.

    Args:
        name: what the stage does.
        total: how much there is to do, in ``unit``; None where nobody knows.
        unit: what `Progress.advance` counts.
    """
    if not _is_main_process():
        yield _Nothing()
    elif sys.stderr.isatty():
        with _bar(name, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(name, total, unit)
        with lines.kept_up():
            yield lines


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None


def amount(done: float, total: float | None, unit: str) -> str:
    """For example ``1,200 of 48,000 tokens``; nothing where nothing is counted."""
    if total is None:
        return f"{done:,.0f} {unit}" if done else ""
    return f"{done:,.0f} of {total:,.0f} {unit}"


class _Nothing:
    def advance(self, amount: float = 1) -> None:
        pass


# ---- lines of a log -----------------------------------------------------------------------------------------------


class _Lines:
    """Lines about one stage, written when they are due: by whoever advances it, or by a thread while nobody does."""

    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0.0
        self.begun = _clock()
        self.due = self.begun + SILENT
        self.lock, self.ended = threading.Lock(), threading.Event()

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self.write_if_due()

    def write_if_due(self) -> None:
        with self.lock:
            now = _clock()
            if now < self.due or self.ended.is_set():
                return
            done = amount(self.done, self.total, self.unit)
            share = f"({100 * self.done / self.total:.0f} %)" if self.total else ""
            self._write(done, share, f"after {now - self.begun:.0f} s")
            self.due = now + EVERY

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        """Write what is due while the block lasts, and how the stage ended."""
        if logger.isEnabledFor(logging.INFO):
            threading.Thread(target=self._keep_up, daemon=True).start()
        how = "stopped"
        try:
            yield
            how = "done"
        finally:
            with self.lock:
                self.ended.set()
                seconds = _clock() - self.begun
                if seconds >= SILENT:
                    done = amount(self.done, None, self.unit)
                    self._write(f"{how}, {done}" if done else how, f"in {seconds:.0f} s")

    def _keep_up(self) -> None:
        while not self.ended.wait(max(0.01, self.due - _clock())):
            self.write_if_due()

    def _write(self, *words: str) -> None:
        logger.info("%s: %s", self.name, " ".join(word for word in words if word))


# ---- bars on a terminal -------------------------------------------------------------------------------------------


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(amount(task.completed, task.total, task.fields["unit"]), style="progress.download")


class _ShownBars(Bars):
    """The bars of all stages that have taken long enough to be mentioned."""

    def make_tasks_table(self, tasks):
        return super().make_tasks_table([t for t in tasks if (t.elapsed or 0.0) >= SILENT])


_shown: list[_ShownBars] = []  # empty, or the one display of all stages: a terminal can show one at a time
_showing = threading.Lock()


@contextmanager
def _bar(name: str, total: float | None, unit: str) -> Iterator[Progress]:
    with _showing:
        if not _shown:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                _Amount(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            _shown.append(_ShownBars(*columns, console=Console(stderr=True), transient=True, get_time=_clock))
            _shown[0].start()
        bars = _shown[0]
        task = bars.add_task(name, total=total, unit=unit)
    try:
        yield _Bar(bars, task)
    finally:
        with _showing:
            bars.remove_task(task)
            if not bars.tasks:
                _shown.remove(bars)
                bars.stop()


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, amount: float = 1) -> None:
        self.bars.advance(self.task, amount)
