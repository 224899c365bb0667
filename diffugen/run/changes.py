"""Whether a run may continue with a configuration: which keys differ from the one it was made with.

Knows nested JSON values, not what any key means; the caller says which keys may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from diffugen.run.codec import to_json

_ABSENT = object()


def changed_keys(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ between two configurations of JSON values, sorted."""
    old, new = _flat(kept), _flat(given)
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]


def unchanged_keys(kept: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys that have the same value in both of two configurations of JSON values."""
    old = _flat(kept)
    return {key for key, value in _flat(given).items() if old.get(key, _ABSENT) == value}


def differing_keys(
    kept: Mapping[str, Any],
    given: Mapping[str, Any],
    ignore_keys: Collection[str],
    default_keys: Collection[str] = (),
    places: tuple[str, str] = ("in the run", "now"),
) -> list[str]:
    """Return a line for each dotted key whose value differs, with both values.

    Args:
        kept: The run's configuration, JSON values.
        given: The current configuration, JSON values.
        ignore_keys: Dotted keys that may differ, each with all keys below it.
        default_keys: Dotted keys that the run need not have: an earlier version made it, which did not know
            them, and the given values mean what it did.
        places: Where the values of each configuration stand, in words.
    """
    old, new = _flat(kept), _flat(given)
    lines = []
    for key in changed_keys(kept, given):
        if key not in old and key in default_keys:
            continue
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in ignore_keys):
            was, now = (to_json(side[key]) if key in side else "not set" for side in (old, new))
            lines.append(f"{key}: {was} {places[0]}, {now} {places[1]}")
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
