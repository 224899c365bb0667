"""Denoising steps are followed in pipelines of every family, and following them changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffugen.diffusion.generate import generate
from diffugen.diffusion.jobs import PromptJobs
from diffugen.diffusion.steps import followed
from diffugen.records import Phrase, Prompt

STEPS = 3
CAR = Prompt("a photo of a red car", (Phrase("car", "car"),))


def test_each_step_is_reported_with_the_size_of_its_batch(any_pipeline: Any) -> None:
    settings = {"num_inference_steps": STEPS}
    jobs = PromptJobs(
        [CAR], images_per_prompt=3, run_seed=1, size_wh=(64, 64), model="tiny", settings=settings
    )
    seen: list[tuple[float, int]] = []
    done = list(generate(any_pipeline, jobs, batch_size=2, on_step=lambda *step: seen.append(step)))
    assert len(done) == 3
    shares = [(number + 1) / (STEPS + 1) for number in range(STEPS)]
    assert seen == [*((share, 2) for share in shares), *((share, 1) for share in shares)]


def test_following_changes_no_pixel_and_is_undone(sd: Any) -> None:
    def drawn() -> np.ndarray:
        noise = torch.Generator().manual_seed(5)
        made = sd(CAR.text, num_inference_steps=2, width=64, height=64, generator=noise, output_type="np")
        return np.asarray(made.images)

    before = drawn()
    with followed(sd, lambda share: None):
        assert np.array_equal(drawn(), before)
    assert "progress_bar" not in vars(sd)

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), followed(sd, stop):
        drawn()
    assert "progress_bar" not in vars(sd)
    assert np.array_equal(drawn(), before)


def test_pipelines_that_iterate_over_their_bar_are_followed_too(sd: Any) -> None:
    seen: list[float] = []
    with followed(sd, seen.append):
        assert list(sd.progress_bar([30, 20, 10])) == [30, 20, 10]
    assert seen == [0.25, 0.5, 0.75]
