from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from diffugen.diffusion.daam_backend import trace_with_daam
from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.pipelines import load_pipeline
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError
from diffugen.labels.heatmaps import combine, threshold
from diffugen.records import Phrase, Prompt

PROMPT = "a red car and a grand piano on the road"
WORDS = ("car", "piano", "road")


def otsu(heat: Any) -> Any:
    scaled = ((heat - heat.min()) / np.ptp(heat) * 255).astype(np.uint8)
    return cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] > 0


def combined(maps: dict[str, Any], layers: dict[str, int]) -> Any:
    """Combine heat maps as daam does: enlarge each layer to 64x64, clip negative overshoot, average."""
    total: Any = 0.0
    count = 0
    for group, number in layers.items():
        array = torch.from_numpy(maps[group].astype(np.float32)).mean(dim=1)[None]
        enlarged = torch.nn.functional.interpolate(array, size=(64, 64), mode="bicubic").clamp(min=0)[0]
        total, count = total + number * enlarged, count + number
    return (total / count).numpy()


def test_heat_maps_equal_daams_own(daam_sized_sd: Any) -> None:
    """Heat maps of each layer are equal; combined heat maps correlate, and their Otsu masks overlap.

    The initial noise is as smooth as an image. Where neighbouring cells differ strongly, daam clips the
    overshoot of its interpolation for each head separately, which our means over heads cannot reproduce.
    """
    pipeline = daam_sized_sd
    tokens = index_tokens(pipeline, PROMPT, WORDS)

    coarse = 2 * torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")

    def run() -> Any:
        return pipeline(
            PROMPT, latents=smooth, num_inference_steps=3, guidance_scale=4.0, output_type="latent"
        )

    with trace(pipeline, [tokens]) as ours:
        images = run().images
    import daam

    with daam.trace(pipeline) as hooker:
        daams_images = run().images
        theirs = hooker.compute_global_heat_map()
    with trace_with_daam(pipeline, [tokens]) as adapted:
        run()

    assert torch.allclose(images, daams_images, atol=1e-3)
    (our_maps,), (adapted_maps,) = ours.maps(), adapted.maps()
    layers = {"down-16x16": 1, "up-16x16": 2, "up-32x32": 2}
    assert adapted_maps.keys() == layers.keys()
    assert our_maps["up-32x32"].max() > 2 * our_maps["up-32x32"].mean()
    for group in layers:
        np.testing.assert_allclose(
            our_maps[group], adapted_maps[group], atol=2e-3 * float(our_maps[group].max())
        )
    for word, heat in zip(WORDS, combined(our_maps, layers), strict=True):
        expected = theirs.compute_word_heat_map(word).heatmap.float().numpy()
        assert np.corrcoef(heat.ravel(), expected.ravel())[0, 1] >= 0.999
        mask, other = otsu(heat), otsu(expected)
        assert 0.1 < mask.mean() < 0.9
        assert (mask & other).sum() / (mask | other).sum() >= 0.98
    assert not {"check_inputs", "run_safety_checker"} & set(vars(pipeline))


def jobs(size_wh: tuple[int, int] = (64, 64), guidance_scale: float = 4.0) -> list[Any]:
    prompt = Prompt(PROMPT, tuple(Phrase(word, word) for word in WORDS))
    settings = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    given: dict[str, Any] = {"images_per_prompt": 2, "run_seed": 1, "size_wh": size_wh, "model": "tiny"}
    return list(PromptJobs([prompt], settings=settings, **given))


def test_generate_with_daam(sd: Any) -> None:
    """One image per call whatever the batch size; same images and same heat maps for each third."""
    native = list(generate(sd, jobs()))
    theirs = list(generate(sd, jobs(), batch_size=8, attention_backend="daam"))
    for (record, image, maps, _), (other, their_image, their_maps, _) in zip(native, theirs, strict=True):
        assert record == other
        assert np.abs(image.astype(int) - their_image).max() <= 1
        assert their_maps.maps.keys() == {"down-8x8", "up-8x8", "up-16x16"}
        for group, array in their_maps.maps.items():
            np.testing.assert_allclose(maps.maps[group], array, atol=2e-3 * float(array.max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_wh": (96, 64)}, r"square images only.*24x16 \(width x height\)"),
        ({"guidance_scale": 1.0}, "batch of 1, not one image with guidance"),
    ],
)
def test_calls_that_daam_handles_wrongly_are_rejected(sd: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        list(generate(sd, jobs(**options), attention_backend="daam"))


def test_pipelines_that_daam_does_not_support(build: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match=r"not FluxPipeline.*native"):
        list(generate(build("flux"), jobs(), attention_backend="daam"))


def test_a_tokenizer_of_another_length(sd: Any) -> None:
    sd.tokenizer.model_max_length = 40
    with pytest.raises(ModelError, match="77 tokens, but this model has 40"):
        list(generate(sd, jobs(), attention_backend="daam"))


def test_more_than_one_image_per_call(sd: Any) -> None:
    index = index_tokens(sd, PROMPT, WORDS)
    with pytest.raises(ModelError, match="one image per call, not 2"), trace_with_daam(sd, [index, index]):
        pass


def test_both_backends_agree_on_trained_attention() -> None:
    """On the miniature, the layers that daam traces (all but the mid block) give the same masks."""
    phrases = (Phrase("grand piano", "piano"), Phrase("road", None))
    prompt = Prompt("a photo of a black grand piano on a road, rainy, night", phrases)
    pipeline = load_pipeline("miniature", device="cpu")
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0}
    jobs = PromptJobs(
        [prompt], images_per_prompt=1, run_seed=4, size_wh=(64, 64), model="miniature", settings=settings
    )
    [(_, image, ours, _)] = generate(pipeline, jobs, attention_backend="native")
    [(_, daams_image, theirs, _)] = generate(pipeline, jobs, attention_backend="daam")
    assert np.abs(image.astype(int) - daams_image).max() <= 1
    assert theirs.maps.keys() == ours.maps.keys() - {"mid-8x8"}
    shared = dict.fromkeys(theirs.maps, 1.0)
    for one, other in zip(
        combine(ours, shared, (1.0, 1.0, 1.0)), combine(theirs, shared, (1.0, 1.0, 1.0)), strict=True
    ):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] >= 0.999
        mask, expected = threshold(one, "otsu"), threshold(other, "otsu")
        assert (mask & expected).sum() / (mask | expected).sum() >= 0.98
