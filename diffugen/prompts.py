"""Prompt templates x attribute values -> Prompts with the phrases to trace.

Knows which words of a text name an object. Does not know tokenizers (whether a phrase survives the model's token limit
is checked where the prompt is encoded), images or seeds of images.
"""

from __future__ import annotations

import difflib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from diffugen.errors import PromptError
from diffugen.records import Phrase, Prompt
from diffugen.sampling import FIELD, SAMPLINGS, Choice, Space, choose, one_line

MAX_PROMPTS = 1_000_000
"""More prompts than this are taken for a slip: templates with many fields multiply fast."""

_SHOWN = 3


def make_prompts(
    templates: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    background: Sequence[str] = (),
    negative: str = "",
    count: int | None = None,
    sampling: str = "balanced",
    seed: int = 0,
) -> list[Prompt]:
    """Fill templates with attribute values and find the phrases that name an object.

    A template's ``{field}`` is an attribute or a class; a class is filled from its phrases, and its choice is kept in
    ``Prompt.attributes`` like any other. A field that stands twice in a template gets the same value in both places.

    The traced phrases of a prompt are, for each class, the longest of its phrases that occurs in the text as whole
    words (upper and lower case alike), then the background words that occur. Words that are part of a longer listed
    phrase do not count by themselves: with the classes ``truck`` and ``fire truck``, "a fire truck" names only the
    second.

    The samplings are ``product`` (every combination, in the order of the templates and of the values, the last field
    changing fastest; cut off after ``count``), ``random`` (combinations drawn evenly) and ``balanced`` (templates take
    turns as evenly as their numbers of combinations permit, and no value of a field is used more than once more often
    than another). Each starts again only when every combination was used, but ``balanced`` rather repeats one, rarely,
    than give up the balance.

    Args:
        templates: Texts with ``{field}`` places, e.g. ``"a photo of a {colour} {piano} on a road"``.
        attributes: From a field's name to the values it can take.
        classes: From a class name to the phrases that name it, e.g. ``{"piano": ["grand piano", "piano"]}``.
        background: Words that name no object but compete with the objects for pixels, e.g. ``["road", "sky"]``.
        negative: Negative text of every prompt.
        count: How many prompts, at least 1; None for every combination once.
        sampling: ``balanced``, ``random`` or ``product``.
        seed: Seed of the choice and of its order; ``product`` does not use it.

    Returns:
        ``count`` prompts. A repeated prompt is equal to its first, so its image needs another seed to be another image.

    Raises:
        PromptError: All that is wrong with the arguments in one list, or the prompts in which no class occurs, or two
            ways to fill the templates that give the same text.

    Example:
        >>> [prompt] = make_prompts(["a {colour} {piano}"], {"colour": ["red"]}, {"piano": ["grand piano"]}, ["road"])
        >>> prompt.text, prompt.phrases
        ('a red grand piano', (Phrase(text='grand piano', class_name='piano'),))
    """
    _raise_all(_argument_mistakes(templates, attributes, classes, background, count, sampling))
    lists = {**attributes, **classes}
    _raise_all(
        [
            *_field_mistakes(templates, lists),
            *_unused_mistakes(templates, attributes),
            *_phrase_mistakes(classes, background),
        ]
    )
    spaces = [Space.of(template, lists) for template in templates]
    total = sum(space.size for space in spaces)
    wanted = total if count is None else count
    if wanted > MAX_PROMPTS or total > sys.maxsize:
        raise PromptError(
            f"templates and values have {total:,} combinations and {wanted:,} prompts are wanted; "
            f"give a count of at most {MAX_PROMPTS:,}, or fewer values"
        )
    choices = choose(spaces, wanted, sampling, random.Random(seed))
    texts = [spaces[number].fill(values) for number, values in choices]
    _raise_all(_twin_mistakes(texts, choices, templates))
    traced = _find_phrases(texts, classes, background)
    _raise_all(_nameless_mistakes(texts, traced))
    _raise_all(_class_mistakes(traced, templates, attributes, classes))
    return [
        Prompt(text, phrases, negative, spaces[number].named(values))
        for text, phrases, (number, values) in zip(texts, traced, choices, strict=True)
    ]


