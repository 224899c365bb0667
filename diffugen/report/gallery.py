"""Which images a report shows, and their pictures: image, heat map, attention labels, model or human labels.

Draws with `diffugen.labels.pictures` and keeps only encoded bytes. A picture whose file is missing leaves a
gap.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, by_detector
from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import combine
from diffugen.labels.pictures import enlarged, heat_overlay, label_overlay
from diffugen.records import Disagreement, ImageRecord, Instances
from diffugen.report.blocks import Gallery, Picture, Shown, as_rate
from diffugen.report.encoded import HEIGHT, jpeg, side_by_side
from diffugen.report.facts import RunFacts
from diffugen.report.quality import Quality, attention_labels, evidence_labels
from diffugen.report.survey import Survey
from diffugen.review.queue import Queue
from diffugen.run.rounds import OnProgress
from diffugen.run.store import RunStore

RGB = NDArray[np.uint8]

GROUP_SIZE = 8
"""Maximum number of images in each group: flagged, worst and best."""

MOST_BYTES = 1_900_000
"""JPEG bytes of all pictures of a report: in base64, the page stays below 3 MB."""

_WITH_HUMAN = "mean IoU with the human labels"
_CANDIDATES = 200
"""Images of a group that are considered, to find some with different prompts."""


@dataclass(frozen=True)
class _Choice:
    """An image to show, its captions, and its first disagreement if it is shown for that."""

    image_id: str
    lines: tuple[str, ...]
    flagged: Disagreement | None = None


@dataclass(frozen=True)
class _Ranked:
    """An image, the measure that ranks it, its value, and the mean score of its attention labels."""

    measure: str
    value: float
    score: float
    image_id: str


@dataclass(frozen=True)
class _Group:
    """Images to show under one title."""

    title: str
    about: str
    choices: list[_Choice]


def make_galleries(
    store: RunStore, facts: RunFacts, survey: Survey, queue: Queue, quality: Quality, on_progress: OnProgress
) -> tuple[list[Gallery], int]:
    """Draw the flagged, the worst and the best images.

    Args:
        store: The run.
        facts: Its facts.
        survey: Its survey.
        queue: Its review queue.
        quality: How well each image agrees; if none were compared, the mean score ranks them.
        on_progress: Called with images drawn and images to draw.

    Returns:
        The galleries, without empty ones, and the number of images left out to keep the page small.
    """
    groups = _choose(store, survey, queue, quality)
    total = sum(len(group.choices) for group in groups)
    galleries, used, left_out, done = [], 0, 0, 0
    for group in groups:
        shown = []
        for choice in group.choices:
            if used < MOST_BYTES:
                shown.append(_show(store, facts, survey, choice))
                used += sum(len(picture.jpeg or b"") for picture in shown[-1].pictures)
            else:
                left_out += 1
            done += 1
            on_progress(done, total)
        if shown:
            galleries.append(Gallery(group.title, group.about, tuple(shown)))
    return galleries, left_out


def _choose(store: RunStore, survey: Survey, queue: Queue, quality: Quality) -> list[_Group]:
    flagged = _distinct(store, map(_flagged, _waiting(queue)))
    seen = {choice.image_id for choice in flagged}

    def rest() -> Iterator[_Ranked]:
        return (one for one in _ranked(survey, quality) if one.image_id not in seen)

    # Among equally bad labels, the one with the highest score is the worst.
    worst = heapq.nsmallest(_CANDIDATES, rest(), key=lambda one: (one.value, -one.score, one.image_id))
    # A label that a person accepted unchanged agrees by definition, which shows nothing.
    good = (one for one in rest() if one.measure != _WITH_HUMAN)
    best = heapq.nlargest(_CANDIDATES, good, key=lambda one: (one.value, one.score, one.image_id))
    shown_worst = _distinct(store, map(_choice, worst))
    names = {choice.image_id for choice in shown_worst}
    shown_best = _distinct(store, (choice for choice in map(_choice, best) if choice.image_id not in names))
    what = "agreement" if quality.agreement else "mean score"
    other = " among the images not flagged above" if flagged else ""
    return [
        _Group(
            "Flagged",
            "Head of the review queue: images with a disagreement that wait for a decision.",
            flagged,
        ),
        _Group("Worst", f"Lowest {what}{other}, one image per prompt.", shown_worst),
        _Group("Best", f"Highest {what}, one image per prompt.", shown_best),
    ]


def _flagged(one: Disagreement) -> _Choice:
    line = f"{one.kind.replace('_', ' ')}, severity {as_rate(one.severity)}, IoU {as_rate(one.iou)}"
    return _Choice(one.image_id, (line,), one)


def _choice(one: _Ranked) -> _Choice:
    return _Choice(one.image_id, (f"{one.measure}: {as_rate(one.value)}",))


def _waiting(queue: Queue) -> Iterator[Disagreement]:
    for image_id in queue.waiting:
        yield from queue.disagreements[image_id]


def _ranked(survey: Survey, quality: Quality) -> Iterator[_Ranked]:
    if not quality.agreement:
        for image_id, note in survey.notes.items():
            if note.score is not None:
                yield _Ranked("mean score", note.score, note.score, image_id)
    named = {"human": _WITH_HUMAN, "model": "mean IoU with the model labels"}
    for evidence, value, image_id in quality.agreement:
        yield _Ranked(named[evidence], value, survey.notes[image_id].score or 0.0, image_id)


def _distinct(store: RunStore, choices: Iterable[_Choice]) -> list[_Choice]:
    """Return the first choices, each of another image and another prompt."""
    distinct: dict[str, _Choice] = {}
    images: set[str] = set()
    for looked_at, choice in enumerate(choices):
        if len(distinct) == GROUP_SIZE or looked_at == _CANDIDATES:
            break
        family = store.record(choice.image_id).family
        if family not in distinct and choice.image_id not in images:
            distinct[family] = choice
        images.add(choice.image_id)
    return list(distinct.values())


def _show(store: RunStore, facts: RunFacts, survey: Survey, choice: _Choice) -> Shown:
    record, note = store.record(choice.image_id), survey.notes[choice.image_id]
    method = facts.compared_method if choice.flagged is not None else note.method
    attention = attention_labels(store, record.id, method)
    other, instances = _other_labels(store, survey, record.id)
    rgb = _image(store, record)
    detected = by_detector(method)
    ours = "labels of the starting detector" if detected else "attention labels"
    heat_title, heat = ("", None) if detected else _heat(store, facts, record, rgb, method)
    drawn = [
        ("image", None if rgb is None else enlarged(rgb, HEIGHT), f"generated image: {record.prompt.text}"),
        *([] if detected else [(heat_title, heat, heat_title)]),
        (ours, _overlay(rgb, attention, survey), f"{ours}: {_in_words(attention)}"),
        (f"{other} labels", _overlay(rgb, instances, survey), f"{other} labels: {_in_words(instances)}"),
    ]
    lines = [f"round {record.round}, image {record.id}", *choice.lines]
    who = "starting detector" if detected else "attention"
    lines.append(f"{who}: {_in_words(attention)}; {other}: {_in_words(instances)}")
    if choice.flagged is not None and (note.attention is None or method != note.method):
        lines.append("labels as compared; newer ones exist")
    pictures = tuple(Picture(label, None if one is None else jpeg(one), alt) for label, one, alt in drawn)
    return Shown(
        record.prompt.text, tuple(lines), pictures, side_by_side(record.size_wh, [one for _, one, _ in drawn])
    )


def _other_labels(store: RunStore, survey: Survey, image_id: str) -> tuple[str, Instances | None]:
    """Return the labels to show beside those of attention, with their source: human ones if there are any."""
    if image_id in survey.human:
        return "human", evidence_labels(store, survey, "human", image_id)
    if survey.notes[image_id].model is not None:
        return "model", evidence_labels(store, survey, "model", image_id)
    return "model", None


def _image(store: RunStore, record: ImageRecord) -> RGB | None:
    try:
        return store.image(record.id)
    except DiffugenError:
        return None


def _heat(
    store: RunStore, facts: RunFacts, record: ImageRecord, rgb: RGB | None, method: str | None
) -> tuple[str, RGB | None]:
    """Return title and picture of the heat map of the first phrase that names a class."""
    settings = _label_settings(facts, method)
    try:
        maps = store.heat_maps(record.id)
        named = [index for index, phrase in enumerate(maps.phrases) if phrase.class_name is not None]
        index = named[0] if named else 0
        heat = combine(maps, settings.groups, settings.step_weights, settings.self_attention)[index]
        title = f"heat map of “{maps.phrases[index].text}”"
    except (DiffugenError, IndexError):
        return "heat map", None
    return title, None if rgb is None else heat_overlay(rgb, heat, HEIGHT)


def _label_settings(facts: RunFacts, method: str | None) -> LabelSettings:
    """Return the settings behind a provenance; those of the configuration if it is unknown."""
    for one in facts.results.values():
        if one.label and one.label.method == method:
            return one.label.settings
    return LabelSettings() if facts.config is None else facts.config.labels


def _overlay(rgb: RGB | None, instances: Instances | None, survey: Survey) -> RGB | None:
    if rgb is None or instances is None:
        return None
    return label_overlay(rgb, instances, HEIGHT, list(survey.classes))


def _in_words(instances: Instances | None) -> str:
    if instances is None:
        return "not labelled"
    pairs = zip(instances.class_names, instances.scores, strict=True)
    return ", ".join(f"{name} {as_rate(float(score))}" for name, score in pairs) or "nothing"
