from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.errors import ModelError, PromptError
from diffugen.records import ImageRecord, Phrase, Prompt

CAR = Prompt("a photo of a red car", (Phrase("car", "car"), Phrase("red", None)))
PIANO = Prompt("a grand piano on the road", (Phrase("grand piano", "piano"),))
SETTINGS = {"num_inference_steps": 3, "guidance_scale": 4.0, "scheduler": "DDIMScheduler"}


def plan(
    *prompts: Prompt, images_per_prompt: int = 2, run_seed: int = 7, **changes: Any
) -> list[ImageRecord]:
    values: dict[str, Any] = {"size_wh": (96, 64), "model": "tiny", "settings": SETTINGS} | changes
    return list(PromptJobs(prompts, images_per_prompt=images_per_prompt, run_seed=run_seed, **values))


def test_each_planned_image_has_its_own_seed() -> None:
    jobs = plan(CAR, PIANO, images_per_prompt=3, round=2)
    assert [job.prompt for job in jobs] == [CAR, PIANO] * 3
    assert len({job.seed for job in jobs}) == len({job.id for job in jobs}) == 6
    assert all(0 <= job.seed < 2**63 and job.round == 2 for job in jobs)
    assert plan(CAR, PIANO, images_per_prompt=3, round=2) == jobs
    assert plan(CAR, PIANO, round=2) == jobs[:4]
    assert plan(PIANO, images_per_prompt=1)[0].seed == jobs[1].seed
    assert not {job.seed for job in jobs} & {job.seed for job in plan(CAR, PIANO, run_seed=8)}


def test_generate_yields_images_and_heat_maps(sd: Any) -> None:
    jobs = plan(CAR, PIANO)
    done = list(generate(sd, jobs, batch_size=3))
    assert [record for record, *_ in done] == jobs
    for record, image, heat_maps, seconds in done:
        assert image.shape == (64, 96, 3) and image.dtype == np.uint8
        assert image.std() > 5
        assert (heat_maps.image_id, heat_maps.size_wh) == (record.id, (96, 64))
        assert heat_maps.phrases == record.prompt.phrases
        assert heat_maps.maps["up-16x24"].shape == (len(record.prompt.phrases), 3, 16, 24)
        assert heat_maps.self_attention is None
        assert seconds > 0


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_an_image_does_not_depend_on_its_batch(build: Callable[[str], Any], family: str) -> None:
    """Images differ by at most one grey level: same noise, but batched arithmetic rounds differently."""
    pipeline = build(family)
    jobs = plan(CAR, PIANO, settings={"num_inference_steps": 3, "guidance_scale": 4.0})
    together = list(generate(pipeline, jobs, batch_size=4, keep_self_attention=True))
    alone = list(generate(pipeline, jobs, batch_size=1, keep_self_attention=True))
    for (record, image, heat_maps, _), (other, single, single_maps, _) in zip(together, alone, strict=True):
        assert record == other
        assert np.abs(image.astype(int) - single).max() <= 1
        for group, array in heat_maps.maps.items():
            np.testing.assert_allclose(array, single_maps.maps[group], atol=1e-3 * array.max())
        found, expected = heat_maps.self_attention, single_maps.self_attention
        assert found is not None and expected is not None and found.shape[:2] in ((16, 24), (8, 12))
        np.testing.assert_allclose(found, expected, atol=1e-3 * found.max())
    assert np.abs(together[0][1].astype(int) - together[2][1]).max() > 10


def test_an_image_does_not_depend_on_its_batch_with_a_stochastic_scheduler(sd: Any) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    sd.scheduler = EulerAncestralDiscreteScheduler.from_config(sd.scheduler.config)
    jobs = plan(CAR, images_per_prompt=3)
    together, last = list(generate(sd, jobs, batch_size=3)), list(generate(sd, jobs[2:]))
    assert np.abs(together[2][1].astype(int) - last[0][1]).max() <= 1


def test_jobs_of_different_size_settings_or_negative_prompt_do_not_share_a_batch(sd: Any) -> None:
    jobs = plan(CAR, images_per_prompt=4)
    jobs[1] = replace(jobs[1], size_wh=(64, 96))
    jobs[2] = replace(jobs[2], settings=SETTINGS | {"guidance_scale": 1.0})
    jobs[3] = replace(jobs[3], prompt=replace(CAR, negative="road"))
    sizes = batch_sizes(sd)
    done = {record.id: image for record, image, *_ in generate(sd, jobs)}
    assert sizes == [2, 2, 1, 2]  # guidance doubles a batch
    assert [done[job.id].shape for job in jobs] == [(64, 96, 3), (96, 64, 3), (64, 96, 3), (64, 96, 3)]


