"""Maps of concepts, checked against the arithmetic of the layers, written out without the tracer's code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn.functional import layer_norm, silu

from diffugen.diffusion.concepts import double_stream_blocks
from diffugen.diffusion.generate import check_jobs, generate
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError, PromptError
from diffugen.records import ImageRecord, Phrase, Prompt
from tests.diffusion.test_generate import plan
from tests.diffusion.test_tasks import job, source
from tests.diffusion.test_tracing import (
    PROMPTS,
    FluxProcessor,
    Maps,
    assert_close,
    call,
    softmax_of,
    split_heads,
    with_self_attention,
)
from tests.support.tiny_models import build_chroma, build_flux, build_sd3
from tests.support.tiny_parts import make_peaky

CONCEPTS = (("car", "sky", "red"), ("grand piano", "tree"))
"""Of the words of the first image, "sky" is not in its prompt, of those of the second, "tree"."""

ANIMALS = Prompt("a photo of a red car", (Phrase("car", "car"), Phrase("zebra", "zebra")))
JOINT: dict[str, Callable[[], Any]] = {
    "sd3": build_sd3,
    "flux": lambda: build_flux(layers=2),
    "chroma": lambda: build_chroma(layers=2),
}


def joint(family: str) -> Any:
    """Return a pipeline of two double-stream layers whose outputs differ from cell to cell."""
    pipeline = JOINT[family]()
    if family != "sd3":
        make_peaky(pipeline.transformer, 4.0)
    with torch.no_grad():
        for block in double_stream_blocks(pipeline.transformer).values():
            for layer in (block.attn.to_v, block.attn.add_v_proj):
                layer.weight.mul_(4.0)
    return pipeline


@pytest.fixture(name="pipeline", params=list(JOINT))
def pipeline_fixture(request: pytest.FixtureRequest) -> Any:
    return joint(request.param)


def traced(
    pipeline: Any,
    prompts: Sequence[str] = PROMPTS,
    concepts: Sequence[Sequence[str]] = CONCEPTS,
    *,
    keep_self_attention: bool = False,
    **settings: Any,
) -> tuple[Any, Maps, Sequence[Any]]:
    tokens = [index_tokens(pipeline, prompt, []) for prompt in prompts]
    with trace(pipeline, tokens, concepts=concepts, keep_self_attention=keep_self_attention) as tracer:
        images = call(pipeline, prompts, **settings)
    return images, tracer.maps(), tracer.self_attention()


def short(family: str) -> dict[str, Any]:
    """Return settings with which FLUX and Chroma read as many tokens as `FluxProcessor` says."""
    return {} if family == "sd3" else {"max_sequence_length": FluxProcessor.TEXT}


def modulation(norm: Any, temb: torch.Tensor, text: bool) -> tuple[torch.Tensor, ...]:
    """Return shift, scale and gate of attention, then of the MLP; only the first two in SD3's last layer."""
    if temb.ndim == 3:  # Chroma: the image's six, then the text's
        return temb[:, 6 * text : 6 * text + 6, None].unbind(1)
    values = norm.linear(silu(temb))[:, None].chunk(norm.linear.out_features // temb.shape[1], dim=-1)
    return values if len(values) == 6 else (values[1], values[0])  # here, scale comes before shift


def normed(side: torch.Tensor) -> torch.Tensor:
    return layer_norm(side, side.shape[-1:], eps=1e-6)


class WrittenOut:
    """The maps of an untraced call's concepts, (images, cells, concepts), by layer."""

    def __init__(self, pipeline: Any, family: str) -> None:
        self.pipeline, self.family = pipeline, family
        self.calls: dict[int, list[Any]] = defaultdict(list)

    def vector(self, word: str) -> torch.Tensor:
        """Encode a word alone and average its tokens: not the special ones, CLIP's two and T5's one."""
        pipeline, more = self.pipeline, {} if self.family != "sd3" else {"prompt_2": None, "prompt_3": None}
        encoded = pipeline.encode_prompt(prompt=[word], **more, **short(self.family))[0][0]
        t5 = {"sd3": "tokenizer_3", "flux": "tokenizer_2", "chroma": "tokenizer"}[self.family]
        places = list(range(len(getattr(pipeline, t5)(word).input_ids) - 1))
        if self.family == "sd3":
            clip = range(1, len(pipeline.tokenizer(word).input_ids) - 1)
            places = [*clip, *(pipeline.tokenizer.model_max_length + place for place in places)]
        assert places
        return encoded[places].mean(dim=0)

    def run(self, prompts: Sequence[str], concepts: Sequence[Sequence[str]], **settings: Any) -> None:
        entered: list[tuple[int, dict[str, Any]]] = []
        hooks = [
            block.register_forward_pre_hook(
                lambda _, args, kwargs, number=number: entered.append((number, kwargs)), with_kwargs=True
            )
            for number, block in enumerate(self.pipeline.transformer.transformer_blocks)
        ]
        call(self.pipeline, prompts, **settings)
        for hook in hooks:
            hook.remove()
        streams: list[torch.Tensor] = []
        with torch.no_grad():
            for number, given in entered:
                first = len(given["hidden_states"]) - len(prompts)  # rows of negative prompts come first
                if number == 0:
                    embed = self.pipeline.transformer.context_embedder
                    streams = [embed(torch.stack([self.vector(one) for one in some])) for some in concepts]
                found = [
                    self.layer(
                        number, {name: self.row(side, first + image) for name, side in given.items()}, one
                    )
                    for image, one in enumerate(streams)
                ]
                streams = [stream for _, stream in found]
                self.calls[number].append([one for one, _ in found])

    def row(self, side: Any, number: int) -> Any:
        return side[number : number + 1] if isinstance(side, torch.Tensor) else side

    def layer(self, number: int, given: dict[str, Any], concepts: torch.Tensor) -> tuple[Any, Any]:
        """Return the map (cells, concepts) and the concepts (concepts, channels) after one layer."""
        block = self.pipeline.transformer.transformer_blocks[number]
        attn, heads, image, text = (
            block.attn,
            block.attn.heads,
            given["hidden_states"],
            given["encoder_hidden_states"],
        )
        temb, rotary, mask = given["temb"], given.get("image_rotary_emb"), given.get("attention_mask")
        shift, scale, *_ = modulation(block.norm1, temb, False)
        image = normed(image) * (1 + scale) + shift
        shift, scale, *rest = modulation(block.norm1_context, temb, True)
        text = normed(text) * (1 + scale) + shift
        inner = normed(concepts[None]) * (1 + scale) + shift

        def keys(side: Any, project: Any, norm: Any, places: Any) -> Any:
            side = split_heads(project(side), heads)
            side = side if norm is None else norm(side)
            if rotary is None:
                return side
            return apply_rotary_emb(side, tuple(angles[places] for angles in rotary), sequence_dim=2)

        cells = slice(text.shape[1], None)
        own = [keys(image, attn.to_q, attn.norm_q, cells), keys(image, attn.to_k, attn.norm_k, cells)]
        words, few = slice(0, text.shape[1]), [0] * len(concepts)
        text_key = keys(text, attn.add_k_proj, attn.norm_added_k, words)
        query = keys(inner, attn.add_q_proj, attn.norm_added_q, few)
        key = keys(inner, attn.add_k_proj, attn.norm_added_k, few)
        value, text_value, inner_value = (
            split_heads(project(side), heads)
            for project, side in ((attn.to_v, image), (attn.add_v_proj, text), (attn.add_v_proj, inner))
        )
        bias: Any = 0.0
        if mask is not None:  # Chroma: of words, then cells
            bias = (mask[:, None, None] * mask[:, None, cells, None]).double()
        seen = softmax_of(own[0], torch.cat([text_key, own[1]], dim=2), bias)
        image_output = seen @ torch.cat([text_value, value], dim=2).double()
        attended = softmax_of(query, torch.cat([key, own[1]], dim=2))
        output = attended @ torch.cat([inner_value, value], dim=2).double()
        map_of = torch.softmax(
            image_output.transpose(1, 2).flatten(2) @ output.transpose(1, 2).flatten(2).mT, -1
        )
        if not rest:  # the last layer of SD3 drops the text
            return map_of[0], concepts
        gate, shift, scale, gate_mlp = rest
        concepts = concepts[None] + gate * attn.to_add_out(output.float().transpose(1, 2).flatten(2))
        concepts = concepts + gate_mlp * block.ff_context(normed(concepts) * (1 + scale) + shift)
        return map_of[0], concepts[0]

    def maps(self, counts: Sequence[int], thirds: Sequence[int]) -> Maps:
        found: Maps = [{} for _ in counts]
        for number, calls in self.calls.items():
            for image, count in enumerate(counts):
                expected = np.zeros((count, 3, 8, 12))
                for third in range(3):
                    picked = [one[image] for one, place in zip(calls, thirds, strict=True) if place == third]
                    expected[:, third] = torch.stack(picked).mean(0).T.reshape(count, 8, 12).numpy()
                found[image][f"joint-{number:02}-8x12"] = expected
        return found


@pytest.mark.parametrize("family", list(JOINT))
def test_maps_equal_those_written_out(family: str) -> None:
    """2 images with 3 and 2 concepts, 24x16 latents, 4 steps, 2 layers."""
    pipeline, settings = joint(family), short(family)
    if family == "chroma":
        settings["guidance_scale"] = 1.0  # otherwise negative prompts have a separate pass
    _, maps, _ = traced(pipeline, **settings)
    written = WrittenOut(pipeline, family)
    written.run(PROMPTS, CONCEPTS, **settings)
    assert_close(maps, written.maps([3, 2], thirds=[0, 0, 1, 2]))


def test_images_stay_bit_identical(pipeline: Any) -> None:
    """With self-attention, which is the same as where words are traced."""
    plain, own, _ = with_self_attention(pipeline)
    images, maps, self_attention = traced(pipeline, keep_self_attention=True)
    assert np.array_equal(plain, images) and np.array_equal(call(pipeline), images)
    assert all(np.array_equal(one, other) for one, other in zip(own, self_attention, strict=True))
    assert images[0].std() > 0.01
    for found, words in zip(maps, CONCEPTS, strict=True):
        assert list(found) == ["joint-00-8x12", "joint-01-8x12"]
        for array in found.values():
            assert array.dtype == np.float16 and array.shape == (len(words), 3, 8, 12)
            assert array.min() >= 0
            np.testing.assert_allclose(array.astype(float).sum(axis=0), 1, atol=2e-3)


def test_batched_maps_equal_single_ones(pipeline: Any) -> None:
    """Images with 3 and 2 concepts, so those of the second are filled up, and their words are others."""
    _, together, _ = traced(pipeline)
    for i in range(2):
        one = slice(i, i + 1)
        _, alone, _ = traced(pipeline, PROMPTS[one], CONCEPTS[one], first_seed=i)
        assert_close(together[one], alone)


def test_low_precision(pipeline: Any) -> None:
    """One step, because images in bfloat16 become others after more."""
    _, expected, _ = traced(pipeline, num_inference_steps=1)
    pipeline.to(torch.bfloat16)
    plain = call(pipeline, num_inference_steps=1)
    images, maps, _ = traced(pipeline, num_inference_steps=1)
    assert np.array_equal(plain, images)
    assert_close(maps, expected, tolerance=0.1)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
def test_generate(family: str, task: str) -> None:
    """The zebra is not in the prompt; "Car" is the prompt's own phrase already."""
    pipeline = joint(family)
    settings = {"num_inference_steps": 4, "guidance_scale": 4.0}
    record = plan(ANIMALS, settings=settings)[0] if task == "txt2img" else replaced(job(task))
    output: Any = {"map_kind": "output", "concepts": ("road", "Car", "sky", "Road")}
    check_jobs(pipeline, [record], **output)
    [(_, image, heat_maps, _)] = generate(pipeline, [record], source=source, **output)
    own = ImageRecord(**{**vars(record), "prompt": Prompt(ANIMALS.text, ANIMALS.phrases[:1])})
    [(_, plain, _, _)] = generate(pipeline, [own], source=source)
    assert np.array_equal(image, plain)
    assert heat_maps.phrases == (*ANIMALS.phrases, Phrase("road", None), Phrase("sky", None))
    assert {array.shape for array in heat_maps.maps.values()} == {(4, 3, 8, 12)}


def replaced(record: ImageRecord) -> ImageRecord:
    return ImageRecord(**{**vars(record), "prompt": ANIMALS})


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "aura-flow"])
def test_other_models_are_refused(build: Callable[[str], Any], family: str) -> None:
    with pytest.raises(ModelError, match=r"map: output needs a model with joint .* Set .* to probability"):
        check_jobs(build(family), plan(ANIMALS), map_kind="output")


