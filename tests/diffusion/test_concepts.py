"""Maps in the output space: equal to the method written out, and the images stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

from diffugen.diffusion.concepts import ConceptVectors, trace_outputs
from diffugen.diffusion.generate import check_jobs, generate
from diffugen.diffusion.tokens import index_tokens
from diffugen.errors import ModelError, PromptError
from diffugen.records import Phrase, Prompt
from tests.diffusion.test_generate import CAR, PIANO, plan
from tests.diffusion.test_tracing import PROMPTS, Maps, call

FAMILIES = ("sd3", "flux", "chroma")
CONCEPTS = (("car", "sky", "grand piano"), ("grand piano", "road"))


def compared(
    pipeline: Any,
    prompts: Sequence[str] = PROMPTS,
    concepts: Sequence[Sequence[str]] = CONCEPTS,
    **settings: Any,
) -> tuple[Any, Maps]:
    vectors = ConceptVectors(pipeline)
    tokens = [index_tokens(pipeline, prompt, []) for prompt in prompts]
    with trace_outputs(pipeline, tokens, [vectors.of(words) for words in concepts]) as tracer:
        images = call(pipeline, prompts, **settings)
    return images, tracer.maps()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_stay_as_they_are_and_maps_are_shares(build: Callable[[str], Any], family: str) -> None:
    pipeline = build(family)
    plain = call(pipeline)
    images, maps = compared(pipeline)
    assert np.array_equal(images, plain) and np.array_equal(call(pipeline), plain)
    for found, words in zip(maps, CONCEPTS, strict=True):
        assert len(found) == len(pipeline.transformer.transformer_blocks)
        for name, array in found.items():
            assert name.startswith("joint-0") and array.shape[:2] == (len(words), 3)
            assert array.dtype == np.float16 and array.min() >= 0
            np.testing.assert_allclose(array.astype(float).sum(axis=0), 1, atol=2e-3)
            assert array.std() > 1e-4, "not flat"


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_do_not_depend_on_the_batch_or_the_order_of_concepts(
    build: Callable[[str], Any], family: str
) -> None:
    pipeline = build(family)
    _, together = compared(pipeline)
    for number, (prompt, words, expected) in enumerate(zip(PROMPTS, CONCEPTS, together, strict=True)):
        [alone] = compared(pipeline, [prompt], [words[::-1]], first_seed=number)[1]
        for name, array in alone.items():
            np.testing.assert_allclose(array[::-1].astype(float), expected[name], atol=3e-3)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_maps_are_those_of_the_method_written_out(build: Callable[[str], Any], family: str) -> None:
    """One step, one image, every block: norms, projections, softmax, gates and feed-forward layers."""
    pipeline = build(family)
    words = list(CONCEPTS[0])
    vectors = ConceptVectors(pipeline).of(words)[None]
    blocks = list(pipeline.transformer.transformer_blocks)
    seen: list[dict[str, Any]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
        for block in blocks
    ]
    settings: dict[str, Any] = {
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
    }  # without guidance, no negative prompt
    call(pipeline, PROMPTS[:1], **settings)
    for hook in hooks:
        hook.remove()
    [found] = compared(pipeline, PROMPTS[:1], [words], **settings)[1]
    with torch.no_grad():
        stream = pipeline.transformer.context_embedder(vectors)
        for block, given, array in zip(blocks, seen, found.values(), strict=True):
            expected, stream = written_out(block, given, stream)
            assert array.shape[0] == len(words)
            flat = array[:, 0].reshape(len(words), -1).T
            assert expected.std() > 5e-3
            np.testing.assert_allclose(flat, expected[0].numpy(), atol=3e-4)


def written_out(block: Any, given: dict[str, Any], concepts: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return the softmax over concepts, (1, cells, C), of a block, and the concepts after it."""
    image, text, temb = (given[name] for name in ("hidden_states", "encoder_hidden_states", "temb"))
    rotary = given.get("image_rotary_emb")

    def attend(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return what the image's cells and the words get from both, and the words' gates."""
        attn, own = block.attn, block.norm1(image, emb=temb)[0]
        theirs, *gates = (
            [block.norm1_context(words, temb)]
            if getattr(block, "context_pre_only", False)
            else block.norm1_context(words, emb=temb)
        )
        parts = []
        for kind in "qkv":
            of_image = getattr(attn, f"to_{kind}")(own).unflatten(-1, (attn.heads, -1))
            of_words = getattr(attn, f"add_{kind}_proj")(theirs).unflatten(-1, (attn.heads, -1))
            if kind != "v" and getattr(attn, f"norm_{kind}", None) is not None:
                of_image = getattr(attn, f"norm_{kind}")(of_image)
                of_words = getattr(attn, f"norm_added_{kind}")(of_words)
            if kind != "v" and rotary is not None:
                at_words, at_image = (
                    tuple(one[part] for one in rotary)
                    for part in (slice(words.shape[1]), slice(text.shape[1], None))
                )
                of_image = apply_rotary_emb(of_image, at_image, sequence_dim=1)
                of_words = apply_rotary_emb(of_words, at_words, sequence_dim=1)
            parts.append(torch.cat([of_words, of_image], dim=1).transpose(1, 2))
        query, key, value = parts
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return out[:, words.shape[1] :], out[:, : words.shape[1]], gates

    of_image, (_, of_concepts, gates) = attend(text)[0], attend(concepts)
    likeness = (of_image @ of_concepts.transpose(1, 2)).softmax(dim=-1)
    if not gates:
        return likeness, None
    gate, shift, scale, gate_after = gates
    after = concepts + gate[:, None] * block.attn.to_add_out(of_concepts)
    inner = block.norm2_context(after) * (1 + scale[:, None]) + shift[:, None]
    return likeness, after + gate_after[:, None] * block.ff_context(inner)


def test_generated_images_have_maps_of_words_that_their_prompts_lack(build: Callable[[str], Any]) -> None:
    pipeline, settings = build("flux"), {"num_inference_steps": 3, "guidance_scale": 4.0}
    jobs = plan(CAR, PIANO, settings=settings)
    done = list(generate(pipeline, jobs, map="output", concepts=["sky", "Red"], keep_self_attention=True))
    plain = list(generate(pipeline, jobs))
    sky = Phrase("sky", None)
    for (record, image, heat_maps, _), (other, expected, *_) in zip(done, plain, strict=True):
        assert record == other and np.array_equal(image, expected)
        more = (sky,) if record.prompt == CAR else (sky, Phrase("Red", None))
        assert heat_maps.phrases == (*record.prompt.phrases, *more), "each word once"
        [array] = heat_maps.maps.values()
        np.testing.assert_allclose(array.astype(float).sum(axis=0), 1, atol=2e-3)
        assert heat_maps.self_attention is not None


def test_what_cannot_be_compared_is_refused_before_anything_is_made(build: Callable[[str], Any]) -> None:
    with pytest.raises(PromptError, match=r"'a grand piano on the road' 1 word can be .*diffusion\.concepts"):
        check_jobs(build("sd3"), plan(CAR, PIANO, settings={}), "output", [])
    check_jobs(build("sd3"), plan(CAR, PIANO, settings={}), "output", ["road"])
    for family, denoiser in (("sd", "UNet2DConditionModel"), ("pixart", "PixArtTransformer2DModel")):
        with pytest.raises(ModelError, match=rf"diffusion\.map is output, .* {denoiser} has none"):
            check_jobs(build(family), plan(CAR, settings={}), "output", [])
    with pytest.raises(ModelError, match="use the attention backend native"):
        list(generate(build("sd3"), plan(CAR), map="output", attention_backend="daam"))
    missing = Prompt("a road", (Phrase("car", "car"), Phrase("road", None)))
    with pytest.raises(PromptError, match="'car' is not in the prompt"):
        check_jobs(build("sd3"), plan(missing, settings={}), "output", [])
