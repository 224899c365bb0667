"""Contact sheets of runs: which images to show, and what of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.pictures import Panel, contact_sheet, enlarged, heat_overlay, label_overlay, outlined

if TYPE_CHECKING:
    from diffugen.config.labelling import LabelSettings
    from diffugen.records import HeatMaps, Instances
    from diffugen.run.store import RunStore

TILE_HEIGHT = 160


def attention_panel(
    rgb: NDArray[np.uint8],
    heat_maps: HeatMaps,
    instances: Instances,
    settings: LabelSettings,
    caption: str,
    *,
    source: NDArray[np.uint8] | None = None,
    classes: Sequence[str] | None = None,
) -> Panel:
    """Return image | heat map | masks and boxes of one image, after what it was made of.

    Args:
        rgb: uint8 (H, W, 3).
        heat_maps: Its heat maps; the first phrase that names a class is shown.
        instances: Its labels.
        settings: Which layer groups and steps the shown map combines.
        caption: Line below.
        source: uint8 (H, W, 3), the image it was made of, shown with the outline of what was painted over;
            None for none.
        classes: Decides the colours; None for the classes of the phrases.
    """
    from diffugen.labels.heatmaps import combine
    from diffugen.labels.shapes import decode

    named = [phrase.class_name for phrase in heat_maps.phrases]
    shown = next(number for number, name in enumerate(named) if name)
    heat = combine(heat_maps, settings.groups, settings.step_weights)[shown]
    before = []
    if source is not None:
        region = (
            np.ones(source.shape[:2], dtype=np.bool_)
            if heat_maps.region is None
            else decode(heat_maps.region)
        )
        before = [enlarged(source, TILE_HEIGHT) if region.all() else outlined(source, region, TILE_HEIGHT)]
    pictures = (
        *before,
        enlarged(rgb, TILE_HEIGHT),
        heat_overlay(rgb, heat, TILE_HEIGHT),
        label_overlay(
            rgb, instances, TILE_HEIGHT, classes or list(dict.fromkeys(name for name in named if name))
        ),
    )
    return Panel(pictures, caption)


def attention_sheet(
    store: RunStore,
    method: str,
    settings: LabelSettings,
    path: Path,
    count: int = 12,
    steps: Collection[str] | None = None,
) -> Path:
    """Draw a run's attention labels: image | heat map | masks and boxes, for images spread evenly over the
    run.

    Args:
        store: The run.
        method: Provenance of the labels.
        settings: What they were made with.
        path: The PNG to write.
        count: How many images at most.
        steps: Names of tasks whose images are shown; None for all.
    """
    ids = [labels.image_id for labels in store.labels("attention", method)]
    if steps is not None:
        ids = [image_id for image_id in ids if store.record(image_id).step in steps]
    step = max(1, len(ids) / count)
    chosen = [ids[int(number * step)] for number in range(min(count, len(ids)))]
    shown = [next(store.labels("attention", method, image_id=image_id)).instances for image_id in chosen]
    classes = sorted({name for instances in shown for name in instances.class_names})
    panels = []
    for image_id, instances in zip(chosen, shown, strict=True):
        record = store.record(image_id)
        panels.append(
            attention_panel(
                store.image(image_id),
                store.heat_maps(image_id),
                instances,
                settings,
                record.prompt.text,
                source=None if record.parent is None else store.source(record.parent),
                classes=classes,
            )
        )
    before = "what it was made of, " if any(len(panel.pictures) > 3 for panel in panels) else ""
    title = f"{store.folder.name}: {before}image, attention of the class's words, masks with boxes and scores"
    return contact_sheet(panels, path, columns=2, height=TILE_HEIGHT, title=title)
