"""What commands print with: the console, tables and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


_SHARED: list[Console] = []


def console() -> Console:
    """Return where commands print. Text is printed as it is: ``[b]`` and ``:car:`` mean nothing."""
    from rich.console import Console

    return _SHARED[-1] if _SHARED else Console(highlight=False, markup=False, emoji=False)


@contextmanager
def shared_console() -> Iterator[Console]:
    """Print everything to one console until the context closes: it prints lines above a bar that it shows."""
    _SHARED.append(console())
    try:
        yield _SHARED[-1]
    finally:
        _SHARED.pop()


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


def duration(seconds: float) -> str:
    """Write a time such as ``40 s``, ``12 min`` or ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
