"""Load a diffusers pipeline by hub name, folder or single file.

Any family and task that diffusers knows; nothing here asks which. Reads safetensors only unless told
otherwise. Does not know prompts, attention or images.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffugen.diffusion.families import check_traceable, denoiser_of
from diffugen.diffusion.messages import first_line, quiet
from diffugen.diffusion.pipelines_options import HUB_NAME, add_loras, compile_parts, place, save_memory
from diffugen.errors import ModelError

MINIATURE = "miniature"
"""The name of the pipeline that comes with the package."""

DTYPES = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("none", "model", "sequential")
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def load_pipeline(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    scheduler: str | None = None,
    offload: str = "none",
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    compile: bool = False,
    loras: Mapping[str, float] = MappingProxyType({}),
    trust_remote_pickle: bool = False,
) -> Any:
    """Load a pipeline of any task, ready to generate and quiet.

    Args:
        model: ``"miniature"``, a folder in diffusers' layout, a single ``.safetensors`` checkpoint, or a hub
            name such as ``"stabilityai/stable-diffusion-xl-base-1.0"``.
        device: ``"auto"`` (cuda, else mps, else cpu) or a torch device such as ``"cuda:1"``.
        dtype: ``"auto"`` (float16 on cuda, else float32), ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        scheduler: Name of a scheduler that fits the pipeline, e.g. ``"DDIMScheduler"`` or ``"ddim"``; None
            keeps the model's own.
        offload: ``"none"``; ``"model"`` or ``"sequential"`` keep weights in main memory until a GPU needs
            them (slower).
        vae_slicing: Decode the images of a batch one by one: less memory.
        vae_tiling: Decode large images in tiles: less memory, sometimes visible seams.
        compile: Compile what holds no attention: a slow start, then faster on a GPU (on the CPU nothing is
            gained).
        loras: From a LoRA (a file, a folder or a hub name) to its weight; several work together.
        trust_remote_pickle: Also read pickled weights (``.bin``, ``.ckpt``), which can run code when they are
            loaded.

    Returns:
        The diffusers pipeline.

    Raises:
        ModelError: The model is missing, unreadable or incomplete, its attention cannot be traced, an option
            is unknown or cannot be had here, a LoRA does not fit, or a download failed.

    Example:
        >>> pipeline = load_pipeline("miniature", scheduler="ddim")
    """
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("offload", offload, OFFLOADS)
    device = _resolve_device(device)
    source = _resolve_source(model)
    pipeline = _read(source, _resolve_dtype(dtype, device), trust_remote_pickle)
    check_traceable(pipeline)
    with quiet():
        if scheduler is not None:
            set_scheduler(pipeline, scheduler)
        add_loras(pipeline, loras, trust_remote_pickle)
        save_memory(pipeline, vae_slicing=vae_slicing, vae_tiling=vae_tiling)
        place(pipeline, device, offload)
        if compile:
            compile_parts(pipeline, device, offload)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def default_size_wh(pipeline: Any) -> tuple[int, int]:
    """Return the width and height in pixels that a pipeline was trained for."""
    cells = getattr(pipeline, "default_sample_size", None)
    if cells is None:
        cells = denoiser_of(pipeline).config.sample_size
    h, w = (cells, cells) if isinstance(cells, int) else cells
    return w * pipeline.vae_scale_factor, h * pipeline.vae_scale_factor


def set_scheduler(pipeline: Any, name: str) -> None:
    """Exchange a pipeline's scheduler for another that fits its configuration.

    Args:
        pipeline: The pipeline; changed in place.
        name: Class name or its short form: ``"EulerAncestralDiscreteScheduler"``, ``"euler-ancestral"``.

    Raises:
        ModelError: No compatible scheduler has that name.
    """
    current = type(pipeline.scheduler)
    fitting = {_short(cls.__name__): cls for cls in (*pipeline.scheduler.compatibles, current)}
    if _short(name) not in fitting:
        names = sorted(cls.__name__ for cls in fitting.values())
        near = [
            fitting[key].__name__
            for key in difflib.get_close_matches(_short(name), list(fitting), n=3, cutoff=0.3)
        ]
        hint = f"Nearest: {', '.join(near)}. " if near else ""
        raise ModelError(
            f"unknown scheduler {name!r} for {type(pipeline).__name__}. {hint}All that fit: "
            f"{', '.join(names)}."
        )
    try:
        pipeline.scheduler = fitting[_short(name)].from_config(pipeline.scheduler.config)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"scheduler {name!r} cannot be used with {type(pipeline).__name__}: {first_line(error)}"
        ) from error


def _short(scheduler: str) -> str:
    return re.sub(r"[-_]|scheduler|discrete", "", scheduler.lower())


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"unknown {option} {value!r}; one of {', '.join(choices)}")


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; use auto, cpu, mps, cuda or cuda:<number>") from error
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if kind in available and not available[kind]():
        raise ModelError(
            f"device {device!r} is not available to torch {torch.__version__} on this machine; use device "
            "auto or cpu"
        )
    return device


def _resolve_dtype(dtype: str, device: str) -> Any:
    import torch

    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    return getattr(torch, dtype)


def _resolve_source(model: str | Path) -> Path | str:
    """A folder or file that exists, or a hub name."""
    if str(model) == MINIATURE:
        path = Path(__file__).parents[1] / "miniature" / "weights" / "diffusion"
        if not path.is_dir():
            raise ModelError(
                f"the miniature's weights are not in {path}. Install the package again, or train them anew."
            )
        return path
    path = Path(model).expanduser()
    if path.exists():
        return path
    if re.fullmatch(HUB_NAME, str(model)) and path.suffix not in SINGLE_FILE_SUFFIXES:
        return str(model)
    raise ModelError(
        f"model {str(model)!r} is neither a folder or file here (looked in {path.parent.absolute()}) nor a "
        "hub name "
        "like 'owner/name'. Give the folder of a saved pipeline, a .safetensors file, a hub name, or "
        f"{MINIATURE!r}."
    )


def _read(source: Path | str, dtype: Any, trust_remote_pickle: bool) -> Any:
    if isinstance(source, str):
        source = _download(source, trust_remote_pickle)
    read = _read_folder if source.is_dir() else _read_single_file
    with quiet() as messages:
        try:
            pipeline = read(source, dtype, trust_remote_pickle)
        except ModelError:
            raise
        except (
            Exception
        ) as error:  # diffusers, transformers and safetensors raise whatever they like on broken files
            raise ModelError(
                f"cannot load {source} as a diffusion pipeline: {first_line(error)} Save or download it "
                "again. Only "
                "safetensors are read: weights in .bin or .ckpt need trust_remote_pickle, which lets their "
                "author run "
                "code here."
            ) from error
    invented = [
        name
        for text in messages
        if "newly initialized" in text
        for name in re.findall(r"[\w.]+\.(?:weight|bias)\b", text)
    ]
    if invented:
        raise ModelError(
            f"{source} lacks {len(invented)} of its weights, so random ones would take their place: "
            f"{', '.join(invented[:5])}{' ...' if len(invented) > 5 else ''}. Save or download it again."
        )
    return pipeline


def _download(name: str, trust_remote_pickle: bool) -> Path:
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=None if trust_remote_pickle else True))
    except (
        Exception
    ) as error:  # network, authorisation, offline mode, unknown name: many types from three packages
        raise ModelError(
            f"{name!r} is no folder here, and the hub does not deliver it: {first_line(error)} Where there "
            "is a "
            f"network, run 'hf download {name}' in advance (gated models: 'hf auth login' first); it is then "
            "found "
            "offline too, with HF_HUB_OFFLINE=1. Or copy the pipeline's folder here and give its path."
        ) from error


def _read_folder(folder: Path, dtype: Any, trust_remote_pickle: bool) -> Any:
    from diffusers import DiffusionPipeline

    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{folder} holds no pipeline: model_index.json is missing. Give the folder that save_pretrained "
            "wrote."
        )
    components = {
        name: value for name, value in json.loads(index.read_text()).items() if isinstance(value, list)
    }
    absent = {
        name
        for name, (library, _) in components.items()
        if library is not None and not (folder / name).is_dir()
    }
    switched_off = {"safety_checker": None} if "safety_checker" in absent else {}
    if absent - set(switched_off):
        raise ModelError(
            f"{folder} is incomplete: {', '.join(sorted(absent - set(switched_off)))} missing. Copy or save "
            "it again."
        )
    return DiffusionPipeline.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=None if trust_remote_pickle else True,
        **switched_off,
    )


def _read_single_file(path: Path, dtype: Any, trust_remote_pickle: bool) -> Any:
    """Read a checkpoint in its authors' own layout; class and configuration come from the hub or its
    cache.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if path.suffix != ".safetensors" and not trust_remote_pickle:
        raise ModelError(
            f"{path} is not a .safetensors file, and other formats can run code when they are loaded. "
            "Convert it, or "
            "pass trust_remote_pickle if you trust its author."
        )
    repository = fetch_diffusers_config(load_single_file_checkpoint(str(path)))[
        "pretrained_model_name_or_path"
    ]
    try:
        name = diffusers.DiffusionPipeline.load_config(repository)["_class_name"]
    except OSError as error:
        raise ModelError(
            f"{path} needs the configuration files of {repository}: {first_line(error)} Where there is a "
            "network, run "
            f'\'hf download {repository} --include "*.json" "*.txt" "*.model"\' in advance.'
        ) from error
    return getattr(diffusers, name).from_single_file(str(path), dtype=dtype)
