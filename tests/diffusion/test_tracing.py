from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import apply_rotary_emb
from PIL import Image

from diffugen.diffusion.families import TRACEABLE, denoiser_of
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError, PromptError

PROMPTS = ("a photo of a red car", "a grand piano on the road")
PHRASES = (("car",), ("grand piano", "road"))
Maps = list[dict[str, Any]]


def call(pipeline: Any, prompts: Sequence[str] = PROMPTS, *, first_seed: int = 0, **settings: Any) -> Any:
    """Generate at 96x64 pixels (width x height): 24x16 latents."""
    settings = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 96, "height": 64} | settings
    taken = inspect.signature(type(pipeline).__call__).parameters
    if "use_resolution_binning" in taken:  # PixArt's own sizes are those of its real models
        settings["use_resolution_binning"] = False
    settings = {name: value for name, value in settings.items() if name in taken}
    generators = [torch.Generator().manual_seed(first_seed + i) for i in range(len(prompts))]
    return pipeline(list(prompts), generator=generators, output_type="np", **settings).images


def traced(
    pipeline: Any,
    prompts: Sequence[str] = PROMPTS,
    phrases: Sequence[Sequence[str]] = PHRASES,
    **settings: Any,
) -> tuple[Any, Maps]:
    tokens = [index_tokens(pipeline, *pair) for pair in zip(prompts, phrases, strict=True)]
    with trace(pipeline, tokens) as tracer:
        images = call(pipeline, prompts, **settings)
    return images, tracer.maps()


def with_self_attention(
    pipeline: Any,
    prompts: Sequence[str] = PROMPTS,
    phrases: Sequence[Sequence[str]] = PHRASES,
    **settings: Any,
) -> tuple[Any, list[Any], Maps]:
    tokens = [index_tokens(pipeline, *pair) for pair in zip(prompts, phrases, strict=True)]
    with trace(pipeline, tokens, keep_self_attention=True) as tracer:
        images = call(pipeline, prompts, **settings)
    return images, list(tracer.self_attention()), tracer.maps()


def assert_same_self_attention(left: Sequence[Any], right: Sequence[Any], tolerance: float = 1e-3) -> None:
    """Require equal self-attention up to rounding, relative to its maximum, and that it is not flat."""
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(b.max()))
        assert float(b.astype(np.float64).std()) > 0.01 * float(b.max())


