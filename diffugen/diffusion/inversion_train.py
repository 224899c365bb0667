"""Learn a new token from a few images: textual inversion.

Only the token's own vectors are learned; the pipeline is the same before and after, to the bit. Each step
draws from its own number, so an interrupted training goes on as an uninterrupted one would. Does not know
image files or pictures. Source: Gal et al., 2022, "An Image is Worth One Word: Personalizing Text-to-Image
Generation using Textual Inversion", section 3; loss weights: Hang et al., 2023, "Efficient Diffusion Training
via Min-SNR Weighting Strategy".
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.diffusion.inversion import as_read, check_free, text_encoders, write_embedding, write_tensors
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import default_size_wh
from diffugen.errors import DiffugenError, ModelError
from diffugen.records import content_id

if TYPE_CHECKING:
    import torch

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a photo of {}", "a {}", "{}")
"""Captions that say nothing but the token, in words that every model knows. What all images share and no
caption says, such as their background, goes into the token."""

CHECKPOINT_SUFFIX = ".checkpoint"
_NOTES = "diffugen"


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
    """Learn a token and write it to a file; an interrupted or shorter training with the same arguments goes
    on.

    Args:
        pipeline: Stable Diffusion 1.x or 2.x, in float32 or bfloat16, wholly on one device.
        images: What the token shall mean, uint8 RGB (H, W, 3) of any sizes; the middle of each is scaled to
            the model's own size.
        token: The new word, e.g. ``"<grand-piano>"``.
        init: A word the model knows as one token, where the vectors start.
        out: The ``.safetensors`` file to write. Beside it a checkpoint is kept.
        vectors: How many vectors the token has: more hold more detail, and obey the rest of a prompt less.
        steps: Optimiser steps in all: a few hundred for the miniature, 1000 to 3000 for Stable Diffusion.
        batch_size: Images a step.
        learning_rate: Adam's, constant.
        seed: Decides noise, times, captions and flips.
        templates: Captions with ``{}`` in the token's place.
        flip: Whether half of the images are mirrored.
        snr_gamma: Weighs a time step by min(SNR, gamma), which evens out their share; None weighs all alike.
        checkpoint_every: Steps between checkpoints.
        on_progress: Called with finished and all steps.

    Returns:
        ``out``.

    Raises:
        ModelError: The pipeline cannot be trained so, ``token`` is taken, ``init`` is not one token, memory
            is short, or the training diverged.
        DiffugenError: An argument is out of range, or the files there are of another training.

    Example:
        >>> train_inversion(pipeline, photos, token="<grand-piano>", init="piano", out=Path("grand-piano.safetensors"))
    """
    tokenizer, encoder = trainable(pipeline)
    _check_arguments(images, vectors, steps, batch_size, learning_rate, templates, checkpoint_every, out)
    _check_token(tokenizer, token)
    start = _initial_vector(tokenizer, encoder, init)
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
        "images": _digest(images),
        "model": _digest([start.numpy()]),
    }
    state = _State.begin(start.repeat(vectors, 1), learning_rate, pipeline.device)
    checkpoint = out.with_name(out.name + CHECKPOINT_SUFFIX)
    state.resume(checkpoint, out, settings, steps)
    on_progress(state.step, steps)
    if state.step < steps:
        ids, first_id = _captions(tokenizer, token, vectors, templates)
        latents, schedule = encode_images(pipeline, images, flip), _noise_schedule(pipeline, snr_gamma)
        with _frozen(pipeline), _learning(encoder, state.rows, first_id):
            try:
                for _ in range(steps - state.step):
                    _train_step(pipeline, state, schedule, latents, ids, batch_size, seed)
                    if state.step % checkpoint_every == 0 or state.step == steps:
                        state.save(checkpoint, settings)
                    on_progress(state.step, steps)
            except _out_of_memory() as error:
                raise ModelError(
                    f"out of memory while learning {token!r} with batch_size {batch_size} on "
                    f"{pipeline.device}: choose a smaller "
                    "batch size, or dtype bfloat16"
                ) from error
    write_embedding(out, token, state.rows, {_NOTES: json.dumps({**settings, "steps": steps})})
    return out


def trainable(pipeline: Any) -> tuple[Any, Any]:
    """Return the tokenizer and text encoder of a pipeline that can learn a token.

    Raises:
        ModelError: It cannot; the message says what can.
    """
    import torch

    encoders = text_encoders(pipeline)
    kind, advice = type(pipeline).__name__, "Take a text-to-image model of Stable Diffusion 1.x or 2.x"
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
            f"{kind} cannot learn a token here: its UNet reads {wanted} channels and its latents have "
            f"{given}. {advice}, not "
            "one for inpainting or upscaling."
        )
    if any(hasattr(part, "_hf_hook") for part in (pipeline.unet, encoders[0][1])):
        raise ModelError(
            f"{kind} is loaded with offload, which training does not work with; load it with offload none"
        )
    if encoders[0][1].dtype == torch.float16:
        raise ModelError(
            f"{kind} is loaded in float16, in which small gradients vanish; load it in float32, or bfloat16 "
            "where memory is short"
        )
    return encoders[0]


def encode_images(pipeline: Any, images: Sequence[NDArray[np.uint8]], flip: bool) -> torch.Tensor:
    """Return the latents of images at the model's own size, float32 (N, 1 or 2, C, h, w); with ``flip`` the
    mirrored ones too.
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


