"""Load a diffusers pipeline from a folder, a single file or the Hugging Face Hub.

Works for every family and task of diffusers without distinguishing them. Reads only safetensors unless
pickles are explicitly trusted. Does not know prompts, attention or images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffugen.config.foreign import parse_json, read_text
from diffugen.config.sections import DTYPES, OFFLOADS
from diffugen.diffusion.devices import resolve_device
from diffugen.diffusion.families import check_traceable, denoiser_of
from diffugen.diffusion.hub import HUB_NAME, download
from diffugen.diffusion.messages import quiet
from diffugen.diffusion.pipelines_options import add_loras, compile_parts, place, save_memory
from diffugen.errors import ModelError, did_you_mean, first_line

MINIATURE = "miniature"
"""Name of the pipeline that is included in the package."""

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

SINGLE_FILE_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


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
    """Load a pipeline of any task, ready to generate and without progress bars.

    Args:
        model: ``"miniature"``, a folder in diffusers' layout, a single ``.safetensors`` checkpoint, or a
            name on the Hub such as ``"stabilityai/stable-diffusion-xl-base-1.0"``.
        device: ``"auto"`` (cuda if available, else mps, else cpu) or a torch device such as ``"cuda:1"``.
        dtype: ``"auto"`` (float16 on cuda, else float32), ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        scheduler: Name of a scheduler that fits the pipeline, e.g. ``"DDIMScheduler"`` or ``"ddim"``; None
            keeps the model's own.
        offload: ``"model"`` and ``"sequential"`` keep weights in main memory until the GPU needs them, which
            is slower; ``"none"`` does not.
        vae_slicing: Decode the images of a batch one by one, which takes less memory.
        vae_tiling: Decode large images in tiles, which takes less memory and can leave visible seams.
        compile: Compile the parts without attention: slow to start, then faster on a GPU. No gain on a CPU.
        loras: LoRAs (a file, a folder or a name on the Hub) with their weights; several are combined.
        trust_remote_pickle: Also read pickled weights (``.bin``, ``.ckpt``), which can run code when loaded.

    Returns:
        The diffusers pipeline.

    Raises:
        ModelError: The model is missing, unreadable or incomplete, its attention cannot be traced, an option
            is unknown or not available on this machine, a LoRA does not fit, or a download failed.

    Example:
        >>> pipeline = load_pipeline("miniature", scheduler="ddim")
    """
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("offload", offload, OFFLOADS)
    device = resolve_device(device)
    source = find_model(model)
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
    """Return the width and height in pixels of the images that a pipeline was trained on."""
    cells = getattr(pipeline, "default_sample_size", None)
    if cells is None:
        cells = denoiser_of(pipeline).config.sample_size
    h, w = (cells, cells) if isinstance(cells, int) else cells
    return w * pipeline.vae_scale_factor, h * pipeline.vae_scale_factor


def set_scheduler(pipeline: Any, name: str) -> None:
    """Replace a pipeline's scheduler by another one that fits its configuration.

    Args:
        pipeline: The pipeline; changed in place.
        name: Class name or its short form: ``"EulerAncestralDiscreteScheduler"``, ``"euler-ancestral"``.

    Raises:
        ModelError: No compatible scheduler has that name.
    """
    kind, current = type(pipeline).__name__, type(pipeline.scheduler)
    fitting = {_short(cls.__name__): cls for cls in (*pipeline.scheduler.compatibles, current)}
    if _short(name) not in fitting:
        names = sorted(cls.__name__ for cls in fitting.values())
        hint = did_you_mean(name, [*names, *fitting])
        raise ModelError(
            f"unknown scheduler {name!r} for {kind}{hint or '.'} Compatible schedulers: {', '.join(names)}."
        )
    try:
        pipeline.scheduler = fitting[_short(name)].from_config(pipeline.scheduler.config)
    except (ImportError, ValueError) as error:
        raise ModelError(f"scheduler {name!r} cannot be used with {kind}: {first_line(error)}") from error


def _short(scheduler: str) -> str:
    return re.sub(r"[-_]|scheduler|discrete", "", scheduler.lower())


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"unknown {option} {value!r}; one of {', '.join(choices)}")


def _resolve_dtype(dtype: str, device: str) -> Any:
    import torch

    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    return getattr(torch, dtype)


def find_model(model: str | Path) -> Path | str:
    """Return the existing folder or file of a model, or its name on the Hub.

    Raises:
        ModelError: It is none of these.
    """
    if str(model) == MINIATURE:
        path = Path(__file__).parents[1] / "miniature" / "weights" / "diffusion"
        if not path.is_dir():
            raise ModelError(
                f"the miniature's weights are missing from {path}; reinstall the package, or train them with "
                "'diffugen miniature train'"
            )
        return path
    path = Path(model).expanduser()
    if path.exists():
        return path
    if re.fullmatch(HUB_NAME, str(model)) and path.suffix not in SINGLE_FILE_SUFFIXES:
        return str(model)
    raise ModelError(
        f"model {str(model)!r} is neither a folder or file here (looked in {path.parent.absolute()}) nor a "
        "Hub name like 'owner/name'. Give the folder of a saved pipeline, a .safetensors file, a Hub name, "
        f"or {MINIATURE!r}."
    )


def _read(source: Path | str, dtype: Any, trust_remote_pickle: bool) -> Any:
    safe = None if trust_remote_pickle else True
    if isinstance(source, str):
        from diffusers import DiffusionPipeline

        name = source
        source = download("model", name, lambda: DiffusionPipeline.download(name, use_safetensors=safe))
    read = _read_folder if source.is_dir() else _read_single_file
    with quiet() as messages:
        try:
            pipeline = read(source, dtype, trust_remote_pickle)
        except ModelError:
            raise
        except Exception as error:  # diffusers, transformers and safetensors raise anything on broken files
            hint = "" if trust_remote_pickle else _pickles(source)
            raise ModelError(
                f"cannot load {source} as a diffusion pipeline: {first_line(error)} Save or download it "
                f"again.{hint}"
            ) from error
    _check_complete(source, messages)
    return pipeline


def _pickles(source: Path) -> str:
    """Return a hint at weights that are not read, because they lie in the model's folder as pickles alone."""
    pickles = (file for file in sorted(source.rglob("*")) if file.suffix in PICKLE_SUFFIXES)
    found = next((file for file in pickles if not any(file.parent.glob("*.safetensors"))), None)
    if found is None:
        return ""
    return (
        f" Only safetensors are read: {found.relative_to(source)} needs trust_remote_pickle, which lets its "
        "author run code here."
    )


