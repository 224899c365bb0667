"""What a loaded pipeline can be given beside its weights: LoRAs, a thriftier VAE, compiled parts, a place to
run.

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
from diffugen.diffusion.messages import first_line, quiet
from diffugen.errors import ModelError

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""What the name of a repository on the hub looks like."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA's file, and so the one that is taken of several."""

LORA_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline that a LoRA can change; in diffusers' layout its keys begin with them."""

COMPILE_BACKEND = "inductor"
"""The compiler behind torch.compile."""


def add_loras(pipeline: Any, loras: Mapping[str, float], trust_remote_pickle: bool) -> None:
    """Load LoRAs into a pipeline, all of them at work together.

    Args:
        pipeline: The pipeline, still on the CPU; changed in place.
        loras: From a file, a folder or a hub name (``owner/name`` or ``owner/name/file.safetensors``) to its
            weight.
        trust_remote_pickle: Also read pickled files.

    Raises:
        ModelError: A LoRA is missing, unreadable or made for another model, the pipeline takes none, or peft
            is missing.
    """
    if not loras:
        return
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "LoRAs need the package peft. Install it with 'pip install peft', or leave the LoRAs out."
        )
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"{type(pipeline).__name__} takes no LoRAs; leave out {', '.join(loras)}.")
    names = [f"lora{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _add_lora(pipeline, name, lora, _lora_file(lora, trust_remote_pickle))
    pipeline.set_adapters(names, list(loras.values()))


def save_memory(pipeline: Any, *, vae_slicing: bool, vae_tiling: bool) -> None:
    """Let the VAE decode the images of a batch one by one, or large images in tiles.

    Raises:
        ModelError: The pipeline's VAE cannot.
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
                    f"{type(pipeline).__name__} cannot do {option}: its VAE ({type(vae).__name__}) has no "
                    f"{method}. Leave {option} off and make smaller batches."
                ) from error


def compile_parts(pipeline: Any, device: str, offload: str) -> None:
    """Compile the parts of denoiser and VAE decoder that hold no attention.

    Compiled attention runs inside the compiler's code, where it cannot be traced; so attention stays as it
    is, and an image is the same, bit by bit, whether it is traced or not. The first batch takes minutes, and
    so does the first one of another size. Compiled arithmetic rounds another way: images differ in the last
    bits from those not compiled.

    Raises:
        ModelError: Nothing can be compiled on this machine, or not with this offload.
    """
    import torch

    if offload == "sequential":
        raise ModelError(
            "compile does not go with offload sequential; use offload model or none, or leave compile off"
        )
    try:
        compiled = torch.compile(lambda x: x.sin() + 1, backend=COMPILE_BACKEND)
        compiled(torch.zeros(4, device=device))
    except (
        Exception
    ) as error:  # a missing C++ compiler, Triton or Python header: each an error type of its own
        raise ModelError(
            f"torch.compile does not work on {device} here: {first_line(error)} On the CPU it needs a C++ "
            "compiler "
            "(install g++, or name one in the environment variable CXX), on a GPU Triton and a C compiler. "
            "Or leave "
            "compile off: it changes the speed alone."
        ) from error
    # Each part with a cache of its own: layers of one class are too many for one.
    own_cache = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    options = {"isolate_recompiles": True} if own_cache else {}
    for root in (denoiser_of(pipeline), getattr(getattr(pipeline, "vae", None), "decoder", None)):
        for part in _without_attention(root):
            part.compile(backend=COMPILE_BACKEND, **options)


def place(pipeline: Any, device: str, offload: str) -> None:
    """Move a pipeline to a device, or prepare it to go there part by part.

    Raises:
        ModelError: It does not fit, or there is nothing to offload from.
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


def _lora_file(lora: str, trust_remote_pickle: bool) -> Path:
    path = Path(lora).expanduser()
    hub = re.fullmatch(rf"({HUB_NAME})(?:/(.+\.safetensors))?", lora)
    if not path.exists() and hub:
        path = _download(*hub.groups())
    if not path.exists():
        raise ModelError(
            f"LoRA {lora!r} is neither a file or folder here (looked in {path.parent.absolute()}) nor a hub "
            "name like "
            "'owner/name' or 'owner/name/file.safetensors'."
        )
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        chosen = [file for file in files if file.name == LORA_FILE] or files
        if len(chosen) != 1:
            names = ", ".join(file.name for file in files[:5]) or "none"
            raise ModelError(
                f"LoRA {lora!r} should hold one .safetensors file; it holds: {names}. Name the file."
            )
        path = chosen[0]
    if path.suffix != ".safetensors" and not trust_remote_pickle:
        raise ModelError(
            f"LoRA {lora!r} is not a .safetensors file, and other formats can run code when they are loaded. "
            "Convert "
            "it, or pass trust_remote_pickle if you trust its author."
        )
    return path


def _download(repository: str, file: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            folder = Path(snapshot_download(repository, allow_patterns=file or "*.safetensors"))
    except (
        Exception
    ) as error:  # network, authorisation, offline mode, unknown name: many types from three packages
        raise ModelError(
            f"LoRA {repository!r} is no file or folder here, and the hub does not deliver it: "
            f"{first_line(error)} "
            f"Where there is a network, run 'hf download {repository}' in advance. Or copy the file here and "
            "give its path."
        ) from error
    return folder / file if file else folder


def _add_lora(pipeline: Any, name: str, lora: str, file: Path) -> None:
    safe = {"use_safetensors": True} if file.suffix == ".safetensors" else {}
    try:
        parts = _parts_changed_by(file)
        with quiet() as messages:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, **safe)
    except (
        Exception
    ) as error:  # diffusers, peft and safetensors raise whatever they like on files that do not fit
        raise ModelError(
            f"LoRA {lora!r} cannot be loaded into {type(pipeline).__name__}: {first_line(error)} It is "
            "broken or made "
            "for another model; use one that was trained on this model's family and size."
        ) from error
    changed = {part for part, names in pipeline.get_list_adapters().items() if name in names}
    unused = sorted(parts - changed) or [text for text in messages if "unexpected keys" in text]
    if unused or not changed:
        what = (
            f"its weights for {', '.join(unused)[:200]} find no place"
            if unused
            else "none of its weights fits"
        )
        raise ModelError(
            f"LoRA {lora!r} was made for another model than this {type(pipeline).__name__}: {what}. Use one "
            "that was "
            "trained on this model's family and size."
        )


def _parts_changed_by(file: Path) -> set[str]:
    """Parts of a pipeline that a LoRA in diffusers' own layout has keys for; empty for other layouts."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return set()
    with safe_open(file, framework="pt") as weights:
        return {key.split(".")[0] for key in weights.keys()} & set(LORA_PARTS)  # noqa: SIM118 (no mapping)


def _without_attention(module: Any) -> Iterator[Any]:
    """The largest parts below a module that hold no attention and are more than a single layer."""
    from torch.nn import ModuleDict, ModuleList

    for child in () if module is None else module.children():
        parts = list(child.modules())
        if any(hasattr(part, "set_processor") for part in parts) or isinstance(
            child, (ModuleList, ModuleDict)
        ):
            yield from _without_attention(child)
        elif sum(1 for part in parts if not any(part.children())) > 1:
            yield child
