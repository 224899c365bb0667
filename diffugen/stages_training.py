"""The stages that make a detector: choose what to train on, train, measure, promote.

Knows what each stage reads and writes in a run; not the order of the stages. What is trained on and what a detector is
promoted on never comes from the truth that the report quotes: `evaluate_stage` alone is given that.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffugen.dataset import Item, write_yolo
from diffugen.dataset_policy import TrainingLabels, in_validation, split_by_prompt, training_labels
from diffugen.errors import DiffugenError
from diffugen.metrics import Pair, average_precision
from diffugen.stages import OnProgress, Result
from diffugen.stages_labels import find

if TYPE_CHECKING:
    from diffugen.dataset_read import Truth
    from diffugen.detectors.yolo import YoloDetector
    from diffugen.store import RunStore

MEASURED_CONFIDENCE = 0.001
"""Average precision looks at the whole curve, so nearly everything that a detector finds counts."""

MEASURED_AT_A_TIME = 64
GOLD_IMAGES = 20
"""From so many reviewed images on that no detector was trained on, they alone decide which detector is better."""


def held_out_prompts(store: RunStore, val_frac: float, seed: int) -> set[str]:
    """Return the prompts whose images are held out, in this round as in every other one."""
    return split_by_prompt((record.prompt.id for record in store.records()), val_frac, seed)


def chosen_labels(
    store: RunStore,
    method: str,
    *,
    class_names: Sequence[str],
    mask: Literal["attention", "model", "union", "intersection"],
    trust: Literal["none", "attention", "model"],
    min_score: float,
    min_iou: float,
    good_iou: float,
) -> Iterator[tuple[str, TrainingLabels]]:
    """Yield each image's id with what it trains with, by the table in `diffugen.dataset_policy`.

    Args:
        store: The run.
        method: Provenance of the attention labels.
        class_names: Classes that count.
        mask: Whose mask an object gets that both sources agree on.
        trust: Whose labels an image gets on which they disagree, or ``none``.
        min_score: Images with an attention label that scores lower are left out.
        min_iou: As in `diffugen.disagreement.compare`.
        good_iou: Likewise.
    """
    decisions = {one.image_id: one for one in store.decisions()}
    model = {labels.image_id: labels.instances.of_classes(class_names) for labels in store.latest_labels("model")}
    for labels in store.labels("attention", method):
        image_id = labels.image_id
        yield image_id, training_labels(
            image_id, labels.instances, model.get(image_id), decisions.get(image_id), mask=mask, trust=trust,
            min_score=min_score, min_iou=min_iou, good_iou=good_iou, confidence=0.0,
        )  # fmt: skip


def dataset_stage(
    store: RunStore,
    method: str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    class_names: Sequence[str],
    mask: Literal["attention", "model", "union", "intersection"],
    trust: Literal["none", "attention", "model"],
    min_score: float,
    val_frac: float,
    min_iou: float,
    good_iou: float,
    seed: int,
    round: int,
    known: Truth | None = None,
) -> Result:
    """Choose which images and labels the detector is trained on, and write them as a YOLO-seg folder.

    The images of a prompt are all in one split; the split of a prompt never changes.

    Args:
        store: The run; the set goes to ``datasets/round-<round>`` in its folder.
        method: Provenance of the attention labels.
        on_progress: Called with images written and images to write.
        class_names: The classes in the order of their numbers.
        mask: As in `chosen_labels`, like the following ones.
        trust: Likewise.
        min_score: Likewise.
        val_frac: Part of the prompts whose images are held out.
        min_iou: As in `chosen_labels`.
        good_iou: Likewise.
        seed: Decides which prompts are held out.
        round: The round.
        known: Further labelled images to train on, such as a dataset that was there before the run.

    Returns:
        ``folder`` (within the run), ``train`` and ``val`` (numbers of images), ``by_origin``, ``left_out`` (from reason to
        count), ``known``.

    Raises:
        DiffugenError: Nothing is left to train on.
        StoreError: The folder cannot be written.
    """
    folder = store.folder / "datasets" / f"round-{round}"
    shutil.rmtree(folder, ignore_errors=True)  # of a stage that was killed before its result was kept
    held_out = held_out_prompts(store, val_frac, seed)
    chosen = dict(
        chosen_labels(
            store, method, class_names=class_names, mask=mask, trust=trust, min_score=min_score, min_iou=min_iou,
            good_iou=good_iou,
        )
    )  # fmt: skip
    origins = Counter(one.origin for one in chosen.values() if one.origin is not None)
    left_out = Counter(one.reason for one in chosen.values() if one.reason is not None)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for record in store.records():
        if record.id in chosen and chosen[record.id].instances is not None:
            splits["val" if record.prompt.id in held_out else "train"].append(record.id)
    total, done = sum(map(len, splits.values())), 0

    def items(ids: Iterable[str]) -> Iterator[Item]:
        nonlocal done
        for image_id in ids:
            instances = chosen[image_id].instances
            if instances is not None:
                yield image_id, store.image(image_id), instances
            done += 1
            on_progress(done, total)

    extra = 0

    def train_items() -> Iterator[Item]:
        nonlocal extra
        yield from items(splits["train"])
        for name, rgb, instances in known.items() if known else ():
            extra += 1
            yield f"known-{name}", rgb, instances

    if not any(len(chosen[image_id].instances or ()) for image_id in splits["train"]):
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are no labelled images"
        raise DiffugenError(
            f"round {round} of run {store.folder} has nothing to train on ({reasons}). Review some images (diffugen review), "
            "lower dataset.min_score or labels.accept, or set dataset.trust to the side that is right more often"
        )
    given = {"train": train_items(), **({"val": items(splits["val"])} if splits["val"] else {})}
    write_yolo(folder, given, class_names)
    return {
        "folder": str(folder.relative_to(store.folder)), "train": len(splits["train"]), "val": len(splits["val"]),
        "known": extra, "by_origin": dict(origins), "left_out": dict(left_out),
    }  # fmt: skip


def known_stage(
    store: RunStore,
    known: Truth,
    on_progress: OnProgress = lambda done, total: None,
    *,
    class_names: Sequence[str],
    val_frac: float,
    seed: int,
) -> Result:
    """Write labelled images that were there before the run as a training set, ``datasets/known`` in the run's folder.

    Args:
        store: The run.
        known: The images.
        on_progress: Called with images written and images to write.
        class_names: The classes in the order of their numbers.
        val_frac: Part of the images that is held out.
        seed: Decides which.

    Returns:
        ``folder`` (within the run), ``train`` and ``val`` (numbers of images).
    """
    folder = store.folder / "datasets" / "known"
    shutil.rmtree(folder, ignore_errors=True)
    counts: Counter[str] = Counter()

    def items(split: str) -> Iterator[Item]:
        for name, rgb, instances in known.items():
            if in_validation(name, val_frac, seed) == (split == "val"):
                counts[split] += 1
                on_progress(counts.total(), known.images)
                yield f"known-{name}", rgb, instances

    write_yolo(folder, {"train": items("train"), "val": items("val")}, class_names)
    return {"folder": str(folder.relative_to(store.folder)), "train": counts["train"], "val": counts["val"]}


def train_stage(
    store: RunStore,
    dataset: str,
    start: Path | str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    device: str,
    image_size: int,
    epochs: int,
    batch_size: int | None,
    lr0: float | None,
    freeze: int | None,
    extra: Mapping[str, Any],
    seed: int,
    name: str,
) -> Result:
    """Train a detector; one that was interrupted begins again.

    Args:
        store: The run; checkpoints go to ``training/<name>`` in its folder.
        dataset: Folder of the training set, within the run.
        start: The checkpoint to start from.
        on_progress: Called with epochs done and all epochs.
        device: As in `diffugen.detectors.yolo.YoloDetector.fit`, like the following ones.
        image_size: Likewise.
        epochs: Likewise.
        batch_size: Likewise.
        lr0: Likewise.
        freeze: Likewise.
        extra: Likewise.
        seed: Likewise.
        name: What to call this training.

    Returns:
        ``checkpoint`` (within the run), ``start``, ``epochs``, ``image_size``.

    Raises:
        DiffugenError: The checkpoint or the training set is of no use, or memory does not suffice.
    """
    from diffugen.detectors.yolo import YoloDetector

    on_progress(0, epochs)
    for cache in (store.folder / dataset).rglob("*.cache"):  # of a training that was killed
        cache.unlink()
    best = YoloDetector(find(store, start), device=device).fit(
        store.folder / dataset, store.folder / "training" / name, epochs=epochs, image_size=image_size,
        seed=seed, batch_size=batch_size, on_epoch=lambda epoch, metrics: on_progress(epoch, epochs), lr0=lr0,
        freeze=freeze, extra=extra,
    )  # fmt: skip
    checkpoint = str(best.relative_to(store.folder.resolve()))
    return {"checkpoint": checkpoint, "start": str(start), "epochs": epochs, "image_size": image_size}


def measure(
    detector: YoloDetector,
    items: Iterable[Item],
    class_names: Sequence[str],
    image_size: int,
    on_progress: OnProgress = lambda done, total: None,
    total: int = 0,
) -> Result:
    """Return a detector's average precision on labelled images: ``images``, and ``ap50`` and ``ap50_95`` of ``mask`` and ``box``.

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
        found = detector.predict([rgb for _, rgb, _ in batch], image_size=image_size, confidence=MEASURED_CONFIDENCE)
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
    epochs: int,
    batch_size: int | None,
    lr0: float | None,
    freeze: int | None,
    extra: Mapping[str, Any],
    seed: int,
    round: int,
) -> Result:
    """Train the same detector on exact labels and measure it: what the loop's detector is to be compared with.

    Args:
        store: The run; everything goes to ``reference/round-<round>`` in its folder, apart from the loop's own.
        exact: Exactly labelled images to train on, none of the truth's.
        truth: The images to measure on.
        start: The checkpoint that the loop began with.
        on_progress: Called with epochs done and all epochs.
        device: As in `diffugen.detectors.yolo.YoloDetector.fit`, like the following ones.
        image_size: Likewise.
        epochs: Likewise.
        batch_size: Likewise.
        lr0: Likewise.
        freeze: Likewise.
        extra: Likewise.
        seed: Likewise.
        round: The round.

    Returns:
        As `evaluate_stage`, and ``labels``: how many exactly labelled images it was trained on.
    """
    from diffugen.detectors.yolo import YoloDetector

    folder = store.folder / "reference" / f"round-{round}"
    shutil.rmtree(folder, ignore_errors=True)
    on_progress(0, epochs)
    write_yolo(folder / "dataset", {"train": exact.items()}, exact.class_names)
    best = YoloDetector(find(store, start), device=device).fit(
        folder / "dataset", folder / "training", epochs=epochs, image_size=image_size, seed=seed, batch_size=batch_size,
        on_epoch=lambda epoch, metrics: on_progress(epoch, epochs), lr0=lr0, freeze=freeze, extra=extra,
    )  # fmt: skip
    checkpoint = str(best.relative_to(store.folder.resolve()))
    found = evaluate_stage(checkpoint, truth, store=store, device=device, image_size=image_size)
    return {**found, "labels": exact.images}


