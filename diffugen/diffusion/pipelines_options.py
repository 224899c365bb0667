"""Options of a loaded pipeline: LoRAs, a VAE that saves memory, compiled parts, device and offload.

Knows diffusers, peft and torch.compile. Does not know where models come from, prompts or attention.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffugen.diffusion.families import denoiser_of
from diffugen.diffusion.hub import HUB_NAME, download
from diffugen.diffusion.messages import quiet
from diffugen.errors import ModelError, first_line

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Diffusers' name for the file of a LoRA; of several files in a folder, this one is used."""

LORA_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline that a LoRA can change; in diffusers' layout its keys begin with these names."""

COMPILE_BACKEND = "inductor"
"""The compiler behind torch.compile."""


def add_loras(pipeline: Any, loras: Mapping[str, float], trust_remote_pickle: bool) -> None:
    """Load LoRAs into a pipeline and activate all of them together.

    Args:
        pipeline: The pipeline, still on the CPU; changed in place.
        loras: The weight of each LoRA, which is a file, a folder or a name on the Hub (``owner/name`` or
            ``owner/name/file.safetensors``).
        trust_remote_pickle: Also read pickled files.

    Raises:
        ModelError: A LoRA is missing, unreadable or made for another model, the pipeline does not support
            LoRAs, or peft is not installed.
    """
    if not loras:
        return
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "LoRAs need the package peft. Install it with 'pip install peft', or remove the LoRAs."
        )
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"{type(pipeline).__name__} does not support LoRAs; remove {', '.join(loras)}.")
    names = [f"lora{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _add_lora(pipeline, name, lora, _lora_file(lora, trust_remote_pickle))
    pipeline.set_adapters(names, list(loras.values()))


def save_memory(pipeline: Any, *, vae_slicing: bool, vae_tiling: bool) -> None:
    """Make the VAE decode the images of a batch one by one, or large images in tiles.

    Raises:
        ModelError: The pipeline's VAE does not support this.
    """
    vae = getattr(pipeline, "vae", None)
    for wanted, option, method in (
        (vae_slicing, "vae_slicing", "enable_slicing"),
        (vae_tiling, "vae_tiling", "enable_tiling"),
    ):
        if wanted:
            try:
                getattr(vae, method)()
            except (AttributeError, NotImplementedError) as error:
                raise ModelError(
                    f"{type(pipeline).__name__} does not support {option}: its VAE ({type(vae).__name__}) "
                    f"has no {method}. Turn {option} off and use smaller batches."
                ) from error


def compile_parts(pipeline: Any, device: str, offload: str) -> None:
    """Compile those parts of the denoiser and the VAE decoder that contain no attention.

    Attention is not compiled because it could then not be traced. So an image is the same, bit for bit,
    whether it is traced or not. The first batch takes minutes, and so does the first batch of each other
    size. Compiled arithmetic rounds differently: images differ in the last bits from uncompiled ones.

    Raises:
        ModelError: torch.compile does not work on this machine or with this offload.
    """
    import torch

    if offload == "sequential":
        raise ModelError(
            "compile does not work with offload sequential; use offload model or none, or turn compile off"
        )
    try:
        compiled = torch.compile(lambda x: x.sin() + 1, backend=COMPILE_BACKEND)
        compiled(torch.zeros(4, device=device))
    except Exception as error:  # a missing C++ compiler, Triton or Python header each has its own type
        raise ModelError(
            f"torch.compile does not work on {device} here: {first_line(error)} On a CPU it needs a C++ "
            "compiler (install g++, or name one in the environment variable CXX), on a GPU Triton and a C "
            "compiler. Or turn compile off: it only changes the speed."
        ) from error
    # Each part gets its own cache: a shared one is too small for all layers of one class.
    own_cache = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    options = {"isolate_recompiles": True} if own_cache else {}
    for root in (denoiser_of(pipeline), getattr(getattr(pipeline, "vae", None), "decoder", None)):
        for part in _without_attention(root):
            part.compile(backend=COMPILE_BACKEND, **options)


def place(pipeline: Any, device: str, offload: str) -> None:
    """Move a pipeline to a device, or set it up to move there part by part.

    Raises:
        ModelError: The pipeline does not fit into the device's memory, or offload is set for a CPU.
    """
    if offload != "none" and device == "cpu":
        raise ModelError(
            f"offload {offload!r} moves weights between a GPU and main memory, but the device is cpu; use "
            "offload none"
        )
    try:
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except RuntimeError as error:
        raise ModelError(
            f"{type(pipeline).__name__} does not fit on {device}: {first_line(error)} "
            "Use offload model or sequential, or dtype float16."
        ) from error


def check_lora(lora: str) -> re.Match[str] | None:
    """Return the parts of a LoRA's name on the Hub; None for one that is a file or folder.

    Raises:
        ModelError: It is neither.
    """
    path = Path(lora).expanduser()
    hub = None if path.exists() else re.fullmatch(rf"({HUB_NAME})(?:/(.+\.safetensors))?", lora)
    if hub is None and not path.exists():
        raise ModelError(
            f"LoRA {lora!r} is neither a file or folder here (looked in {path.parent.absolute()}) nor a Hub "
            "name like 'owner/name' or 'owner/name/file.safetensors'."
        )
    return hub


def _lora_file(lora: str, trust_remote_pickle: bool) -> Path:
    hub = check_lora(lora)
    path = Path(lora).expanduser() if hub is None else _lora_from_hub(*hub.groups())
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        chosen = [file for file in files if file.name == LORA_FILE] or files
        if len(chosen) != 1:
            names = ", ".join(file.name for file in files[:5]) or "none"
            raise ModelError(
                f"LoRA {lora!r} must contain one .safetensors file; it contains: {names}. Name the file."
            )
        path = chosen[0]
    if path.suffix != ".safetensors" and not trust_remote_pickle:
        raise ModelError(
            f"LoRA {lora!r} is not a .safetensors file, and other formats can run code when loaded. Convert "
            "it, or set trust_remote_pickle if you trust its author."
        )
    return path


def _lora_from_hub(repository: str, file: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = file or "*.safetensors"
    with quiet():
        folder = download("LoRA", repository, lambda: snapshot_download(repository, allow_patterns=patterns))
    return folder / file if file else folder


def _add_lora(pipeline: Any, name: str, lora: str, file: Path) -> None:
    safe = {"use_safetensors": True} if file.suffix == ".safetensors" else {}
    try:
        parts = _parts_changed_by(file)
        with quiet() as messages:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, **safe)
    except Exception as error:  # diffusers, peft and safetensors raise anything on files that do not fit
        raise ModelError(
            f"LoRA {lora!r} cannot be loaded into {type(pipeline).__name__}: {first_line(error)} It is "
            "broken or was made for another model; use one trained for this model's family and size."
        ) from error
    changed = {part for part, names in pipeline.get_list_adapters().items() if name in names}
    unused = sorted(parts - changed) or [text for text in messages if "unexpected keys" in text]
    if unused or not changed:
        problem = f"unused weights: {', '.join(unused)[:200]}" if unused else "no weight fits"
        raise ModelError(
            f"LoRA {lora!r} was made for another model than this {type(pipeline).__name__} ({problem}). Use "
            "one trained for this model's family and size."
        )


def _parts_changed_by(file: Path) -> set[str]:
    """Return the parts of a pipeline that a LoRA has keys for; empty if not in diffusers' own layout."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return set()
    with safe_open(file, framework="pt") as weights:
        return {key.split(".")[0] for key in weights.keys()} & set(LORA_PARTS)  # noqa: SIM118 (no mapping)


def _without_attention(module: Any) -> Iterator[Any]:
    """Yield the largest parts of a module that contain no attention and more than one layer."""
    from torch.nn import ModuleDict, ModuleList

    for child in () if module is None else module.children():
        parts = list(child.modules())
        if any(hasattr(part, "set_processor") for part in parts) or isinstance(
            child, (ModuleList, ModuleDict)
        ):
            yield from _without_attention(child)
        elif sum(1 for part in parts if not any(part.children())) > 1:
            yield child
