"""The stages that measure a detector on ground truth. Nothing is decided on what they return."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from diffugen.comparison.metrics import (
    AveragePrecision,
    Pair,
    average_precision,
    by_size,
    false_finds,
    image_error,
)
from diffugen.config.sections import DetectorSettings
from diffugen.dataset.files import Item
from diffugen.dataset.truth import Truth
from diffugen.dataset.yolo import write_yolo
from diffugen.labels.objects import with_rivals
from diffugen.records import Instances
from diffugen.run.results import Evaluated, Measured, Precision
from diffugen.run.rounds import OnProgress, Round, stage, unseen
from diffugen.run.scenes import MeasuredScene, keep_scenes
from diffugen.stages.dataset import fresh_folder
from diffugen.stages.detector import OpenDetector, open_detector
from diffugen.stages.train import TRAINED_AGAIN, fit

MEASURED_CONFIDENCE = 0.001
"""Average precision is the area under the whole curve, so nearly every detection counts."""

MEASURED_AT_A_TIME = 64

KEPT_SCENES = 6
"""Images of the ground truth that the report shows: the first ones, and as many of the worst."""


@stage("evaluate", Evaluated)
def evaluate(
    round: Round, on_progress: OnProgress, checkpoint: str, truth: Truth, settings: DetectorSettings
) -> Evaluated:
    """Measure a detector on exactly labelled images.

    Args:
        round: The round.
        on_progress: Called with images done and all images.
        checkpoint: The detector.
        truth: The images.
        settings: Device and image size.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read.
    """
    return _evaluated(round, "evaluate", on_progress, checkpoint, truth, settings)


@stage("evaluate-base", Evaluated)
def evaluate_base(
    round: Round, on_progress: OnProgress, checkpoint: str, truth: Truth, settings: DetectorSettings
) -> Evaluated:
    """Measure the detector that the loop begins with, as `evaluate` does."""
    return _evaluated(round, "evaluate-base", on_progress, checkpoint, truth, settings)


@stage("evaluate-reference", Evaluated, unit="epoch", kept=TRAINED_AGAIN)
def evaluate_reference(
    round: Round, on_progress: OnProgress, exact: Truth, truth: Truth, settings: DetectorSettings
) -> Evaluated:
    """Train the same detector on exact labels and measure it, as a reference for the loop's detector.

    It starts from the same checkpoint and sees as many images as the loop's detectors did in all rounds
    together.

    Args:
        round: The last round; the images go to ``reference/round-<round>``, checkpoints to
            ``training/reference-<round>``.
        on_progress: Called with epochs done and all epochs.
        exact: Exactly labelled images to train on, none of the truth's.
        truth: The images to measure on.
        settings: The detector, and how to train it.
    """
    run = round.run
    folder = fresh_folder(run.folder / "reference" / f"round-{round.number}")
    write_yolo(folder, {"train": exact.items()}, exact.class_names)
    trained = fit(
        round,
        on_progress,
        str(folder.relative_to(run.folder)),
        settings.checkpoint,
        settings.changed(epochs=epochs_of_equal_length(round), steps=None),
        name=f"reference-{round.number}",
        seed=run.seed,
    )
    found = _evaluated(round, "evaluate-reference", unseen, trained.checkpoint, truth, settings)
    return replace(found, labels=exact.images)


def epochs_of_equal_length(round: Round) -> int:
    """Return the reference's epochs, so that it sees as many images as the loop's detectors have seen.

    The reference trains on as many images as the training set of this, the last round.
    """
    kept = [round.store.results(number) for number in range(round.number + 1)]
    seen = [
        (one.dataset.train + one.dataset.known + one.dataset.pasted) * one.train.epochs
        for one in kept
        if one.dataset and one.train
    ]
    last = kept[-1].dataset
    return max(1, int(sum(seen) / last.train + 0.5)) if last and last.train else 1


def measure(
    detector: OpenDetector,
    items: Iterable[Item],
    class_names: Sequence[str],
    on_progress: OnProgress = unseen,
    total: int = 0,
    on_scene: Callable[[MeasuredScene], None] = lambda scene: None,
) -> Measured:
    """Measure a detector on labelled images.

    Args:
        detector: What to measure.
        items: The images, a few at a time in memory.
        class_names: Classes that count.
        on_progress: Called with images done and ``total``.
        total: How many images there are.
        on_scene: Called with each image and what was found in it.
    """
    least = detector.settings.confidence
    pairs: list[Pair] = []
    raw: list[Pair] = []
    guessed: list[Pair] = []
    for name, rgb, truth, seen in _seen(detector, items, class_names):
        raw.append((truth, seen.raw))
        guessed.append((truth, seen.guesses))
        pairs.append((truth, seen.found))
        sure = seen.found.take(np.flatnonzero(seen.found.scores >= least).tolist())
        on_scene(MeasuredScene(name, rgb, truth, sure, image_error(truth, sure)))
        on_progress(len(pairs), max(total, len(pairs)))
    mask, box = average_precision(guessed), average_precision(guessed, of="box")
    return Measured(
        mask=_precision(mask),
        box=_precision(box),
        raw_mask=_precision(average_precision(raw)) if detector.settings.postprocess else None,
        by_class={
            name: Precision(mask.ap50_by_class[name], mask.ap50_95_by_class[name]) for name in mask.curves
        },
        false_finds=false_finds(pairs, class_names, least),
        curves=mask.curves,
        sizes=by_size(pairs, least),
    )


def guesses(detector: OpenDetector, items: Iterable[Item], class_names: Sequence[str]) -> list[Pair]:
    """Return the labels of images and what average precision is measured on: all guesses of a detector.

    Args:
        detector: What to measure.
        items: The images, a few at a time in memory.
        class_names: Classes that count.
    """
    return [(truth, seen.guesses) for _, _, truth, seen in _seen(detector, items, class_names)]


@dataclass(frozen=True)
class _Seen:
    """What a detector sees in an image: as it is returned, as labels, and as labels with second guesses."""

    raw: Instances
    found: Instances
    guesses: Instances


def _seen(
    detector: OpenDetector, items: Iterable[Item], class_names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.uint8], Instances, _Seen]]:
    """Yield the name, pixels and labels of images with what a detector sees of some classes in them."""
    stream = iter(items)
    while batch := list(islice(stream, MEASURED_AT_A_TIME)):
        predicted = detector.predict([rgb for _, rgb, _ in batch], MEASURED_CONFIDENCE, raw=True)
        for (name, rgb, truth), raw in zip(batch, predicted, strict=True):
            found = detector.postprocess(raw, rgb) if detector.settings.postprocess else raw
            # The classes come last: what counts may be the second guess about an object that does not.
            seen = [
                one.renamed(detector.means).of_classes(class_names)
                for one in (raw, found, with_rivals(found))
            ]
            yield name, rgb, truth.of_classes(class_names), _Seen(*seen)


def _evaluated(
    round: Round,
    stage: str,
    on_progress: OnProgress,
    checkpoint: str,
    truth: Truth,
    settings: DetectorSettings,
) -> Evaluated:
    base = stage == "evaluate-base"
    detector = open_detector(round.run, checkpoint, settings, truth.items(), allow_untrained=base)
    first: list[MeasuredScene] = []
    worst: list[tuple[float, int, MeasuredScene]] = []

    numbers = count()

    def keep(scene: MeasuredScene) -> None:
        if len(first) < KEPT_SCENES:
            first.append(scene)
        entry = (scene.error, -next(numbers), scene)  # the number breaks ties, so scenes are not compared
        heapq.heappush(worst, entry) if len(worst) < KEPT_SCENES else heapq.heappushpop(worst, entry)

    found = measure(detector, truth.items(), truth.class_names, on_progress, truth.images, keep)
    ranked = [scene for _, _, scene in sorted(worst, key=lambda entry: (-entry[0], -entry[1]))]
    if round.keep:  # else the report would show scenes of another detector
        keep_scenes(round.run.folder, stage, round.number, {"first": first, "worst": ranked})
    return Evaluated(truth=truth.name, checkpoint=checkpoint, images=truth.images, **vars(found))


def _precision(found: AveragePrecision) -> Precision:
    return Precision(found.ap50, found.ap50_95)