def test_what_cannot_be_traced_is_refused() -> None:
    pipeline = joint("flux")
    car = Prompt(ANIMALS.text, ANIMALS.phrases[:1])
    settings = {"num_inference_steps": 1}
    with pytest.raises(PromptError, match=r"has only 'car'\. Add words .* diffusion\.concepts: \["):
        check_jobs(pipeline, plan(car, settings=settings), map_kind="output", concepts=["Car"])
    with pytest.raises(PromptError, match="has only none"), trace(pipeline, [], concepts=[[]]):
        pass
    with pytest.raises(PromptError, match="beyond the token limit"):
        check_jobs(pipeline, plan(car, settings=settings), map_kind="output", concepts=["sky " * 600])
    with pytest.raises(PromptError, match="'zebra' is not in the prompt"):
        check_jobs(pipeline, plan(ANIMALS, settings=settings))
    with pytest.raises(ModelError, match="unknown kind of map 'outputs'"):
        check_jobs(pipeline, plan(ANIMALS, settings=settings), map_kind="outputs")
    with pytest.raises(ModelError, match="'output' only"):
        check_jobs(pipeline, plan(car, settings=settings), concepts=["sky"])
    with pytest.raises(ModelError, match="daam does not trace concepts"):
        list(generate(pipeline, plan(ANIMALS), map_kind="output", attention_backend="daam"))
    pipeline.transformer.transformer_blocks[0].ff.compile(backend="eager")
    with pytest.raises(ModelError, match=r"compiled parts.* Set diffusion\.compile to false"):
        check_jobs(pipeline, plan(ANIMALS, settings=settings), map_kind="output")