def epochs_of_the_same_length(store: RunStore, round: int) -> int:
    """Return for how many epochs the reference trains, to see as many images in all as the loop's detectors have seen.

    Args:
        store: The run.
        round: The last round; the reference trains on as many images as its training set has.
    """
    kept = [(store.stage_done(number, "dataset"), store.stage_done(number, "train")) for number in range(round + 1)]
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
    `GOLD_IMAGES`; or else the images of held-out prompts on which attention and detector agree, with the masks of the
    attention labels, because those of the model would favour the detector that drew them.

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
        ``promoted``, ``checkpoint`` (of the better one), ``evidence`` (``validation``, ``human``, ``agreed`` or ``none``),
        ``images``, and ``ap50`` and ``ap50_95`` of the masks of ``candidate`` and ``incumbent``.
    """
    from diffugen.detectors.yolo import YoloDetector

    if validation is not None:
        kind, images, items = "validation", validation.images, validation.items
    else:
        kind, images, items = _own_evidence(
            store, held_out_prompts(store, val_frac, seed),
            dict(
                chosen_labels(
                    store, method, class_names=class_names, mask="attention", trust=trust, min_score=min_score,
                    min_iou=min_iou, good_iou=good_iou,
                )
            ),
        )  # fmt: skip
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
    ids = [record.id for record in store.records() if record.prompt.id in held_out and record.id in right]
    human = [image_id for image_id in ids if chosen[image_id].origin == "human"]
    kind, kept = ("human", human) if len(human) >= GOLD_IMAGES else ("agreed", ids)
    return kind if kept else "none", len(kept), lambda: ((one, store.image(one), right[one]) for one in kept)


def promoted(store: RunStore, round: int, checkpoint: str) -> str:
    """Return the detector that a round begins with: the last one promoted before it, or else the configured one."""
    for earlier in reversed(range(round)):
        result = store.stage_done(earlier, "promote")
        if result is not None:
            return str(result["checkpoint"])
    return checkpoint


def rounds_without_gain(store: RunStore, round: int) -> int:
    """Return how many rounds, up to and with this one, have passed since a detector was promoted."""
    for back in range(round + 1):
        result = store.stage_done(round - back, "promote")
        if result is not None and result["promoted"]:
            return back
    return round + 1
