"""Tests of img2img and inpaint on the real pipelines of every family at tiny size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffugen.diffusion.generate import generate
from diffugen.diffusion.pipelines import load_pipeline
from diffugen.diffusion.tasks import (
    Source,
    finished,
    many_channels,
    size_unit,
    task_arguments,
    task_pipeline,
    working_size,
)
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError
from diffugen.labels.shapes import encode
from diffugen.records import ImageRecord, Phrase, Prompt

CAR = Prompt("a photo of a red car", (Phrase("car", "car"), Phrase("red", None)))
SETTINGS = {"num_inference_steps": 4, "guidance_scale": 4.0}
FAMILIES = ("sd", "sdxl", "sd3", "flux")


def region(height: int, width: int) -> Any:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 2 :, width // 4 :] = True
    return mask


def pixels(size_wh: tuple[int, int], seed: int = 0) -> Any:
    width, height = size_wh
    rough = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(rough, np.ones((8, 8, 1), np.uint8))[:height, :width])


def job(task: str, size_wh: tuple[int, int] = (96, 64), *, seed: int = 1, **settings: Any) -> ImageRecord:
    strength = {"img2img": 0.5, "inpaint": 1.0}[task]
    return ImageRecord(
        CAR,
        seed,
        size_wh,
        "tiny",
        task,
        {**SETTINGS, "strength": strength, **settings},
        parent=f"photo-{seed}",
        region=encode(region(size_wh[1], size_wh[0])) if task == "inpaint" else None,
    )


def source(record: ImageRecord) -> Source:
    width, height = record.size_wh
    return Source(
        pixels(record.size_wh, record.seed), region(height, width) if record.task == "inpaint" else None
    )


def always(given: Source) -> Callable[[ImageRecord], Source]:
    return lambda _: given


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_its_batch(build: Callable[[str], Any], family: str, task: str) -> None:
    pipeline = build(family)
    jobs = [job(task, seed=seed) for seed in range(3)]
    together = list(generate(pipeline, jobs, source=source, batch_size=3))
    alone = list(generate(pipeline, jobs, source=source, batch_size=1))
    for (record, image, heat_maps, _), (other, single, single_maps, _) in zip(together, alone, strict=True):
        assert record == other
        assert image.shape == (64, 96, 3)
        assert np.abs(image.astype(int) - single).max() <= 1
        assert heat_maps.maps
        for group, array in heat_maps.maps.items():
            assert array.any()
            np.testing.assert_allclose(array, single_maps.maps[group], atol=2e-3 * array.max())


@pytest.mark.parametrize("size_wh", [(96, 64), (101, 67)])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_outside_the_region_changes(
    build: Callable[[str], Any], family: str, size_wh: tuple[int, int]
) -> None:
    """This also holds for photos whose size the model cannot divide, which are resized to one it can."""
    record = job("inpaint", size_wh, working_wh=[96, 64])
    [(_, image, heat_maps, _)] = generate(build(family), [record], source=source)
    given = source(record)
    assert given.region is not None
    assert image.shape == given.rgb.shape
    assert np.array_equal(image[~given.region], given.rgb[~given.region])
    assert np.abs(image[given.region].astype(int) - given.rgb[given.region]).mean() > 5
    assert heat_maps.size_wh == size_wh


def test_only_the_window_is_processed(build: Callable[[str], Any]) -> None:
    """The result inside a window does not depend on the pixels of the photo outside it."""
    window = [40, 20, 140, 84]
    record = job("inpaint", (300, 200), working_wh=[96, 64], window_xyxy=window)
    painted = np.zeros((200, 300), dtype=bool)
    painted[30:70, 60:120] = True
    first = pixels((300, 200))
    second = 255 - first
    second[20:84, 40:140] = first[20:84, 40:140]
    images = []
    for rgb in (first, second):
        [(_, image, heat_maps, _)] = generate(build("sd"), [record], source=always(Source(rgb, painted)))
        assert np.array_equal(image[~painted], rgb[~painted]) and not np.array_equal(image, rgb)
        assert heat_maps.window_xyxy == tuple(window) and heat_maps.maps["up-16x24"].any()
        images.append(image)
    assert np.array_equal(images[0][painted], images[1][painted])


def test_a_weaker_img2img_stays_closer_to_its_source() -> None:
    pipeline = load_pipeline("miniature", device="cpu")
    jobs = [job("img2img", (64, 64), num_inference_steps=10, strength=strength) for strength in (0.2, 0.9)]
    apart = [
        np.abs(image.astype(int) - source(record).rgb).mean()
        for record, image, _, _ in generate(pipeline, jobs, source=source)
    ]
    assert apart[0] < 0.8 * apart[1]


def test_the_miniature_is_unchanged_after_inpainting() -> None:
    """Its UNet has 12 channels, which the pipeline would reject."""
    pipeline = load_pipeline("miniature", device="cpu")
    channels = pipeline.unet.config.in_channels
    assert channels not in (4, 9)
    with pytest.raises(ModelError, match="strength"):  # fails inside the call
        list(generate(pipeline, [job("inpaint", (64, 64), strength=1.5)], source=source))
    assert pipeline.unet.config.in_channels == channels


def test_a_unet_that_does_not_match_its_autoencoder_is_not_disguised(build: Callable[[str], Any]) -> None:
    pipeline = build("sd")
    pipeline.unet.register_to_config(in_channels=5)
    with many_channels(pipeline, "inpaint"):
        assert pipeline.unet.config.in_channels == 5


def test_a_family_without_a_pipeline_for_the_task(build: Callable[[str], Any]) -> None:
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    pipeline = DDPMPipeline(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        ),
        DDIMScheduler(),
    )
    with pytest.raises(ModelError, match="DDPMPipeline has no pipeline for inpaint"):
        task_pipeline(pipeline, "inpaint")


def test_pipelines_of_all_tasks_share_their_weights(build: Callable[[str], Any]) -> None:
    pipeline = build("sd")
    for task in ("txt2img", "img2img", "inpaint"):
        assert task_pipeline(pipeline, task).unet is pipeline.unet
    assert size_unit(pipeline) == 8


@pytest.mark.parametrize(
    ("size_wh", "budget_wh", "unit", "expected"),
    [
        ((64, 64), (64, 64), 8, (64, 64)),
        ((1280, 720), (512, 512), 16, (688, 384)),
        ((300, 200), (512, 512), 16, (624, 416)),
        ((2000, 10), (64, 64), 8, (904, 8)),
    ],
)
def test_working_size(size_wh: Any, budget_wh: Any, unit: int, expected: Any) -> None:
    assert working_size(size_wh, budget_wh, unit) == expected


def test_the_edge_of_the_region_is_blended() -> None:
    record = job("inpaint", (300, 200))
    black = Source(np.zeros((200, 300, 3), np.uint8), region(200, 300))
    image = finished(record, np.full((200, 300, 3), 255, np.uint8), black)
    column = image[:, 200, 0].astype(int)
    assert (column[:100] == 0).all()
    assert 0 <= column[100] < column[102] < column[108] == 255


@pytest.mark.parametrize(
    ("family", "task"),
    [*((family, task) for family in FAMILIES for task in ("img2img", "inpaint")), ("sd-inpaint", "inpaint")],
)
def test_tracing_leaves_the_images_bit_identical(build: Callable[[str], Any], family: str, task: str) -> None:
    pipeline = task_pipeline(build(family), task)
    jobs = [job(task, seed=seed) for seed in range(2)]

    def call() -> Any:
        return pipeline(
            prompt=[one.prompt.text for one in jobs],
            **task_arguments(pipeline, jobs, [source(one) for one in jobs]),
            **jobs[0].settings,
            generator=[torch.Generator().manual_seed(one.seed) for one in jobs],
            output_type="np",
        ).images

    plain = call()
    index = index_tokens(pipeline, CAR.text, [phrase.text for phrase in CAR.phrases])
    with trace(pipeline, [index] * len(jobs)) as traced:
        watched = call()
    assert np.array_equal(plain, watched)
    assert all(maps for maps in traced.maps())
    assert np.array_equal(plain, call())


@pytest.mark.parametrize("task", ["txt2img", "img2img"])
def test_an_inpainting_model_rejects_other_tasks(build: Callable[[str], Any], task: str) -> None:
    record = job("img2img") if task == "img2img" else ImageRecord(CAR, 1, (96, 64), "tiny", settings=SETTINGS)
    with pytest.raises(ModelError, match=f"can only inpaint.*another model for {task}"):
        list(generate(build("sd-inpaint"), [record], source=source))
