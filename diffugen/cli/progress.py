"""How far a piece of work has come: a bar on a terminal, and elsewhere a line from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffugen.cli.output import console, duration, say, shared_console

if TYPE_CHECKING:
    from rich.console import Console

    from diffugen.run import OnProgress

LINE_SECONDS = 30.0
"""Time between two lines where the output is not a terminal."""


LEAST_SECONDS = 0.1
"""Work of a shorter time has no speed worth telling."""


@contextmanager
def progress(title: str, unit: str) -> Iterator[OnProgress]:
    """Show a bar, or, where the output is not a terminal, a line every half minute and one at the end.

    Args:
        title: What is done.
        unit: What is counted, in the singular.
    """
    work = Work(title, unit)
    shown = console()
    if shown.is_interactive and shown.file.isatty():  # FORCE_COLOR makes no file a terminal
        with shared_console() as shared, _bar(work, shared) as on_progress:
            yield on_progress
    else:
        with _repeated(lambda: say(work.line())):
            yield work.report
        say(work.line(ended=True))


@dataclass
class Work:
    """What a piece of work reported last, as text.

    Attributes:
        title: What is done.
        unit: What is counted, in the singular.
        clock: Returns the time in seconds.
        done: How much is done; a part of the next one counts.
        total: How much there is to do; None until it is reported.
        note: What else was reported.
    """

    title: str
    unit: str
    clock: Callable[[], float] = time.monotonic
    done: float = 0.0
    total: int | None = None
    note: str = ""
    _first: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._started = self.clock()

    def report(self, done: float, total: int, note: str = "") -> None:
        """Take in how far it is; what is done at the first call was done before."""
        self.done, self.total, self.note = done, total, note
        if self._first is None:
            self._first = self.clock(), done

    @property
    def speed(self) -> float:
        """How much is done in a second; 0 as long as that cannot be told."""
        now = self.clock()
        since, done_before = self._first or (now, self.done)
        seconds = now - since
        return max(0.0, self.done - done_before) / seconds if seconds >= LEAST_SECONDS else 0.0

    @property
    def rate(self) -> str:
        """The speed in the unit that suits it, such as ``2.5 images/s`` or ``4.0 s/image``."""
        speed = self.speed
        if speed == 0:
            return ""
        return f"{speed:.1f} {self.unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{self.unit}"

    def line(self, *, ended: bool = False) -> str:
        """Return all of it on one line: with the time left, or, once it has ended, with the time it took."""
        parts = [f"{int(self.done)} of {self.total} {self.unit}s", self.rate] if self.total else []
        spent, speed, left = duration(self.clock() - self._started), self.speed, (self.total or 0) - self.done
        if ended:
            parts.append(f"done in {spent}")
        else:
            parts += [f"{spent} so far", f"about {duration(left / speed)} left" if speed and left > 0 else ""]
        return f"{self.title}: {', '.join(part for part in (*parts, self.note) if part)}"


@contextmanager
def _bar(work: Work, shown: Console) -> Iterator[OnProgress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[beside]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=shown) as bar:
        task = bar.add_task(work.title, total=None, beside="")

        def on_progress(done: float, total: int, note: str = "") -> None:
            work.report(done, total, note)
            beside = note or work.rate
            bar.update(task, completed=done, total=total, beside=beside)

        yield on_progress


@contextmanager
def _repeated(call: Callable[[], None]) -> Iterator[None]:
    """Call a function every `LINE_SECONDS` until the context closes, however long the work is silent."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(LINE_SECONDS):
            with suppress(OSError):  # such as a full disk under a log file; the work itself goes on
                call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
