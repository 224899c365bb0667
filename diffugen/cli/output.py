"""What commands print with: the console, tables, numbers and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Return where commands print. Text is printed as it is: ``[b]`` and ``:car:`` mean nothing."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line without wrapping, so that paths and commands can be copied."""
    console().print(text, soft_wrap=True)


def table(*columns: str) -> Any:
    """Return an empty table."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def as_value(value: float | None) -> str:
    """Write a number such as an AP: three decimals, or ``-`` where it is unknown."""
    return "-" if value is None else f"{value:.3f}"


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left; a line at the end where the output is not a terminal."""
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
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task(title, total=None, rate="")
        start: int | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal start
            start = done if start is None else start
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = (done - start) / elapsed if elapsed > 0 else 0.0
            rate = (
                f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}" if speed > 0 else ""
            )
            bar.update(task, completed=done, total=total, rate=rate)

        yield on_progress