def assert_close(left: Maps, right: Maps, tolerance: float = 1e-3) -> None:
    """Require equal maps up to rounding, relative to each map's maximum, and that no map is flat."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for group in a:
            assert a[group].shape == b[group].shape
            np.testing.assert_allclose(a[group], b[group], rtol=0, atol=tolerance * float(b[group].max()))
            assert float(b[group].astype(np.float64).std()) > 0.01 * float(b[group].max())


def test_images_stay_bit_identical(any_pipeline: Any) -> None:
    plain = call(any_pipeline)
    images, maps = traced(any_pipeline)
    assert np.array_equal(plain, images)
    assert plain[0].std() > 0.01
    images, self_attention, others = with_self_attention(any_pipeline)
    assert np.array_equal(plain, images)
    assert all(np.array_equal(maps[0][group], others[0][group]) for group in maps[0])
    grid_hw = (16, 24) if hasattr(any_pipeline, "unet") else (8, 12)
    for array in self_attention:
        assert array.dtype == np.float16 and array.shape == (*grid_hw, *grid_hw)
        assert array.min() >= 0
        np.testing.assert_allclose(array.astype(float).sum(axis=(2, 3)), 1, atol=2e-3)
    for found, phrases in zip(maps, PHRASES, strict=True):
        for array in found.values():
            assert array.dtype == np.float16
            assert array.shape[:2] == (len(phrases), 3)
            assert array.min() >= 0
            assert 0 < array.max() <= 1


# A reference that shares no code with the tracer: processors that compute and keep the whole softmax.


class Reference:
    """Collects softmaxes (images, image queries, text tokens), averaged over heads, by layer group.

    Those between image queries and keys are collected too, normalised and averaged over heads.
    """

    def __init__(self, pipeline: Any) -> None:
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.between_cells: list[Any] = []
        layers = 0
        for name, module in denoiser_of(pipeline).named_modules():
            if hasattr(module, "set_processor") and name.endswith("attn1"):
                module.set_processor(CrossProcessor(self.keep_cells))
            elif hasattr(module, "set_processor"):
                place = {"down_": "down", "mid_b": "mid", "up_bl": "up"}.get(name[:5], f"joint-{layers:02}")
                module.set_processor(self.processor(type(pipeline).__name__, place))
                layers += 1

    def processor(self, family: str, place: str) -> Any:
        def keep(softmax: torch.Tensor) -> None:
            shape = {384: "16x24", 96: "8x12"}[softmax.shape[2]]
            self.calls[f"{place}-{shape}"].append(softmax.mean(1))

        if family == "StableDiffusion3Pipeline":
            return Sd3Processor(keep, self.keep_cells)
        if family in ("FluxPipeline", "ChromaPipeline"):
            return FluxProcessor(keep, self.keep_cells)
        return CrossProcessor(keep)

    def keep_cells(self, softmax: torch.Tensor) -> None:
        self.between_cells.append((softmax / softmax.sum(-1, keepdim=True)).mean(1))

    def self_attention(self, cells: int, rows: slice, steps: int) -> list[Any]:
        """Return the mean (cells, cells) of the second half of the steps for each image."""
        calls = [one[rows] for one in self.between_cells if one.shape[-1] == cells]
        assert len(calls) % steps == 0
        return list(torch.stack(calls[len(calls) // 2 :]).mean(0).numpy())

    def maps(self, positions: Sequence[Sequence[Sequence[int]]], rows: slice, thirds: Sequence[int]) -> Maps:
        found: Maps = [{} for _ in positions]
        for group, calls in self.calls.items():
            h, w = map(int, group.split("-")[-1].split("x"))
            layers = len(calls) // len(thirds)
            for image, phrases in enumerate(positions):
                expected = np.zeros((len(phrases), 3, h, w))
                for p, tokens in enumerate(phrases):
                    for third in range(3):
                        steps = [i for i, t in enumerate(thirds) if t == third]
                        picked = [calls[step * layers + layer] for step in steps for layer in range(layers)]
                        mean = torch.stack([c[rows][image][:, list(tokens)].mean(-1) for c in picked]).mean(0)
                        expected[p, third] = mean.numpy().reshape(h, w)
                found[image][group] = expected
        return found


def softmax_of(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    return torch.softmax(scores + bias, dim=-1)


def split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


class CrossProcessor:
    """For UNets and PixArt."""

    def __init__(self, keep: Callable[[torch.Tensor], None]) -> None:
        self.keep = keep

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Any:
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        softmax = softmax_of(query, key, 0.0 if attention_mask is None else attention_mask[:, None])
        self.keep(softmax)
        value = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        return attn.to_out[0]((softmax.float() @ value).transpose(1, 2).flatten(2))


class Sd3Processor:
    """For joint attention with the image's tokens first."""

    def __init__(
        self, keep: Callable[[torch.Tensor], None], keep_cells: Callable[[torch.Tensor], None]
    ) -> None:
        self.keep, self.keep_cells = keep, keep_cells

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, attention_mask: Any = None
    ) -> Any:
        image = hidden_states.shape[1]
        sides = [
            torch.cat([own(hidden_states), added(encoder_hidden_states)], dim=1)
            for own, added in (
                (attn.to_q, attn.add_q_proj),
                (attn.to_k, attn.add_k_proj),
                (attn.to_v, attn.add_v_proj),
            )
        ]
        query, key, value = (split_heads(side, attn.heads) for side in sides)
        softmax = softmax_of(query, key)
        self.keep(softmax[:, :, :image, image:])
        self.keep_cells(softmax[:, :, :image, :image])
        out = (softmax.float() @ value).transpose(1, 2).flatten(2)
        text = out[:, image:] if attn.context_pre_only else attn.to_add_out(out[:, image:])
        return attn.to_out[0](out[:, :image]), text


