"""Find the positions of a phrase's words in the text sequence that a denoiser attends to.

Knows tokenizers and which of a pipeline's text encoders feed the denoiser. Does not know attention or images.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffugen.diffusion.families import ADVICE, TEXT_ENCODERS, denoiser_of
from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, PromptError
from diffugen.prompts.names import occurrences


@dataclass(frozen=True)
class TokenIndex:
    """Token positions of the phrases of one prompt.

    Attributes:
        positions: For each phrase, the indices of its tokens in the denoiser's text sequence, ascending.
        ids: For each text encoder, by attribute name (``"text_encoder"``), the token ids with which its input
            must begin. This detects pipelines that wrap the prompt in a template, which would shift the
            positions.
    """

    positions: tuple[tuple[int, ...], ...]
    ids: Mapping[str, tuple[int, ...]]


def locate(tokenizer: Any, text: str, phrases: Sequence[str]) -> list[list[int]]:
    """Find the tokens of each phrase in a prompt.

    Matches as `diffugen.prompts.names.occurrences`: whole words, whatever the case, and not inside a longer
    phrase of the list. The result covers all occurrences of a phrase, all tokens of a word that is split, and
    all vectors of a textual-inversion token.

    Args:
        tokenizer: A transformers tokenizer.
        text: The prompt.
        phrases: Phrases exactly as in the prompt, apart from case.

    Returns:
        For each phrase, the ascending indices of its tokens in ``tokenizer(text)``, including special tokens.

    Raises:
        PromptError: A phrase is not in the prompt, or all its occurrences lie beyond the tokenizer's limit.

    Example:
        >>> locate(clip_tokenizer, "a red car", ["car"])
        [[3]]
    """
    expanded = _expand_vectors(tokenizer, text)
    spans, kept = _token_spans(tokenizer, expanded)
    found = occurrences(expanded, [_expand_vectors(tokenizer, phrase) for phrase in phrases])
    return [_find(phrase, text, places, spans, kept) for phrase, places in zip(phrases, found, strict=True)]


def index_tokens(pipeline: Any, text: str, phrases: Sequence[str]) -> TokenIndex:
    """Find the tokens of each phrase in the text sequence of a pipeline's denoiser.

    Stable Diffusion 3 attends to two concatenated sequences (CLIP, then T5); a phrase is traced in both.

    Args:
        pipeline: A diffusers text-to-image pipeline.
        text: The prompt.
        phrases: Phrases exactly as in the prompt, apart from case.

    Raises:
        PromptError: A phrase is not in the prompt, or all its occurrences lie beyond the tokenizer's limit.
        ModelError: The pipeline has no text encoder.
    """
    positions: list[list[int]] = [[] for _ in phrases]
    failures: dict[int, PromptError] = {}
    ids: dict[str, tuple[int, ...]] = {}
    encoded = _as_encoded(pipeline, text)
    for encoder, tokenizer, offset in _text_sources(pipeline):
        expanded = _expand_vectors(tokenizer, encoded)
        _, kept = _token_spans(tokenizer, expanded)
        ids[encoder] = tuple(_encode(tokenizer, expanded)["input_ids"][:kept])
        for number, phrase in enumerate(phrases):
            try:
                positions[number] += [offset + index for index in locate(tokenizer, encoded, [phrase])[0]]
            except PromptError as error:
                failures.setdefault(number, error)
    for number, found in enumerate(positions):
        if not found:
            raise failures[number]
    return TokenIndex(tuple(tuple(found) for found in positions), ids)


def unread(pipeline: Any, text: str) -> str:
    """Return the end of a text that no text encoder of the denoiser reads, as it is too long; mostly empty.

    Args:
        pipeline: A diffusers text-to-image pipeline.
        text: A prompt or negative prompt.

    Raises:
        ModelError: The pipeline has no text encoder.
    """
    rests = []
    encoded = _as_encoded(pipeline, text)
    given = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    for _, tokenizer, _ in _text_sources(pipeline):
        # The pipeline decides how much T5 reads, CLIP itself.
        of_pipeline = given is not None and "CLIP" not in type(tokenizer).__name__
        limit = int(given.default) if given is not None and of_pipeline else tokenizer.model_max_length
        expanded = _expand_vectors(tokenizer, encoded)
        spans, kept = _token_spans(tokenizer, expanded, limit)
        rest = [left for left, right in spans[kept:] if right > left]
        rests.append(expanded[min(rest) :].strip() if rest else "")
    return min(rests, key=len)


def _as_encoded(pipeline: Any, text: str) -> str:
    """Return the prompt as the tokenizer receives it: PixArt, for one, lowercases and cleans it first."""
    prepare = getattr(pipeline, "_text_preprocessing", None)
    cleans = inspect.signature(type(pipeline).__call__).parameters.get("clean_caption")
    if prepare is None or cleans is None:
        return text
    with quiet():
        return str(prepare(text, clean_caption=cleans.default)[0])


def _text_sources(pipeline: Any) -> list[tuple[str, Any, int]]:
    """Return attribute name, tokenizer and offset in the text sequence of each encoder attended to."""
    if getattr(pipeline, "text_encoder_3", None) is not None:
        return [
            ("text_encoder", pipeline.tokenizer, 0),
            ("text_encoder_3", pipeline.tokenizer_3, pipeline.tokenizer_max_length),
        ]
    names = [name for name in TEXT_ENCODERS[:2] if getattr(pipeline, name, None) is not None]
    if not names:
        raise ModelError(
            f"{type(pipeline).__name__} has no text_encoder, so words cannot be traced. {ADVICE}"
        )
    # Flux attends to its second encoder only; SDXL to both, concatenated along channels. The encoder's width
    # tells which is the case.
    config = denoiser_of(pipeline).config
    width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
    fitting = [name for name in names if getattr(pipeline, name).config.hidden_size == width]
    encoder = (fitting or names)[0]
    return [(encoder, getattr(pipeline, encoder.replace("text_encoder", "tokenizer")), 0)]


def _expand_vectors(tokenizer: Any, text: str) -> str:
    """Spell out all vectors of a textual-inversion token, as diffusers does before encoding a prompt."""
    added = tokenizer.added_tokens_encoder
    for token in added:
        if f"{token}_1" in added and token in text:
            count = 1
            while f"{token}_{count}" in added:
                count += 1
            text = text.replace(token, " ".join([token, *(f"{token}_{i}" for i in range(1, count))]))
    return text


def _encode(tokenizer: Any, text: str, **wanted: bool) -> Any:
    return tokenizer(text, truncation=False, return_special_tokens_mask=True, verbose=False, **wanted)


def _token_spans(tokenizer: Any, text: str, limit: int | None = None) -> tuple[list[tuple[int, int]], int]:
    """Return the character span of each token, and the number of tokens left after truncation.

    The number does not include special tokens at the end. The limit is by default the tokenizer's own.
    """
    if tokenizer.is_fast:
        encoding = _encode(tokenizer, text, return_offsets_mapping=True)
        special = encoding["special_tokens_mask"]
        spans = [
            (0, 0) if mark else tuple(span)
            for mark, span in zip(special, encoding["offset_mapping"], strict=True)
        ]
    else:
        special = _encode(tokenizer, text)["special_tokens_mask"]
        spans = [(0, 0)] * len(special)
        lead = special.index(0) if 0 in special else 0
        # Without offsets, a word's tokens are those of the text up to the word's end minus those of the text
        # up to its start.
        for word in re.finditer(r"\w+|[^\w\s]+", text):
            first, last = (len(tokenizer.tokenize(text[:end].rstrip())) for end in word.span())
            spans[lead + first : lead + last] = [word.span()] * (last - first)
    closing = next((i for i, mark in enumerate(reversed(special)) if not mark), len(special))
    return spans, min(len(special), limit or tokenizer.model_max_length) - closing


def _find(
    phrase: str, text: str, places: Sequence[tuple[int, int]], spans: list[tuple[int, int]], kept: int
) -> list[int]:
    if not places:
        raise PromptError(
            f"the phrase {phrase!r} is not in the prompt {text!r}. Write it as in the prompt: whole words, "
            "in the same order; case does not matter."
        )
    found: set[int] = set()
    for start, end in places:
        tokens = [i for i, (left, right) in enumerate(spans) if left < end and right > start]
        if tokens and tokens[-1] < kept:
            found.update(tokens)
    if not found:
        raise PromptError(
            f"the phrase {phrase!r} lies beyond the token limit of the prompt {text!r}: the text encoder "
            f"reads the first {kept} of its {len(spans)} tokens. Shorten the prompt or move the phrase "
            "towards its start."
        )
    return sorted(found)
