"""Prompts for images that are made of other images.

Knows what a prompt passes on to the prompts of its children. Does not know the images.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from diffugen.prompts.mistakes import (
    brace_mistakes,
    hint,
    list_mistakes,
    name_mistakes,
    nameless_mistakes,
    phrase_mistakes,
    raise_all,
    unused_mistakes,
    value_mistakes,
)
from diffugen.prompts.phrases import find_phrases
from diffugen.prompts.sampling import Space, Values, weights_of
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
    """Make prompts for images that are made of other images (``img2img``, ``inpaint``).

    A field that is named in ``changes`` gets another value than the parent has; a parent that has the only
    value there is has no children by that template. Any other field keeps the parent's value;
    where the parent has none, it is filled from ``attributes``, or from the phrases of the class of that
    name. Each choice is the value that was used least so far, relative to its weight, and one parent's
    prompts are different where there are several. Phrases are found as in
    ``diffugen.prompts.make.make_prompts``.

    Args:
        parents: The prompts of the images; None for a photo without one.
        templates: Texts with ``{field}`` places, which take turns; if empty, each child has its parent's own
            template.
        changes: From a field to the values, or their weights, that replace the parent's.
        attributes: From a field to the values, or their weights, for what a parent does not say.
        classes: From a class name to the phrases that name it.
        background: Words that name no object but compete with the objects for pixels.
        negative: Negative text of every prompt.
        images_each: How many prompts for each parent, at least 1.
        seed: Seed of the choice between values that were used equally often.

    Returns:
        For each parent its ``images_each`` prompts, or none where nothing can change.

    Raises:
        PromptError: All that is wrong with the arguments in one list, fields that cannot be filled, parents
            without a template where ``templates`` is empty, parents of which none can change, or the prompts
            in which no class occurs.

    Example:
        >>> parent = Prompt("a car, sunny", (), attributes={"weather": "sunny"}, template="a car, {weather}")
        >>> [[child]] = child_prompts([parent], changes={"weather": ["sunny", "snowy"]}, classes={"car": ["car"]})
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
        raise_all(_orphan_mistakes(parents))
    own = [parent.template for parent in parents if parent is not None]
    raise_all(unused_mistakes(templates or list(dict.fromkeys(own)), changes, "changed attribute"))
    sources = {**classes, **attributes}
    raise_all(_gap_mistakes(parents, templates, changes, sources))
    balance = _Balance(random.Random(seed))
    chosen, counts = [], []
    for parent in parents:
        kept, others = _kept(parent, changes), _other_values(parent, changes)
        spaces = [
            Space.of(template, {**sources, **others, **kept})
            for template in _templates_of(parent, templates)
            if not _stuck(template, others)
        ]
        counts.append(images_each if spaces else 0)
        chosen += balance.choose(spaces, counts[-1], set(kept))
    if not chosen:
        raise_all(_stuck_mistakes(parents, templates, changes))
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
    """Chooses what was used least so far."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._templates: Counter[str] = Counter()
        self._values: Counter[tuple[str, str]] = Counter()

    def choose(
        self, spaces: Sequence[Space], count: int, kept: set[str]
    ) -> list[tuple[Space, tuple[str, ...]]]:
        """Choose combinations of one parent: different texts, then all of them again; kept fields are no
        choice.
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
        """Yield all combinations, those of the least used template and values first."""
        for space in sorted(spaces, key=lambda one: (self._templates[one.template], self._rng.random())):
            fields = zip(space.fields, space.values, space.shares, strict=True)
            orders = [self._least_used_first(name, dict(zip(*pair, strict=True))) for name, *pair in fields]
            for values in itertools.product(*orders):
                yield space, values

    def _least_used_first(self, name: str, shares: Mapping[str, float]) -> list[str]:
        # With half a use added, values come up in proportion to their weights from the first choice on.
        return sorted(
            shares, key=lambda value: ((self._values[name, value] + 0.5) / shares[value], self._rng.random())
        )


def _templates_of(parent: Prompt | None, templates: Sequence[str]) -> Sequence[str]:
    return templates or ([] if parent is None else [parent.template])


def _kept(parent: Prompt | None, changes: Mapping[str, Values]) -> dict[str, list[str]]:
    """Return the parent's values that its children have too."""
    given = {} if parent is None else parent.attributes
    return {name: [value] for name, value in given.items() if name not in changes}


def _other_values(parent: Prompt | None, changes: Mapping[str, Values]) -> dict[str, dict[str, float]]:
    """Return the values to change to, without the parent's own."""
    given = {} if parent is None else parent.attributes
    return {
        name: {value: weight for value, weight in weights_of(values).items() if value != given.get(name)}
        for name, values in changes.items()
    }


def _orphan_mistakes(parents: Sequence[Prompt | None]) -> Iterator[str]:
    photos = sum(parent is None for parent in parents)
    if photos:
        yield f"{photos} of {len(parents)} sources have no prompt, so nothing says what to draw; give the task templates"
    bare = [parent.text for parent in parents if parent is not None and not parent.template]
    if bare:
        yield f"{len(bare)} of {len(parents)} sources have a prompt without a template, e.g. {bare[0]!r}; give the task templates"


def _gap_mistakes(
    parents: Sequence[Prompt | None],
    templates: Sequence[str],
    changes: Mapping[str, Values],
    sources: Mapping[str, Values],
) -> Iterator[str]:
    """Yield fields that cannot be filled for some parent."""
    for parent in parents:
        known = {**sources, **_kept(parent, changes), **changes}
        for template in _templates_of(parent, templates):
            for name in dict.fromkeys(FIELD.findall(template)):
                if name not in known:
                    yield (
                        f"template {template!r}: no value for {name!r}, which is neither an attribute nor a "
                        "class and "
                        f"which the source's prompt does not have{hint(name, list(known))}"
                    )


def _stuck(template: str, others: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the fields that are to change and have no other value."""
    return [name for name in dict.fromkeys(FIELD.findall(template)) if name in others and not others[name]]


def _stuck_mistakes(
    parents: Sequence[Prompt | None], templates: Sequence[str], changes: Mapping[str, Values]
) -> Iterator[str]:
    for parent in parents:
        for template in _templates_of(parent, templates):
            for name in _stuck(template, _other_values(parent, changes)):
                yield (
                    f"template {template!r}: {name!r} is to change, but the only value to change to is "
                    f"{next(iter(weights_of(changes[name])))!r}, which every source's prompt has already; "
                    "give another"
                )