class FluxProcessor:
    """For joint attention with the text's tokens first; single-stream layers get one joined stream."""

    TEXT = 48

    def __init__(
        self, keep: Callable[[torch.Tensor], None], keep_cells: Callable[[torch.Tensor], None]
    ) -> None:
        self.keep, self.keep_cells = keep, keep_cells

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any,
        attention_mask: Any,
        image_rotary_emb: Any,
    ) -> Any:
        def project(own: Any, added: Any, norm: Any, added_norm: Any) -> Any:
            side = own(hidden_states).unflatten(-1, (attn.heads, -1))
            side = norm(side) if norm is not None else side
            if encoder_hidden_states is not None:
                text = added(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
                side = torch.cat([added_norm(text) if added_norm is not None else text, side], dim=1)
            return side

        double = encoder_hidden_states is not None
        query = project(attn.to_q, double and attn.add_q_proj, attn.norm_q, double and attn.norm_added_q)
        key = project(attn.to_k, double and attn.add_k_proj, attn.norm_k, double and attn.norm_added_k)
        value = project(attn.to_v, double and attn.add_v_proj, None, None).transpose(1, 2)
        query, key = (
            apply_rotary_emb(side, image_rotary_emb, sequence_dim=1).transpose(1, 2) for side in (query, key)
        )
        softmax = softmax_of(query, key, 0.0 if attention_mask is None else attention_mask)
        self.keep(softmax[:, :, self.TEXT :, : self.TEXT])
        self.keep_cells(softmax[:, :, self.TEXT :, self.TEXT :])
        out = (softmax.float() @ value).transpose(1, 2).flatten(2)
        if not double:
            return out
        return attn.to_out[0](out[:, self.TEXT :]), attn.to_add_out(out[:, : self.TEXT])


def test_maps_equal_the_whole_softmax(any_pipeline: Any) -> None:
    """2 prompts of 1 and 2 phrases, 24x16 latents, 4 steps; T5 prompts have 48 tokens."""
    family = type(any_pipeline).__name__
    settings: dict[str, Any] = {}
    if family in ("FluxPipeline", "ChromaPipeline"):
        settings["max_sequence_length"] = FluxProcessor.TEXT
    if family == "ChromaPipeline":
        settings["guidance_scale"] = 1.0  # otherwise negative prompts have a separate pass
    _, self_attention, maps = with_self_attention(any_pipeline, **settings)
    positions = [index_tokens(any_pipeline, *pair).positions for pair in zip(PROMPTS, PHRASES, strict=True)]
    reference = Reference(any_pipeline)
    call(any_pipeline, **settings)
    halves = family not in ("FluxPipeline", "ChromaPipeline", "LatentConsistencyModelPipeline")
    rows = slice(2, 4) if halves else slice(0, 2)
    assert_close(maps, reference.maps(positions, rows, thirds=[0, 0, 1, 2]))
    h, w = self_attention[0].shape[:2]
    expected = reference.self_attention(h * w, rows, steps=4)
    assert_same_self_attention(self_attention, [one.reshape(h, w, h, w) for one in expected])


@pytest.mark.parametrize(("family", "most"), [("sd", 100), ("sd", 30), ("sd3", 30), ("flux", 95)])
def test_self_attention_of_coarser_grids(
    build: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, family: str, most: int
) -> None:
    """Layers have 16x24 or 8x12 cells; where both are too many, 2x2 of the coarser ones become one."""
    pipeline = build(family)
    settings: dict[str, Any] = {"max_sequence_length": FluxProcessor.TEXT} if family == "flux" else {}
    monkeypatch.setattr("diffugen.diffusion.self_attention.MOST_CELLS", most)
    _, found, _ = with_self_attention(pipeline, **settings)
    reference = Reference(pipeline)
    call(pipeline, **settings)
    expected = reference.self_attention(96, slice(0, 2) if family == "flux" else slice(2, 4), steps=4)
    if most == 100:
        expected = [one.reshape(8, 12, 8, 12) for one in expected]
    else:
        expected = [
            one.reshape(4, 2, 6, 2, 4, 2, 6, 2).sum(axis=(5, 7)).mean(axis=(1, 3)) for one in expected
        ]
    assert_same_self_attention(found, expected)


def test_batched_maps_equal_single_ones(any_pipeline: Any) -> None:
    """Batch of two prompts, one of them twice with different noise."""
    prompts, phrases = [*PROMPTS, PROMPTS[0]], [*PHRASES, PHRASES[0]]
    _, together = traced(any_pipeline, prompts, phrases)
    _, self_attention, _ = with_self_attention(any_pipeline, prompts, phrases)
    for i in range(3):
        one = slice(i, i + 1)
        _, single, alone = with_self_attention(any_pipeline, prompts[one], phrases[one], first_seed=i)
        assert_close(together[one], alone)
        assert_same_self_attention(self_attention[one], single)
    group = next(iter(together[0]))
    assert not np.allclose(together[0][group], together[2][group], atol=1e-4)


def test_several_images_of_one_prompt(sd: Any) -> None:
    index = index_tokens(sd, PROMPTS[0], PHRASES[0])
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with trace(sd, [index, index]) as tracer:
        sd(
            PROMPTS[0],
            num_images_per_prompt=2,
            generator=generators,
            num_inference_steps=3,
            width=96,
            height=64,
        )
    _, alone = traced(sd, PROMPTS[:1], PHRASES[:1], first_seed=1, num_inference_steps=3, guidance_scale=7.5)
    assert_close(tracer.maps()[1:], alone)


@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl", "sd3", "pixart"])
def test_guidance_traces_the_conditional_half(build: Callable[[str], Any], family: str) -> None:
    """In the first step, the noise and so the conditional maps are the same with and without guidance."""
    pipeline = build(family)
    _, without = traced(pipeline, num_inference_steps=1, guidance_scale=1.0)
    _, guided = traced(pipeline, num_inference_steps=1, guidance_scale=5.0)
    _, against = traced(
        pipeline, num_inference_steps=1, guidance_scale=5.0, negative_prompt=[PROMPTS[1], PROMPTS[0]]
    )
    assert_close(guided, without)
    assert_close(against, without)
    _, without, _ = with_self_attention(pipeline, num_inference_steps=1, guidance_scale=1.0)
    _, guided, _ = with_self_attention(pipeline, num_inference_steps=1, guidance_scale=5.0)
    assert_same_self_attention(guided, without)


@pytest.mark.parametrize(
    ("family", "guidance"), [("flux", {"true_cfg_scale": 3.0}), ("chroma", {"guidance_scale": 3.0})]
)
def test_guidance_in_a_separate_pass(
    build: Callable[[str], Any], family: str, guidance: dict[str, Any]
) -> None:
    """Flux and Chroma run the negative prompts in a second call of the transformer."""
    pipeline = build(family)
    guidance = {**guidance, "negative_prompt": [PROMPTS[1], PROMPTS[0]]}
    _, without = traced(pipeline, num_inference_steps=1, guidance_scale=1.0)
    _, guided = traced(pipeline, num_inference_steps=1, **{"guidance_scale": 1.0, **guidance})
    assert_close(guided, without)
    _, without, _ = with_self_attention(pipeline, num_inference_steps=1, guidance_scale=1.0)
    _, guided, _ = with_self_attention(pipeline, num_inference_steps=1, **{"guidance_scale": 1.0, **guidance})
    assert_same_self_attention(guided, without)
    _, steps = traced(pipeline, num_inference_steps=3, **guidance)
    assert not np.allclose(
        steps[0]["joint-01-8x12"][:, 0], steps[0]["joint-01-8x12"][:, 2], atol=0, rtol=1e-3
    )


def test_guidance_that_calls_the_denoiser_again(build: Callable[[str], Any]) -> None:
    """Stable Diffusion 3 can run its prompts twice per step, the second time without some layers."""
    sd3 = build("sd3")
    settings: dict[str, Any] = {"num_inference_steps": 3, "skip_guidance_layers": [1]}
    settings["skip_layer_guidance_stop"] = 1.0

    def stop_after_two(pipeline: Any, step: int, *_: Any) -> dict[str, Any]:
        pipeline._interrupt = step == 1
        return {}

    plain = call(sd3, **settings)
    images, maps = traced(sd3, **settings)
    assert np.array_equal(plain, images)
    assert (maps[0]["joint-01-8x12"].max(axis=(0, 2, 3)) > 0).all()
    _, cut = traced(sd3, **settings, callback_on_step_end=stop_after_two)
    assert (cut[0]["joint-01-8x12"].max(axis=(0, 2, 3)) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("family", ["sd", "lcm", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (2, 1.0), (4, 0.0)])
def test_few_steps_as_with_turbo_models(
    build: Callable[[str], Any], family: str, steps: int, guidance: float
) -> None:
    pipeline = build(family)
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
    images, maps = traced(pipeline, **settings)
    assert np.array_equal(call(pipeline, **settings), images)
    for found, phrases in zip(maps, PHRASES, strict=True):
        for array in found.values():
            assert array.shape[:2] == (len(phrases), 3)
            assert (array.max(axis=(2, 3)) > 0).all()


def photos() -> list[Any]:
    rough = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    return [Image.fromarray(np.kron(one, np.ones((8, 8, 1), np.uint8))) for one in rough]


def masks() -> list[Any]:
    mask = np.zeros((64, 96), np.uint8)
    mask[24:, 32:72] = 255
    return [Image.fromarray(mask)] * 2


TASKS = {
    "img2img": (AutoPipelineForImage2Image, lambda: {"image": photos()}),
    "inpaint": (AutoPipelineForInpainting, lambda: {"image": photos(), "mask_image": masks()}),
}


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *((family, task) for family in ("sd", "sd2", "sdxl", "sd3", "flux") for task in TASKS),
        ("lcm", "img2img"),
        ("sd-inpaint", "inpaint"),
        ("sdxl-refiner", "img2img"),
    ],
)
def test_other_tasks(build: Callable[[str], Any], family: str, task: str) -> None:
    """The strength determines how many of 8 steps are run; thirds are those of the steps that are run."""
    maker, arguments = TASKS[task]
    with quiet():
        pipeline = maker.from_pipe(build(family))
    pipeline.set_progress_bar_config(disable=True)
    last: list[int] = []

    def watch(_: Any, step: int, *__: Any) -> dict[str, Any]:
        last.append(step)
        return {}

    for strength, expected in ((0.5, 4), (0.25, 2) if task == "img2img" else (1.0, 8)):
        settings: dict[str, Any] = {"strength": strength, "num_inference_steps": 8, **arguments()}
        last.clear()
        plain = call(pipeline, **settings, callback_on_step_end=watch)
        assert len(last) == (8 if family == "lcm" else expected)
        images, maps = traced(pipeline, **settings)
        assert np.array_equal(plain, images)
        for found, phrases in zip(maps, PHRASES, strict=True):
            for array in found.values():
                assert array.shape[:2] == (len(phrases), 3)
                assert (array.max(axis=(2, 3)) > 0).all()
                # With two steps, the middle third is half of each; with more, all thirds differ.
                assert not np.array_equal(array[:, 0], array[:, 2])


