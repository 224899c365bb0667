"""Make prompts for images that start from other images.

Knows which values a prompt passes on to its children. Does not know the images.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from diffugen.errors import did_you_mean
from diffugen.prompts.mistakes import (
    brace_mistakes,
    list_mistakes,
    name_mistakes,
    nameless_mistakes,
    phrase_mistakes,
    raise_all,
    unused_mistakes,
    value_mistakes,
)
from diffugen.prompts.phrases import find_phrases
from diffugen.prompts.sampling import Options, Space, Values, weights_of
from diffugen.records import FIELD, Prompt


def child_prompts(
    parents: Sequence[Prompt | None],
    *,
    templates: Sequence[str] = (),
    changes: Mapping[str, Values] | None = None,
    attributes: Mapping[str, Values] | None = None,
    classes: Mapping[str, Sequence[str]],
    background: Sequence[str] = (),
    negative: str = "",
    images_each: int = 1,
    seed: int = 0,
) -> list[list[Prompt]]:
    """Make prompts for images that start from other images (``img2img``, ``inpaint``).

    A field named in ``changes`` gets a value other than the parent's; a template has no child for a parent
    that already has the only value. Every other field keeps the parent's value or, if the parent has none, is
    filled from ``attributes`` or from the phrases of the class of that name. The least used value is chosen,
    relative to its weight, and the prompts of a parent differ as long as combinations last. Phrases are found
    as in `diffugen.prompts.make.make_prompts`.

    Args:
        parents: The prompts of the images; None for a photo without a prompt.
        templates: Texts with ``{field}`` placeholders, used in turn; if empty, children use their parent's
            template.
        changes: For each field to change, the new values, optionally with weights.
        attributes: For each field that a parent may lack, the values, optionally with weights.
        classes: For each class, the phrases that name it.
        background: Words that compete with the objects for pixels but name none.
        negative: Negative text of every prompt.
        images_each: Number of prompts per parent, at least 1.
        seed: Seed of the choice between equally used values.

    Returns:
        A list per parent with ``images_each`` prompts, empty if nothing can change.

    Raises:
        PromptError: All mistakes in the arguments at once, fields that cannot be filled, parents without a
            template although ``templates`` is empty, no parent that can change, or prompts that name no
            class.

    Example:
        >>> parent = Prompt("a car, sunny", (), attributes={"weather": "sunny"}, template="a car, {weather}")
        >>> changes = {"weather": ["sunny", "snowy"]}
        >>> [[child]] = child_prompts([parent], changes=changes, classes={"car": ["car"]})
        >>> child.text
        'a car, snowy'
    """
    changes, attributes = changes or {}, attributes or {}
    raise_all(
        [
            *(list_mistakes("templates", templates) if templates else ()),
            *value_mistakes("changes", changes),
            *name_mistakes(attributes, classes, background),
            *([f"images_each is {images_each}; give at least 1"] if images_each < 1 else []),
        ]
    )
    raise_all([*brace_mistakes(templates), *phrase_mistakes(classes, background)])
    if not parents:
        return []
    if not templates:
        raise_all(_template_mistakes(parents))
    own = [parent.template for parent in parents if parent is not None]
    raise_all(unused_mistakes(templates or list(dict.fromkeys(own)), changes, "changed attribute"))
    sources = {**classes, **attributes}
    raise_all(_filling_mistakes(parents, templates, changes, sources))
    balance, known = (
        _Balance(random.Random(seed)),
        {name: Options.of(given) for name, given in sources.items()},
    )
    chosen, counts = [], []
    for parent in parents:
        kept, others = _kept(parent, changes), _other_values(parent, changes)
        own_values: dict[str, Values] = {**others, **kept}
        own_options = {name: Options.of(values) for name, values in own_values.items()}
        spaces = [
            Space.of(template, {**known, **own_options})
            for template in _templates_of(parent, templates)
            if not _unchangeable(template, others)
        ]
        counts.append(images_each if spaces else 0)
        chosen += balance.choose(spaces, counts[-1], set(kept))
    if not chosen:
        raise_all(_change_mistakes(parents, templates, changes))
    texts = [space.fill(values) for space, values in chosen]
    traced = find_phrases(texts, classes, background)
    raise_all(nameless_mistakes(texts, traced))
    made = [
        Prompt(text, phrases, negative, space.named(values), space.template)
        for text, phrases, (space, values) in zip(texts, traced, chosen, strict=True)
    ]
    rest = iter(made)
    return [list(itertools.islice(rest, count)) for count in counts]


class _Balance:
    """Chooses the least used templates and values."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._templates: Counter[str] = Counter()
        self._values: Counter[tuple[str, str]] = Counter()

    def choose(
        self, spaces: Sequence[Space], count: int, kept: set[str]
    ) -> list[tuple[Space, tuple[str, ...]]]:
        """Choose combinations for one parent, repeating a text only after all others were used.

        Values of kept fields do not count as used, because they were not chosen.
        """
        chosen = []
        taken: set[str] = set()
        for _ in range(count):
            ways = ((space, values, space.fill(values)) for space, values in self._ways(spaces))
            best = next((way for way in ways if way[2] not in taken), None)
            if best is None:
                taken.clear()
                space, values = next(self._ways(spaces))
                best = (space, values, space.fill(values))
            space, values, text = best
            taken.add(text)
            self._templates[space.template] += 1
            self._values.update(pair for pair in space.named(values).items() if pair[0] not in kept)
            chosen.append((space, values))
        return chosen

    def _ways(self, spaces: Sequence[Space]) -> Iterator[tuple[Space, tuple[str, ...]]]:
        """Yield all combinations, starting with the least used template and values."""
        for space in sorted(spaces, key=lambda one: (self._templates[one.template], self._rng.random())):
            orders = [
                self._least_used_first(name, dict(zip(one.values, one.shares, strict=True)))
                for name, one in zip(space.fields, space.options, strict=True)
            ]
            for values in itertools.product(*orders):
                yield space, values

    def _least_used_first(self, name: str, shares: Mapping[str, float]) -> list[str]:
        # Half a use is added so that the weights matter from the first choice on.
        return sorted(
            shares, key=lambda value: ((self._values[name, value] + 0.5) / shares[value], self._rng.random())
        )


