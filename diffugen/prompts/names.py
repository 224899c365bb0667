"""One rule for names: when two class names are the same, and where a phrase occurs in a text.

Knows nothing of where names come from: the classes of datasets, detectors and runs, the words of prompts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence


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


class Phrases:
    """Phrases to find in many texts, as whole words, whatever the case and the white space between words.

    A hyphen belongs to a word: "car" is not in "car-free". Where phrases overlap, the longest counts: with
    "truck" and "fire truck", "a fire truck" holds only the second. The time for a text does not grow with the
    number of phrases.

    Args:
        phrases: Phrases of one or more words; an empty one is never found.

    Example:
        >>> list(Phrases(["road", "car"]).find("a car on a car-free road"))
        [(1, 2, 5), (0, 20, 24)]
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self._numbers: dict[str, int] = {}
        lengths: defaultdict[str, set[int]] = defaultdict(set)  # of the phrases that begin with a word
        for number, phrase in enumerate(phrases):
            key = _folded(" ".join(phrase.split()))
            if key:
                self._numbers.setdefault(key, number)
                lengths[_BEGIN.findall(key)[0]].add(len(key))
        self._lengths = {word: sorted(found, reverse=True) for word, found in lengths.items()}

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield the phrases in a text from left to right, without overlaps.

        Yields:
            The number of the phrase, of equal ones that of the first, and its start and end in the text.
        """
        places: Sequence[int] = range(len(text))
        narrow = text
        if _WIDE_SPACE.search(text):
            places = [at for at in places if not (text[at].isspace() and text[at - 1 : at].isspace())]
            narrow = "".join(" " if text[at].isspace() else text[at] for at in places)
        folded, position = _folded(narrow), 0
        while begin := _BEGIN.search(folded, position):
            start, position = begin.span()
            for length in self._lengths.get(begin[0], ()):
                end = start + length
                number = self._numbers.get(folded[start:end]) if end <= len(folded) else None
                if number is not None and not _GOES_ON.match(folded, end):
                    yield number, places[start], places[end - 1] + 1
                    position = end
                    break


def occurrences(text: str, phrases: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Return, for each phrase, the start and end of its occurrences in a text; see `Phrases`.

    Example:
        >>> occurrences("a car on a car-free road", ["car"])
        [[(2, 5)]]
    """
    keys = [_folded(" ".join(phrase.split())) for phrase in phrases]
    found: dict[str, list[tuple[int, int]]] = {key: [] for key in keys}
    for number, start, end in Phrases(phrases).find(text):
        found[keys[number]].append((start, end))
    return [found[key] for key in keys]


_BEGIN = re.compile(r"(?<![\w-])(?:\w+|\W)")
"""Matches a word, or another character, where a phrase can begin."""

_GOES_ON = re.compile(r"[\w-]")

_WIDE_SPACE = re.compile(r"\s\s|[^\S ]")
"""Matches white space other than a single blank."""


def _folded(text: str) -> str:
    """Return the text without differences of case, each character in its place."""
    return text.lower() if text.isascii() else "".join(map(_folded_character, text))


def _folded_character(one: str) -> str:
    folded = one.casefold()
    return folded if len(folded) == 1 else one.lower()[0]
