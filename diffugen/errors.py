"""The few exceptions that DiffuGen raises on purpose, and helpers for their messages.

The command line prints the message of a `DiffugenError` and exits with code 2.
"""

from __future__ import annotations

import difflib
import errno
import shlex
from collections.abc import Iterable, Sequence
from itertools import islice


def shell_command(*words: object) -> str:
    """Return a command of DiffuGen, quoted for a shell, for a message that tells what to run next."""
    return shlex.join(["diffugen", *map(str, words)])


def counted(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


MOST_LINES = 50
"""The most mistakes that a message lists."""


def some_lines(lines: Sequence[str]) -> list[str]:
    """Return the lines, or the first `MOST_LINES` of them and how many more there are."""
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"... and {more:,} more"] if more > 0 else [])]


class DiffugenError(Exception):
    """An error that the user can fix; the message names the condition, the values and a way out."""


class ConfigError(DiffugenError):
    """One or more mistakes in a configuration, all listed at once.

    Attributes:
        mistakes: One line per mistake, with file, key, given value and the nearest valid key or value.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = "1 mistake in the configuration:" if count == 1 else f"{count} mistakes in the configuration:"
        super().__init__("\n  - ".join([head, *some_lines(self.mistakes)]))


class PromptError(DiffugenError):
    """A prompt cannot be traced: a phrase is missing from it, or is beyond the token limit."""


class ModelError(DiffugenError):
    """A model folder, checkpoint or package cannot be used."""


class StoreError(DiffugenError):
    """A run directory cannot be read or written: corrupt, locked, of another version, or on a full disk."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a piece of work; the message says what of it is kept."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the valid name nearest to the given one, or an empty string."""
    # Long names are no slips of the pen, and comparing takes time.
    near = difflib.get_close_matches(given, list(islice(valid, 1000)), n=1) if len(given) <= 100 else []
    return f", did you mean {near[0]!r}?" if near else ""


def brief(value: object) -> str:
    """Return a value that others wrote as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def first_line(error: BaseException) -> str:
    """Return the type and the first line of a library's error as one printable sentence."""
    text = str(error).strip()
    line = "".join(letter for letter in text.splitlines()[0] if letter.isprintable()) if text else ""
    return f"{type(error).__name__}: {line.rstrip('.')}." if line else f"{type(error).__name__}."


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of the system or of a library means that nothing more can be written."""
    text = str(error).lower()
    signs = ("no space left", "disk is full", "quota exceeded", "file too large")
    torch_signs = ("file write failed", "unexpected pos")
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(sign in text for sign in signs + torch_signs)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of a library means that the machine or a GPU ran out of memory."""
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
