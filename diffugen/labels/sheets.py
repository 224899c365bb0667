"""Contact sheets of a run: choose the images and the pictures that show how each was labelled.

Knows the run's store; drawing is in `diffugen.labels.pictures`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, by_detector
from diffugen.labels.heatmaps import combine
from diffugen.labels.pictures import Panel, contact_sheet, enlarged, heat_overlay, label_overlay, outlined
from diffugen.labels.shapes import decode
from diffugen.records import HeatMaps, Instances
from diffugen.run.spool import ImageIds
from diffugen.run.store import RunStore

TILE_HEIGHT = 160
"""Height of each picture in pixels."""


def attention_panel(
    rgb: NDArray[np.uint8],
    heat_maps: HeatMaps,
    instances: Instances,
    settings: LabelSettings | None,
    caption: str,
    *,
    source: NDArray[np.uint8] | None = None,
    classes: Sequence[str] | None = None,
) -> Panel:
    """Return a panel of one image: source (if any), image, heat map (if any), masks and boxes.

    Args:
        rgb: uint8 (H, W, 3), the image.
        heat_maps: Its heat maps; the first phrase that names a class is shown.
        instances: Its labels.
        settings: How the maps of layers and steps are combined into the heat map; None to show no heat map.
        caption: The line of text below.
        source: uint8 (H, W, 3), the image it was made from, shown with the outline of the painted region;
            None if there is none.
        classes: Class names; the position of a class decides its colour. None: the classes of the phrases.
    """
    named = [phrase.class_name for phrase in heat_maps.phrases]
    pictures = [] if source is None else [_source_picture(source, heat_maps)]
    pictures.append(enlarged(rgb, TILE_HEIGHT))
    if settings is not None:
        shown = next(number for number, name in enumerate(named) if name)
        heat = combine(heat_maps, settings.groups, settings.step_weights, settings.self_attention)[shown]
        pictures.append(heat_overlay(rgb, heat, TILE_HEIGHT))
    colours = classes or list(dict.fromkeys(name for name in named if name))
    pictures.append(label_overlay(rgb, instances, TILE_HEIGHT, colours))
    return Panel(pictures, caption)


def _source_picture(source: NDArray[np.uint8], heat_maps: HeatMaps) -> NDArray[np.uint8]:
    region = None if heat_maps.region is None else decode(heat_maps.region)
    if region is None or region.all():
        return enlarged(source, TILE_HEIGHT)
    return outlined(source, region, TILE_HEIGHT)


def attention_sheet(
    store: RunStore,
    method: str,
    settings: LabelSettings,
    path: Path,
    count: int = 12,
    steps: Collection[str] | None = None,
) -> Path:
    """Write a contact sheet of a run's labels, for images spread evenly over the run.

    Args:
        store: The run's store.
        method: Provenance of the labels; of those that a detector alone has made, no heat maps are shown.
        settings: The settings they were made with.
        path: The PNG file to write.
        count: Maximum number of images.
        steps: Names of the tasks whose images are shown; None for all.

    Returns:
        ``path``.

    Raises:
        StoreError: The file cannot be written.
    """
    labelled = store.labelled_ids("attention", method)
    ids = ImageIds(one for one in labelled if steps is None or store.record(one).step in steps)
    stride = max(1, len(ids) / count)
    chosen = [ids[int(number * stride)] for number in range(min(count, len(ids)))]
    shown = [next(store.labels("attention", method, image_id=image_id)).instances for image_id in chosen]
    classes = sorted({name for instances in shown for name in instances.class_names})
    panels, heat = [], not by_detector(method)
    for image_id, instances in zip(chosen, shown, strict=True):
        record = store.record(image_id)
        panels.append(
            attention_panel(
                store.image(image_id),
                store.heat_maps(image_id),
                instances,
                settings if heat else None,
                record.prompt.text,
                source=None if record.parent is None else store.source(record.parent),
                classes=classes,
            )
        )
    titles = ["image", *(["heat map of the class"] if heat else []), "masks with boxes and scores"]
    if any(len(panel.pictures) > len(titles) for panel in panels):
        titles.insert(0, "source")
    title = f"{store.folder.name}: {', '.join(titles)}"
    return contact_sheet(panels, path, columns=2, height=TILE_HEIGHT, title=title)
