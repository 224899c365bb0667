"""Describe pydantic's errors in plain words: origin, key, given value, expected values, nearest name.

Knows the structure of pydantic's error lists and models; does not import pydantic and does not know any key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, get_args

from diffugen.errors import MOST_LINES, did_you_mean

_SHOWN_CHARACTERS = 60

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a section of 'key: value' lines",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "missing": "a value; there is none",
    "model_type": "a section of 'key: value' lines",
    "string_type": "text; put it in quotes",
    "too_long": "at most {max_length} values, not {actual_length}",
    "tuple_type": "a list",
    "value_error": "{error}",
}


def describe(
    errors: Iterable[Mapping[str, Any]],
    model: type[Any],
    settings: Mapping[str, Any],
    file: str,
    origins: Mapping[tuple[str, ...], str],
) -> Iterator[str]:
    """Describe each mistake in one line.

    Args:
        errors: The list from ``ValidationError.errors()``.
        model: The outermost model that the settings were validated against.
        settings: The validated settings.
        file: Origin of the settings.
        origins: From the path of a key with another origin to that origin.

    Yields:
        E.g. ``"a.yaml: diffusion.size = 64: unknown key, did you mean 'size_wh'?"``; of very many, the first.
    """
    by_path: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for details in errors:
        by_path.setdefault(_path_in(settings, details["loc"]), []).append(details)
    for path, alternatives in islice(by_path.items(), MOST_LINES):
        # The key that was set, a section around it, or a part of its value.
        setters = [origin for key, origin in origins.items() if path[: len(key)] == key[: len(path)]]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        first = alternatives[0]
        # Do not repeat a whole section: it is long, and no single line of it is wrong.
        value = (
            ""
            if first["type"] == "missing" or isinstance(first["input"], dict)
            else f" = {shown(first['input'])}"
        )
        if first["type"] == "extra_forbidden":
            what = f"unknown key{_key_hint([str(part) for part in path], model)}"
        else:
            what = "expected " + " or ".join(_expected(details) for details in alternatives)
            if "did you mean" not in what:
                what += did_you_mean(str(first["input"]), re.findall(r"'([^']*)'", what))
        yield f"{setters[-1] if setters else file}: {key}{value}: {what}"
    if len(by_path) > MOST_LINES:
        yield f"{file}: {len(by_path) - MOST_LINES:,} further mistakes of this kind"


def _path_in(settings: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return pydantic's location without the parts that name an alternative of a union, or a key as such."""
    path: list[str | int] = []
    for part in loc:
        if str(part).startswith("<") or part == "[key]":
            continue
        if not isinstance(settings, (dict, list)):
            break
        path.append(part)
        if isinstance(settings, dict):
            settings = settings.get(part)
        else:
            settings = settings[part] if isinstance(part, int) and part < len(settings) else None
    return tuple(path)


def _expected(details: Mapping[str, Any]) -> str:
    template = _EXPECTED.get(details["type"])
    return template.format(**details.get("ctx", {})) if template else str(details["msg"])


def shown(value: Any) -> str:
    """Return a value as JSON, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _fields(model: type[Any]) -> dict[str, type[Any] | None]:
    """Return the keys of a section, each with the section under it, if any."""
    found: dict[str, type[Any] | None] = {}
    for name, field in model.model_fields.items():
        found[name] = next((kind for kind in _kinds(field.annotation) if hasattr(kind, "model_fields")), None)
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield a type and all types inside it, such as those of a list's elements."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _key_hint(path: Sequence[str], model: type[Any]) -> str:
    """Suggest what replaced the key, else the same key elsewhere, else the nearest one, else list all."""
    section = model
    for part in path[:-1]:
        section = _fields(section).get(part) or section  # a number is an index into a list
    if path[-1] in getattr(section, "FORMER", {}):
        return f"; write {section.FORMER[path[-1]]}"
    sections = [(name, inner) for name, inner in _fields(model).items() if inner]
    home = next((f"{name}.{path[-1]}" for name, inner in sections if path[-1] in _fields(inner)), None)
    nearest = f", did you mean {home!r}?" if home else did_you_mean(path[-1], _fields(section))
    return nearest or f"; the keys here are {', '.join(_fields(section))}"
