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


def free_memory() -> None:
    """Return memory that is no longer referenced to the device.

    Call this outside the ``except`` block that caught an out-of-memory error: the exception keeps the tensors
    of its frames alive.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
