"""Find the words of a text that name an object, or background that competes with it.

Does not know templates or tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffugen.prompts.names import Phrases
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
    listed = [(place, one_line(phrase)) for place, phrases in enumerate(lists) for phrase in phrases]
    finder = Phrases([phrase for _, phrase in listed])
    traced = []
    for text in texts:
        found: dict[int, str] = {}
        for number, start, end in finder.find(text):
            place = listed[number][0]
            if end - start > len(found.get(place, "")):
                found[place] = text[start:end]
        traced.append(tuple(Phrase(found[place], names[place]) for place in sorted(found)))
    return traced
