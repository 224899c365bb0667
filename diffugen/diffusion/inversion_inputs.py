"""Check and prepare the inputs of textual inversion: pipeline, token, captions and images.

Knows tokenizers, the VAE and the valid ranges of arguments. Does not know optimisation, checkpoints or files.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.inversion import as_read, check_free, text_encoders
from diffugen.diffusion.pipelines import default_size_wh
from diffugen.errors import DiffugenError, ModelError

if TYPE_CHECKING:
    import torch


def trainable(pipeline: Any) -> tuple[Any, Any]:
    """Return the tokenizer and text encoder of a pipeline that can learn a token.

    Raises:
        ModelError: The pipeline cannot learn a token; the message says which ones can.
    """
    import torch

    encoders = text_encoders(pipeline)
    kind, advice = type(pipeline).__name__, "Use a text-to-image model of Stable Diffusion 1.x or 2.x"
    if len(encoders) != 1:
        raise ModelError(
            f"{kind} cannot learn a token here: it has {len(encoders)} text encoders, not one. {advice}."
        )
    prediction = pipeline.scheduler.config.get("prediction_type")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{kind} cannot learn a token here: its scheduler predicts {prediction!r}, not epsilon or "
            f"v_prediction. {advice}."
        )
    wanted, given = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if wanted != given:
        raise ModelError(
            f"{kind} cannot learn a token here: its UNet reads {wanted} channels, but its latents have "
            f"{given}. {advice}, not one for inpainting or upscaling."
        )
    if any(hasattr(part, "_hf_hook") for part in (pipeline.unet, encoders[0][1])):
        raise ModelError(
            f"{kind} is loaded with offload, which does not work in training; load it with offload none"
        )
    if encoders[0][1].dtype == torch.float16:
        raise ModelError(
            f"{kind} is loaded in float16, in which small gradients vanish; load it in float32, or in "
            "bfloat16 to save memory"
        )
    return encoders[0]


def check_arguments(
    images: Sequence[NDArray[np.uint8]],
    vectors: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    templates: Sequence[str],
    checkpoint_every: int,
    out: Path,
) -> None:
    """Require that the arguments of a training are in range.

    Raises:
        DiffugenError: One is not.
    """
    whole = {
        "vectors": vectors,
        "steps": steps,
        "batch_size": batch_size,
        "checkpoint_every": checkpoint_every,
    }
    for name, value in whole.items():
        if value < 1:
            raise DiffugenError(f"{name} must be at least 1; got {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise DiffugenError(f"learning_rate must be a number above 0, such as 0.001; got {learning_rate}")
    if not images:
        raise DiffugenError("no images to learn the token from; give 3 to 8 images of the same thing")
    if not templates or any("{}" not in template for template in templates):
        raise DiffugenError(
            f"captions need {{}} in place of the token, such as 'a photo of a {{}}'; got {list(templates)}"
        )
    if out.suffix != ".safetensors":
        raise DiffugenError(f"a token is written as .safetensors; got {out}")


def check_token(tokenizer: Any, token: str) -> None:
    """Require that a token's name is one word, as the tokenizer reads it, and not in use.

    Raises:
        ModelError: It is not.
    """
    if not token or any(letter.isspace() for letter in token):
        raise ModelError(f"a token is one word without spaces, such as '<grand-piano>'; got {token!r}")
    if token != as_read(tokenizer, token):
        raise ModelError(
            f"the model's tokenizer ignores case: write {token!r} as {as_read(tokenizer, token)!r}"
        )
    check_free(
        tokenizer,
        token,
        f"the new token is to be {token!r}",
        "choose a name that is not a word yet, such as '<grand-piano>'",
    )


def initial_vector(tokenizer: Any, encoder: Any, init: str) -> torch.Tensor:
    """Return the embedding of a word, float32 (width,).

    Raises:
        ModelError: The tokenizer does not have the word as a single token.
    """
    ids = tokenizer(init, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = ", ".join(repr(piece) for piece in tokenizer.tokenize(init)) or "none"
        raise ModelError(
            f"init must be a word that is one token to the model; {init!r} is {len(ids)} to it: {pieces}. "
            "Choose a shorter or more common word for the same kind of thing"
        )
    return encoder.get_input_embeddings().weight[ids[0]].detach().float().cpu().clone()


def encode_captions(
    tokenizer: Any, token: str, vectors: int, templates: Sequence[str]
) -> tuple[torch.Tensor, int]:
    """Return the captions' token ids and the first id that stands for a learned vector.

    Returns:
        int64 (templates, tokens), and the id; the ids of further vectors follow it.

    Raises:
        DiffugenError: A caption is longer than the tokenizer's limit.
    """
    extended = copy.deepcopy(tokenizer)
    names = [token, *(f"{token}_{number}" for number in range(1, vectors))]
    extended.add_tokens(names)
    new = extended.convert_tokens_to_ids(names)
    texts = [template.replace("{}", " ".join(names)) for template in templates]
    ids = extended(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    for template, row in zip(templates, ids.tolist(), strict=True):
        if not set(new) <= set(row):
            raise DiffugenError(
                f"the caption {template!r} with {vectors} vectors is longer than the "
                f"{tokenizer.model_max_length} tokens that the model reads: shorten it, or take fewer vectors"
            )
    return ids, new[0]


def encode_images(pipeline: Any, images: Sequence[NDArray[np.uint8]], flip: bool) -> torch.Tensor:
    """Return the latents of images, cropped and scaled to the model's own size.

    Args:
        pipeline: Provides the VAE and the size.
        images: N arrays uint8 RGB (H, W, 3) of any sizes.
        flip: Whether to add the mirrored images.

    Returns:
        float32 (N, 1, C, h, w), or (N, 2, C, h, w) with ``flip``.
    """
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
    from PIL import Image, ImageOps

    vae, size_wh, latents = pipeline.vae, default_size_wh(pipeline), []
    for image in images:
        fitted = np.asarray(ImageOps.fit(Image.fromarray(image), size_wh, Image.Resampling.LANCZOS))
        both = np.stack([fitted, fitted[:, ::-1]] if flip else [fitted])
        pixels = torch.from_numpy(both).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        with torch.no_grad():
            found = retrieve_latents(vae.encode(pixels), sample_mode="argmax")
        latents.append(found.float() * vae.config.scaling_factor)
    return torch.stack(latents)
