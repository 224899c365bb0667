"""Pictures of scenes beside their exact masks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffugen.miniature.scenes import CLASSES, RenderedScene, exact_instances
from diffugen.pictures import Panel, contact_sheet, enlarged, label_overlay
from diffugen.sheets import TILE_HEIGHT


def scene_sheet(scenes: Iterable[RenderedScene], path: Path, columns: int = 4) -> Path:
    """Write rendered scenes beside their exact masks as a PNG; returns ``path``."""
    panels = []
    for drawn in scenes:
        height = max(TILE_HEIGHT, drawn.rgb.shape[0])
        truth = label_overlay(drawn.rgb, exact_instances(drawn), height, CLASSES)
        panels.append(Panel((enlarged(drawn.rgb, height), truth), drawn.scene.caption))
    return contact_sheet(panels, path, columns=columns, height=TILE_HEIGHT, title="scenes and their exact masks")
