"""The cards of the review page: an image each, with the labels of both sources, as plain values for JSON.

Masks stay run lengths; the page draws their outlines. Pictures are small, so that a page of many images can
still be sent by mail. Knows no HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.disagreement import compare
from diffugen.config import LabelSettings
from diffugen.config.labelling import by_detector
from diffugen.labels.heatmaps import combine
from diffugen.labels.pictures import enlarged, heat_picture
from diffugen.labels.shapes import iou_matrix
from diffugen.records import Decision, Disagreement, Instances, LabelSet
from diffugen.review.judged import SAME_OBJECT_IOU
from diffugen.review.queue import AUDIT, Entry, Queue
from diffugen.review.words import AUDITED, meaning
from diffugen.run.store import RunStore

MOST_HEIGHT = 640
"""Larger images are shown at this height; masks are drawn at the image's own resolution all the same."""

MOST_BYTES = 44_000
"""Size of an image's picture; in text it takes a third more."""

QUALITIES = (92, 84, 74, 60, 45)
HEAT_SIDE = 96


def labeller(store: RunStore) -> str:
    """Return what made the labels whose verdict is called ``attention``; a detector can have made them."""
    return "starting detector" if by_detector(store.latest_method("attention")) else "attention"


def good_iou(store: RunStore) -> float:
    """Return from which IoU on the run's comparison regards two labels as one, whichever version made it."""
    section = (store.config or {}).get("disagreement")
    value = section.get("good_iou") if isinstance(section, dict) else None
    return float(value) if isinstance(value, (int, float)) else 0.5


def class_names(queue: Queue, entries: Sequence[Entry]) -> list[str]:
    """Return the classes a label can have, in the order of their colours; the same on every page of a run."""
    if queue.class_names is not None:
        return list(queue.class_names)
    sets = [labels for entry in entries for labels in (entry.attention, entry.model) if labels is not None]
    return sorted({name for labels in sets for name in labels.instances.class_names})


def card(entry: Entry, rank: int, names: Mapping[str, str], good_iou: float) -> dict[str, Any]:
    """Return what the page needs to know of an image, without its pictures.

    Args:
        entry: The image.
        rank: Its place in the queue, from 1.
        names: From a source to what the page calls it.
        good_iou: From this IoU on, two labels agree on the location of an object.
    """
    return {
        "id": entry.record.id,
        "rank": rank,
        "size": list(entry.record.size_wh),
        "severity": None if entry.severity is None else round(entry.severity, 2),
        "prompt": entry.record.prompt.text,
        "kinds": entry.kinds or [AUDIT],
        "points": [{"kind": one.kind, "text": in_words(one, entry, names)} for one in entry.disagreements]
        or [{"kind": AUDIT, "text": AUDITED.format(labeller=names["attention"])}],
        "attention": _side(entry.attention),
        "model": _side(entry.model),
        **_pairs(entry, good_iou),
        "decided": None if entry.decision is None else _vote(entry.decision),
        "votes": [_vote(one) for one in entry.votes],
    }


def pictures(store: RunStore, image_id: str) -> dict[str, str | None]:
    """Return an image and its heat map, None without one, as addresses that hold their data.

    Raises:
        StoreError: The image or its heat maps cannot be read.
    """
    return {"image": _data_uri(_small(store.image(image_id))), "heat": _heat_picture(store, image_id)}


# -------------------------------------------------------------------- labels


def _side(labels: LabelSet | None) -> dict[str, Any] | None:
    if labels is None:
        return None
    found = labels.instances
    return {
        "method": labels.method,
        "labels": [
            {"class": name, "score": round(float(score), 2), "counts": rle["counts"]}
            for name, score, rle in zip(found.class_names, found.scores, found.rles, strict=True)
        ],
    }