def test_thirds_of_the_steps_that_are_run(build: Callable[[str], Any]) -> None:
    """Of 6 steps 3 are run, one per third, so stopping after one leaves the other thirds empty."""
    maker, arguments = TASKS["img2img"]
    with quiet():
        pipeline = maker.from_pipe(build("sd"))

    def stop(pipeline: Any, *_: Any) -> dict[str, Any]:
        pipeline._interrupt = True
        return {}

    settings: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 6, **arguments()}
    _, whole = traced(pipeline, **settings)
    _, cut = traced(pipeline, **settings, callback_on_step_end=stop)
    for group, array in whole[0].items():
        assert np.array_equal(array[:, 0], cut[0][group][:, 0])
        assert not cut[0][group][:, 1:].any()


def test_maps_have_the_orientation_of_the_image(sd: Any) -> None:
    """Changing the noise in the top right corner changes the maps there more than in other corners."""
    settings: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0}
    noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    changed = noise.clone()
    changed[..., :5, -8:] *= -1
    before, after = (
        traced(sd, PROMPTS[:1], PHRASES[:1], latents=x, **settings)[1][0] for x in (noise, changed)
    )
    for group, (h, w) in {"up-16x24": (5, 8), "down-8x12": (2, 4)}.items():
        change = np.abs(after[group][0, 0].astype(np.float64) - before[group][0, 0])
        corners = [part.mean() for rows in (change[:h], change[-h:]) for part in (rows[:, :w], rows[:, -w:])]
        assert corners[1] > 2 * max(corners[0], corners[2], corners[3])


