"""The stages that make a detector: choose what to train on, write it, train.

Knows what each stage reads and writes in a run; not the order of the stages, and nothing of the truth that
the report quotes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffugen.dataset.files import Item
from diffugen.dataset.policy import TrainingLabels, in_validation, split_by_family, training_labels
from diffugen.dataset.yolo import write_yolo
from diffugen.errors import DiffugenError
from diffugen.run.rounds import OnProgress, Result
from diffugen.stages.relabel import find

if TYPE_CHECKING:
    from diffugen.dataset.truth import Truth
    from diffugen.run.store import RunStore


def held_out_families(store: RunStore, val_frac: float, seed: int) -> set[str]:
    """Return the families (`ImageRecord.family`: prompts or photos) that are held out, in this round as in
    every other one.
    """
    return split_by_family((record.family for record in store.records()), val_frac, seed)


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
    """Yield each image's id with what it trains with, by the table in `diffugen.dataset.policy`.

    Args:
        store: The run.
        method: Provenance of the attention labels.
        class_names: Classes that count.
        mask: Whose mask an object gets that both sources agree on.
        trust: Whose labels an image gets on which they disagree, or ``none``.
        min_score: Images with an attention label that scores lower are left out.
        min_iou: As in `diffugen.comparison.disagreement.compare`.
        good_iou: Likewise.
    """
    decisions = {one.image_id: one for one in store.decisions()}
    model = {
        labels.image_id: labels.instances.of_classes(class_names) for labels in store.latest_labels("model")
    }
    for labels in store.labels("attention", method):
        image_id = labels.image_id
        yield (
            image_id,
            training_labels(
                image_id,
                labels.instances,
                model.get(image_id),
                decisions.get(image_id),
                mask=mask,
                trust=trust,
                min_score=min_score,
                min_iou=min_iou,
                good_iou=good_iou,
                confidence=0.0,
            ),
        )


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
        ``folder`` (within the run), ``train`` and ``val`` (numbers of images), ``by_origin``, ``left_out``
        (from reason to count), ``known``.

    Raises:
        DiffugenError: Nothing is left to train on.
        StoreError: The folder cannot be written.
    """
    folder = store.folder / "datasets" / f"round-{round}"
    shutil.rmtree(folder, ignore_errors=True)  # of a stage that was killed before its result was kept
    held_out = held_out_families(store, val_frac, seed)
    chosen = dict(
        chosen_labels(
            store,
            method,
            class_names=class_names,
            mask=mask,
            trust=trust,
            min_score=min_score,
            min_iou=min_iou,
            good_iou=good_iou,
        )
    )
    origins = Counter(one.origin for one in chosen.values() if one.origin is not None)
    left_out = Counter(one.reason for one in chosen.values() if one.reason is not None)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for record in store.records():
        if record.id in chosen and chosen[record.id].instances is not None:
            splits["val" if record.family in held_out else "train"].append(record.id)
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
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            or "there are no labelled images"
        )
        raise DiffugenError(
            f"round {round} of run {store.folder} has nothing to train on ({reasons}). Review some images "
            "(diffugen review), "
            "lower dataset.min_score or labels.accept, or set dataset.trust to the side that is right more "
            "often"
        )
    given = {"train": train_items(), **({"val": items(splits["val"])} if splits["val"] else {})}
    write_yolo(folder, given, class_names)
    return {
        "folder": str(folder.relative_to(store.folder)),
        "train": len(splits["train"]),
        "val": len(splits["val"]),
        "known": extra,
        "by_origin": dict(origins),
        "left_out": dict(left_out),
    }


def known_stage(
    store: RunStore,
    known: Truth,
    on_progress: OnProgress = lambda done, total: None,
    *,
    class_names: Sequence[str],
    val_frac: float,
    seed: int,
) -> Result:
    """Write labelled images that were there before the run as a training set, ``datasets/known`` in the run's
    folder.

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
        store.folder / dataset,
        store.folder / "training" / name,
        epochs=epochs,
        image_size=image_size,
        seed=seed,
        batch_size=batch_size,
        on_epoch=lambda epoch, metrics: on_progress(epoch, epochs),
        lr0=lr0,
        freeze=freeze,
        extra=extra,
    )
    checkpoint = str(best.relative_to(store.folder.resolve()))
    return {"checkpoint": checkpoint, "start": str(start), "epochs": epochs, "image_size": image_size}
