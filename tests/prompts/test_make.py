"""Prompts: filled templates, traced phrases, coverage, and a clear message for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffugen.config.generation import SAMPLINGS
from diffugen.errors import PromptError
from diffugen.prompts.coverage import PairCoverage, coverage, pair_coverage
from diffugen.prompts.make import make_prompts
from diffugen.records import Phrase, Prompt
from tests.support.children import WAIT_SECONDS

PIANO = {"piano": ["grand piano", "piano"]}
VEHICLES = {"car": ["car", "sports car"], "truck": ["truck"], "fire engine": ["fire truck"]}


def one(text: str, classes: dict[str, list[str]], background: tuple[str, ...] = ()) -> Prompt:
    [prompt] = make_prompts([text], {}, classes, background)
    return prompt


def test_attributes_and_classes_are_filled_in() -> None:
    prompts = make_prompts(
        ["a {colour} {piano} on a road, {weather}"],
        {"colour": ["red", "black"], "weather": ["sunny", "in the rain"]},
        PIANO,
        background=["road"],
        negative="blurry",
        sampling="product",
    )
    assert len(prompts) == 8
    assert prompts[0] == Prompt(
        "a red grand piano on a road, sunny",
        (Phrase("grand piano", "piano"), Phrase("road", None)),
        "blurry",
        {"colour": "red", "piano": "grand piano", "weather": "sunny"},
        "a {colour} {piano} on a road, {weather}",
    )
    assert prompts[-1].text == "a black piano on a road, in the rain"
    assert prompts[-1].phrases[0] == Phrase("piano", "piano")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a car", [("car", "car")]),
        ("A Sports  Car,\nparked", [("Sports Car", "car")]),
        ("a car and a sports car", [("sports car", "car")]),
        ("a truck and a car", [("car", "car"), ("truck", "truck")]),
        ("a fire truck", [("fire truck", "fire engine")]),
        ("a fire truck and a truck", [("truck", "truck"), ("fire truck", "fire engine")]),
        ("a car on a carpet by a car-park", [("car", "car")]),
        ("a car++ on a Road, a blue sky", [("car", "car"), ("blue sky", None), ("Road", None)]),
        ("a car's wheel", [("car", "car")]),
    ],
)
def test_traced_phrases(text: str, expected: list[tuple[str, str | None]]) -> None:
    classes = {
        name: phrases for name, phrases in VEHICLES.items() if any(name == owner for _, owner in expected)
    }
    if "fire truck" in text:
        classes["truck"] = ["truck"]
        classes = {name: VEHICLES[name] for name in VEHICLES if name in classes}
    phrases = one(text, classes, ("blue sky", "sky", "road")).phrases
    assert [(phrase.text, phrase.class_name) for phrase in phrases] == expected


def test_regex_characters_in_phrases_are_literal() -> None:
    assert one("a <my-car> (red)", {"car": ["<my-car>"]}, ("(red)",)).phrases == (
        Phrase("<my-car>", "car"),
        Phrase("(red)", None),
    )


def test_class_names_with_blanks_are_fields() -> None:
    [prompt] = make_prompts(["a {traffic cone}"], {}, {"traffic cone": ["orange cone"]})
    assert prompt.text == "a orange cone"
    assert prompt.phrases == (Phrase("orange cone", "traffic cone"),)


def test_a_repeated_prompt_is_equal_to_its_first() -> None:
    prompts = make_prompts(["a {colour} car"], {"colour": ["red", "blue"]}, {"car": ["car"]}, count=6)
    assert len(prompts) == 6
    assert len({prompt.id for prompt in prompts}) == 2


def test_coverage_counts_values() -> None:
    prompts = make_prompts(
        ["a {piano}, {time}", "a {colour} {piano}, {time}"],
        {"time": ["day", "night"], "colour": ["red"]},
        PIANO,
        count=4,
    )
    counts = coverage(prompts)
    assert list(counts) == ["colour", "piano", "time"]
    assert counts["time"] == {"day": 2, "night": 2}
    assert counts["piano"] == {"grand piano": 2, "piano": 2}
    assert counts["colour"] == {"red": 2}
    assert coverage([]) == {}


def test_weights_decide_how_often_a_value_is_used() -> None:
    weather = {"sunny": 3, "rainy": 1, "foggy": 0}
    arguments: dict[str, Any] = {
        "templates": ["a {colour} car, {weather}"],
        "attributes": {"weather": weather, "colour": ["red", "blue"]},
        "classes": {"car": ["car"]},
    }
    assert coverage(make_prompts(**arguments, count=80)) == {
        "colour": {"blue": 40, "red": 40},
        "weather": {"rainy": 20, "sunny": 60},
    }
    assert len(make_prompts(**arguments)) == 4, "as many as there are combinations"
    drawn = coverage(make_prompts(**arguments, count=80, sampling="sample"))["weather"]
    assert drawn.keys() == {"rainy", "sunny"} and drawn["sunny"] > 50


def test_product_accepts_equal_weights() -> None:
    made = make_prompts(
        ["a {colour} car"],
        {"colour": {"red": 2, "blue": 2, "green": 0}},
        {"car": ["car"]},
        sampling="product",
    )
    assert [prompt.text for prompt in made] == ["a red car", "a blue car"]


def test_the_template_is_kept_but_does_not_change_the_id() -> None:
    [filled] = make_prompts(["a {colour} car"], {"colour": ["red"]}, {"car": ["car"]})
    assert filled.template == "a {colour} car"
    assert filled.id == one("a red car", {"car": ["car"]}).id


def test_pair_coverage() -> None:
    prompts = make_prompts(
        ["a {colour} car, {time}", "a {time} car on {ground}"],
        {"colour": ["red", "blue"], "time": {"day": 1, "night": 1, "dusk": 0}, "ground": ["mud", "sand"]},
        {"car": ["car"]},
        sampling="product",
        count=5,
    )
    values: dict[str, Any] = {"time": ["day", "night"], "ground": {"mud": 1, "sand": 1, "ice": 0}}
    assert pair_coverage(prompts, values) == [
        PairCoverage(("colour", "time"), possible=4, used=4, least=1, most=1),
        PairCoverage(("ground", "time"), possible=4, used=1, least=0, most=1),
    ]
    assert pair_coverage(prompts)[1] == PairCoverage(("ground", "time"), possible=2, used=1, least=0, most=1)
    assert pair_coverage([]) == []


def test_balanced_covers_more_pairs_more_evenly_than_sample() -> None:
    lists = {name: [f"{name}{number}" for number in range(6)] for name in ("colour", "time", "weather")}
    found = {}
    for sampling in ("balanced", "sample"):
        prompts = make_prompts(
            ["a {colour} car, {time}, {weather}"],
            lists,
            {"car": ["car"]},
            count=72,
            sampling=sampling,
            seed=1,
        )
        found[sampling] = pair_coverage(prompts, lists)
    assert [(pair.used, pair.least, pair.most) for pair in found["balanced"]] == [(36, 2, 2)] * 3
    assert all(pair.used < 36 and pair.most >= 4 for pair in found["sample"])


def test_prompts_are_the_same_in_every_process() -> None:
    code = (
        "from diffugen.prompts.make import make_prompts;"
        "print([p.id for p in make_prompts(['a {c} car, {t}'], {'c': ['red', 'blue', 'tan'], 't': ['day', "
        "'night']},"
        " {'car': ['car']}, count=5, seed=7)])"
    )
    root = str(Path(__file__).parents[2])
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=env,
            timeout=WAIT_SECONDS,
        ).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": root}, {"PYTHONHASHSEED": "2", "PYTHONPATH": root})
    }
    assert len(runs) == 1


GOOD: dict[str, Any] = {
    "templates": ["a {colour} car"],
    "attributes": {"colour": ["red", "blue"]},
    "classes": {"car": ["car"]},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"templates": []}, ["templates is empty"]),
        ({"templates": "a {colour} car"}, ["templates is the text 'a {colour} car'", "list"]),
        ({"templates": ["a {colour} car"] * 2}, ["templates contains 'a {colour} car' 2 times"]),
        ({"templates": ["a {colour} car", " "]}, ["templates contains an empty text"]),
        (
            {"templates": ["a {color} car", "a {colour} car"]},
            ["no attribute or class 'color'", "did you mean 'colour'"],
        ),
        ({"templates": ["a {colour} car {"]}, ["unmatched brace"]),
        ({"templates": ["a {colour} car {}"]}, ["no attribute or class ''"]),
        (
            {"templates": ["a {colour} dog", "a car"]},
            ["2 of 3 prompts name no object", "'a blue dog'", "'a red dog'"],
        ),
        (
            {"templates": ["a {colour} car", "a red car"]},
            ["both give the text 'a red car'", "'a {colour} car'"],
        ),
        ({"templates": ["a car"]}, ["no template uses the attribute 'colour'", "neither 'a car'"]),
        (
            {"templates": ["a car", "one car", "two cars", "a car!", "car"]},
            ["'a car' nor 'one car' nor 'two cars' nor 2 more"],
        ),
        (
            {"templates": ["a {color} car"]},
            ["template 'a {color} car'", "'color'", "no template uses the attribute 'colour'"],
        ),
        ({"attributes": {"colour": {}}}, ["attributes.colour is empty"]),
        ({"attributes": {"colour": {"red": 0, "blue": 0}}}, ["attributes.colour: every weight is 0"]),
        ({"attributes": {"colour": {"red": -1, "blue": 2}}}, ["the weight of 'red' is -1", "0 or more"]),
        ({"attributes": {"colour": {"red": float("nan"), "blue": 2}}}, ["the weight of 'red' is nan"]),
        ({"attributes": {"colour": {"red": float("inf"), "blue": 2}}}, ["the weight of 'red' is inf"]),
        ({"attributes": {"colour": {" ": 1}}}, ["attributes.colour contains an empty text"]),
        (
            {"attributes": {"colour": {"red": 3, "blue": 1}}, "sampling": "product"},
            ["attributes.colour has weights (red 3, blue 1)", "product", "balanced or sample"],
        ),
        ({"classes": {"car": {"car": 1}}}, ["classes.car has weights", "list"]),
        (
            {
                "templates": ["a {thing}"],
                "attributes": {"thing": {"car": 1, "dog": 0}},
                "classes": {"car": ["car"], "dog": ["dog"]},
            },
            ["no prompt can name the class 'dog'"],
        ),
        ({"attributes": {"colour": []}}, ["attributes.colour is empty"]),
        ({"attributes": {"colour": ["red", "red"]}}, ["attributes.colour contains 'red' 2 times"]),
        ({"attributes": {"colour": ["red"], "car": ["van"]}}, ["'car' is both an attribute and a class"]),
        ({"classes": {}}, ["classes is empty"]),
        ({"classes": {"car": []}}, ["classes.car is empty"]),
        ({"classes": {"car": "car"}}, ["classes.car is the text 'car'"]),
        ({"classes": {"car": ["car"], "auto": ["Car"]}}, ["'car' is listed 2 times"]),
        (
            {"classes": {"car": ["car"], "dog": ["dog", "hound"]}},
            ["no prompt can name the class 'dog'", "hound"],
        ),
        ({"background": ["car"]}, ["'car' is listed 2 times"]),
        ({"background": "road"}, ["background is the text 'road'"]),
        ({"count": 0}, ["count is 0"]),
        ({"count": 1_000_001}, ["1,000,001 prompts requested", "1,000,000"]),
        ({"sampling": "random"}, ["unknown sampling 'random'", "sample"]),
        ({"sampling": "ballanced"}, ["'ballanced'", "did you mean 'balanced'", *SAMPLINGS]),
        ({"count": -1, "sampling": "all"}, ["2 mistakes", "count is -1", "unknown sampling 'all'"]),
    ],
)
def test_errors_name_the_mistake(change: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        make_prompts(**{**GOOD, **change})
    for words in expected:
        assert words in str(caught.value)


def test_a_small_sample_may_miss_a_class() -> None:
    prompts = make_prompts(
        ["a {thing}"], {"thing": ["car", "dog"]}, {"car": ["car"], "dog": ["dog"]}, count=1
    )
    assert len(prompts) == 1
