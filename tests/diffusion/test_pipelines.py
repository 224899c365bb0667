from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines import default_size_wh, load_pipeline
from diffugen.errors import ModelError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, build: Callable[[str], Any]) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    with quiet():
        build("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_folder_loads_quietly_and_generates(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = load_pipeline(saved, device="cpu", scheduler="euler", dtype="bfloat16")
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler)
    assert pipeline.unet.dtype == torch.bfloat16
    assert default_size_wh(pipeline) == (64, 64)
    assert pipeline("a car", num_inference_steps=1, width=96, height=64).images[0].size == (96, 64)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_auto_is_float32_on_the_cpu(saved: Path) -> None:
    assert load_pipeline(str(saved), device="cpu").unet.dtype == torch.float32


def test_quiet_restores_all_settings() -> None:
    import logging

    from diffusers.utils import logging as library

    logger = logging.getLogger("diffusers")
    before = library.get_verbosity(), library.is_progress_bar_enabled(), logger.handlers, logger.propagate
    with pytest.raises(ZeroDivisionError), quiet() as messages:
        logger.warning("kept")
        raise ZeroDivisionError
    assert messages == ["kept"]
    assert (
        library.get_verbosity(),
        library.is_progress_bar_enabled(),
        logger.handlers,
        logger.propagate,
    ) == before


@pytest.mark.parametrize(
    ("family", "expected"), [("sd", (64, 64)), ("sdxl", (64, 64)), ("sd3", (64, 64)), ("flux", (512, 512))]
)
def test_the_default_size_comes_from_the_pipeline(
    build: Callable[[str], Any], family: str, expected: tuple[int, int]
) -> None:
    assert default_size_wh(build(family)) == expected


def test_the_default_size_of_a_model_that_is_not_square(sd: Any) -> None:
    sd.unet.register_to_config(sample_size=(16, 24))
    assert default_size_wh(sd) == (96, 64)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_weight(path: Path) -> None:
    weights = load_file(path)
    weights.pop(sorted(weights)[5])
    save_file(weights, path, {"format": "pt"})


def pickle_instead(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def scribble(path: Path) -> None:
    path.write_text("{")


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.mark.parametrize(
    ("harm", "part", "message"),
    [
        (cut, UNET, "cannot load"),
        (cut, TEXT, "cannot load"),
        (drop_a_weight, UNET, "lacks 1 of its weights.*conv_out.weight"),
        (drop_a_weight, TEXT, "lacks 1 of its weights.*layer_norm2.weight"),
        (Path.unlink, UNET, "cannot load"),
        (pickle_instead, TEXT, "trust_remote_pickle"),
        (scribble, "unet/config.json", "cannot load"),
        (scribble, "model_index.json", "cannot read"),
        (Path.unlink, "model_index.json", "model_index.json is missing"),
        (shutil.rmtree, "tokenizer", "incomplete: tokenizer missing"),
    ],
)
def test_a_broken_folder(folder: Path, harm: Callable[[Path], None], part: str, message: str) -> None:
    harm(folder / part)
    with pytest.raises(ModelError, match=message) as caught:
        load_pipeline(folder)
    assert str(folder) in str(caught.value)


def test_pickles_are_blamed_only_if_they_are_what_is_missing(folder: Path) -> None:
    cut(folder / UNET)
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")  # beside safetensors, as on the Hub
    with pytest.raises(ModelError, match="cannot load") as caught:
        load_pipeline(folder)
    assert "trust_remote_pickle" not in str(caught.value)
    pickle_instead(folder / TEXT)
    with pytest.raises(ModelError, match="cannot load") as caught:
        load_pipeline(folder, trust_remote_pickle=True)
    assert "trust_remote_pickle" not in str(caught.value)


def test_trusted_pickles_load(folder: Path) -> None:
    pickle_instead(folder / TEXT)
    assert load_pipeline(folder, device="cpu", trust_remote_pickle=True).text_encoder is not None


def test_an_absent_safety_checker_is_switched_off(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(folder, device="cpu").safety_checker is None


def test_not_a_text_to_image_pipeline(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    with quiet():
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(
        ModelError,
        match=r"DDPMPipeline cannot be traced: it does not generate images from text.*FluxPipeline",
    ):
        load_pipeline(tmp_path / "ddpm")


@pytest.mark.parametrize("model", ["./absent", "no/such/folder", "absent", "owner/file.safetensors"])
def test_an_absent_model(model: str) -> None:
    with pytest.raises(ModelError, match=f"{model}' is neither a folder or file here .* nor a Hub name"):
        load_pipeline(model)


def test_a_hub_name_without_a_network() -> None:
    message = (
        r"model 'owner/unknown-model': not found locally.*hf download owner/unknown-model.*HF_HUB_OFFLINE=1"
    )
    with pytest.raises(ModelError, match=message):
        load_pipeline("owner/unknown-model")


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin"])
def test_a_single_file_of_pickles(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"not a .safetensors file.*trust_remote_pickle"):
        load_pipeline(tmp_path / name)


def test_a_single_file_without_its_configuration(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"configuration files of .*stable-diffusion.*hf download"):
        load_pipeline(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"dtype": "fp16"}, "unknown dtype 'fp16'; one of auto, float32, float16, bfloat16"),
        ({"offload": "disk"}, "unknown offload 'disk'; one of none, model, sequential"),
        ({"device": "cpu", "offload": "model"}, "the device is cpu"),
        (
            {"device": "cpu", "scheduler": "DDMScheduler"},
            "unknown scheduler 'DDMScheduler'.*did you mean 'DD[IP]MScheduler'",
        ),
    ],
)
def test_unknown_options(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_pipeline(saved, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"'cuda' is not available.*use auto, or one of .*cpu"):
        load_pipeline(saved, device="cuda")
