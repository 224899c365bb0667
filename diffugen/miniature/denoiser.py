"""The miniature's tokenizer, text encoder and UNet, and the training of the latter two. Knows no masks.

The text encoder is a CLIPTextModel with *no* layers: token and position embeddings only. A causal layer would
spread a noun's content to later tokens, and attention would no longer point at the object (measured in
reports/miniature).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 128
MAX_TOKENS = 77
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """Build a byte-pair tokenizer in which every word of ``captions`` is one token.

    All other words are split into letters. Existing merges are applied to each word before new ones are
    appended; otherwise some words would be split.

    Args:
        captions: Texts with all words that get a token.
        folder: Output folder for ``vocab.json`` and ``merges.txt``.
    """
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in sorted(
        {word for caption in captions for word in caption.lower().replace(",", " , ").split()}
    ):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            pieces = _apply(merge, pieces)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _apply(merges[-1], pieces)
            vocabulary.append("".join(merges[-1]))
    vocabulary.extend(_SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    vocab_file.write_text(
        json.dumps({piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))})
    )
    merges_file.write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    return CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=MAX_TOKENS)


def _apply(merge: tuple[str, str], pieces: list[str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == merge:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build an untrained text encoder of token and position embeddings."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH,
            num_hidden_layers=0,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(latent_channels: int, latent_side: int, widths: Sequence[int]) -> UNet2DConditionModel:
    """Build an untrained UNet with cross-attention at full and half the latent resolution."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=tuple(widths),
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(max(1, width // 40) for width in widths),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule: v-prediction, zero terminal SNR (Lin et al., 2024), trailing spacing."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


@dataclass
class DenoiserTraining:
    """Everything that changes while the denoiser is trained."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    optimiser: torch.optim.Optimizer
    average: dict[str, torch.Tensor]
    step: int = 0

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters of both networks; names begin with ``unet.`` or ``text.``."""
        pairs = [("unet", self.unet), ("text", self.text_encoder)]
        return {
            f"{prefix}.{name}": value for prefix, module in pairs for name, value in module.named_parameters()
        }

    def state(self) -> dict[str, Any]:
        """Return the state, for `restore`."""
        weights = {name: value.detach() for name, value in self.parameters().items()}
        return {
            "step": self.step,
            "weights": weights,
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        import torch

        with torch.no_grad():
            for name, value in self.parameters().items():
                value.copy_(state["weights"][name])
        self.average = {name: value.clone() for name, value in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the networks their moving-average weights, as used in samples and releases, temporarily."""
        import torch

        parameters = self.parameters()
        kept = {name: value.detach().clone() for name, value in parameters.items()}
        try:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(kept[name])


def start_training(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, learning_rate: float
) -> DenoiserTraining:
    """Return the state before the first step, with a new optimiser and moving average."""
    import torch

    values = [*unet.parameters(), *text_encoder.parameters()]
    optimiser = torch.optim.AdamW(values, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    training = DenoiserTraining(unet, text_encoder, optimiser, {})
    training.average = {name: value.detach().clone() for name, value in training.parameters().items()}
    return training


def train_denoiser(
    training: DenoiserTraining,
    latents: torch.Tensor,
    token_ids: torch.Tensor,
    empty_ids: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    device: str = "cpu",
    caption_dropout: float = 0.1,
    average_decay: float = 0.997,
    on_step: Callable[[int, torch.Tensor], None] = lambda step, loss: None,
) -> None:
    """Train the UNet and the text encoder in place up to ``steps``, continuing from ``training.step``.

    Uses the v-prediction loss with min-SNR weights (Hang et al., 2023, gamma 5) and a cosine learning rate
    with a short warm-up. Each step's number seeds its batch, so a resumed training gives the same result as
    an uninterrupted one.

    Args:
        training: From `start_training`.
        latents: float16 (N, C, h, w).
        token_ids: int64 (N, 77).
        empty_ids: int64 (77,), the empty caption, for classifier-free guidance.
        steps: Number of the last step.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        device: Torch device.
        caption_dropout: Share of samples trained with the empty caption.
        average_decay: Decay of the moving average of the weights.
        on_step: Called with the number of the step and its loss, a tensor on the device (reading it waits
            for a GPU).
    """
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    latents, token_ids, empty_ids = latents.to(device), token_ids.to(device), empty_ids.to(device)
    ratio = alphas / (1 - alphas)
    weights = (ratio.clamp(max=5) / (ratio + 1)).clamp(min=0.15)
    training.unet.to(device).train()
    if torch.device(device).type == "cpu":
        # An explicit softmax, because the backward pass of the fused kernel is slow on CPUs in bfloat16.
        training.unet.set_attn_processor(AttnProcessor())
    training.text_encoder.to(device).train()
    training.average = {name: value.to(device) for name, value in training.average.items()}
    parameters = training.parameters()
    while training.step < steps:
        step = training.step
        generator = torch.Generator(device).manual_seed(step)
        rate = (
            learning_rate
            * min(1.0, (step + 1) / 100)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        )
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        picks = torch.randint(0, len(latents), (batch_size,), generator=generator, device=device)
        clean, ids = latents[picks].float(), token_ids[picks]
        empty = torch.rand(batch_size, generator=generator, device=device) < caption_dropout
        ids = torch.where(empty[:, None], empty_ids, ids)
        times = torch.randint(0, len(alphas), (batch_size,), generator=generator, device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        noisy, target = scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            context = training.text_encoder(ids)[0]
            predicted = training.unet(noisy, times, context).sample
        error = (predicted.float() - target).square().mean((1, 2, 3))
        loss = (error * weights[times]).mean()
        training.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        training.optimiser.step()
        training.step = step + 1
        decay = min(average_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(training.average.values()), [value.data for value in parameters.values()], 1 - decay
            )
        on_step(training.step, error.detach().mean())


def assemble_pipeline(vae: Any, tokenizer: Any, text_encoder: Any, unet: Any) -> StableDiffusionPipeline:
    """Assemble the parts into an ordinary Stable Diffusion pipeline."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
