"""Check the device that a model is to run on, and free its memory. Imports torch only when called."""

from __future__ import annotations

import gc

from diffugen.errors import ModelError


def resolve_device(device: str) -> str:
    """Return the name of the torch device to use, after checking that it exists on this machine.

    Args:
        device: ``auto`` (cuda if available, else mps, else cpu), or a torch device: ``cpu``, ``mps``,
            ``cuda``, ``cuda:<number>``, ``xpu``.

    Returns:
        The torch device; for CUDA always with its number, such as ``cuda:0``.

    Raises:
        ModelError: The device is unknown, or this machine does not have it.
    """
    import torch

    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
        "xpu": torch.xpu.device_count(),
    }
    if device == "auto":
        device = next(kind for kind, count in counts.items() if count)
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; use auto, cpu, mps, cuda or cuda:<number>") from error
    if (wanted.index or 0) >= counts.get(wanted.type, 0):
        present = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
        raise ModelError(
            f"device {device!r} is not available to torch {torch.__version__} on this machine; use auto, or "
            f"one of {present}"
        )
    return f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else str(wanted)


def resolve_devices(device: str) -> tuple[str, ...]:
    """Return the torch devices to use: those of a list such as ``cuda:0,1``, else that of `resolve_device`.

    Raises:
        ModelError: As by `resolve_device`, or a device is named twice.
    """
    kind, _, numbers = device.partition(":")
    found = tuple(resolve_device(f"{kind}:{number}") for number in numbers.split(",")) if numbers else ()
    if len(set(found)) < len(found):
        raise ModelError(f"device {device!r} names a GPU twice; give each once")
    return found or (resolve_device(device),)


def free_memory() -> None:
    """Return memory that is no longer referenced to the device.

    Call this outside the ``except`` block that caught an out-of-memory error: the exception keeps the tensors
    of its frames alive.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
