"""Tiny parts of pipelines, of the real classes with random weights: tokenizers, encoders, VAE, UNet."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WHOLE_WORDS = ("a", "photo", "of", "on", "the", "red", "car", "grand", "piano", "road", "and")
"""Words that are one token; all others are split into letters."""


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WHOLE_WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if i == len(word) else letter
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                pieces.append(left + right)
            left += letter
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WHOLE_WORDS]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz,.-'"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=48)


def clip_encoder(
    tokenizer: CLIPTokenizer,
    *,
    width: int = 32,
    layers: int = 2,
    projection: bool = False,
    act: str = "quick_gelu",
) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act=act,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def sd_parts(**others: Any) -> dict[str, Any]:
    """Return the components of Stable Diffusion 1 and 2 except the UNet; ``others`` replaces some."""
    tokenizer = clip_tokenizer()
    return {
        "vae": vae(levels=3),
        "text_encoder": clip_encoder(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
        **others,
    }


def vae(*, levels: int, channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=0.0,
    ).eval()


def unet(*, sample_size: int, width: int = 32, plain_levels: int = 1, **extra: Any) -> UNet2DConditionModel:
    """Build a UNet that attends to text at its lower resolutions only.

    On the way down, only the lowest resolution has cross-attention; on the way up, also the next higher one.
    """
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(16, 32, 32)[: plain_levels + 1],
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain_levels + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * (plain_levels - 1),
        cross_attention_dim=width,
        attention_head_dim=(2, 4, 4)[: plain_levels + 1],
        norm_num_groups=8,
        **extra,
    ).eval()


def make_peaky(denoiser: torch.nn.Module, factor: float) -> None:
    """Scale the queries of all attention to text, which sharpens its softmax."""
    for name, module in denoiser.named_modules():
        if name.endswith(("attn2.to_q", "attn.to_q")):
            module.weight.data *= factor


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
