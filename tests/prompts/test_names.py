"""One rule for class names and for words, and that every place follows it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from diffugen.diffusion.tokens import locate
from diffugen.prompts.names import matching_names, occurrences, plain
from diffugen.prompts.phrases import find_phrases
from diffugen.records import one_line
from tests.support.tiny_parts import clip_tokenizer

SAME = ["traffic cone", "Traffic Cone", "traffic_cone", "traffic-cone", "TrafficCone", " TRAFFIC  CONE "]


@pytest.mark.parametrize("name", SAME)
def test_names_that_are_the_same(name: str) -> None:
    assert plain(name) == plain(SAME[0])
    assert matching_names([name, "car"], ["traffic cone"]) == {name: "traffic cone"}


def test_accents_are_the_same_however_they_are_written() -> None:
    assert plain("café") == plain("cafe\u0301") != plain("cafe")
    assert one_line("a  cafe\u0301\n") == "a café"
    [phrases] = find_phrases([one_line("a cafe\u0301 on a road")], {"café": ["café"]}, [])
    assert [one.class_name for one in phrases] == ["café"]


def test_an_exact_match_takes_precedence() -> None:
    assert matching_names(["car", "Car"], ["Car", "car"]) == {"car": "car", "Car": "Car"}
    assert matching_names(["CAR", "car"], ["car"]) == {"CAR": "car", "car": "car"}


TEXTS = {
    "a hyphen belongs to a word": ("a car on a car-free road", ["car"], [["car"]]),
    "part of a word": ("a cart", ["car"], [[]]),
    "an underscore belongs to a word": ("a car_wash", ["car"], [[]]),
    "the longest counts": ("a fire truck and a truck", ["truck", "fire truck"], [["truck"], ["fire truck"]]),
    "whatever the case": ("a Grand PIANO", ["grand piano"], [["Grand PIANO"]]),
    "whatever the white space": ("a grand\n piano", ["grand piano"], [["grand\n piano"]]),
    "beside punctuation": ("car, (car) car's", ["car"], [["car", "car", "car"]]),
    "the same twice": ("a car", ["car", "Car"], [["car"], ["car"]]),
    "an empty phrase": ("a car", ["", "car"], [[], ["car"]]),
    "special characters": ("a c++ sign", ["c++", "c"], [["c++"], []]),
}


@pytest.mark.parametrize(("text", "phrases", "expected"), TEXTS.values(), ids=TEXTS)
def test_where_phrases_occur(text: str, phrases: list[str], expected: list[list[str]]) -> None:
    found = occurrences(text, phrases)
    assert [[text[start:end] for start, end in spans] for spans in found] == expected


WORDS = st.sampled_from(["car", "fire", "truck", "fire-truck", "Car", "road", "carts"])


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(st.lists(WORDS, min_size=1, max_size=2), max_size=4))
def test_occurrences_do_not_overlap_and_are_the_phrases(words: list[str], wanted: list[list[str]]) -> None:
    text, phrases = " ".join(words), [" ".join(one) for one in wanted]
    found = occurrences(text, phrases)
    taken = sorted({span for spans in found for span in spans})
    assert all(first[1] <= second[0] for first, second in pairwise(taken))
    for phrase, spans in zip(phrases, found, strict=True):
        assert all(text[start:end].casefold() == phrase.casefold() for start, end in spans)
        alone = len(re.findall(rf"(?<!\S){re.escape(phrase)}(?!\S)", text, re.IGNORECASE))
        assert len(spans) <= alone
        if alone and len(phrases) == 1:
            assert spans


def test_prompts_and_tracing_find_the_same_words() -> None:
    """A class that a prompt names is traced at its own word, not inside another one."""
    text = "a fire truck and a truck on a truck-free road"
    tokenizer = clip_tokenizer()
    [phrases] = find_phrases([text], {"truck": ["truck"], "fire truck": ["fire truck"]}, [])
    places = locate(tokenizer, text, [one.text for one in phrases])
    words = ["".join(tokenizer.decode([tokenizer(text).input_ids[at]]) for at in one) for one in places]
    found = {one.class_name: word.replace(" ", "") for one, word in zip(phrases, words, strict=True)}
    assert found == {"truck": "truck", "fire truck": "firetruck"}