def test_a_negative_prompt_changes_the_image(sd: Any) -> None:
    job = plan(CAR, images_per_prompt=1)[0]
    negative = replace(job, prompt=replace(CAR, negative="road"))
    (_, plain, *_), (_, changed, *_) = generate(sd, [job, negative])
    assert not np.array_equal(plain, changed)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def batch_sizes(pipeline: Any, limit: int | None = None, error: BaseException = OUT_OF_MEMORY) -> list[int]:
    """Record the UNet's batch size at the first step of each call; run out of memory above ``limit``."""
    sizes: list[int] = []

    def note(_: Any, args: Any) -> None:
        if limit is not None and len(args[0]) > limit:
            raise error
        if int(args[1]) == int(pipeline.scheduler.timesteps[0]):
            sizes.append(len(args[0]))

    pipeline.unet.register_forward_pre_hook(note)
    return sizes


@pytest.mark.parametrize(
    "error",
    [OUT_OF_MEMORY, RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_batch(
    sd: Any, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    jobs = plan(CAR, images_per_prompt=7)
    expected = [image for _, image, *_ in generate(sd, jobs, batch_size=1)]
    sizes = batch_sizes(sd, limit=6, error=error)
    done = list(generate(sd, jobs, batch_size=5))
    assert sizes == [4, 4, 4, 2]  # guidance doubles a batch
    assert [record for record, *_ in done] == jobs
    assert all(
        np.abs(image.astype(int) - other).max() <= 1
        for (_, image, *_), other in zip(done, expected, strict=True)
    )
    assert "out of memory with a batch of 5 images; continuing with 2" in caplog.text


def test_out_of_memory_with_one_image(sd: Any) -> None:
    batch_sizes(sd, limit=1)
    with pytest.raises(ModelError, match=r"even with one image of 96x64 pixels.*offload"):
        list(generate(sd, plan(CAR)))


def test_other_runtime_errors_are_not_swallowed(sd: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    sd.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        list(generate(sd, plan(CAR)))


def test_prompts_are_checked_before_generation_starts(sd: Any) -> None:
    wrong = Prompt("a red car", (Phrase("truck", "truck"),))
    sizes = batch_sizes(sd)
    with pytest.raises(PromptError, match="'truck' is not in the prompt 'a red car'"):
        list(generate(sd, plan(CAR, wrong), batch_size=1))
    assert sizes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"guidance_scal": 3.0}}, "has no setting 'guidance_scal'.*guidance_scale"),
        ({"settings": {"height": 64}}, "has no setting 'height'"),
        ({"size_wh": (97, 64)}, "rejects size 97x64.*divisible by 8"),
    ],
)
def test_settings_and_sizes_that_the_pipeline_rejects(sd: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        list(generate(sd, plan(CAR, **changes)))


def test_an_unknown_backend(sd: Any) -> None:
    with pytest.raises(ModelError, match="'dam'; one of native, daam"):
        list(generate(sd, plan(CAR), attention_backend="dam"))
    with pytest.raises(ModelError, match="daam does not trace self-attention"):
        list(generate(sd, plan(CAR), attention_backend="daam", keep_self_attention=True))


def test_images_that_are_not_finite(sd: Any) -> None:
    sd.vae.decoder.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"NaN or infinite values.*float32"):
        list(generate(sd, plan(CAR)))


def test_a_prompt_without_phrases_has_empty_maps(sd: Any) -> None:
    ((_, image, heat_maps, _),) = generate(sd, plan(Prompt("a road", ()), images_per_prompt=1))
    assert image.shape == (64, 96, 3)
    assert {array.shape for array in heat_maps.maps.values()} == {(0, 3, 8, 12), (0, 3, 16, 24)}


def test_generation_is_quiet(sd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    long = Prompt("a car " + "red " * 90, (Phrase("car", "car"),))
    list(generate(sd, plan(long)))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_pixart_generates_the_requested_size(build: Callable[[str], Any]) -> None:
    """By default PixArt would generate a size that it was trained on, and resize the image."""
    jobs = plan(CAR, images_per_prompt=1, settings={"num_inference_steps": 2, "guidance_scale": 4.0})
    [(_, image, heat_maps, _)] = generate(build("pixart"), jobs)
    assert image.shape == (64, 96, 3)
    for group in heat_maps.maps:
        height, width = map(int, group.rpartition("-")[2].split("x"))
        assert 3 * height == 2 * width, "the image's aspect ratio"
