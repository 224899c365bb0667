"""Find the words of a text that name an object, or background that competes with it.

Does not know templates or tokenizers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from diffugen.records import Phrase, one_line


def find_phrases(
    texts: Sequence[str], classes: Mapping[str, Sequence[str]], background: Sequence[str]
) -> list[tuple[Phrase, ...]]:
    """Find the phrases to trace in each text.

    For each class this is its longest phrase that occurs in the text as whole words, whatever the case; then
    follow the background words that occur. Words inside a longer listed phrase do not count on their own:
    with the classes ``truck`` and ``fire truck``, "a fire truck" names only the second.

    Args:
        texts: Texts without line breaks.
        classes: For each class, the phrases that name it; at least one class.
        background: Words that compete with the objects for pixels but name none.

    Returns:
        The phrases of each text: first those of classes, then background words, in the order of the
        arguments.
    """
    names = [*classes, *(None for _ in background)]
    lists = [*classes.values(), *([word] for word in background)]
    places: dict[str, int] = {}
    lengths: defaultdict[str, set[int]] = defaultdict(set)  # of the phrases that begin with a word
    for place, phrases in enumerate(lists):
        for phrase in map(_folded, map(one_line, phrases)):
            places.setdefault(phrase, place)
            lengths[_BEGIN.findall(phrase)[0]].add(len(phrase))
    longest_first = {word: sorted(found, reverse=True) for word, found in lengths.items()}
    traced = []
    for text in texts:
        found: dict[int, str] = {}
        for place, words in _occurrences(text, places, longest_first):
            if len(words) > len(found.get(place, "")):
                found[place] = words
        traced.append(tuple(Phrase(found[place], names[place]) for place in sorted(found)))
    return traced


_BEGIN = re.compile(r"(?<![\w-])(?:\w+|\W)")
"""Matches a word, or another character, where a phrase can begin."""

_GOES_ON = re.compile(r"[\w-]")


def _occurrences(
    text: str, places: Mapping[str, int], lengths: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, str]]:
    """Yield the phrases in a text from left to right, without overlaps, each the longest that fits there."""
    folded, position = _folded(text), 0
    while begin := _BEGIN.search(folded, position):
        start, position = begin.span()
        for length in lengths.get(begin[0], ()):
            end = start + length
            place = places.get(folded[start:end])
            if place is not None and not _GOES_ON.match(folded, end):
                yield place, text[start:end]
                position = end
                break


def _folded(text: str) -> str:
    """Return the text without differences of case, each character in its place."""
    return text.lower() if text.isascii() else "".join(map(_folded_character, text))


def _folded_character(one: str) -> str:
    folded = one.casefold()
    return folded if len(folded) == 1 else one.lower()[0]
