"""Check templates, values, classes and the resulting prompts; report each mistake in one line.

Every function yields messages, and `raise_all` raises them as one error. Does not know how combinations are
chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from diffugen.config.generation import SAMPLINGS
from diffugen.errors import MOST_LINES, PromptError, did_you_mean
from diffugen.prompts.phrases import find_phrases
from diffugen.prompts.sampling import Choice, Values, weights_of
from diffugen.records import FIELD, Phrase, one_line

_SHOWN = 3


def raise_all(mistakes: Iterable[str]) -> None:
    """Raise one PromptError that lists the distinct messages, if there are any; of very many, the first."""
    lines = list(dict.fromkeys(islice(mistakes, MOST_LINES + 1)))
    if len(lines) == 1:
        raise PromptError(lines[0])
    if lines:
        count = f"more than {MOST_LINES}" if len(lines) > MOST_LINES else str(len(lines))
        raise PromptError("\n  - ".join([f"{count} mistakes in the prompts:", *lines[:MOST_LINES]]))


def value_mistakes(key: str, values: Mapping[str, Values]) -> Iterator[str]:
    """Yield the mistakes in the values of fields and in their weights."""
    for name, given in values.items():
        yield from list_mistakes(f"{key}.{name}", list(given) if isinstance(given, Mapping) else given)
        if isinstance(given, Mapping):
            for value, weight in given.items():
                if not (0 <= weight < math.inf):
                    yield f"{key}.{name}: the weight of {value!r} is {weight}; give 0 or more"
            if given and not any(weight > 0 for weight in given.values()):
                yield f"{key}.{name}: every weight is 0; give at least one value a weight above 0"


def list_mistakes(key: str, values: Sequence[str]) -> Iterator[str]:
    """Yield the mistakes in a list of texts."""
    if isinstance(values, str):
        yield f"{key} is the text {values!r}; give a list of texts"
    elif isinstance(values, Mapping):
        yield f"{key} has weights, but only attributes can have weights; give a list of texts"
    elif not values:
        yield f"{key} is empty; give at least one text"
    else:
        if not all(value.strip() for value in values):
            yield f"{key} contains an empty text; remove it"
        for value, uses in Counter(values).items():
            if uses > 1:
                yield f"{key} contains {value!r} {uses} times; list it once"


def name_mistakes(
    attributes: Mapping[str, Values], classes: Mapping[str, Sequence[str]], background: Sequence[str]
) -> Iterator[str]:
    """Yield the mistakes in attributes, classes and background words, each taken alone."""
    yield from value_mistakes("attributes", attributes)
    for name in attributes:
        if name in classes:
            yield f"{name!r} is both an attribute and a class, so {{{name}}} is ambiguous; rename one of them"
    for name, phrases in classes.items():
        yield from list_mistakes(f"classes.{name}", phrases)
    if not classes:
        yield "classes is empty; give at least one class with the phrases that name it"
    if background:
        yield from list_mistakes("background", background)


def sampling_mistakes(sampling: str, count: int | None, attributes: Mapping[str, Values]) -> Iterator[str]:
    """Yield the mistakes in the number of prompts and in how they are chosen."""
    if sampling not in SAMPLINGS:
        known = f"one of {', '.join(SAMPLINGS)}{did_you_mean(sampling, SAMPLINGS)}"
        yield f"unknown sampling {sampling!r}; expected {known}"
    if count is not None and count < 1:
        yield f"count is {count}; give at least 1, or None for every combination once"
    if sampling == "product":
        for name, values in attributes.items():
            if len(set(weights_of(values).values())) > 1:
                weights = ", ".join(f"{value} {weight:g}" for value, weight in weights_of(values).items())
                yield (
                    f"attributes.{name} has weights ({weights}), but product uses every combination once; "
                    "choose balanced or sample, or give a plain list"
                )


def field_mistakes(templates: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """Yield fields without values, and unmatched braces."""
    names = dict.fromkeys(known)
    for template in templates:
        for name in dict.fromkeys(FIELD.findall(template)):
            if name not in names:
                yield f"template {template!r}: no attribute or class {name!r}{did_you_mean(name, names)}"
        yield from brace_mistakes([template])


def brace_mistakes(templates: Sequence[str]) -> Iterator[str]:
    """Yield templates with unmatched braces."""
    for template in templates:
        if set("{}") & set(FIELD.sub("", template)):
            yield f"template {template!r}: unmatched brace; write fields as {{name}}"


def phrase_mistakes(classes: Mapping[str, Sequence[str]], background: Sequence[str]) -> Iterator[str]:
    """Yield phrases that are listed more than once."""
    phrases = [*(phrase for listed in classes.values() for phrase in listed), *background]
    for phrase, uses in Counter(one_line(phrase).casefold() for phrase in phrases).items():
        if uses > 1:
            yield f"the phrase {phrase!r} is listed {uses} times in classes and background; list it once"


def unused_mistakes(templates: Sequence[str], names: Iterable[str], what: str = "attribute") -> Iterator[str]:
    """Yield names that no template uses."""
    used = {name for template in templates for name in FIELD.findall(template)}
    for name in names:
        if name not in used:
            yield (
                f"no template uses the {what} {name!r}, neither {_some(templates, ' nor ')}; "
                f"write {{{name}}} in one, or remove it"
            )


def duplicate_mistakes(
    texts: Sequence[str], choices: Sequence[Choice], templates: Sequence[str]
) -> Iterator[str]:
    """Yield texts that result from two ways to fill the templates."""
    first: dict[str, Choice] = {}
    for text, choice in zip(texts, choices, strict=True):
        if first.setdefault(text, choice) != choice:
            ways = f"{templates[first[text][0]]!r} and {templates[choice[0]]!r}"
            yield f"the templates {ways} both give the text {text!r}; remove or change one"


def nameless_mistakes(texts: Sequence[str], traced: Sequence[tuple[Phrase, ...]]) -> Iterator[str]:
    """Yield a line if there are texts that name no class."""
    pairs = zip(texts, traced, strict=True)
    nameless = list(
        dict.fromkeys(text for text, found in pairs if all(phrase.class_name is None for phrase in found))
    )
    if nameless:
        yield (
            f"{len(nameless)} of {len(set(texts))} prompts name no object of any class, e.g. "
            f"{_some(nameless, ', ')}; "
            f"add the words that name the object to a class, or write {{class}} in the template"
        )


def class_mistakes(
    traced: Sequence[tuple[Phrase, ...]],
    templates: Sequence[str],
    attributes: Mapping[str, Values],
    classes: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Yield classes that no prompt can name; that a small sample misses a class is allowed."""
    sources = [*templates, *(value for values in attributes.values() for value in weights_of(values))]
    everything = one_line(" | ".join(sources)).casefold()
    seen = {phrase.class_name for found in (*traced, *find_phrases(sources, classes, ())) for phrase in found}
    for name, phrases in classes.items():
        mentions = [f"{{{name}}}", *(one_line(phrase) for phrase in phrases)]
        if name not in seen and not any(mention.casefold() in everything for mention in mentions):
            yield (
                f"no prompt can name the class {name!r}: neither {{{name}}} nor any of its phrases "
                f"({', '.join(phrases)}) occurs in a template or in a value of an attribute"
            )


def _some(texts: Sequence[str], between: str) -> str:
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN and between != ", " else []
    return between.join([*(repr(text) for text in texts[:_SHOWN]), *more])
