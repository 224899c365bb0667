"""The stages that judge a detector: promote it on evidence that a user has, and measure it on the truth that
the report quotes.

Knows what each stage reads and writes in a run; not the order of the stages. Only `evaluate_stage` and
`reference_stage` are given the truth, and nothing is decided on what they return.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffugen.comparison.metrics import Pair, average_precision
from diffugen.dataset.files import Item
from diffugen.dataset.policy import TrainingLabels
from diffugen.dataset.yolo import write_yolo
from diffugen.run.rounds import OnProgress, Result
from diffugen.stages.relabel import find
from diffugen.stages.train import chosen_labels, held_out_families, train_stage

if TYPE_CHECKING:
    from diffugen.dataset.truth import Truth
    from diffugen.detectors import Detector
    from diffugen.run.store import RunStore

MEASURED_CONFIDENCE = 0.001
"""Average precision looks at the whole curve, so nearly everything that a detector finds counts."""

MEASURED_AT_A_TIME = 64
GOLD_IMAGES = 20
"""From so many reviewed images on that no detector was trained on, they alone decide which detector is
better."""


def measure(
    detector: Detector,
    items: Iterable[Item],
    class_names: Sequence[str],
    image_size: int,
    on_progress: OnProgress = lambda done, total: None,
    total: int = 0,
) -> Result:
    """Return a detector's average precision on labelled images: ``images``, and ``ap50`` and ``ap50_95`` of
    ``mask`` and ``box``.

    Args:
        detector: What to measure.
        items: The images, a few at a time in memory.
        class_names: Classes that count.
        image_size: Longer side in pixels that images are scaled to.
        on_progress: Called with images seen and ``total``.
        total: How many images there are.
    """
    pairs: list[Pair] = []
    stream = iter(items)
    while batch := list(islice(stream, MEASURED_AT_A_TIME)):
        found = detector.predict(
            [rgb for _, rgb, _ in batch], image_size=image_size, confidence=MEASURED_CONFIDENCE
        )
        pairs += [
            (truth.of_classes(class_names), one.of_classes(class_names))
            for (_, _, truth), one in zip(batch, found, strict=True)
        ]
        on_progress(len(pairs), max(total, len(pairs)))
    sides: tuple[Literal["mask", "box"], ...] = ("mask", "box")
    return {"images": len(pairs), **{side: _ap(pairs, side) for side in sides}}


def _ap(pairs: Sequence[Pair], side: Literal["mask", "box"]) -> dict[str, float | None]:
    values = asdict(average_precision(pairs, of=side))
    return {name: values[name] for name in ("ap50", "ap50_95")}


def evaluate_stage(
    checkpoint: Path | str,
    truth: Truth,
    on_progress: OnProgress = lambda done, total: None,
    *,
    store: RunStore,
    device: str,
    image_size: int,
) -> Result:
    """Measure a detector on exactly labelled images; nothing is decided on what comes out.

    Args:
        checkpoint: The detector.
        truth: The images.
        on_progress: Called with images seen and all images.
        store: The run that the checkpoint may belong to.
        device: Torch device or ``auto``.
        image_size: Longer side in pixels that images are scaled to.

    Returns:
        ``truth``, ``checkpoint``, ``images``, and ``ap50`` and ``ap50_95`` of ``mask`` and ``box``.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read.
    """
    from diffugen.detectors.yolo import YoloDetector

    detector = YoloDetector(find(store, checkpoint), device=device)
    found = measure(detector, truth.items(), truth.class_names, image_size, on_progress, truth.images)
    return {"truth": truth.name, "checkpoint": str(checkpoint), **found}


def reference_stage(
    store: RunStore,
    exact: Truth,
    truth: Truth,
    start: Path | str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    device: str,
    image_size: int,
    round: int,
    **fit: Any,
) -> Result:
    """Train the same detector on exact labels and measure it: what the loop's detector is to be compared
    with.

    Args:
        store: The run; the images go to ``reference/round-<round>``, the checkpoint to
            ``training/reference-<round>``.
        exact: Exactly labelled images to train on, none of the truth's.
        truth: The images to measure on.
        start: The checkpoint that the loop began with.
        on_progress: Called with epochs done and all epochs.
        device: Torch device or ``auto``.
        image_size: Longer side in pixels that images are scaled to.
        round: The last round of the loop.
        **fit: The other arguments of `diffugen.stages.train.train_stage`.

    Returns:
        As `evaluate_stage`, and ``labels``: how many exactly labelled images it was trained on.
    """
    folder = store.folder / "reference" / f"round-{round}"
    shutil.rmtree(folder, ignore_errors=True)
    write_yolo(folder, {"train": exact.items()}, exact.class_names)
    trained = train_stage(
        store,
        str(folder.relative_to(store.folder)),
        start,
        on_progress,
        device=device,
        image_size=image_size,
        name=f"reference-{round}",
        **fit,
    )
    found = evaluate_stage(trained["checkpoint"], truth, store=store, device=device, image_size=image_size)
    return {**found, "labels": exact.images}


def epochs_of_the_same_length(store: RunStore, round: int) -> int:
    """Return for how many epochs the reference trains, to see as many images in all as the loop's detectors
    have seen.

    Args:
        store: The run.
        round: The last round; the reference trains on as many images as its training set has.
    """
    kept = [
        (store.stage_done(number, "dataset"), store.stage_done(number, "train"))
        for number in range(round + 1)
    ]
    seen = [(made["train"] + made["known"]) * trained["epochs"] for made, trained in kept if made and trained]
    last = kept[-1][0]
    return max(1, int(sum(seen) / last["train"] + 0.5)) if last else 1


def promote_stage(
    store: RunStore,
    candidate: str,
    incumbent: Path | str,
    method: str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    validation: Truth | None,
    class_names: Sequence[str],
    device: str,
    image_size: int,
    trust: Literal["none", "attention", "model"],
    min_score: float,
    val_frac: float,
    min_iou: float,
    good_iou: float,
    seed: int,
) -> Result:
    """Decide, on evidence that a user has, whether a new detector takes the place of the one before.

    The evidence is the named validation set; or else the reviewed images of held-out prompts, once there are
    `GOLD_IMAGES`; or else the images of held-out prompts on which attention and detector agree, with the
    masks of the attention labels, because those of the model would favour the detector that drew them.

    Args:
        store: The run.
        candidate: The new checkpoint, within the run.
        incumbent: The one before.
        method: Provenance of the attention labels.
        on_progress: Called with images seen and all images.
        validation: Labelled images that decide; None for the run's own.
        class_names: Classes that count.
        device: Torch device or ``auto``.
        image_size: Longer side in pixels that images are scaled to.
        trust: As in `chosen_labels`, like the following ones.
        min_score: Likewise.
        val_frac: As in `dataset_stage`.
        min_iou: As in `chosen_labels`.
        good_iou: Likewise.
        seed: As in `dataset_stage`.

    Returns:
        ``promoted``, ``checkpoint`` (of the better one), ``evidence`` (``validation``, ``human``, ``agreed``
        or ``none``), ``images``, and ``ap50`` and ``ap50_95`` of the masks of ``candidate`` and
        ``incumbent``.
    """
    from diffugen.detectors.yolo import YoloDetector

    if validation is not None:
        kind, images, items = "validation", validation.images, validation.items
    else:
        kind, images, items = _own_evidence(
            store,
            held_out_families(store, val_frac, seed),
            dict(
                chosen_labels(
                    store,
                    method,
                    class_names=class_names,
                    mask="attention",
                    trust=trust,
                    min_score=min_score,
                    min_iou=min_iou,
                    good_iou=good_iou,
                )
            ),
        )
    results = {}
    for number, (name, checkpoint) in enumerate((("candidate", candidate), ("incumbent", incumbent))):
        detector = YoloDetector(find(store, checkpoint), device=device)
        found = measure(detector, items(), class_names, image_size)
        results[name] = {key: found["mask"][key] or 0.0 for key in ("ap50", "ap50_95")}
        on_progress((number + 1) * images, 2 * images)
    # Without evidence nothing speaks against what has learned from more images.
    promoted = not images or results["candidate"]["ap50_95"] > results["incumbent"]["ap50_95"]
    better = candidate if promoted else str(incumbent)
    return {"promoted": promoted, "checkpoint": better, "evidence": kind, "images": images, **results}


def _own_evidence(
    store: RunStore, held_out: set[str], chosen: Mapping[str, TrainingLabels]
) -> tuple[str, int, Callable[[], Iterator[Item]]]:
    """Return which kind of evidence the run holds, how many images, and what opens them."""
    right = {image_id: one.instances for image_id, one in chosen.items() if one.instances is not None}
    ids = [record.id for record in store.records() if record.family in held_out and record.id in right]
    human = [image_id for image_id in ids if chosen[image_id].origin == "human"]
    kind, kept = ("human", human) if len(human) >= GOLD_IMAGES else ("agreed", ids)
    return kind if kept else "none", len(kept), lambda: ((one, store.image(one), right[one]) for one in kept)
