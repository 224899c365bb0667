"""DiffuGen: labelled data for rare classes out of text-to-image models.

Importing this package loads the standard library only; a public name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "diffugen.errors": ("ConfigError", "DiffugenError", "ModelError", "PromptError", "StoreError"),
    "diffugen.records": ("HeatMaps", "ImageRecord", "Instances", "LabelSet", "Phrase", "Prompt"),
    "diffugen.dataset.yolo": ("write_yolo",),
    "diffugen.detectors": ("Detector",),
    "diffugen.detectors.yolo": ("YoloDetector",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    """Return the public name from its home module, imported on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
