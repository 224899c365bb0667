"""Prompt templates x attribute values -> Prompts with the phrases to trace.

Knows which words of a text name an object. Does not know tokenizers (whether a phrase survives the model's
token limit is checked where the prompt is encoded), images or seeds of images.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence

from diffugen.errors import PromptError
from diffugen.prompts.mistakes import (
    class_mistakes,
    field_mistakes,
    list_mistakes,
    name_mistakes,
    nameless_mistakes,
    phrase_mistakes,
    raise_all,
    sampling_mistakes,
    twin_mistakes,
    unused_mistakes,
)
from diffugen.prompts.phrases import find_phrases
from diffugen.prompts.sampling import Space, Values, choose
from diffugen.records import Prompt

MAX_PROMPTS = 1_000_000
"""More prompts than this are taken for a slip: templates with many fields multiply fast."""


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

    A template's ``{field}`` is an attribute or a class; a class is filled from its phrases, and its choice is
    kept in ``Prompt.attributes`` like any other. A field that stands twice in a template gets the same value
    in both places. The phrases of a prompt are those that ``diffugen.prompts.phrases.find_phrases`` finds in
    its text.

    The samplings are ``product`` (every combination, in the order of the templates and of the values, the
    last field changing fastest; cut off after ``count``), ``sample`` (combinations drawn by the weights of
    their values) and ``balanced``: templates take turns as evenly as their numbers of combinations permit,
    each value of a field is used in proportion to its weight, rounded up or down, and each pair of values of
    two fields of one template as close to that as swaps of single values bring it.

    Where all weights are equal, each sampling starts again only when every combination was used, but
    ``balanced`` rather repeats one, rarely, than give up the balance of values. Otherwise a combination is
    repeated when it is due by weight.

    Args:
        templates: Texts with ``{field}`` places, e.g. ``"a photo of a {colour} {piano} on a road"``.
        attributes: From a field's name to the values it can take, or to their weights (at least 0, one above
            0; only their ratios matter): ``{"weather": {"sunny": 3, "rainy": 1}}``. A value of weight 0 is
            not used.
        classes: From a class name to the phrases that name it, e.g. ``{"piano": ["grand piano", "piano"]}``.
        background: Words that name no object but compete with the objects for pixels, e.g. ``["road",
            "sky"]``.
        negative: Negative text of every prompt.
        count: How many prompts, at least 1; None for as many as there are combinations.
        sampling: ``balanced``, ``sample`` or ``product``; the last has no use for weights.
        seed: Seed of the choice and of its order; ``product`` does not use it.

    Returns:
        ``count`` prompts. A repeated prompt is equal to its first, so its image needs another seed to be
        another image.

    Raises:
        PromptError: All that is wrong with the arguments in one list, or the prompts in which no class
            occurs, or two ways to fill the templates that give the same text.

    Example:
        >>> [prompt] = make_prompts(["a {colour} {piano}"], {"colour": ["red"]}, {"piano": ["grand piano"]}, ["road"])
        >>> prompt.text, prompt.phrases
        ('a red grand piano', (Phrase(text='grand piano', class_name='piano'),))
    """
    raise_all(
        [
            *list_mistakes("templates", templates),
            *name_mistakes(attributes, classes, background),
            *sampling_mistakes(sampling, count, attributes),
        ]
    )
    lists = {**attributes, **classes}
    raise_all(
        [
            *field_mistakes(templates, lists),
            *unused_mistakes(templates, attributes),
            *phrase_mistakes(classes, background),
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
    raise_all(twin_mistakes(texts, choices, templates))
    traced = find_phrases(texts, classes, background)
    raise_all(nameless_mistakes(texts, traced))
    raise_all(class_mistakes(traced, templates, attributes, classes))
    return [
        Prompt(text, phrases, negative, spaces[number].named(values), spaces[number].template)
        for text, phrases, (number, values) in zip(texts, traced, choices, strict=True)
    ]
