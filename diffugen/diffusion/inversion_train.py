"""Learn a new token from a few images: textual inversion.

Only the token's own vectors are learned; the pipeline is bit-identical before and after. Each step draws its
random numbers from its own seed, so an interrupted training, once resumed, gives the same result as an
uninterrupted one. Does not know image files. Source: Gal et al., 2022, "An Image is Worth One Word:
Personalizing Text-to-Image Generation using Textual Inversion", section 3; loss weights: Hang et al., 2023,
"Efficient Diffusion Training via Min-SNR Weighting Strategy".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.inversion import write_embedding
from diffugen.diffusion.inversion_inputs import (
    check_arguments,
    check_token,
    encode_captions,
    encode_images,
    initial_vector,
    trainable,
)
from diffugen.diffusion.inversion_state import CHECKPOINT_SUFFIX, NOTES, TrainingState, digest
from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, is_out_of_memory
from diffugen.records import content_id

if TYPE_CHECKING:
    import torch

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a photo of {}", "a {}", "{}")
"""Captions that contain nothing but the token and words that every model knows.

Whatever all images share and no caption mentions, such as their background, becomes part of the token.
"""


def train_inversion(
    pipeline: Any,
    images: Sequence[NDArray[np.uint8]],
    *,
    token: str,
    init: str,
    out: Path,
    vectors: int = 1,
    steps: int = 500,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
    templates: Sequence[str] = TEMPLATES,
    flip: bool = True,
    snr_gamma: float | None = None,
    checkpoint_every: int = 20,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Learn a token and write it to a file.

    An interrupted or shorter training with the same arguments is continued from its checkpoint.

    Args:
        pipeline: Stable Diffusion 1.x or 2.x, in float32 or bfloat16, on one device without offload.
        images: Images of what the token should mean, uint8 RGB (H, W, 3) of any sizes; each is cropped to its
            centre and scaled to the model's own size.
        token: The new word, e.g. ``"<grand-piano>"``.
        init: A word that is one token of the model; its embedding is the initial value of all vectors.
        out: The ``.safetensors`` file to write; the checkpoint is kept next to it.
        vectors: Number of vectors of the token: more of them hold more detail but follow the rest of a prompt
            less.
        steps: Optimiser steps in total: a few hundred for the miniature, 1000 to 3000 for Stable Diffusion.
        batch_size: Images per step.
        learning_rate: Constant learning rate of Adam.
        seed: Determines noise, time steps, captions and flips.
        templates: Captions with ``{}`` in place of the token.
        flip: Whether to mirror half of the images.
        snr_gamma: Weights each time step's loss by min(SNR, gamma), which balances the time steps; None
            weights all equally.
        checkpoint_every: Steps between checkpoints.
        on_progress: Called with the number of finished steps and of all steps.

    Returns:
        ``out``.

    Raises:
        ModelError: The pipeline cannot be trained like this, ``token`` is taken, ``init`` is not one token,
            memory runs out, or the training diverges.
        DiffugenError: An argument is out of range, or existing files belong to another training.

    Example:
        >>> out = Path("grand-piano.safetensors")
        >>> train_inversion(pipeline, photos, token="<grand-piano>", init="piano", out=out)
    """
    tokenizer, encoder = trainable(pipeline)
    check_arguments(images, vectors, steps, batch_size, learning_rate, templates, checkpoint_every, out)
    check_token(tokenizer, token)
    start = initial_vector(tokenizer, encoder, init)
    settings = {
        "token": token,
        "init": init,
        "vectors": vectors,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "templates": list(templates),
        "flip": flip,
        "snr_gamma": snr_gamma,
        "images": digest(images),
        "model": digest([start.numpy()]),
    }
    state = TrainingState.begin(start.repeat(vectors, 1), learning_rate, pipeline.device)
    checkpoint = out.with_name(out.name + CHECKPOINT_SUFFIX)
    state.resume(checkpoint, out, settings, steps)
    on_progress(state.step, steps)
    if state.step < steps:
        ids, first_id = encode_captions(tokenizer, token, vectors, templates)
        latents, schedule = encode_images(pipeline, images, flip), _noise_schedule(pipeline, snr_gamma)
        with _frozen(pipeline), _learning(encoder, state.rows, first_id):
            try:
                for _ in range(steps - state.step):
                    _train_step(pipeline, state, schedule, latents, ids, batch_size, seed)
                    if state.step % checkpoint_every == 0 or state.step == steps:
                        state.save(checkpoint, settings)
                    on_progress(state.step, steps)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ModelError(
                    f"out of memory while learning {token!r} with batch_size {batch_size} on "
                    f"{pipeline.device}: use a smaller batch_size, or dtype bfloat16"
                ) from error
    write_embedding(out, token, state.rows, {NOTES: json.dumps({**settings, "steps": steps})})
    return out