def coverage(prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Count how often each value of each attribute occurs in the prompts.

    Args:
        prompts: Prompts of one or several calls of ``make_prompts``.

    Returns:
        ``{attribute: {value: count}}``, names and values sorted; values that were never used are absent.
    """
    counts: dict[str, Counter[str]] = {}
    for prompt in prompts:
        for name, value in prompt.attributes.items():
            counts.setdefault(name, Counter())[value] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _find_phrases(
    texts: Sequence[str], classes: Mapping[str, Sequence[str]], background: Sequence[str]
) -> list[tuple[Phrase, ...]]:
    """Find in each text the phrases to trace: classes in their order, then background words in theirs."""
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


def _raise_all(mistakes: Iterable[str]) -> None:
    lines = list(mistakes)
    if len(lines) == 1:
        raise PromptError(lines[0])
    if lines:
        raise PromptError("\n  - ".join([f"{len(lines)} mistakes in the prompts:", *lines]))


def _argument_mistakes(
    templates: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    background: Sequence[str],
    count: int | None,
    sampling: str,
) -> Iterator[str]:
    yield from _list_mistakes("templates", templates)
    for name, values in attributes.items():
        yield from _list_mistakes(f"attributes.{name}", values)
        if name in classes:
            yield f"{name!r} is both an attribute and a class; {{{name}}} can be filled from one only: rename one"
    for name, phrases in classes.items():
        yield from _list_mistakes(f"classes.{name}", phrases)
    if not classes:
        yield "classes is empty; give at least one class with the phrases that name it"
    if background:
        yield from _list_mistakes("background", background)
    if sampling not in SAMPLINGS:
        yield f"unknown sampling {sampling!r}; one of {', '.join(SAMPLINGS)}{_hint(sampling, SAMPLINGS)}"
    if count is not None and count < 1:
        yield f"count is {count}; give at least 1, or None for every combination once"


def _list_mistakes(key: str, values: Sequence[str]) -> Iterator[str]:
    if isinstance(values, str):
        yield f"{key} is the text {values!r}; give a list of texts"
    elif not values:
        yield f"{key} is empty; give at least one text"
    else:
        if not all(value.strip() for value in values):
            yield f"{key} holds an empty text; drop it"
        yield from (f"{key} holds {value!r} {uses} times" for value, uses in Counter(values).items() if uses > 1)


def _field_mistakes(templates: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    names = list(known)
    for template in templates:
        for name in dict.fromkeys(FIELD.findall(template)):
            if name not in names:
                yield f"template {template!r}: no attribute or class {name!r}{_hint(name, names)}"
        if set("{}") & set(FIELD.sub("", template)):
            yield f"template {template!r}: a brace without its partner; write fields as {{name}}"


def _phrase_mistakes(classes: Mapping[str, Sequence[str]], background: Sequence[str]) -> Iterator[str]:
    phrases = [*(phrase for listed in classes.values() for phrase in listed), *background]
    for phrase, uses in Counter(one_line(phrase).casefold() for phrase in phrases).items():
        if uses > 1:
            yield f"the phrase {phrase!r} is listed {uses} times in classes and background; it can name one thing only"


def _unused_mistakes(templates: Sequence[str], attributes: Iterable[str]) -> Iterator[str]:
    used = {name for template in templates for name in FIELD.findall(template)}
    for name in attributes:
        if name not in used:
            yield f"no template uses the attribute {name!r}; write {{{name}}} in a template or drop it"


def _twin_mistakes(texts: Sequence[str], choices: Sequence[Choice], templates: Sequence[str]) -> Iterator[str]:
    first: dict[str, Choice] = {}
    for text, choice in zip(texts, choices, strict=True):
        if first.setdefault(text, choice) != choice:
            ways = f"{templates[first[text][0]]!r} and {templates[choice[0]]!r}"
            yield f"the text {text!r} comes out twice, from the templates {ways}; drop or change one"


def _nameless_mistakes(texts: Sequence[str], traced: Sequence[tuple[Phrase, ...]]) -> Iterator[str]:
    pairs = zip(texts, traced, strict=True)
    nameless = list(dict.fromkeys(text for text, found in pairs if all(phrase.class_name is None for phrase in found)))
    if nameless:
        some = ", ".join(repr(text) for text in nameless[:_SHOWN])
        yield (
            f"{len(nameless)} of {len(set(texts))} prompts name no object of any class, e.g. {some}; "
            f"add the words that name it to a class, or write {{class}} in the template"
        )


def _class_mistakes(
    traced: Sequence[tuple[Phrase, ...]],
    templates: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Report classes that no prompt can name; one that a small sample merely missed is no mistake."""
    seen = {phrase.class_name for found in traced for phrase in found}
    sources = [*templates, *(value for values in attributes.values() for value in values)]
    everything = one_line(" | ".join(sources)).casefold()
    for name, phrases in classes.items():
        mentions = [f"{{{name}}}", *(one_line(phrase) for phrase in phrases)]
        if name not in seen and not any(mention.casefold() in everything for mention in mentions):
            yield (
                f"no prompt can name the class {name!r}: neither {{{name}}} nor one of its phrases "
                f"({', '.join(phrases)}) stands in a template or an attribute's value"
            )


def _hint(given: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