def test_processors_that_compute_the_softmax_themselves(sd: Any) -> None:
    _, expected_self_attention, expected = with_self_attention(sd)
    sd.unet.set_attn_processor(AttnProcessor())
    plain = call(sd)
    images, self_attention, maps = with_self_attention(sd)
    assert np.array_equal(plain, images)
    assert_close(maps, expected)
    assert_same_self_attention(self_attention, expected_self_attention)


def test_schedulers_that_call_the_denoiser_twice_per_step(sd: Any) -> None:
    from diffusers import HeunDiscreteScheduler

    sd.scheduler = HeunDiscreteScheduler.from_config(sd.scheduler.config)
    _, maps = traced(sd, num_inference_steps=3)
    assert all(array[:, third].max() > 0 for array in maps[0].values() for third in range(3))


def test_maps_in_bfloat16(sd: Any) -> None:
    _, expected = traced(sd, num_inference_steps=1)
    sd.to(dtype=torch.bfloat16)
    images, maps = traced(sd, num_inference_steps=1)
    assert np.array_equal(call(sd, num_inference_steps=1), images)
    assert_close(maps, expected, tolerance=0.1)


def test_all_families_named_in_messages_are_tested(build: Callable[[str], Any], families: list[str]) -> None:
    assert {type(build(family)).__name__ for family in families} == set(TRACEABLE)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("aura-flow", r"joint_transformer_blocks.0.attn of AuraFlowTransformer2DModel cannot be traced"),
        (
            "aura-flow without joint layers",
            r"AuraFlowTransformer2DModel .* none of its attention modules gets",
        ),
        ("deepfloyd", r"down_blocks.1.attentions.0 of UNet2DConditionModel cannot be traced.*AddedKV"),
    ],
)
def test_families_that_cannot_be_traced(build: Callable[[str], Any], family: str, message: str) -> None:
    """The first step raises an error that lists the families that can be traced."""
    pipeline = build(family)
    steps: list[Any] = []
    pipeline.scheduler.step = lambda *arguments, **__: steps.append(arguments)
    with pytest.raises(ModelError, match=f"{message}.*{', '.join(TRACEABLE)}"):
        traced(pipeline, PROMPTS[:1], PHRASES[:1])
    assert not steps


