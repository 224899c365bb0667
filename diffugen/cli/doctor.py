"""The command that shows what is installed, which device would be used, and what each missing piece costs.

Looks at package metadata; imports torch only to ask for its devices.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from diffugen.cli.output import console, table

PACKAGES = (
    ("torch", "diffusion", "generating and training; about 6 GB with CUDA"),
    ("diffusers", "diffusion", "generating images; 10 MB"),
    ("transformers", "diffusion", "text encoders; 50 MB"),
    ("accelerate", "diffusion", "models larger than the GPU's memory; 1 MB"),
    ("ultralytics", "yolo", "YOLOv8-seg detectors (AGPL-3.0); 5 MB"),
    ("optuna", "tune", "tuning score weights and thresholds; 10 MB"),
    ("fiftyone", "review", "review sessions in the FiftyOne App; about 300 MB"),
    ("ray", "ray", "spreading work over GPUs and machines (executor.kind: ray); about 250 MB"),
    ("daam", "daam", "the reference attention backend; install it with: pip install --no-deps daam==0.2.0"),
)
"""Package, the extra that installs it, and what it is for with its size on disk."""

MINIATURE = (
    ("diffusion", "the embedded diffusion model"),
    ("detector", "the embedded base detector"),
    ("oracle", "the embedded segmenter that measurements are compared with"),
)


@dataclass(frozen=True)
class Piece:
    """One line of the report."""

    name: str
    state: str
    note: str


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(doctor)


def doctor() -> None:
    """Show what is installed, the device, and what is missing."""
    shown = table("piece", "state", "what it is for, or how to get it")
    for piece in examine():
        shown.add_row(piece.name, piece.state, piece.note)
    console().print(shown)


def examine() -> Iterator[Piece]:
    """Yield what is installed and what is missing."""
    import platform

    yield Piece("python", platform.python_version(), platform.platform(terse=True))
    for package, extra, purpose in PACKAGES:
        try:
            yield Piece(package, version(package), purpose)
        except PackageNotFoundError:
            yield Piece(package, "missing", f"{purpose}; pip install 'diffugen\\[{extra}]'")
    yield _device()
    weights = Path(__file__).parents[1] / "miniature" / "weights"
    for folder, purpose in MINIATURE:
        size = sum(file.stat().st_size for file in (weights / folder).rglob("*") if file.is_file())
        remedy = "diffugen miniature train makes it"
        yield Piece(
            f"weights: {folder}",
            f"{size / 1e6:.1f} MB" if size else "missing",
            purpose if size else f"{purpose}; {remedy}",
        )
    free = shutil.disk_usage(Path.cwd()).free
    yield Piece(
        "free disk space", f"{free / 1e9:.0f} GB", "a 512x512 image with its heat maps takes about 1 MB"
    )


def _device() -> Piece:
    try:
        import torch
    except ImportError:
        return Piece("device", "none", "needs torch; labelling works without")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Piece("device", "cuda", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        return Piece("device", "mps", "Apple GPU")
    threads = torch.get_num_threads()
    return Piece("device", "cpu", f"{threads} threads; real models need a GPU, the miniature does not")
