"""Combine prompt templates with attribute values into prompts, with the phrases to trace.

Knows which words of a text name an object. Does not know images, their seeds, or tokenizers: whether a phrase
fits into the token limit of a model is checked where the prompt is encoded.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from itertools import chain

from diffugen.errors import PromptError
from diffugen.prompts.mistakes import (
    class_mistakes,
    duplicate_mistakes,
    field_mistakes,
    list_mistakes,
    name_mistakes,
    nameless_mistakes,
    phrase_mistakes,
    raise_all,
    sampling_mistakes,
    unused_mistakes,
)
from diffugen.prompts.phrases import find_phrases
from diffugen.prompts.sampling import Options, Space, Values, choose
from diffugen.records import Prompt

MAX_PROMPTS = 1_000_000
"""Upper limit of prompts; more are probably a mistake, because the combinations of many fields multiply
fast."""


def make_prompts(
    templates: Sequence[str],
    attributes: Mapping[str, Values],
    classes: Mapping[str, Sequence[str]],
    background: Sequence[str] = (),
    negative: str = "",
    count: int | None = None,
    sampling: str = "balanced",
    seed: int = 0,
) -> list[Prompt]:
    """Fill templates with attribute values and find the phrases that name an object.

    A template's ``{field}`` is an attribute or a class. A class is filled from its phrases, and the choice is
    kept in ``Prompt.attributes`` like any other. A field that occurs twice in a template gets the same value
    in both places. `diffugen.prompts.phrases.find_phrases` finds the phrases of a prompt in its text.

    Samplings:

    - ``product``: every combination, in the order of the templates and values, the last field changing
    fastest,
      truncated to ``count``.
    - ``sample``: combinations drawn at random, by the weights of their values.
    - ``balanced``: templates alternate as evenly as their numbers of combinations allow, each value of a
    field is
      used in proportion to its weight (rounded up or down), and pairs of values of two fields of a template
      are balanced by swapping values.

    With equal weights, combinations repeat only after all have been used, except that ``balanced``
    occasionally repeats one to keep the values balanced. Otherwise a combination repeats as often as its
    weight implies.

    Args:
        templates: Texts with ``{field}`` placeholders, e.g. ``"a photo of a {colour} {piano} on a road"``.
        attributes: For each field, its values, optionally with weights: ``{"weather": {"sunny": 3, "rainy":
            1}}``. Weights are at least 0, one of them above 0, and only their ratios matter; a weight of 0
            excludes a value.
        classes: For each class, the phrases that name it, e.g. ``{"piano": ["grand piano", "piano"]}``.
        background: Words that compete with the objects for pixels but name none, e.g. ``["road", "sky"]``.
        negative: Negative text of every prompt.
        count: Number of prompts, at least 1; None for every combination once.
        sampling: ``balanced``, ``sample`` or ``product``; ``product`` does not allow weights.
        seed: Seed of the choice and of its order; ``product`` does not use it.

    Returns:
        ``count`` prompts. Repeated prompts are equal; their images differ only if their seeds do.

    Raises:
        PromptError: All mistakes in the arguments at once, prompts that name no class, or two ways to fill
            the templates that give the same text.

    Example:
        >>> classes = {"piano": ["grand piano"]}
        >>> [prompt] = make_prompts(["a {colour} {piano}"], {"colour": ["red"]}, classes, ["road"])
        >>> prompt.text, prompt.phrases
        ('a red grand piano', (Phrase(text='grand piano', class_name='piano'),))
    """
    raise_all(
        chain(
            list_mistakes("templates", templates),
            name_mistakes(attributes, classes, background),
            sampling_mistakes(sampling, count, attributes),
        )
    )
    lists = {**attributes, **classes}
    raise_all(
        chain(
            field_mistakes(templates, lists),
            unused_mistakes(templates, attributes),
            phrase_mistakes(classes, background),
        )
    )
    options = {name: Options.of(values) for name, values in lists.items()}
    spaces = [Space.of(template, options) for template in templates]
    total = sum(space.size for space in spaces)
    wanted = total if count is None else count
    if wanted > MAX_PROMPTS or total > sys.maxsize:
        raise PromptError(
            f"{wanted:,} prompts requested, from {total:,} combinations of templates and values; "
            f"give a count of at most {MAX_PROMPTS:,}, or fewer values"
        )
    choices = choose(spaces, wanted, sampling, random.Random(seed))
    texts = [spaces[number].fill(values) for number, values in choices]
    raise_all(duplicate_mistakes(texts, choices, templates))
    traced = find_phrases(texts, classes, background)
    raise_all(nameless_mistakes(texts, traced))
    raise_all(class_mistakes(traced, templates, attributes, classes))
    return [
        Prompt(text, phrases, negative, spaces[number].named(values), spaces[number].template)
        for text, phrases, (number, values) in zip(texts, traced, choices, strict=True)
    ]
