"""Tiny pipelines, of the real classes with random weights, that generate from text and can be traced.

Random weights give almost uniform attention, so queries are scaled up until attention has peaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import T5Config, T5EncoderModel

from tests.support.tiny_parts import (
    clip_encoder,
    clip_tokenizer,
    make_peaky,
    quiet,
    sd_parts,
    t5_encoder,
    t5_tokenizer,
    unet,
    vae,
)


def build_sd(
    *, sample_size: int = 16, vae_levels: int = 3, plain_levels: int = 1, peaks: float = 12.0
) -> StableDiffusionPipeline:
    """Stable Diffusion 1, sized like the miniature: 16x16 latents, cross-attention in all kinds of blocks."""
    torch.manual_seed(0)
    network = unet(sample_size=sample_size, plain_levels=plain_levels)
    pipeline = StableDiffusionPipeline(unet=network, **sd_parts(vae=vae(levels=vae_levels)))
    make_peaky(pipeline.unet, peaks)
    return quiet(pipeline)


def build_sd2() -> StableDiffusionPipeline:
    """Stable Diffusion 2: OpenCLIP's activation, v-prediction, linear projections around attention."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        unet=unet(sample_size=16, use_linear_projection=True),
        **sd_parts(
            text_encoder=clip_encoder(clip_tokenizer(), layers=3, act="gelu"),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction"),
        ),
    )
    make_peaky(pipeline.unet, 12.0)
    return quiet(pipeline)


def build_lcm() -> LatentConsistencyModelPipeline:
    """Latent consistency: few steps, and guidance as an embedding instead of a second half of the batch."""
    torch.manual_seed(0)
    network = unet(sample_size=16, time_cond_proj_dim=8)
    make_peaky(network, 12.0)
    return quiet(LatentConsistencyModelPipeline(unet=network, **sd_parts(scheduler=LCMScheduler())))


def build_sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    extra: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    pipeline = StableDiffusionXLPipeline(
        vae=vae(levels=3),
        text_encoder=clip_encoder(tokenizer),
        text_encoder_2=clip_encoder(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet(sample_size=16, width=64, **extra),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )
    make_peaky(pipeline.unet, 12.0)
    return quiet(pipeline)


def build_sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: joint attention, image before text, two tokenizers in one text sequence."""
    torch.manual_seed(0)
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=16,
            pooled_projection_dim=64,
            pos_embed_max_size=24,
        ).eval(),
        vae=vae(levels=3, channels=16),
        text_encoder=clip_encoder(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(tokenizer, projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(tokenizer_3), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ).eval(),
        tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    make_peaky(pipeline.transformer, 12.0)
    return quiet(pipeline)


def build_flux(layers: int = 1) -> FluxPipeline:
    """Flux: joint attention, text before image, packed latents, distilled guidance."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=layers,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval(),
        vae=vae(levels=3),
        text_encoder=clip_encoder(tokenizer, width=24),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return quiet(pipeline)


def build_chroma(layers: int = 1) -> ChromaPipeline:
    """Chroma: like Flux, but masks padding tokens and has true guidance in a separate pass."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    pipeline = ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=layers,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=64,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ).eval(),
        vae=vae(levels=3),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return quiet(pipeline)


def build_pixart(kind: type = PixArtSigmaPipeline) -> Any:
    """PixArt: a transformer with cross-attention to T5 tokens; padding tokens are masked."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    pipeline = kind(
        transformer=PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            caption_channels=32,
            cross_attention_dim=16,
            use_additional_conditions=False,
        ).eval(),
        vae=vae(levels=3),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    make_peaky(pipeline.transformer, 4.0)
    return quiet(pipeline)


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": build_sd,
    "sd2": build_sd2,
    "lcm": build_lcm,
    "sdxl": build_sdxl,
    "sd3": build_sd3,
    "flux": build_flux,
    "chroma": build_chroma,
    "pixart": build_pixart,
    "pixart-alpha": lambda: build_pixart(PixArtAlphaPipeline),
}
"""Families that generate from text alone and can be traced."""
