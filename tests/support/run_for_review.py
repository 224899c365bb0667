"""A small run with a review queue: made-up images, real masks, disagreements of the real comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffugen.comparison.acquisition import rank
from diffugen.comparison.disagreement import compare
from diffugen.config import LabelSettings, ScoreWeights
from diffugen.labels.shapes import encode
from diffugen.records import RLE, Disagreement, ImageRecord, Instances, LabelSet
from diffugen.run.results import Compared, Labelled
from diffugen.run.store import RunStore
from tests.support import store_child as child

Value = TypeVar("Value")

SIZE_WH = child.SIZE_WH
CONFIG: dict[str, Any] = {
    "prompts": {"classes": {"piano": ["grand piano"], "car": ["car"], "person": ["person"]}}
}
METHODS = {"attention": "attention-1", "model": "model-1"}


def box_mask(x0: int, y0: int, x1: int, y1: int, hole: bool = False) -> RLE:
    """A rectangle, with a hole of one pixel where asked."""
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    mask[y0:y1, x0:x1] = True
    if hole:
        mask[(y0 + y1) // 2, (x0 + x1) // 2] = False
    return encode(mask)


def instances_of(*objects: tuple[str, RLE, float]) -> Instances:
    terms = tuple({"box_size": 1 / 3, "contrast": score} for _, _, score in objects)
    scores = np.array([score for _, _, score in objects])
    return Instances(
        SIZE_WH, tuple(one[0] for one in objects), tuple(one[1] for one in objects), scores, terms
    )


AGREED = ("car", box_mask(30, 0, 40, 8), 0.9)
LABELS = (
    # overlooked, with an agreement beside it; masks touch all borders
    (instances_of(AGREED), instances_of(("piano", box_mask(0, 4, 13, 24, hole=True), 1 / 3), AGREED)),
    # spurious
    (instances_of(("piano", box_mask(2, 3, 20, 20, hole=True), 0.2), AGREED), instances_of(AGREED)),
    # swapped
    (
        instances_of(("piano", box_mask(5, 5, 25, 24), 0.4)),
        instances_of(("car", box_mask(5, 5, 25, 23), 0.4)),
    ),
    # badly located
    (
        instances_of(("piano", box_mask(0, 0, 10, 10), 0.7)),
        instances_of(("piano", box_mask(4, 4, 16, 16), 0.6)),
    ),
    # agreement alone
    (instances_of(AGREED), instances_of(AGREED)),
    # nothing but a model label
    (instances_of(), instances_of(("person", box_mask(20, 10, 21, 11), 0.99))),
)


def make_run(
    folder: Path, numbers: Sequence[int] = range(6), round: int = 0, config: dict[str, Any] | None = CONFIG
) -> RunStore:
    """Make a run, or add a round to it: image n has the labels ``LABELS[n % 6]``."""
    store = RunStore.create_or_open(folder, config=config)
    records = [child.make_record(number, round=round) for number in numbers]
    store.add_images((one, child.make_rgb(one), child.make_heat_maps(one), 1.0) for one in records)
    found: list[Disagreement] = []
    for number, record in zip(numbers, records, strict=True):
        attention, model = LABELS[number % len(LABELS)]
        put_labels(store, record, attention=attention, model=model)
        found += compare(record.id, attention, model).disagreements
    store.finish_stage(round, "label", labelled(METHODS["attention"]), 1.0)
    store.finish_stage(round, "compare", Compared(len(records), 0, {}), 1.0)
    store.put_disagreements(round, rank(found))
    return store


def sure(value: Value | None) -> Value:
    assert value is not None
    return value


def labelled(method: str) -> Labelled:
    return Labelled(method, 6, 6, LabelSettings(), ScoreWeights())


def put_labels(store: RunStore, record: ImageRecord, **sources: Instances) -> None:
    store.put_labels(
        LabelSet(record.id, name, labels, METHODS[name], record.round) for name, labels in sources.items()
    )


def image_id(number: int, round: int = 0) -> str:
    return child.make_record(number, round=round).id
