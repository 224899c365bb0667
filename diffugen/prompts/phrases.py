"""Find the words of a text that name an object, or background that competes with it.

Does not know templates or tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
    listed = [(one_line(phrase), place) for place, phrases in enumerate(lists) for phrase in phrases]
    # Alternatives are tried from left to right, so the longest one that fits wins.
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
