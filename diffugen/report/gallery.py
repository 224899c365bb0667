"""Which images a report shows, and their pictures: image, heat map, attention label, model label.

Draws with `diffugen.labels.pictures`; keeps encoded bytes only. A picture whose file is missing is left out,
and said to be.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import DiffugenError
from diffugen.labels.heatmaps import combine
from diffugen.labels.pictures import BACKGROUND, enlarged, heat_overlay, label_overlay
from diffugen.records import Disagreement, ImageRecord, Instances
from diffugen.report.blocks import Gallery, Picture, Shown, as_rate
from diffugen.report.facts import RunFacts
from diffugen.report.quality import Quality, attention_labels, evidence_labels
from diffugen.report.survey import Survey
from diffugen.run.codec import rgb_to_png
from diffugen.run.store import RunStore

HEIGHT = 200
"""Height of each picture in pixels."""

MOST_BYTES = 1_900_000
"""JPEG bytes of all pictures of a report: in base64, the page stays below 3 MB."""

_JPEG_QUALITY = 82
_WITH_HUMAN = "mean IoU with the human labels"
_CANDIDATES = 200
"""Images of a group that are looked at for pictures of different prompts."""


@dataclass(frozen=True)
class Choice:
    """An image to show, with what is said of it; ``flagged`` is its first disagreement, where it is shown for
    that.
    """

    image_id: str
    lines: tuple[str, ...]
    flagged: Disagreement | None = None


@dataclass(frozen=True)
class Ranked:
    """An image, what it is ranked by, the value, and the mean score of its attention labels."""

    what: str
    value: float
    score: float
    image_id: str


def make_galleries(
    store: RunStore,
    facts: RunFacts,
    survey: Survey,
    quality: Quality,
    count: int,
    on_progress: Callable[[int, int], None],
) -> tuple[list[Gallery], int]:
    """Draw the flagged, the worst and the best images.

    Args:
        store: The run.
        facts: Its facts.
        survey: Its survey.
        quality: Which images agree well and which do not; where none were compared, the mean score decides.
        count: Images of each group at most, each of another prompt.
        on_progress: Called with images drawn and images to draw.

    Returns:
        The galleries, empty ones left out, and the number of images left out to keep the page small.
    """
    groups = _choose(store, facts, survey, quality, count)
    total = sum(len(choices) for _, _, choices in groups)
    galleries, used, left_out, done = [], 0, 0, 0
    for title, about, choices in groups:
        shown = []
        for choice in choices:
            if used < MOST_BYTES:
                shown.append(_show(store, facts, survey, choice))
                used += sum(len(picture.jpeg or b"") for picture in shown[-1].pictures)
            else:
                left_out += 1
            done += 1
            on_progress(done, total)
        if shown:
            galleries.append(Gallery(title, about, tuple(shown)))
    return galleries, left_out


def _choose(
    store: RunStore, facts: RunFacts, survey: Survey, quality: Quality, count: int
) -> list[tuple[str, str, list[Choice]]]:
    flagged = [
        Choice(
            one.image_id,
            (f"{one.kind.replace('_', ' ')}, severity {as_rate(one.severity)}, IoU {as_rate(one.iou)}",),
            one,
        )
        for one in _waiting(store, facts, survey)
    ]
    flagged = _apart(store, flagged, count)
    seen = {choice.image_id for choice in flagged}
    rest = [one for one in _ranked(survey, quality) if one.image_id not in seen]
    # Of labels that are equally bad the surest is the worst.
    worst = heapq.nsmallest(_CANDIDATES, rest, key=lambda one: (one.value, -one.score, one.image_id))
    # What a person accepted as it was agrees by definition, which shows nothing.
    good = (one for one in rest if one.what != _WITH_HUMAN)
    best = heapq.nlargest(_CANDIDATES, good, key=lambda one: (one.value, one.score, one.image_id))
    shown_worst = _apart(store, map(_choice, worst), count)
    names = {choice.image_id for choice in shown_worst}
    shown_best = _apart(
        store, (choice for choice in map(_choice, best) if choice.image_id not in names), count
    )
    what = "agreement" if quality.agreement else "mean score"
    other = " among the images that are not flagged above" if flagged else ""
    return [
        (
            "Flagged",
            "The head of the review queue: images with a disagreement that nobody has decided yet.",
            flagged,
        ),
        ("Worst", f"Lowest {what}{other}, one image a prompt.", shown_worst),
        ("Best", f"Highest {what}, one image a prompt.", shown_best),
    ]


def _choice(one: Ranked) -> Choice:
    return Choice(one.image_id, (f"{one.what} {as_rate(one.value)}",))


def _waiting(store: RunStore, facts: RunFacts, survey: Survey) -> Iterable[Disagreement]:
    for round in reversed(facts.rounds):
        yield from (one for one in store.disagreements(round) if one.image_id not in survey.decided)


def _ranked(survey: Survey, quality: Quality) -> list[Ranked]:
    if quality.agreement:
        named = {"human": _WITH_HUMAN, "model": "mean IoU with the model labels"}
        return [
            Ranked(named[evidence], value, survey.notes[image_id].score or 0.0, image_id)
            for evidence, value, image_id in quality.agreement
        ]
    scored = ((note.score, image_id) for image_id, note in survey.notes.items())
    return [Ranked("mean score", score, score, image_id) for score, image_id in scored if score is not None]


def _apart(store: RunStore, choices: Iterable[Choice], count: int) -> list[Choice]:
    """The first ``count`` of different images and, while there are any, of different prompts."""
    apart: dict[str, Choice] = {}
    images: set[str] = set()
    for looked_at, choice in enumerate(choices):
        if len(apart) == count or looked_at == _CANDIDATES:
            break
        family = store.record(choice.image_id).family
        if family not in apart and choice.image_id not in images:
            apart[family] = choice
        images.add(choice.image_id)
    return list(apart.values())


def _show(store: RunStore, facts: RunFacts, survey: Survey, choice: Choice) -> Shown:
    record = store.record(choice.image_id)
    note = survey.notes[choice.image_id]
    method = facts.compared_method if choice.flagged is not None else note.method
    attention = attention_labels(store, record.id, method)
    model = evidence_labels(store, survey, "model", record.id) if note.model is not None else None
    human = evidence_labels(store, survey, "human", record.id) if record.id in survey.human else None
    other = ("human label", human) if human is not None else ("model label", model)
    text = record.prompt.text
    drawn = [
        ("image", _image(store, record), f"generated image: {text}"),
        _heat(store, facts, record, method),
        (
            "attention label",
            _labelled(store, record, attention, survey),
            f"attention label: {_said(attention)}",
        ),
        (other[0], _labelled(store, record, other[1], survey), f"{other[0]}: {_said(other[1])}"),
    ]
    lines = (*choice.lines, f"attention: {_said(attention)}; {other[0].split()[0]}: {_said(other[1])}")
    if choice.flagged is not None and (note.attention is None or method != note.method):
        lines = (*lines, "labels as they were when they were compared; newer ones exist")
    pictures = tuple(Picture(label, None if rgb is None else _jpeg(rgb), alt) for label, rgb, alt in drawn)
    return Shown(
        text,
        (f"round {record.round}, image {record.id}", *lines),
        pictures,
        _strip(record, [rgb for _, rgb, _ in drawn]),
    )


def _image(store: RunStore, record: ImageRecord) -> NDArray[np.uint8] | None:
    try:
        return enlarged(store.image(record.id), HEIGHT)
    except DiffugenError:
        return None


def _heat(
    store: RunStore, facts: RunFacts, record: ImageRecord, method: str | None
) -> tuple[str, NDArray[np.uint8] | None, str]:
    groups, steps = _map_settings(facts, method)
    try:
        maps = store.heat_maps(record.id)
        named = [index for index, phrase in enumerate(maps.phrases) if phrase.class_name is not None]
        index = named[0] if named else 0
        heat = combine(maps, groups, steps)[index]
        words = maps.phrases[index].text
        return (
            f"heat map of “{words}”",
            heat_overlay(store.image(record.id), heat, HEIGHT),
            f"heat map of the words {words}",
        )
    except (DiffugenError, IndexError):
        return "heat map", None, "heat map"


def _map_settings(facts: RunFacts, method: str | None) -> tuple[Mapping[str, float], Any]:
    """Layer groups and step weights of the label settings behind ``method``; the configuration's where it is
    unknown.
    """
    for round in facts.label_rounds:
        settings = facts.mapping(round, "label", "settings")
        if facts.value(round, "label", "method") == method and "groups" in settings:
            return settings["groups"], tuple(settings.get("step_weights", (1, 1, 1)))
    labels = (facts.config or {}).get("labels") or {}
    return labels.get("groups", {"*": 1.0}), tuple(labels.get("step_weights", (1, 1, 1)))


def _labelled(
    store: RunStore, record: ImageRecord, instances: Instances | None, survey: Survey
) -> NDArray[np.uint8] | None:
    if instances is None:
        return None
    try:
        return label_overlay(store.image(record.id), instances, HEIGHT, list(survey.classes))
    except DiffugenError:
        return None


def _said(instances: Instances | None) -> str:
    if instances is None:
        return "not labelled"
    pairs = zip(instances.class_names, instances.scores, strict=True)
    return ", ".join(f"{name} {as_rate(float(score))}" for name, score in pairs) or "nothing"


def _strip(record: ImageRecord, pictures: Iterable[NDArray[np.uint8] | None]) -> bytes:
    width = max(1, round(record.size_wh[0] * HEIGHT / record.size_wh[1]))
    gap = np.full((HEIGHT, 6, 3), BACKGROUND, np.uint8)
    empty = np.full((HEIGHT, width, 3), BACKGROUND, np.uint8)
    parts = [part for picture in pictures for part in (empty if picture is None else picture, gap)]
    return rgb_to_png(np.concatenate(parts[:-1], axis=1))


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
