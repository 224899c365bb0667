from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from diffugen.diffusion.tokens import index_tokens, locate, unread
from diffugen.errors import PromptError


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("a red car", "car", [3]),
        ("A Red CAR", "car", [3]),
        ("a red car", "Red Car", [2, 3]),
        ("a grand piano on the road", "grand piano", [2, 3]),
        ("a grand  piano", "grand piano", [2, 3]),  # white space does not matter
        ("a car and a car", "car", [2, 5]),  # every occurrence
        ("a tuba", "tuba", [2, 3, 4, 5]),  # a word of several tokens
        ("a tuba, red", "red", [7]),  # punctuation is a token
        ("a car's road", "car", [2]),
        ("a scar and a car", "car", [6]),  # whole words only: "scar" is split into "s" and "car"
    ],
)
def test_locate_with_clip(clip_tokenizer: Any, text: str, phrase: str, expected: list[int]) -> None:
    assert locate(clip_tokenizer, text, [phrase]) == [expected]


def test_locate_keeps_the_order_of_the_phrases(clip_tokenizer: Any) -> None:
    assert locate(clip_tokenizer, "a red car", ["car", "red"]) == [[3], [2]]


def test_locate_with_t5(t5_tokenizer: Any) -> None:
    """T5 has no start token, and a space belongs to the following word."""
    assert locate(t5_tokenizer, "a red car, a tuba", ["car", "red", "tuba"]) == [[2], [1], [5, 6, 7, 8, 9]]


def test_locate_without_offsets() -> None:
    """In a byte tokenizer, a space belongs to the following word."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    assert locate(tokenizer, "a scar, a car", ["car", "a"]) == [[9, 10, 11, 12], [0, 7, 8]]


def test_locate_a_textual_inversion_with_several_vectors(sd: Any) -> None:
    sd.load_textual_inversion({"<cone>": torch.randn(3, 32)}, token="<cone>")
    text = "a <cone> on the road"
    assert locate(sd.tokenizer, text, ["<cone>", "road"]) == [[2, 3, 4], [7]]
    converted = sd.tokenizer(sd.maybe_convert_prompt(text, sd.tokenizer)).input_ids
    assert sd.tokenizer.convert_ids_to_tokens(converted)[2:5] == ["<cone>", "<cone>_1", "<cone>_2"]


@pytest.mark.parametrize("phrase", ["truck", "ca", "car red", ""])
def test_a_phrase_that_is_not_in_the_prompt(clip_tokenizer: Any, phrase: str) -> None:
    with pytest.raises(PromptError, match=rf"'{phrase}' is not in the prompt 'a red car'"):
        locate(clip_tokenizer, "a red car", [phrase])


def test_a_phrase_beyond_the_limit(clip_tokenizer: Any) -> None:
    text = " ".join(["red"] * 80 + ["car"])
    with pytest.raises(PromptError, match=r"'car' lies beyond the token limit .* first 76 of its 83 tokens"):
        locate(clip_tokenizer, text, ["car"])
    assert locate(clip_tokenizer, text, ["red"]) == [list(range(1, 76))]


def test_the_last_position_before_the_limit(clip_tokenizer: Any) -> None:
    """77 positions: a start token, 75 words, an end token."""
    assert locate(clip_tokenizer, " ".join(["red"] * 74 + ["car"]), ["car"]) == [[75]]
    with pytest.raises(PromptError):
        locate(clip_tokenizer, " ".join(["red"] * 75 + ["car"]), ["car"])


def test_index_tokens_follows_the_encoders(any_pipeline: Any) -> None:
    """UNets read CLIP's tokens, Flux and PixArt only T5's, Stable Diffusion 3 both, concatenated."""
    expected = {
        "StableDiffusionPipeline": ((3,), {"text_encoder": 4}),
        "StableDiffusionXLPipeline": ((3,), {"text_encoder": 4}),
        "StableDiffusion3Pipeline": ((3, 77 + 2), {"text_encoder": 4, "text_encoder_3": 3}),
        "LatentConsistencyModelPipeline": ((3,), {"text_encoder": 4}),
        "FluxPipeline": ((2,), {"text_encoder_2": 3}),
        "ChromaPipeline": ((2,), {"text_encoder": 3}),
        "PixArtSigmaPipeline": ((2,), {"text_encoder": 3}),
        "PixArtAlphaPipeline": ((2,), {"text_encoder": 3}),
    }
    index = index_tokens(any_pipeline, "a red car", ["car"])
    positions, lengths = expected[type(any_pipeline).__name__]
    assert index.positions == (positions,)
    assert {name: len(ids) for name, ids in index.ids.items()} == lengths


def test_prompts_that_the_pipeline_rewrites(build: Callable[[str], Any]) -> None:
    """PixArt lowercases prompts, so positions refer to the tokens of the lowercased prompt."""
    pixart = build("pixart")
    plain, capital = (index_tokens(pixart, text, ["Car"]) for text in ("a red car", "A  Red Car"))
    assert capital == plain


def encoded(pipeline: Any, text: str) -> torch.Tensor:
    """What the denoiser attends to."""
    known = inspect.signature(pipeline.encode_prompt).parameters
    given = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "device": "cpu"}
    limit = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    if limit is not None:
        given["max_sequence_length"] = limit.default
    more = {key: value for key, value in given.items() if key in known}
    others = {key: None for key in ("prompt_2", "prompt_3") if key in known}
    with torch.no_grad():
        found = pipeline.encode_prompt(prompt=text, **others, **more)
    return torch.as_tensor(found[0])


def test_the_unread_end_of_a_prompt_changes_nothing(any_pipeline: Any) -> None:
    assert unread(any_pipeline, "a red car") == ""
    text = "a car on a road " * 150
    rest = unread(any_pipeline, text)
    assert rest and text.rstrip().endswith(rest)
    read = text.rstrip().removesuffix(rest)
    assert torch.equal(encoded(any_pipeline, text), encoded(any_pipeline, read + "piano " * 150))
    last = read.rstrip().rpartition(" ")[0]
    assert not torch.equal(encoded(any_pipeline, text), encoded(any_pipeline, f"{last} piano " + rest))
