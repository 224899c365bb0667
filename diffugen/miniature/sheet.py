"""Write rendered scenes as PNG files: a contact sheet with their exact masks, or one file per scene."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffugen.labels.pictures import Panel, contact_sheet, enlarged, label_overlay
from diffugen.labels.sheets import TILE_HEIGHT
from diffugen.miniature.scenery import RenderedScene
from diffugen.miniature.scenes import CLASSES
from diffugen.miniature.sets import exact_instances
from diffugen.run.codec import rgb_to_png
from diffugen.run.files import write_file
from diffugen.run.ledger import explained


def scene_sheet(scenes: Iterable[RenderedScene], path: Path, columns: int = 4) -> Path:
    """Write a contact sheet of rendered scenes and their exact masks; return ``path``."""
    panels = []
    for drawn in scenes:
        height = max(TILE_HEIGHT, drawn.rgb.shape[0])
        truth = label_overlay(drawn.rgb, exact_instances(drawn), height, CLASSES)
        panels.append(Panel((enlarged(drawn.rgb, height), truth), drawn.scene.caption))
    return contact_sheet(
        panels, path, columns=columns, height=TILE_HEIGHT, title="scenes and their exact masks"
    )


def scene_photos(scenes: Iterable[RenderedScene], folder: Path) -> None:
    """Write each scene as a PNG: ``000.png``, ``001.png``, ...

    Raises:
        StoreError: The folder cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, drawn in enumerate(scenes):
            write_file(folder / f"{number:03d}.png", rgb_to_png(drawn.rgb))