@dataclass
class _State:
    """Everything that changes while a token is learned."""

    rows: torch.nn.Parameter
    optimiser: torch.optim.Optimizer
    step: int = 0

    @staticmethod
    def begin(start: torch.Tensor, learning_rate: float, device: Any) -> _State:
        import torch

        rows = torch.nn.Parameter(start.to(device))
        return _State(rows, torch.optim.Adam([rows], lr=learning_rate))

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        if not self.rows.isfinite().all():
            raise ModelError(
                f"learning {settings['token']!r} diverged before step {self.step}: its vectors are not "
                "finite. Choose a learning "
                f"rate below {settings['learning_rate']:g}"
            )
        kept = {name: value for name, value in self.optimiser.state[self.rows].items() if name != "step"}
        write_tensors(
            path, {"rows": self.rows, **kept}, {_NOTES: json.dumps({"step": self.step, "settings": settings})}
        )

    def resume(self, path: Path, out: Path, settings: Mapping[str, Any], steps: int) -> None:
        """Go on from a checkpoint, if there is one and it is of the same training."""
        import torch
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            if out.exists():
                raise DiffugenError(
                    f"{out} exists already, and no checkpoint of its training: choose another file, or "
                    "remove it"
                )
            return
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads(file.metadata()[_NOTES])
                kept = {name: file.get_tensor(name).to(self.rows.device) for name in file.keys()}  # noqa: SIM118
            before, step = notes["settings"], int(notes["step"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise DiffugenError(
                f"cannot read the checkpoint {path} ({error}); remove it to begin again"
            ) from error
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed or step > steps:
            changed = changed or [f"steps {step} -> {steps}"]
            raise DiffugenError(
                f"{path} is of another training ({', '.join(changed)}): choose another file to write, or "
                "remove this "
                "one to begin again"
            )
        with torch.no_grad():
            self.rows.copy_(kept.pop("rows"))
        self.optimiser.state[self.rows].update({"step": torch.tensor(float(step)), **kept})
        self.step = step


@dataclass(frozen=True)
class _Schedule:
    """How noise is added, what the model predicts of it, and what each time step counts, float32 (times,)."""

    noise: Any
    by_speed: bool
    weights: torch.Tensor


def _noise_schedule(pipeline: Any, snr_gamma: float | None) -> _Schedule:
    """Return the schedule that the model was trained with; it is in the configuration of any sampler."""
    import torch
    from diffusers import DDPMScheduler

    with quiet():
        noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    by_speed = noise.config.prediction_type == "v_prediction"
    if snr_gamma is None:
        return _Schedule(noise, by_speed, torch.ones(len(noise.alphas_cumprod)))
    ratio = noise.alphas_cumprod / (
        1 - noise.alphas_cumprod
    )  # 0 at the end of a schedule with zero terminal SNR
    weights = ratio.clamp(max=snr_gamma) / (ratio + 1) if by_speed else (snr_gamma / ratio).clamp(max=1)
    return _Schedule(noise, by_speed, weights)


def _train_step(
    pipeline: Any,
    state: _State,
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
    """Take every weight out of training until the end."""
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
    """Let a text encoder read ids from ``first_id`` on as the rows that are learned, until the end."""
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


def _captions(tokenizer: Any, token: str, vectors: int, templates: Sequence[str]) -> tuple[torch.Tensor, int]:
    """Return the ids of the captions, int64 (templates, tokens), and the first id that stands for a learned
    vector.
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
                f"{tokenizer.model_max_length} tokens that "
                "the model reads: shorten it, or take fewer vectors"
            )
    return ids, new[0]


def _initial_vector(tokenizer: Any, encoder: Any, init: str) -> torch.Tensor:
    """Return the vector of a word, float32 (width,)."""
    ids = tokenizer(init, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = ", ".join(repr(piece) for piece in tokenizer.tokenize(init)) or "none"
        raise ModelError(
            f"init must be a word that the model knows as one token; {init!r} is {len(ids)} to it: {pieces}. "
            "Take a shorter "
            "or more common word for the same kind of thing"
        )
    return encoder.get_input_embeddings().weight[ids[0]].detach().float().cpu().clone()


def _check_token(tokenizer: Any, token: str) -> None:
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
        "choose a name that is no word yet, such as '<grand-piano>'",
    )


def _check_arguments(
    images: Sequence[NDArray[np.uint8]],
    vectors: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    templates: Sequence[str],
    checkpoint_every: int,
    out: Path,
) -> None:
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
        raise DiffugenError(
            "a token is learned from images, and there are none; 3 to 8 of one thing are a good number"
        )
    if not templates or any("{}" not in template for template in templates):
        raise DiffugenError(
            f"captions need {{}} where the token stands, such as 'a photo of a {{}}'; got {list(templates)}"
        )
    if out.suffix != ".safetensors":
        raise DiffugenError(f"a token is written as .safetensors; got {out}")


def _digest(arrays: Sequence[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _out_of_memory() -> type[Exception]:
    import torch

    return torch.OutOfMemoryError
