"""The weights in the package load with the libraries' own calls, without DiffuGen and without options."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from diffugen.diffusion.pipelines import load_pipeline
from diffugen.miniature.measure import WEIGHTS


def test_the_pipeline_loads_without_a_dtype_and_draws_the_same() -> None:
    """Regression: transformers kept the text encoder's float16, which cannot be mixed with a float32 UNet."""
    plain = StableDiffusionPipeline.from_pretrained(WEIGHTS / "diffusion")
    plain.set_progress_bar_config(disable=True)
    drawn = []
    for pipeline in (plain, load_pipeline("miniature", device="cpu", dtype="float32")):
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            assert part.dtype == torch.float32
        noise = torch.Generator().manual_seed(3)
        drawn += pipeline("a car", num_inference_steps=2, generator=noise, output_type="np").images.tolist()
    assert np.array_equal(drawn[0], drawn[1])
