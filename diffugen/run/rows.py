"""Filters, timestamps and key-value rows for the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from diffugen.errors import brief
from diffugen.records import content_id
from diffugen.run.schema import MOST_ROUNDS


def audit_place(image_id: str) -> str:
    """Return the place of an image in the draw of audits, which no property of the image has a part in."""
    return content_id("audit", image_id)


def filters(**values: Any) -> tuple[str, dict[str, Any]]:
    """Return an SQL condition for the columns whose value is not None, and these values."""
    given = {name: value for name, value in values.items() if value is not None}
    # An image has few rows: SQLite is to search by it. A plus sign keeps it from searching by a column.
    plus = "+" if "image_id" in given else ""
    conditions = (f"{'' if name == 'image_id' else plus}t.{name} = :{name}" for name in given)
    return " AND ".join(["TRUE", *conditions]), given


def check_texts(*values: object) -> None:
    """Raise a ValueError if a value of a row is not a text."""
    _check_types("a text", (str,), values)


def check_numbers(*values: object) -> None:
    """Raise a ValueError if a value of a row is not a number."""
    _check_types("a number", (int, float), values)


def check_integers(*values: object) -> None:
    """Raise a ValueError if a value of a row is not an integer."""
    _check_types("an integer", (int,), values)


def _check_types(what: str, types: tuple[type, ...], values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, types):
            raise ValueError(f"{brief(value)} is not {what}")


def check_round(value: object) -> None:
    """Check that a value of a row is the number of a round.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, int) or not 0 <= value <= MOST_ROUNDS:
        raise ValueError(f"{brief(value)} is not the number of a round")


def check_time(value: object) -> None:
    """Check that a value of a row is a time as `now` writes it.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or datetime.fromisoformat(value).utcoffset() != timedelta(0):
        raise ValueError(f"{brief(value)} is not a time in UTC")


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
