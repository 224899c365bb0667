"""One rule for names: when two class names are the same, and where a phrase occurs in a text.

Knows nothing of where names come from: the classes of datasets, detectors and runs, the words of prompts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache


def plain(name: str) -> str:
    """Return what decides whether two class names are the same: not case, white space, ``_`` or ``-``.

    Example:
        >>> plain("Traffic_Cone") == plain("traffic cone")
        True
    """
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def matching_names(theirs: Iterable[str], ours: Sequence[str]) -> dict[str, str]:
    """Map the names that someone else uses for classes of ours to our names.

    Args:
        theirs: Names of a dataset, a detector or other labels.
        ours: Names of a run; the first of two that are the same counts.

    Returns:
        Our name for each of theirs that is the same by `plain`; an exact match takes precedence. Several of
        theirs may map to one of ours.
    """
    found = {plain(name): name for name in reversed(ours)}
    return {name: name if name in ours else found[plain(name)] for name in theirs if plain(name) in found}


def occurrences(text: str, phrases: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Find phrases in a text as whole words, whatever the case and the white space between words.

    A hyphen belongs to a word: "car" is not in "car-free". Where phrases overlap, the longest counts: with
    "truck" and "fire truck", "a fire truck" holds only the second.

    Args:
        text: The text.
        phrases: Phrases of one or more words; an empty one never occurs.

    Returns:
        For each phrase, the start and end of its occurrences in the text, in order.

    Example:
        >>> occurrences("a car on a car-free road", ["car"])
        [[(2, 5)]]
    """
    keys = [" ".join(phrase.split()).casefold() for phrase in phrases]
    order, pattern = _longest_first(frozenset(filter(None, keys)))
    found: dict[str, list[tuple[int, int]]] = {key: [] for key in keys}
    for match in pattern.finditer(text) if order else ():
        found[order[(match.lastindex or 0) - 1]].append(match.span())
    return [found[key] for key in keys]


@lru_cache
def _longest_first(phrases: frozenset[str]) -> tuple[Sequence[str], re.Pattern[str]]:
    """Return the phrases, longest first, and a pattern with a group for each in this order."""
    order = sorted(phrases, key=lambda one: (-len(one), one))
    # Alternatives are tried from left to right, so the longest one that fits wins.
    groups = ("(" + r"\s+".join(map(re.escape, one.split())) + ")" for one in order)
    return order, re.compile(rf"(?<![\w-])(?:{'|'.join(groups)})(?![\w-])", re.IGNORECASE)