def test_a_pipeline_without_a_denoiser(build: Callable[[str], Any]) -> None:
    with (
        pytest.raises(
            ModelError, match="StableCascadeDecoderPipeline cannot be traced: it has no unet or transformer"
        ),
        trace(build("cascade"), []),
    ):
        pass


class OwnMathematics(CrossProcessor):
    """Calls neither scaled_dot_product_attention nor get_attention_scores, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__(lambda softmax: None)


def test_attention_that_cannot_be_traced(sd: Any) -> None:
    sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(OwnMathematics())
    with pytest.raises(ModelError, match=r"mid_block.*attn2.*OwnMathematics"):
        traced(sd)


def test_self_attention_that_cannot_be_traced(sd: Any) -> None:
    """The first step raises; the cross-attention alone can still be traced."""
    for name, module in sd.unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(OwnMathematics())
    traced(sd)
    steps: list[Any] = []
    sd.scheduler.step = lambda *arguments, **_: steps.append(arguments)
    with pytest.raises(ModelError, match="no self-attention of UNet2DConditionModel can be traced"):
        with_self_attention(sd)
    assert not steps


def test_sliced_attention_is_rejected(sd: Any) -> None:
    sd.enable_attention_slicing(1)
    with pytest.raises(ModelError, match="disable_attention_slicing"):
        traced(sd)


def test_a_different_prompt_than_announced(sd: Any) -> None:
    with (
        pytest.raises(ModelError, match="plain tokens of prompt 1 of 1"),
        trace(sd, [index_tokens(sd, "a car", ["car"])]),
    ):
        call(sd, ["the road"])


def test_a_different_number_of_images_than_announced(sd: Any) -> None:
    index = index_tokens(sd, PROMPTS[0], PHRASES[0])
    with pytest.raises(ModelError, match=r"1 prompts were announced.*called with 2"), trace(sd, [index]):
        call(sd, [PROMPTS[0]] * 2)


def test_embeddings_instead_of_text(sd: Any) -> None:
    embeds = torch.zeros(1, 77, 32)
    with pytest.raises(ModelError, match="plain tokens"), trace(sd, [index_tokens(sd, "a car", ["car"])]):
        sd(prompt_embeds=embeds, guidance_scale=1.0, num_inference_steps=1)


def test_a_phrase_beyond_the_tokens_that_the_denoiser_reads(build: Callable[[str], Any]) -> None:
    flux = build("flux")
    with pytest.raises(PromptError, match="reads 4 tokens"):
        traced(flux, [PROMPTS[1]], [["road"]], max_sequence_length=4)


def test_a_pipeline_that_was_not_called(sd: Any) -> None:
    with trace(sd, [index_tokens(sd, "a car", ["car"])]) as tracer:
        pass
    with pytest.raises(ModelError, match="no attention"):
        tracer.maps()
    with trace(sd, [index_tokens(sd, "a car", ["car"])], keep_self_attention=True) as tracer:
        pass
    with pytest.raises(ModelError, match="no self-attention"):
        tracer.self_attention()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_everything_is_restored_when_generation_raises(build: Callable[[str], Any], family: str) -> None:
    pipeline = build(family)
    expected = call(pipeline)
    attend, names = torch.nn.functional.scaled_dot_product_attention, set(vars(pipeline))
    models = [model for model in pipeline.components.values() if isinstance(model, torch.nn.Module)]
    modules = [module for model in models for module in model.modules()]
    before = [set(vars(module)) for module in modules]

    def interrupt(*_: Any) -> None:
        assert torch.nn.functional.scaled_dot_product_attention is not attend
        raise Interrupted

    with pytest.raises(Interrupted):
        traced(pipeline, callback_on_step_end=interrupt)
    assert torch.nn.functional.scaled_dot_product_attention is attend
    assert set(vars(pipeline)) == names
    assert [set(vars(module)) for module in modules] == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert np.array_equal(call(pipeline), expected)
