"""Load the diffusion model that a run is configured with. Does not know what for."""

from __future__ import annotations

from typing import Any

from diffugen.config.sections import DiffusionSettings


def load_model(settings: DiffusionSettings, model: str | None = None) -> Any:
    """Return the pipeline of a diffusion model, with its LoRAs and learned tokens.

    Args:
        settings: Device, number format, and everything else that is loaded.
        model: Another model than the one of the settings.

    Raises:
        ModelError: A part cannot be loaded.
    """
    from diffugen.diffusion.inversion import load_embeddings
    from diffugen.diffusion.pipelines import load_pipeline

    pipeline = load_pipeline(
        model or settings.model,
        device=settings.device,
        dtype=settings.dtype,
        scheduler=settings.scheduler,
        offload=settings.offload,
        vae_slicing=settings.vae_slicing,
        vae_tiling=settings.vae_tiling,
        compile=settings.compile,
        loras=settings.loras,
        trust_remote_pickle=settings.trust_remote_pickle,
    )
    load_embeddings(pipeline, settings.embeddings)
    return pipeline


def load_for_planning(settings: DiffusionSettings, model: str) -> Any:
    """Return the pipeline of a diffusion model for its tokenizers and sizes, where others make the images.

    Its weights stay in main memory, in half the precision, and are not as configured; learned tokens are.

    Args:
        settings: As for `load_model`.
        model: The model.

    Raises:
        ModelError: A part cannot be loaded.
    """
    light = {"device": "cpu", "dtype": "bfloat16", "offload": "none", "compile": False, "loras": {}}
    return load_model(settings.changed(**light), model)
