"""Which words of a text name an object, or background that competes with it.

Does not know templates, nor tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from diffugen.records import Phrase, one_line


def find_phrases(
    texts: Sequence[str], classes: Mapping[str, Sequence[str]], background: Sequence[str]
) -> list[tuple[Phrase, ...]]:
    """Find in each text the phrases to trace.

    They are, for each class, the longest of its phrases that occurs in the text as whole words (upper and
    lower case alike), then the background words that occur. Words that are part of a longer listed phrase do
    not count by themselves: with the classes ``truck`` and ``fire truck``, "a fire truck" names only the
    second.

    Args:
        texts: Texts, each on one line.
        classes: From a class name to the phrases that name it; at least one.
        background: Words that name no object but compete with the objects for pixels.

    Returns:
        For each text its phrases: classes in their order, then background words in theirs.
    """
    names = [*classes, *(None for _ in background)]
    lists = [*classes.values(), *([word] for word in background)]
    listed = [(one_line(phrase), place) for place, phrases in enumerate(lists) for phrase in phrases]
    # Alternatives are tried from left to right, so the longest that fits at a place claims its words.
    listed.sort(key=lambda item: -len(item[0]))
    words = "|".join(f"({re.escape(phrase)})" for phrase, _ in listed)
    pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
    traced = []
    for text in texts:
        found: dict[int, str] = {}
        for match in pattern.finditer(text):
            place = listed[(match.lastindex or 0) - 1][1]
            if len(match[0]) > len(found.get(place, "")):
                found[place] = match[0]
        traced.append(tuple(Phrase(found[place], names[place]) for place in sorted(found)))
    return traced
