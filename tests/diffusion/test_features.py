"""Features of finished images: families, shapes, batches, and what must be left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffugen.diffusion.features import NOISE_LEVELS, read_features
from diffugen.errors import ModelError, PromptError
from diffugen.records import Phrase, PixelFeatures, Prompt

PROMPT = Prompt("a red car on a road", (Phrase("car", "car"), Phrase("road", None)))
OTHER = Prompt("a car next to a tree", (Phrase("car", "car"), Phrase("tree", None)))
READABLE = ("sd", "sd2", "sdxl", "sd3", "flux")


def picture(seed: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def everything(features: PixelFeatures) -> dict[str, NDArray[np.float16]]:
    return {**features.heats, **features.activations}


@pytest.mark.parametrize("family", READABLE)
def test_each_image_has_heat_and_activations_at_every_level(family: str, build: Callable[[str], Any]) -> None:
    [features] = read_features(build(family), [(picture(0), PROMPT)])
    assert features.size_wh == (96, 64) and features.phrases == PROMPT.phrases
    assert features.heats and features.activations
    for group, heat in features.heats.items():
        height, width = map(int, group.rsplit("-", 1)[1].split("x"))
        assert heat.shape == (2, len(NOISE_LEVELS), height, width) and height < width
        assert heat.dtype == np.float16 and heat.min() >= 0 and 0 < heat.max() <= 1
    levels = {name.split("@")[1] for name in features.activations}
    assert levels == {f"{level:g}" for level in NOISE_LEVELS}
    for array in features.activations.values():
        assert array.ndim == 3 and array.shape[1] < array.shape[2] and np.isfinite(array).all()
        assert array.std() > 0


@pytest.mark.parametrize("family", READABLE)
def test_features_do_not_depend_on_the_batch(family: str, build: Callable[[str], Any]) -> None:
    pipeline = build(family)
    images = [(picture(0), PROMPT), (picture(1), OTHER), (picture(2), PROMPT)]
    together = list(read_features(pipeline, images, batch_size=3))
    for alone, one in zip((next(read_features(pipeline, [pair])) for pair in images), together, strict=True):
        for name, array in everything(one).items():
            np.testing.assert_allclose(array, everything(alone)[name], rtol=0.02, atol=2e-3)
    assert any(
        (everything(together[0])[name] != array).any() for name, array in everything(together[2]).items()
    )


def test_the_images_own_pixels_and_its_prompt_decide(sd: Any) -> None:
    first, second = read_features(sd, [(picture(0), PROMPT), (picture(0), OTHER)])
    [third] = read_features(sd, [(picture(1), PROMPT)])
    for other in (second, third):
        assert any((first.activations[name] != array).any() for name, array in other.activations.items())


def test_images_of_other_sizes_are_scaled_to_the_models(sd: Any) -> None:
    images = [(picture(0, 200, 300), PROMPT), (picture(1, 96, 64), PROMPT)]
    wide, tall = read_features(sd, images)
    assert (wide.size_wh, tall.size_wh) == ((300, 200), (64, 96))
    assert all(array.shape[1] < array.shape[2] for array in wide.activations.values())
    assert all(array.shape[1] > array.shape[2] for array in tall.activations.values())
    [larger] = read_features(sd, images[:1], budget_wh=(128, 128))
    assert larger.activations["mid@0.2"].size > wide.activations["mid@0.2"].size


def test_reading_leaves_the_pipeline_as_it_was(sd: Any) -> None:
    def image() -> NDArray[Any]:
        generator = torch.Generator().manual_seed(0)
        made = sd("a car", num_inference_steps=2, generator=generator, output_type="np")
        return np.asarray(made.images)

    before = image()
    list(read_features(sd, [(picture(0), PROMPT)]))
    with pytest.raises(PromptError):
        list(read_features(sd, [(picture(0), Prompt("a red bus", PROMPT.phrases))]))
    assert np.array_equal(image(), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sd.unet.modules())


def test_batches_are_halved_when_memory_runs_out(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sizes = sd.unet.forward, []

    def scarce(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        if len(sample) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(sd.unet, "forward", scarce)
    images = [(picture(seed), PROMPT) for seed in range(3)]
    limit = 8
    expected = list(read_features(sd, images))
    limit = 1
    found = list(read_features(sd, images))
    for one, other in zip(expected, found, strict=True):
        for name, array in everything(one).items():
            np.testing.assert_allclose(array, everything(other)[name], rtol=0.02, atol=2e-3)
    assert 3 in sizes and sizes[-1] == 1
    limit = 0
    with pytest.raises(ModelError, match="out of memory while reading the features of one image"):
        list(read_features(sd, images[:1]))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("pixart", "has no pipeline for img2img"),
        ("sd-inpaint", "also reads a mask"),
        ("lcm", "cannot read images of"),
    ],
)
def test_models_that_cannot_be_read_are_refused(
    family: str, message: str, build: Callable[[str], Any]
) -> None:
    with pytest.raises(ModelError, match=message):
        list(read_features(build(family), [(picture(0), PROMPT)]))