@dataclass(frozen=True)
class _Schedule:
    """The noise schedule of a training.

    Attributes:
        noise: A diffusers scheduler that adds noise.
        by_speed: Whether the model predicts velocity instead of noise.
        weights: Loss weight of each time step, float32 (times,).
    """

    noise: Any
    by_speed: bool
    weights: torch.Tensor


def _noise_schedule(pipeline: Any, snr_gamma: float | None) -> _Schedule:
    """Return the schedule with which the model was trained; every sampler's configuration contains it."""
    import torch
    from diffusers import DDPMScheduler

    with quiet():
        noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    by_speed = noise.config.prediction_type == "v_prediction"
    if snr_gamma is None:
        return _Schedule(noise, by_speed, torch.ones(len(noise.alphas_cumprod)))
    # 0 at the last time step of a schedule with zero terminal SNR.
    ratio = noise.alphas_cumprod / (1 - noise.alphas_cumprod)
    weights = ratio.clamp(max=snr_gamma) / (ratio + 1) if by_speed else (snr_gamma / ratio).clamp(max=1)
    return _Schedule(noise, by_speed, weights)


def _train_step(
    pipeline: Any,
    state: TrainingState,
    schedule: _Schedule,
    latents: torch.Tensor,
    ids: torch.Tensor,
    batch_size: int,
    seed: int,
) -> None:
    import torch

    unet, encoder, device = pipeline.unet, pipeline.text_encoder, state.rows.device
    random = torch.Generator().manual_seed(int(content_id(seed, state.step), 16) % 2**63)

    def draw(below: int) -> torch.Tensor:
        return torch.randint(0, below, (batch_size,), generator=random).to(device)

    clean = latents[draw(len(latents)), draw(latents.shape[1])]
    caption, times = ids.to(device)[draw(len(ids))], draw(len(schedule.weights))
    noise = torch.randn(clean.shape, generator=random).to(device)
    noisy = schedule.noise.add_noise(clean, noise, times).to(unet.dtype)
    target = schedule.noise.get_velocity(clean, noise, times) if schedule.by_speed else noise
    predicted = unet(noisy, times, encoder(caption)[0]).sample
    error = (predicted.float() - target).square().mean((1, 2, 3))
    loss = (error * schedule.weights.to(device)[times]).mean()
    state.optimiser.zero_grad()
    loss.backward()
    state.optimiser.step()
    state.step += 1


@contextmanager
def _frozen(pipeline: Any) -> Iterator[None]:
    """Freeze all weights of the pipeline until the context closes."""
    flags = [
        (weight, weight.requires_grad)
        for part in (pipeline.unet, pipeline.text_encoder)
        for weight in part.parameters()
    ]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


@contextmanager
def _learning(encoder: Any, rows: torch.nn.Parameter, first_id: int) -> Iterator[None]:
    """Let a text encoder embed ids from ``first_id`` on as the learned rows, until the context closes."""
    import torch

    known = encoder.get_input_embeddings()

    class WithRows(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            new = ids >= first_id
            embedded = known(ids.masked_fill(new, 0))
            learned = torch.nn.functional.embedding((ids - first_id).clamp(min=0), rows)
            return torch.where(new[..., None], learned.to(embedded.dtype), embedded)

    try:
        encoder.set_input_embeddings(WithRows())
        yield
    finally:
        encoder.set_input_embeddings(known)