def _templates_of(parent: Prompt | None, templates: Sequence[str]) -> Sequence[str]:
    return templates or ([] if parent is None else [parent.template])


def _kept(parent: Prompt | None, changes: Mapping[str, Values]) -> dict[str, list[str]]:
    """Return the values that a parent passes on."""
    given = {} if parent is None else parent.attributes
    return {name: [value] for name, value in given.items() if name not in changes}


def _other_values(parent: Prompt | None, changes: Mapping[str, Values]) -> dict[str, dict[str, float]]:
    """Return the values to change to, except the parent's own."""
    given = {} if parent is None else parent.attributes
    return {
        name: {value: weight for value, weight in weights_of(values).items() if value != given.get(name)}
        for name, values in changes.items()
    }


def _template_mistakes(parents: Sequence[Prompt | None]) -> Iterator[str]:
    photos = sum(parent is None for parent in parents)
    if photos:
        yield f"{photos} of {len(parents)} sources have no prompt to start from; give the task templates"
    bare = [parent.text for parent in parents if parent is not None and not parent.template]
    if bare:
        counts = f"{len(bare)} of {len(parents)}"
        yield f"{counts} sources have a prompt without a template, e.g. {bare[0]!r}; give the task templates"


def _filling_mistakes(
    parents: Sequence[Prompt | None],
    templates: Sequence[str],
    changes: Mapping[str, Values],
    sources: Mapping[str, Values],
) -> Iterator[str]:
    """Yield the fields that cannot be filled for at least one parent."""
    for parent in parents:
        known = {**sources, **_kept(parent, changes), **changes}
        for template in _templates_of(parent, templates):
            for name in dict.fromkeys(FIELD.findall(template)):
                if name not in known:
                    yield (
                        f"template {template!r}: no value for {name!r}: neither an attribute, a class nor a "
                        f"field of the source's prompt has this name{did_you_mean(name, known)}"
                    )


def _unchangeable(template: str, others: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the fields that should change but have no other value."""
    return [name for name in dict.fromkeys(FIELD.findall(template)) if name in others and not others[name]]


def _change_mistakes(
    parents: Sequence[Prompt | None], templates: Sequence[str], changes: Mapping[str, Values]
) -> Iterator[str]:
    for parent in parents:
        for template in _templates_of(parent, templates):
            for name in _unchangeable(template, _other_values(parent, changes)):
                only = next(iter(weights_of(changes[name])))
                yield (
                    f"template {template!r}: {name!r} should change, but every source already has its only "
                    f"value, {only!r}; add another value"
                )
