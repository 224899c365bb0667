"""Which pipelines can be traced, and the advice for all others. Knows no prompts and no attention."""

from __future__ import annotations

import inspect
from typing import Any

from diffugen.errors import ModelError

TRACEABLE = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "LatentConsistencyModelPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "ChromaPipeline",
)
"""Text-to-image pipelines of diffusers that can be traced; tests/diffusion traces each of them.

No other pipeline is rejected because of its name: any that passes the prompt's tokens to torch's attention
can be traced too.
"""

ADVICE = (
    f"Use a model of a family that can be traced ({', '.join(TRACEABLE)}, and their img2img and inpaint "
    "pipelines)."
)
"""The end of every message about a pipeline that cannot be traced."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Attribute names of a pipeline's text encoders."""


def denoiser_of(pipeline: Any) -> Any:
    """Return a pipeline's UNet or transformer, or None if it has neither."""
    denoiser = getattr(pipeline, "unet", None)
    return getattr(pipeline, "transformer", None) if denoiser is None else denoiser


def attention_modules(denoiser: Any) -> dict[str, Any]:
    """Return a denoiser's attention modules by name."""
    return {name: module for name, module in denoiser.named_modules() if hasattr(module, "set_processor")}


def check_traceable(pipeline: Any) -> None:
    """Require that a pipeline has the parts that tracing needs.

    Other obstacles, such as attention that is computed in an unusual way, only show when the pipeline runs;
    the tracer reports them in the first step.

    Raises:
        ModelError: The pipeline does not generate images from text, or lacks a part.
    """
    denoiser = denoiser_of(pipeline)
    reason = ""
    if "prompt" not in inspect.signature(type(pipeline).__call__).parameters:
        reason = "it does not generate images from text"
    elif denoiser is None:
        reason = "it has no unet or transformer"
    elif not callable(getattr(pipeline, "encode_prompt", None)):
        reason = "it has no encode_prompt"
    elif all(getattr(pipeline, name, None) is None for name in TEXT_ENCODERS):
        reason = "it has no text encoder"
    elif not any(hasattr(module, "set_processor") for module in denoiser.modules()):
        reason = f"its {type(denoiser).__name__} has no attention modules of diffusers"
    if reason:
        raise ModelError(f"{type(pipeline).__name__} cannot be traced: {reason}. {ADVICE}")
