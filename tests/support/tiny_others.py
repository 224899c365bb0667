"""Tiny pipelines, of the real classes, that need an image or cannot be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    IFPipeline,
    StableCascadeDecoderPipeline,
    StableCascadeUNet,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from transformers import UMT5Config, UMT5EncoderModel

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


def build_sd_inpaint() -> StableDiffusionInpaintPipeline:
    """Stable Diffusion for inpainting only: its UNet reads 9 channels (noise, mask and masked image)."""
    torch.manual_seed(0)
    network = unet(sample_size=16, in_channels=9)
    make_peaky(network, 12.0)
    return quiet(StableDiffusionInpaintPipeline(unet=network, **sd_parts()))


def build_sdxl_refiner() -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: needs an image, and has only the second of SDXL's text encoders."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    network = unet(
        sample_size=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=5 * 8 + 32,
        use_linear_projection=True,
    )
    make_peaky(network, 12.0)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=vae(levels=3),
        text_encoder=None,
        text_encoder_2=clip_encoder(tokenizer, projection=True),
        tokenizer=None,
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    return quiet(pipeline)


def build_aura_flow(joint_layers: int = 1) -> AuraFlowPipeline:
    """Register tokens precede the text's; without joint layers, no layer gets the text separately."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipeline = AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=joint_layers,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pos_embed_max_size=256,
        ).eval(),
        vae=vae(levels=3),
        text_encoder=UMT5EncoderModel(config).eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return quiet(pipeline)


def build_deepfloyd() -> IFPipeline:
    """DeepFloyd IF attends to text and image in one softmax."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    network = UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    ).eval()
    return quiet(
        IFPipeline(
            unet=network,
            text_encoder=t5_encoder(tokenizer),
            tokenizer=tokenizer,
            scheduler=DDPMScheduler(variance_type="learned_range"),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    )


def build_cascade() -> StableCascadeDecoderPipeline:
    """Stable Cascade's decoder has no unet or transformer; it decodes another model's output."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock",), ("SDCascadeAttnBlock",)),
        clip_text_pooled_in_channels=32,
        timestep_conditioning_type=("sca",),
    ).eval()
    return quiet(
        StableCascadeDecoderPipeline(
            decoder=decoder,
            tokenizer=tokenizer,
            text_encoder=clip_encoder(tokenizer, projection=True),
            scheduler=DDPMWuerstchenScheduler(),
            vqgan=vae(levels=2),
        )
    )


OTHERS: dict[str, Callable[[], Any]] = {
    "sd-inpaint": build_sd_inpaint,
    "sdxl-refiner": build_sdxl_refiner,
    "aura-flow": build_aura_flow,
    "aura-flow without joint layers": lambda: build_aura_flow(joint_layers=0),
    "deepfloyd": build_deepfloyd,
    "cascade": build_cascade,
}
"""Families that need an image, and families that cannot be traced."""
