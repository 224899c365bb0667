"""Stable Diffusion 1.5 and XL with random weights, built from their configurations without a download.

Their images are noise, but they are as slow as the real models.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

VOCABULARY = 49408


def random_pipeline(name: str, device: str, dtype: torch.dtype, shrink: int = 1) -> Any:
    """Return a pipeline of the named size.

    Args:
        name: ``sd15`` or ``sdxl``.
        device: The device to build it on.
        dtype: Number format of its weights.
        shrink: Divisor of the widths of all layers, for quick tests: 1, 2, 5 or 10.
    """
    torch.manual_seed(0)
    with torch.device(device):
        parts = _sd15(shrink) if name == "sd15" else _sdxl(shrink)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype).eval()
    if name == "sd15":
        return StableDiffusionPipeline(
            **parts,
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    return StableDiffusionXLPipeline(**parts, scheduler=EulerDiscreteScheduler(), add_watermarker=False)


def _sd15(shrink: int) -> dict[str, Any]:
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=tuple(c // shrink for c in (320, 640, 1280, 1280)),
        attention_head_dim=8,
        cross_attention_dim=768 // shrink // 8 * 8,
    )
    return {
        "unet": unet,
        "vae": _vae(512, shrink),
        "text_encoder": _encoder(unet.config.cross_attention_dim, 12, "quick_gelu"),
        "tokenizer": _tokenizer(),
    }


def _sdxl(shrink: int) -> dict[str, Any]:
    first, second = 768 // shrink // 8 * 8, 1280 // shrink // 8 * 8
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=tuple(c // shrink for c in (320, 640, 1280)),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(max(1, h // shrink) for h in (5, 10, 20)),
        cross_attention_dim=first + second,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + second,
    )
    return {
        "unet": unet,
        "vae": _vae(1024, shrink),
        "text_encoder": _encoder(first, 12, "quick_gelu"),
        "text_encoder_2": _encoder(second, 32, "gelu", projection=True),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
    }


def _vae(side: int, shrink: int) -> AutoencoderKL:
    widths = tuple(max(32, c // shrink // 32 * 32) for c in (128, 256, 512, 512))
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=side,
        force_upcast=False,
    )


def _encoder(width: int, layers: int, act: str, *, projection: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        hidden_act=act,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of single letters; unused tokens fill the rest of the vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [f"<unused {i}>" for i in range(VOCABULARY - 2 - len(pieces))]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
