"""Filters, timestamps and key-value rows for the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any


def filters(**values: Any) -> tuple[str, dict[str, Any]]:
    """Return an SQL condition for the columns whose value is not None, and these values."""
    given = {name: value for name, value in values.items() if value is not None}
    return " AND ".join(["TRUE", *(f"t.{name} = :{name}" for name in given)]), given


def now(timespec: str = "seconds") -> str:
    """Return the current time as text, UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec=timespec)


def now_after(earlier: str | None) -> str:
    """Return the current time to the microsecond, or the one after an earlier time if the clock is behind it.

    Rows that are written with it are in the order of these times, even where the clock was set back.
    """
    time = datetime.now(timezone.utc)
    if earlier is not None:
        time = max(time, datetime.fromisoformat(earlier) + timedelta(microseconds=1))
    return time.isoformat(timespec="microseconds")


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the rows of the table ``meta`` for these keys and values."""
    return [{"key": key, "value": value} for key, value in values.items()]
