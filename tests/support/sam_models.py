"""Segment Anything Models with random weights, built and saved by Ultralytics' own code, at tiny size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diffugen.detectors import sam
from diffugen.detectors.yolo_checkpoint import import_ultralytics

TINY_SIDE = 128
KINDS = ("sam_b.pt", "mobile_sam.pt", "sam2_t.pt", "sam2.1_t.pt")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the models of `KINDS` small encoders, and images of `TINY_SIDE` px; all else stays as it is."""
    import_ultralytics()
    from ultralytics.models.sam import build

    vit = partial(build._build_sam, 16, 2, 2, [1])
    mobile = partial(build._build_sam, [8, 16, 16, 320], [1, 1, 1, 1], [1, 2, 2, 2], None, mobile_sam=True)
    hiera = partial(build._build_sam2, 8, [1, 1, 2, 1], 1, [3], [64, 32, 16, 8], (7, 7), (8, 4, 14, 7))
    for name, builder in zip(KINDS, (vit, mobile, hiera, hiera), strict=True):
        monkeypatch.setitem(build.sam_model_map, name, partial(_called_with_checkpoint, builder))
    monkeypatch.setattr(sam, "IMAGE_SIZE", TINY_SIDE)


def _called_with_checkpoint(builder: Any, checkpoint: str | None = None) -> Any:
    return builder(checkpoint=checkpoint)


def random_sam(folder: Path, kind: str) -> Path:
    """Write a checkpoint with random weights whose masks depend on image and prompts.

    It estimates the quality of each mask above 0, so that Ultralytics' own prediction drops none.
    """
    import_ultralytics()
    from ultralytics.models.sam import build

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:  # without a checkpoint's name it never builds SAM 2.1
        patched.setattr(build, "_load_checkpoint", lambda model, checkpoint: model)
        model = build.sam_model_map[kind](kind)
    if not kind.startswith("sam2"):  # SAM 2's estimates are above 0 as it is
        model.mask_decoder.iou_prediction_head.layers[-1].bias.data += 2
    torch.save(model.state_dict(), folder / kind)
    return folder / kind
