"""The few exceptions DiffuGen raises on purpose. The CLI prints their message and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence


class DiffugenError(Exception):
    """Something the user can mend. The message names the condition, the values and the way out."""


class ConfigError(DiffugenError):
    """One or more mistakes in a configuration, all listed at once.

    Attributes:
        mistakes: One line each, naming file, key, given value and the nearest valid key or value.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = "1 mistake in the configuration:" if count == 1 else f"{count} mistakes in the configuration:"
        super().__init__("\n".join([head, *(f"  - {line}" for line in self.mistakes)]))


class PromptError(DiffugenError):
    """A prompt cannot be traced: a phrase is missing from it, or lies beyond the token limit."""


class ModelError(DiffugenError):
    """A model folder, checkpoint or package cannot be used."""


class StoreError(DiffugenError):
    """A run directory cannot be read or written: corrupt, locked, of another version, or the disk is full."""