def _pairs(entry: Entry, good_iou: float) -> dict[str, list[list[int]]]:
    """Return which attention and model labels agree, and which cannot be kept both: they are one object."""
    if entry.attention is None or entry.model is None:
        return {"agreed": [], "rivals": []}
    first, second = entry.attention.instances, entry.model.instances
    agreed = _agreed(entry, first, second, good_iou)
    rows, columns = np.nonzero(iou_matrix(first.rles, second.rles) > SAME_OBJECT_IOU)
    rivals = {(int(row), int(column)) for row, column in zip(rows, columns, strict=True)}
    for one in entry.disagreements:
        if one.attention is not None and one.model is not None:
            rivals.add((one.attention, one.model))
    return {"agreed": [list(pair) for pair in agreed], "rivals": [list(pair) for pair in sorted(rivals)]}


def _agreed(entry: Entry, first: Instances, second: Instances, good_iou: float) -> list[tuple[int, int]]:
    """Return the pairs of labels that agree; labels that the queue disputes never do."""
    attention = {one.attention for one in entry.disagreements}
    model = {one.model for one in entry.disagreements}
    least = min(0.1, good_iou)
    found = compare(entry.record.id, first, second, min_iou=least, good_iou=good_iou).agreements
    return [
        (one.first, one.second)
        for one in found
        if one.first is not None and one.second is not None
        if one.first not in attention and one.second not in model
    ]


def _vote(decision: Decision) -> dict[str, Any]:
    """Return a decision as in a decisions file, so that the page reads its own and the run's alike."""
    objects = [
        {
            "source": one.source,
            "index": one.index,
            "keep": one.kept,
            **({} if one.class_name is None else {"class": one.class_name}),
            **({} if one.mask is None else {"mask": one.mask}),
            **({"method": one.method} if one.method else {}),
        }
        for one in decision.judged
    ]
    return {
        "verdict": decision.verdict,
        "reviewer": decision.reviewer,
        "at": decision.made_at,
        **({"objects": objects} if objects else {}),
    }


def in_words(one: Disagreement, entry: Entry, names: Mapping[str, str]) -> str:
    """Return, e.g., ``attention piano 0.40, model car 0.80: same place, different classes``."""
    sides = [
        f"{names[labels.source]} {labels.instances.class_names[index]} {labels.instances.scores[index]:.2f}"
        for labels, index in ((entry.attention, one.attention), (entry.model, one.model))
        if labels is not None and index is not None and index < len(labels.instances)
    ]
    said = meaning(one.kind, names["attention"])
    return f"{', '.join(sides)}: {said}" if sides else said


# -------------------------------------------------------------------- pictures


def _small(rgb: NDArray[np.uint8]) -> bytes:
    """Return the best JPEG of the image that is small enough; a noisy image becomes smaller, too."""
    height = min(rgb.shape[0], MOST_HEIGHT)
    while True:
        scaled = rgb if height == rgb.shape[0] else enlarged(rgb, height)
        for quality in QUALITIES:
            data = jpeg(scaled, quality)
            if len(data) <= MOST_BYTES:
                return data
        height = height * 3 // 4


def heat_of(store: RunStore, image_id: str) -> NDArray[np.float32] | None:
    """Return the heat of the phrases that name a class, each scaled to [0, 1], at its hottest; None without.

    Returns:
        float32 (H, W).
    """
    if not store.heat_maps_path(image_id).is_file():
        return None  # the image was never generated here, or its maps were thrown away
    maps = store.heat_maps(image_id)
    named = [index for index, phrase in enumerate(maps.phrases) if phrase.class_name is not None]
    if not named:
        return None
    settings = LabelSettings()
    heats = combine(maps, settings.groups, settings.step_weights)[named]
    low, high = heats.min(axis=(1, 2), keepdims=True), heats.max(axis=(1, 2), keepdims=True)
    return np.asarray(((heats - low) / np.maximum(high - low, 1e-12)).max(axis=0), dtype=np.float32)


def _heat_picture(store: RunStore, image_id: str) -> str | None:
    heat = heat_of(store, image_id)
    if heat is None:
        return None
    colours = heat_picture(heat)
    return _data_uri(jpeg(enlarged(colours, min(HEAT_SIDE, len(colours))), 80))


def jpeg(rgb: NDArray[np.uint8], quality: int) -> bytes:
    """Return an image, uint8 (H, W, 3), as a JPEG of a quality from 1 to 95."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _data_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
