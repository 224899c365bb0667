from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffugen.diffusion import pipelines_options
from diffugen.diffusion.families import attention_modules, denoiser_of
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import load_pipeline
from diffugen.diffusion.tokens import index_tokens
from diffugen.diffusion.tracing import trace
from diffugen.errors import ModelError

PROMPT = "a red car on the road"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, build: Callable[[str], Any]) -> Callable[[str], Path]:
    """Return the folder of a family's pipeline, saved once."""
    root = tmp_path_factory.mktemp("saved")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            with quiet():
                build(family).save_pretrained(root / family)
        return root / family

    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, build: Callable[[str], Any]) -> Callable[..., Path]:
    """Return the folder of a random LoRA for a family, saved once for each set of arguments."""
    root = tmp_path_factory.mktemp("loras")

    def folder(family: str, *, seed: int = 0, text: bool = False) -> Path:
        path = root / f"{family}-{seed}-{text}"
        if path.exists():
            return path
        pipeline = build(family)
        torch.manual_seed(seed)
        changes: dict[str, Any] = {}
        parts = {"unet" if hasattr(pipeline, "unet") else "transformer": ["to_q", "to_k", "to_v"]}
        for part, targets in (parts | ({"text_encoder": ["q_proj", "v_proj"]} if text else {})).items():
            module = getattr(pipeline, part)
            module.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
            changes[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        with quiet():
            type(pipeline).save_lora_weights(path, **changes)
        return path

    return folder


def image(pipeline: Any, seed: int = 0, **settings: Any) -> Any:
    settings = {"num_inference_steps": 2, "width": 96, "height": 64, "output_type": "np", **settings}
    return pipeline(PROMPT, generator=torch.Generator().manual_seed(seed), **settings).images[0]


def traced_image(pipeline: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
    with trace(pipeline, [index_tokens(pipeline, PROMPT, ["car"])]) as traced:
        made = image(pipeline, **settings)
    return made, traced.maps()[0]


# Whole pipelines.


def test_folders_of_other_tasks(saved: Callable[[str], Path]) -> None:
    pipeline = load_pipeline(saved("sd-inpaint"), device="cpu")
    assert type(pipeline) is StableDiffusionInpaintPipeline
    assert pipeline.unet.config.in_channels == 9
    refiner = load_pipeline(saved("sdxl-refiner"), device="cpu")
    assert type(refiner) is StableDiffusionXLImg2ImgPipeline
    assert refiner.text_encoder is None


@pytest.mark.parametrize("family", ["sd2", "lcm", "sdxl", "flux", "pixart"])
def test_folders_of_other_families(
    saved: Callable[[str], Path], build: Callable[[str], Any], family: str
) -> None:
    pipeline = load_pipeline(saved(family), device="cpu")
    assert type(pipeline) is type(build(family))


def test_a_pipeline_that_was_loaded_by_diffusers(saved: Callable[[str], Path]) -> None:
    with quiet():
        pipeline = AutoPipelineForText2Image.from_pretrained(saved("sdxl"))
    pipeline.set_progress_bar_config(disable=True)
    made, maps = traced_image(pipeline)
    assert np.array_equal(made, image(pipeline))
    assert maps.keys() == traced_image(load_pipeline(saved("sdxl"), device="cpu"))[1].keys()


def test_a_family_that_cannot_be_traced_is_rejected_on_loading(saved: Callable[[str], Path]) -> None:
    with pytest.raises(
        ModelError, match=r"StableCascadeDecoderPipeline cannot be traced: it has no unet.*FluxPipeline"
    ):
        load_pipeline(saved("cascade"), device="cpu")


# LoRAs.


def test_loras_change_images_according_to_their_weights(
    saved: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    """One LoRA is a folder, one a file; weight 0 changes nothing, and two LoRAs differ from either alone."""
    one, other = lora("sd"), lora("sd", seed=1, text=True) / LORA
    loaded = [
        {},
        {str(one): 0.0},
        {str(one): 0.5},
        {str(one): 1.0},
        {str(other): 1.0},
        {str(one): 1.0, str(other): 1.0},
    ]
    images = [image(load_pipeline(saved("sd"), device="cpu", loras=loras)) for loras in loaded]
    assert np.allclose(images[0], images[1], atol=1e-5)
    for i, left in enumerate(images[1:], start=1):
        for right in images[i + 1 :]:
            assert np.abs(left - right).max() > 1e-3


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_pipeline_with_a_lora_is_traced(
    saved: Callable[[str], Path], lora: Callable[..., Path], family: str
) -> None:
    plain = load_pipeline(saved(family), device="cpu")
    changed = load_pipeline(saved(family), device="cpu", loras={str(lora(family)): 1.0})
    made, maps = traced_image(changed)
    assert np.array_equal(made, image(changed))
    without = traced_image(plain)[1]
    assert maps.keys() == without.keys()
    assert not any(np.array_equal(maps[group], without[group]) for group in maps)


def test_a_lora_in_kohyas_layout(
    saved: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    """Kohya's scripts name keys differently and add alpha, which has no effect when equal to the rank."""
    weights: dict[str, torch.Tensor] = {}
    for key, value in load_file(lora("sd") / LORA).items():
        module, side = key.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        name = "lora_unet_" + module.replace(".", "_").replace("_processor", "").replace(
            "to_out_0", "to_out.0"
        )
        direction = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
        weights[f"{name}.{direction}.weight"] = value
        weights[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(weights, tmp_path / "kohya.safetensors", {"format": "pt"})
    ours, theirs = (
        image(load_pipeline(saved("sd"), device="cpu", loras={str(path): 1.0}))
        for path in (lora("sd"), tmp_path / "kohya.safetensors")
    )
    assert np.allclose(ours, theirs, atol=1e-5)


def test_loras_take_the_dtype_of_the_model(saved: Callable[[str], Path], lora: Callable[..., Path]) -> None:
    pipeline = load_pipeline(
        saved("sd"), device="cpu", dtype="bfloat16", loras={str(lora("sd", text=True)): 1.0}
    )
    assert {weight.dtype for weight in pipeline.unet.parameters()} == {torch.bfloat16}
    assert np.isfinite(image(pipeline)).all()


@pytest.mark.parametrize(
    ("family", "made_for", "text"),
    [
        ("sd", "sdxl", False),
        ("sd", "sd3", True),
        ("sd3", "sd", False),
        ("flux", "sd", True),
        ("sdxl", "flux", False),
    ],
)
def test_a_lora_for_another_family(
    saved: Callable[[str], Path], lora: Callable[..., Path], family: str, made_for: str, text: bool
) -> None:
    path = lora(made_for, text=text)
    with pytest.raises(
        ModelError, match=r"for another model.*trained for this model's family and size"
    ) as caught:
        load_pipeline(saved(family), device="cpu", loras={str(path): 1.0})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def two_files(folder: Path) -> Path:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, folder / f"{name}.safetensors")
    return folder


def no_lora(folder: Path) -> Path:
    save_file({"unet.conv_in.weight": torch.zeros(1)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def scribbled(folder: Path) -> Path:
    (folder / "x.safetensors").write_bytes(b"scribble")
    return folder / "x.safetensors"


def pickled(folder: Path) -> Path:
    torch.save({"x": torch.zeros(1)}, folder / "x.bin")
    return folder / "x.bin"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.safetensors", "neither a file or folder here .* nor a Hub name"),
        (lambda folder: folder, "must contain one .safetensors file; it contains: none"),
        (
            two_files,
            r"must contain one .safetensors file; it contains: a\.safetensors, b\.safetensors. Name the file",
        ),
        (no_lora, "cannot be loaded into StableDiffusionPipeline"),
        (scribbled, "cannot be loaded into StableDiffusionPipeline: SafetensorError"),
        (pickled, r"not a \.safetensors file.*trust_remote_pickle"),
    ],
)
def test_a_lora_that_cannot_be_read(
    saved: Callable[[str], Path], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_pipeline(saved("sd"), device="cpu", loras={str(make(tmp_path)): 1.0})


def test_a_trusted_pickled_lora(
    saved: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    torch.save(load_file(lora("sd") / LORA), tmp_path / "lora.bin")
    pipeline = load_pipeline(
        saved("sd"), device="cpu", loras={str(tmp_path / "lora.bin"): 1.0}, trust_remote_pickle=True
    )
    assert pipeline.get_active_adapters() == ["lora0"]


@pytest.mark.parametrize("name", ["owner/no-such-lora", "owner/no-such-lora/file.safetensors"])
def test_a_lora_on_the_hub_without_a_network(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"LoRA 'owner/no-such-lora': not found locally.*hf download owner/no-such-lora"
    ):
        load_pipeline(saved("sd"), device="cpu", loras={name: 1.0})


def test_a_pipeline_without_support_for_loras(
    saved: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="PixArtSigmaPipeline does not support LoRAs"):
        load_pipeline(saved("pixart"), device="cpu", loras={str(lora("sd")): 1.0})


def test_without_peft(
    saved: Callable[[str], Path], lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest)
    )
    load_pipeline(saved("sd"), device="cpu")
    with pytest.raises(ModelError, match="pip install peft"):
        load_pipeline(saved("sd"), device="cpu", loras={str(lora("sd")): 1.0})


# The VAE.


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_a_vae_that_saves_memory(saved: Callable[[str], Path], family: str) -> None:
    """Slicing decodes the same images; tiles are blended at their seams, so larger images may differ."""
    plain = load_pipeline(saved(family), device="cpu")
    assert not plain.vae.use_slicing and not plain.vae.use_tiling
    saving = load_pipeline(saved(family), device="cpu", vae_slicing=True, vae_tiling=True)
    assert saving.vae.use_slicing and saving.vae.use_tiling
    assert traced_image(saving, width=64)[0] == pytest.approx(image(plain, width=64), abs=1e-4)
    assert traced_image(saving, width=128)[0].shape == (64, 128, 3)


def test_a_pipeline_whose_vae_cannot_save_memory(build: Callable[[str], Any]) -> None:
    pipeline = build("sd")
    pipeline.vae = None
    with pytest.raises(ModelError, match=r"does not support vae_tiling.*enable_tiling"):
        pipelines_options.save_memory(pipeline, vae_slicing=False, vae_tiling=True)


# Compiled parts.


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_compiled_parts_hold_no_attention(build: Callable[[str], Any], family: str) -> None:
    """Compiled parts are not single layers, and include every residual and feed-forward block."""
    denoiser = denoiser_of(build(family))
    parts = list(pipelines_options._without_attention(denoiser))
    inside = {id(module) for part in parts for module in part.modules()}
    assert parts
    assert not inside & {id(module) for module in attention_modules(denoiser).values()}
    for module in denoiser.modules():
        if type(module).__name__ in ("ResnetBlock2D", "FeedForward"):
            assert id(module) in inside


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_compiling_does_not_change_images_or_maps(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Uses only the compiler's front end, which captures graphs; the slow test below uses all of it."""
    monkeypatch.setattr(pipelines_options, "COMPILE_BACKEND", "eager")
    expected, expected_maps = traced_image(load_pipeline(saved(family), device="cpu"))
    pipeline = load_pipeline(saved(family), device="cpu", compile=True)
    made, maps = traced_image(pipeline)
    assert np.array_equal(made, image(pipeline))
    assert np.array_equal(made, expected)
    for group, array in expected_maps.items():
        assert np.array_equal(array, maps[group])


@pytest.mark.slow
def test_compiling_to_machine_code(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Traced and untraced images are equal bit for bit; uncompiled ones are equal up to rounding."""
    # A cache of its own, because in the shared one a killed process may have left half-written files.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    expected, expected_maps = traced_image(load_pipeline(saved("sd"), device="cpu"))
    pipeline = load_pipeline(saved("sd"), device="cpu", compile=True)
    made, maps = traced_image(pipeline)
    assert np.array_equal(made, image(pipeline))
    assert made == pytest.approx(expected, abs=1e-4)
    for group, array in expected_maps.items():
        assert maps[group] == pytest.approx(array, abs=1e-3)


def test_without_a_compiler(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    message = r"torch.compile does not work on cpu here.*C\+\+ compiler.*turn compile off"
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ModelError, match=message),
    ):
        load_pipeline(saved("sd"), device="cpu", compile=True)


def test_compiling_with_sequential_offload(sd: Any) -> None:
    with pytest.raises(ModelError, match="compile does not work with offload sequential"):
        pipelines_options.compile_parts(sd, "cpu", "sequential")
