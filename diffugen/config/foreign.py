"""The border for what others wrote: YAML, JSON and TOML text, and paths; limits on size, depth and length.

The only reader of these formats. Whatever the text, reading it ends soon, and gives plain values (text,
numbers, true, false, null, lists, mappings) or a ValueError in one line, with the row where
it is known; the caller adds the file. Does not know what the values mean.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from diffugen.config.yaml_text import MOST_DEPTH, TOO_DEEP, load_yaml
from diffugen.errors import DiffugenError, brief

MOST_BYTES = 4 << 20
"""The largest file, unless a reader allows more."""

MOST_DIGITS = 100
"""The most digits of a whole number; much longer ones do not even fit into a float."""

MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 4095
"""The longest name and the longest path that file systems take."""


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is not a regular file, is larger than ``most_bytes``, or is not UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("not a regular file")  # reading a pipe or a device may never end
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"larger than {most_bytes / 1e6:,.0f} MB, the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not UTF-8 text (line {row}, byte {error.start}); save it as UTF-8") from error


def parse_yaml(text: str, mistakes: list[str] | None = None, *, texts_only: bool = False) -> Any:
    """Return the value of a YAML text, with the plain values of YAML 1.2 and without further types.

    Args:
        text: The text.
        mistakes: Receives a line for each key that is not text or is given twice.
        texts_only: Whether every plain value is the text that is written: ``no``, ``~``, ``0x1F`` and ``1``.

    Raises:
        ValueError: The text is not valid YAML, or passes a limit.
    """
    return _bounded("YAML", lambda: load_yaml(text, [] if mistakes is None else mistakes, texts_only))


def parse_json(text: str, mistakes: list[str] | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        mistakes: Receives a line for each key that is given twice.

    Raises:
        ValueError: The text is not valid JSON, or passes a limit.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if mistakes is not None and len(made) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            mistakes.extend(
                f"the key {key!r} is given twice; remove one" for key in counts if counts[key] > 1
            )
        return made

    hook = None if mistakes is None else checked
    # Most texts are short and many: a glance at them shows that there is nothing to look for in their values.
    simple = text.count("[") + text.count("{") <= MOST_DEPTH and not _SUSPECT.search(text)
    return _bounded("JSON", lambda: json.loads(text, object_pairs_hook=hook), check=not simple)


def parse_toml(text: str) -> Any:
    """Return the value of a TOML text.

    Raises:
        ValueError: The text is not valid TOML, or passes a limit; or Python is older than 3.11.
    """
    try:
        import tomllib
    except ImportError:
        raise ValueError("TOML needs Python 3.11 or newer; use YAML or JSON") from None
    if _LONG_KEY.search(text):
        raise ValueError(TOO_DEEP)
    return _bounded("TOML", lambda: tomllib.loads(text))


def is_whole_text(text: str) -> bool:
    """Return whether a text is made of whole characters; a word that is not UTF-8 is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_path(text: str | Path, where: str) -> Path:
    """Return a path that others wrote, after checking that a file system can have it.

    Args:
        text: The path.
        where: Where it stands, for the error message.

    Raises:
        DiffugenError: It is too long, contains a character that no path has, or is a link that leads nowhere.
    """
    if not isinstance(text, (str, Path)):
        raise DiffugenError(f"{where}: expected a path, not {brief(text)}")
    given, problem = str(text), ""
    try:
        encoded = os.fsencode(given)
    except UnicodeEncodeError:
        encoded, problem = b"", "contains half of a character"
    if b"\0" in encoded:
        problem = "contains a character that no path has"
    elif len(encoded) > MOST_PATH_BYTES or any(len(name) > MOST_NAME_BYTES for name in encoded.split(b"/")):
        problem = f"is too long; names have at most {MOST_NAME_BYTES} bytes, paths {MOST_PATH_BYTES}"
    elif os.path.islink(given) and not os.path.exists(given):
        problem = f"is a link to {os.readlink(given)[:200]!a}, where nothing is"
    if problem:
        raise DiffugenError(f"{where}: the path {given[:60]!a}{'...' * (len(given) > 60)} {problem}")
    return Path(given)


_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|(?<![0-9])[0-9]{%d}" % MOST_DIGITS)  # noqa: UP031
"""Matches where half a character or a long number may stand in JSON."""

# tomllib takes quadratic time for a key of many parts.
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){%d}""" % MOST_DEPTH  # noqa: UP031
)


def _bounded(kind: str, parse: Callable[[], Any], *, check: bool = True) -> Any:
    """Return what ``parse`` returns after checking it, or raise one kind of error."""
    try:
        value = parse()
        if check:
            _check(value)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except yaml.MarkedYAMLError as error:
        row = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"invalid YAML{row}: {error.problem}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON in line {error.lineno}: {error.msg}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"a text contains half of a character, {error.object[error.start]!a}") from error
    except (ValueError, yaml.YAMLError, OverflowError) as error:
        raise ValueError(f"invalid {kind}: {' '.join(str(error).split())}") from error
    return value


def _check(value: Any) -> None:
    """Check depth, whole numbers and texts, level by level."""
    level: list[Collection[Any]] = [[value]]
    for _ in range(MOST_DEPTH + 1):
        inner: list[Collection[Any]] = []
        for values in level:
            kinds = set(map(type, values))
            if str in kinds:
                "".join(one for one in values if isinstance(one, str)).encode()
            if int in kinds and any(isinstance(one, int) and abs(one) >= 10**MOST_DIGITS for one in values):
                raise ValueError(f"a whole number has more than {MOST_DIGITS} digits")
            if list in kinds:
                inner.extend(one for one in values if isinstance(one, list))
            if dict in kinds:
                dicts = [one for one in values if isinstance(one, dict)]
                "".join(key for one in dicts for key in one if isinstance(key, str)).encode()
                inner.extend(one.values() for one in dicts)
        if not inner:
            return
        level = inner
    raise ValueError(TOO_DEEP)
