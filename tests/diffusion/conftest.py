"""Tiny pipelines of the real classes with random weights, built without a network.

Random weights attend almost evenly, so queries and keys are scaled up until the attention has peaks worth
comparing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableCascadeDecoderPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WHOLE_WORDS = ("a", "photo", "of", "on", "the", "red", "car", "grand", "piano", "road", "and")
"""Words the CLIP tokenizer keeps whole; every other word falls into letters."""


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
    """Components of the pipelines of Stable Diffusion 1 and 2; ``others`` replace some."""
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
    """Text is attended to on the coarsest level, and on all but ``plain_levels`` of the finest levels on the
    way up."""
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
    """Scale the queries of every attention on text, which sharpens its softmax."""
    for name, module in denoiser.named_modules():
        if name.endswith(("attn2.to_q", "attn.to_q")):
            module.weight.data *= factor


def build_sd(
    *, sample_size: int = 16, vae_levels: int = 3, plain_levels: int = 1, peaks: float = 12.0
) -> StableDiffusionPipeline:
    """Like the miniature: factor-4 latents of side 16, cross-attention in down, mid and up blocks."""
    torch.manual_seed(0)
    network = unet(sample_size=sample_size, plain_levels=plain_levels)
    pipeline = StableDiffusionPipeline(unet=network, **sd_parts(vae=vae(levels=vae_levels)))
    make_peaky(pipeline.unet, peaks)
    return quiet(pipeline)


def build_sd2() -> StableDiffusionPipeline:
    """OpenCLIP's activation, velocity prediction, linear projections around attention."""
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
    """Few steps, and guidance as an embedding in place of a second half of the batch."""
    torch.manual_seed(0)
    network = unet(sample_size=16, time_cond_proj_dim=8)
    make_peaky(network, 12.0)
    return quiet(LatentConsistencyModelPipeline(unet=network, **sd_parts(scheduler=LCMScheduler())))


def build_sd_inpaint() -> StableDiffusionInpaintPipeline:
    """A UNet of 9 channels: noise, mask and masked image. In-paints, and nothing else."""
    torch.manual_seed(0)
    network = unet(sample_size=16, in_channels=9)
    make_peaky(network, 12.0)
    return quiet(StableDiffusionInpaintPipeline(unet=network, **sd_parts()))


def build_sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    extra = {
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


def build_sdxl_refiner() -> StableDiffusionXLImg2ImgPipeline:
    """Works on images alone, with the second of SDXL's text encoders alone."""
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


def build_sd3() -> StableDiffusion3Pipeline:
    """Joint attention, image tokens before text tokens, and two tokenizers in one text sequence."""
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


def build_flux() -> FluxPipeline:
    """Joint attention, text tokens first, packed latents, distilled guidance (no unconditional half)."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
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


def build_chroma() -> ChromaPipeline:
    """Like Flux with a mask over padding tokens and true guidance in a pass of its own."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    pipeline = ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
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
    """A transformer with cross-attention to T5 tokens; padding tokens are masked."""
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


# Families whose attention cannot be traced.


def build_aura_flow(joint_layers: int = 1) -> AuraFlowPipeline:
    """Learned register tokens stand before the text's; without joint layers, no layer gets the text by
    itself."""
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
    """Text and image are attended to in one softmax."""
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
    """No denoiser under the names that others have: it decodes what another model made of the prompt."""
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


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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

OTHERS: dict[str, Callable[[], Any]] = {
    "sd-inpaint": build_sd_inpaint,
    "sdxl-refiner": build_sdxl_refiner,
    "aura-flow": build_aura_flow,
    "aura-flow without joint layers": lambda: build_aura_flow(joint_layers=0),
    "deepfloyd": build_deepfloyd,
    "cascade": build_cascade,
}
"""Families that need an image, and families that cannot be traced."""


@pytest.fixture
def sd() -> StableDiffusionPipeline:
    return build_sd()


@pytest.fixture(params=list(BUILDERS))
def any_pipeline(request: pytest.FixtureRequest) -> Any:
    """A pipeline of every family."""
    return BUILDERS[request.param]()


@pytest.fixture(name="families")
def families_fixture() -> list[str]:
    """Names of the families that generate from text alone and can be traced."""
    return list(BUILDERS)


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """Make the pipeline of a named family, a new one at every call."""
    return lambda family: {**BUILDERS, **OTHERS}[family]()


@pytest.fixture
def daam_sized_sd() -> StableDiffusionPipeline:
    """64x64 latents of 512-pixel images: the only layout whose layers daam 0.2.0 all keeps."""
    return build_sd(sample_size=64, vae_levels=4, plain_levels=2, peaks=6.0)


@pytest.fixture(name="clip_tokenizer")
def clip_tokenizer_fixture() -> CLIPTokenizer:
    return clip_tokenizer()


@pytest.fixture(name="t5_tokenizer")
def t5_tokenizer_fixture() -> T5Tokenizer:
    return t5_tokenizer()
