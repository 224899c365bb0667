"""Fill a store with images of one colour and boxes as labels; no image is square."""

from __future__ import annotations

import numpy as np

from diffugen.config.labelling import TERMS
from diffugen.labels.shapes import decode, encode
from diffugen.records import HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run import RunStore

SIZE_WH = (96, 64)
METHOD = "rough"
"""Provenance of the planted attention labels."""

NOTHING = Instances(SIZE_WH, (), (), np.zeros(0))


def box(left: int, width: int = 30, score: float = 0.8, name: str = "piano") -> Instances:
    """Return one object: a box."""
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=np.bool_)
    mask[20:50, left : left + width] = True
    return Instances(SIZE_WH, (name,), (encode(mask),), np.array([score]), (dict.fromkeys(TERMS, score),))


def plant(
    store: RunStore,
    number: int,
    attention: Instances,
    model: Instances | None = None,
    round: int = 0,
    *,
    painted: bool = False,
) -> str:
    """Add an image with its own prompt and labels, white under them if painted; return its id."""
    phrase = Phrase("piano", "piano")
    record = ImageRecord(Prompt(f"piano {number}", (phrase,)), number, SIZE_WH, "miniature", round=round)
    rgb = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90 + number, dtype=np.uint8)
    for rle in attention.rles if painted else ():
        rgb[decode(rle)] = 250
    heat = np.random.default_rng(number).random((1, 3, 16, 24)).astype(np.float16)
    store.add_image(record, rgb, HeatMaps(record.id, SIZE_WH, (phrase,), {"up-16x24": heat}), 0.1)
    labels = [LabelSet(record.id, "attention", attention, METHOD)]
    if model is not None:
        labels.append(LabelSet(record.id, "model", model, "model-1"))
    store.put_labels(labels)
    return record.id
