"""Prompts of images that start from other images: kept values, changed values, balance, and every mistake."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffugen.errors import PromptError
from diffugen.prompts.children import child_prompts
from diffugen.prompts.coverage import coverage
from diffugen.prompts.make import make_prompts
from diffugen.records import Phrase, Prompt
from tests.support.children import WAIT_SECONDS

PIANO = {"piano": ["grand piano", "piano"]}
LISTS = {"colour": ["red", "black"], "weather": ["sunny", "rainy", "snowy"]}
TEMPLATE = "a {colour} {piano} on a road, {weather}"
PARENTS = make_prompts([TEMPLATE], LISTS, PIANO, ["road"], sampling="product")


def children(parents: list[Prompt] | list[None] | list[Prompt | None], **changes: Any) -> list[list[Prompt]]:
    given: dict[str, Any] = {"attributes": LISTS, "classes": PIANO, "background": ["road"], **changes}
    return child_prompts(parents, **given)


def test_a_child_keeps_every_value_that_should_not_change() -> None:
    for parent, [child] in zip(
        PARENTS, children(PARENTS, changes={"weather": LISTS["weather"]}), strict=True
    ):
        assert child.template == TEMPLATE
        assert child.attributes["weather"] != parent.attributes["weather"]
        assert {**child.attributes, "weather": parent.attributes["weather"]} == parent.attributes
        assert (
            child.text
            == f"a {child.attributes['colour']} {child.attributes['piano']} on a road, "
            + (child.attributes["weather"])
        )
        assert child.phrases == parent.phrases


def test_without_changes_and_templates_a_child_equals_its_parent() -> None:
    assert [child for [child] in children(PARENTS)] == PARENTS
    assert children([]) == []


def test_phrases_and_negative_text() -> None:
    [[child]] = children(
        PARENTS[:1],
        templates=["a {piano} and a puddle on a Road"],
        negative="blurry",
        background=["road", "puddle"],
    )
    assert child == Prompt(
        "a grand piano and a puddle on a Road",
        (Phrase("grand piano", "piano"), Phrase("Road", None), Phrase("puddle", None)),
        "blurry",
        {"piano": "grand piano"},
        "a {piano} and a puddle on a Road",
    )


def test_values_come_from_changes_then_the_parent_then_attributes_then_phrases() -> None:
    parent = Prompt("a red piano", (), attributes={"colour": "red", "weather": "hail"}, template="x")
    [[child]] = children(
        [parent],
        templates=["{colour}, {weather}, {time}, {piano}"],
        changes={"weather": ["fog"]},
        attributes={**LISTS, "time": ["night"]},
    )
    assert child.text.startswith("red, fog, night, ")
    assert child.attributes["piano"] in PIANO["piano"]


def test_photos_without_a_prompt() -> None:
    made = children([None, PARENTS[0], None], templates=["a {colour} {piano}"], images_each=2)
    assert [len(prompts) for prompts in made] == [2, 2, 2]
    assert made[1][0] == made[1][1], "the parent has both values, so there is only one combination"
    assert len({prompt.text for prompt in made[0]}) == 2


def test_choices_are_balanced_over_all_children() -> None:
    made = children(
        PARENTS,
        templates=[TEMPLATE, "a {piano}, {weather}"],
        changes={"weather": [*LISTS["weather"], "foggy"]},
    )
    flat = [child for [child] in made]
    assert Counter(child.template for child in flat) == {TEMPLATE: 6, "a {piano}, {weather}": 6}
    assert coverage(flat)["weather"] == {"foggy": 3, "rainy": 3, "snowy": 3, "sunny": 3}
    photos = [child for pair in children([None] * 9, templates=[TEMPLATE], images_each=2) for child in pair]
    counts = coverage(photos)
    assert counts["weather"] == {"rainy": 6, "snowy": 6, "sunny": 6}
    assert counts["colour"] == {"black": 9, "red": 9} and counts["piano"] == {"grand piano": 9, "piano": 9}


def test_kept_values_do_not_count_as_choices() -> None:
    sunny = [prompt for prompt in PARENTS if prompt.attributes["weather"] == "sunny"]
    made = children([*sunny, *[None] * 6], templates=[TEMPLATE])
    assert coverage([child for [child] in made[len(sunny) :]])["weather"] == {
        "rainy": 2,
        "snowy": 2,
        "sunny": 2,
    }


def test_values_are_chosen_by_weight() -> None:
    made = children(
        [None] * 40,
        templates=["a {piano}, {weather}"],
        attributes={"weather": {"sunny": 3, "rainy": 1, "foggy": 0}},
    )
    assert coverage([child for [child] in made])["weather"] == {"rainy": 10, "sunny": 30}
    changed = children(PARENTS, changes={"weather": {"sunny": 0, "rainy": 1, "foggy": 5}})
    uses = coverage([child for [child] in changed])["weather"]
    assert uses.keys() == {"foggy", "rainy"} and uses["foggy"] >= 9


def test_one_parent_has_different_prompts_where_possible() -> None:
    for [*prompts] in children(
        PARENTS, changes={"weather": ["fog", "hail", "sunny"], "colour": ["red", "blue"]}, images_each=4
    ):
        texts = Counter(prompt.text for prompt in prompts)
        possible = sum(value != prompts[0].attributes["weather"] for value in ("fog", "hail", "sunny"))
        assert len(texts) >= min(4, possible)
    [prompts] = children([PARENTS[0]], changes={"weather": ["fog", "hail"]}, images_each=5)
    assert sorted(Counter(prompt.text for prompt in prompts).values()) == [2, 3]


def test_every_combination_is_used_before_one_repeats() -> None:
    [prompts] = children([None], templates=[TEMPLATE, "a {piano}"], images_each=14)
    assert len({prompt.text for prompt in prompts}) == 14


def test_top_level_attributes_need_not_be_used() -> None:
    [[child]] = children([None], templates=["a {piano}"])
    assert child.template == "a {piano}"


def test_the_choice_depends_on_the_seed_but_not_on_the_process() -> None:
    code = (
        "from diffugen.prompts.children import child_prompts;"
        "print([p.text for [p] in child_prompts([None] * 9, templates=['a {c} car, {t}', 'a {t} car'],"
        " attributes={'c': ['red', 'blue', 'tan'], 't': ['day', 'night']}, classes={'car': ['car']}, "
        "seed=SEED)])"
    )
    root = str(Path(__file__).parents[2])
    runs = [
        subprocess.run(
            [sys.executable, "-c", code.replace("SEED", seed)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": root},
            timeout=WAIT_SECONDS,
        ).stdout
        for seed, hashes in (("1", "1"), ("1", "2"), ("2", "1"))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_source_that_already_has_the_only_new_value_has_no_children() -> None:
    made = children(PARENTS, changes={"weather": ["rainy"]}, images_each=2)
    for parent, prompts in zip(PARENTS, made, strict=True):
        assert len(prompts) == (0 if parent.attributes["weather"] == "rainy" else 2)
        assert all(child.attributes == {**parent.attributes, "weather": "rainy"} for child in prompts)


def test_a_source_that_cannot_change_in_one_template_uses_another() -> None:
    templates = ["a {piano}, {weather}", "a {colour} {piano} in a field"]
    made = children(PARENTS, templates=templates, changes={"weather": ["rainy"]}, images_each=4)
    for parent, prompts in zip(PARENTS, made, strict=True):
        assert len(prompts) == 4
        assert ("rainy" in " ".join(child.text for child in prompts)) is (
            parent.attributes["weather"] != "rainy"
        )


BARE = Prompt("a piano", (), template="")


@pytest.mark.parametrize(
    ("parents", "arguments", "expected"),
    [
        ([None, PARENTS[0]], {}, ["1 of 2 sources have no prompt", "give the task templates"]),
        (
            [BARE],
            {},
            ["1 of 1 sources have a prompt without a template", "'a piano'", "give the task templates"],
        ),
        (PARENTS, {"templates": ["a {piano} {"]}, ["unmatched brace"]),
        (PARENTS, {"templates": "a {piano}"}, ["templates is the text 'a {piano}'"]),
        (
            [None],
            {"templates": ["a {wether} {piano}"]},
            ["'a {wether} {piano}'", "'wether'", "did you mean 'weather'"],
        ),
        (
            PARENTS,
            {"changes": {"time": ["day"]}},
            ["no template uses the changed attribute 'time'", repr(TEMPLATE)],
        ),
        (
            PARENTS,
            {"templates": ["a {piano}"], "changes": {"weather": ["foggy"]}},
            ["no template uses the changed attribute 'weather'", "'a {piano}'"],
        ),
        (
            PARENTS[:1],
            {"changes": {"weather": ["sunny"]}},
            ["'weather' should change", "'sunny'", "add another value"],
        ),
        (
            PARENTS[:1],
            {"changes": {"weather": {"sunny": 1, "rainy": 0}}},
            ["'weather' should change", "'sunny'", repr(TEMPLATE)],
        ),
        (PARENTS, {"changes": {"weather": []}}, ["changes.weather is empty"]),
        (PARENTS, {"changes": {"weather": {"a": 0}}}, ["changes.weather: every weight is 0"]),
        (PARENTS, {"images_each": 0}, ["images_each is 0"]),
        (PARENTS, {"classes": {}}, ["classes is empty"]),
        (PARENTS, {"background": ["Piano"]}, ["'piano' is listed 2 times"]),
        (PARENTS, {"templates": ["a road"]}, ["1 of 1 prompts name no object", "'a road'"]),
        (PARENTS, {"classes": {"dog": ["dog"]}}, ["12 of 12 prompts name no object"]),
        (
            PARENTS,
            {"images_each": 0, "changes": {"weather": "fog"}},
            ["2 mistakes", "the text 'fog'", "images_each"],
        ),
    ],
)
def test_errors_name_the_mistake(
    parents: list[Prompt | None], arguments: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(PromptError) as caught:
        children(parents, **arguments)
    for words in expected:
        assert words in str(caught.value)
