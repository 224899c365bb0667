"""A validator's errors in DiffuGen's words: origin, key, given value, what is expected, nearest name.

Knows the shape of pydantic's error list and of its models, yet does not import it: `diffugen.config.sections`
is its home.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from diffugen.errors import did_you_mean

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
    """Put a line in plain words for each mistake.

    Args:
        errors: What ``ValidationError.errors()`` lists.
        model: The outermost model that the settings were checked against.
        settings: What was checked.
        file: Where settings come from.
        origins: Another origin of single keys, which are given as paths.

    Yields:
        E.g. ``"a.yaml: diffusion.size = 64: unknown key, did you mean 'size_wh'?"``.
    """
    by_path: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for details in errors:
        by_path.setdefault(_path_in(settings, details["loc"]), []).append(details)
    for path, alternatives in by_path.items():
        # Either a key that was set, or the section around one, or a part of its value.
        setters = [origin for key, origin in origins.items() if path[: len(key)] == key[: len(path)]]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        first = alternatives[0]
        # A section's value is every line of it: too long to repeat, and no line of it is the wrong one.
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


def _path_in(settings: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """Drop from pydantic's location what names an alternative of a union and no place in the settings."""
    path: list[str | int] = []
    for part in loc:
        if str(part).startswith("<"):
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
    """Return a value as JSON, cut off where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _fields(model: type[Any]) -> dict[str, type[Any] | None]:
    """Return a section's keys, each with the section it leads to, if any."""
    found: dict[str, type[Any] | None] = {}
    for name, field in model.model_fields.items():
        found[name] = next((kind for kind in _kinds(field.annotation) if hasattr(kind, "model_fields")), None)
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type and all types inside it, e.g. those of a list's members."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _key_hint(path: Sequence[str], model: type[Any]) -> str:
    """Name the same key of another section, else the nearest key of the section, else all valid keys."""
    section = model
    for part in path[:-1]:
        section = _fields(section).get(part) or section  # a number is a place in a list
    sections = [(name, inner) for name, inner in _fields(model).items() if inner]
    home = next((f"{name}.{path[-1]}" for name, inner in sections if path[-1] in _fields(inner)), None)
    nearest = f", did you mean {home!r}?" if home else did_you_mean(path[-1], _fields(section))
    return nearest or f"; the keys here are {', '.join(_fields(section))}"