def _check_complete(source: Path, messages: list[str]) -> None:
    """Require that the library found all weights, judged by the warnings of its loaders."""
    invented = [
        name
        for text in messages
        if "newly initialized" in text
        for name in re.findall(r"[\w.]+\.(?:weight|bias)\b", text)
    ]
    if invented:
        raise ModelError(
            f"{source} lacks {len(invented)} of its weights, which would be random: "
            f"{', '.join(invented[:5])}{' ...' if len(invented) > 5 else ''}. Save or download it again."
        )


def _read_folder(folder: Path, dtype: Any, trust_remote_pickle: bool) -> Any:
    from diffusers import DiffusionPipeline

    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{folder} is not a pipeline: model_index.json is missing. Give the folder that save_pretrained "
            "wrote."
        )
    try:
        described = parse_json(read_text(index))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {index} ({error}); copy or save the pipeline again") from error
    if not isinstance(described, dict):
        raise ModelError(f"{index} does not describe a pipeline; copy or save it again")
    components = {
        name: value for name, value in described.items() if isinstance(value, list) and len(value) == 2
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
    """Read a checkpoint in its authors' own layout; its configuration comes from the Hub or its cache."""
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if path.suffix != ".safetensors" and not trust_remote_pickle:
        raise ModelError(
            f"{path} is not a .safetensors file, and other formats can run code when loaded. Convert it, or "
            "set trust_remote_pickle if you trust its author."
        )
    config = fetch_diffusers_config(load_single_file_checkpoint(str(path)))
    repository = config["pretrained_model_name_or_path"]
    try:
        name = diffusers.DiffusionPipeline.load_config(repository)["_class_name"]
    except OSError as error:
        raise ModelError(
            f"{path} needs the configuration files of {repository}: {first_line(error)} On a machine with a "
            f'network, run \'hf download {repository} --include "*.json" "*.txt" "*.model"\' first.'
        ) from error
    return getattr(diffusers, name).from_single_file(str(path), dtype=dtype)
