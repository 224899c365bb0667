"""The stage that chooses what to train on and writes it. Does not know the truth that the report quotes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.config.sections import MaskChoice, TrainingPolicy
from diffugen.dataset.files import Item
from diffugen.dataset.policy import (
    CONFIRMED_ORIGINS,
    FamilySplit,
    TrainingLabels,
    training_labels,
    without_noisy,
)
from diffugen.dataset.truth import Truth
from diffugen.dataset.yolo import write_yolo
from diffugen.errors import DiffugenError
from diffugen.labels.paint import painted_over
from diffugen.labels.paste import CutOut, composed
from diffugen.labels.refine import ColourTies
from diffugen.records import Instances
from diffugen.run.results import Chosen
from diffugen.run.rounds import OnProgress, Round, Run, stage
from diffugen.run.spool import ImageIds, Spool
from diffugen.stages.compare import label_pair, learned_calibration


@stage("dataset", Chosen)
def choose(
    round: Round,
    on_progress: OnProgress,
    method: str,
    policy: TrainingPolicy,
    known: Truth | None = None,
    held_back: Collection[str] = (),
) -> Chosen:
    """Choose the images and labels to train the detector on, and write them as a YOLO-seg folder.

    All images of a family (prompt or photo) are in one split, and the split of a family never changes.

    Args:
        round: The round; the set goes to ``datasets/round-<round>`` in the run's folder.
        on_progress: Called with images written and images to write.
        method: Provenance of the attention labels.
        policy: Whose labels count, and which images are held out.
        known: Further labelled images to train on.
        held_back: Ids of images that `diffugen.stages.sift` holds back.

    Raises:
        DiffugenError: Nothing is left to train on.
        StoreError: The folder cannot be written.
    """
    run, store = round.run, round.store
    chosen = Spool(without_noisy(chosen_labels(run, method, policy), held_back))
    splits = split_images(run, chosen, policy)
    if known is None and not any(len(chosen[image_id].instances or ()) for image_id in splits["train"]):
        raise DiffugenError(_nothing_to_train_on(round, chosen.values()))
    total, done = sum(map(len, splits.values())), 0

    def items(ids: Iterable[str]) -> Iterator[Item]:
        nonlocal done
        for item in chosen_items(run, chosen, ids):
            yield item
            done += 1
            on_progress(done, total)

    pasted = 0

    def train_items() -> Iterator[Item]:
        nonlocal pasted
        yield from items(splits["train"])
        yield from known_items(known)
        for item in _pasted(round, chosen, splits["train"], policy):
            yield item
            pasted += 1

    given = {"train": train_items(), **({"val": items(splits["val"])} if splits["val"] else {})}
    folder = fresh_folder(store.folder / "datasets" / f"round-{round.number}")
    write_yolo(folder, given, run.class_names)
    return Chosen(
        folder=str(folder.relative_to(store.folder)),
        train=len(splits["train"]),
        val=len(splits["val"]),
        known=known.images if known else 0,
        by_origin=Counter(one.origin for one in chosen.values() if one.origin is not None),
        left_out=_reasons(chosen.values()),
        pasted=pasted,
        hidden=sum(len(chosen[image_id].hidden) for image_id in splits["train"]),
    )


def chosen_labels(
    run: Run, method: str, policy: TrainingPolicy, mask: MaskChoice | None = None
) -> Iterator[tuple[str, TrainingLabels]]:
    """Yield each image's id with what it trains with, by the table in `diffugen.dataset.policy`.

    Args:
        run: The run.
        method: Provenance of the attention labels.
        policy: Whose labels count.
        mask: Which mask an object gets when both sources agree on it; None for the policy's.
    """
    store, dataset, disagreement = run.store, policy.dataset, policy.disagreement
    decisions = {one.image_id: one for one in store.decisions()}
    calibration = learned_calibration(run, method, disagreement)
    for labels in store.labels("attention", method):
        image_id = labels.image_id
        pair = label_pair(store, image_id, method, run.class_names)
        yield (
            image_id,
            training_labels(
                image_id,
                labels.instances,
                pair and pair.model,
                decisions.get(image_id),
                pair and pair.candidates,
                mask=mask or dataset.mask,
                trust=dataset.trust,
                min_score=dataset.min_score,
                min_iou=disagreement.min_iou,
                good_iou=disagreement.good_iou,
                calibration=calibration,
                ties=partial(_ties, run, image_id),
            ),
        )


def _ties(run: Run, image_id: str) -> ColourTies:
    return ColourTies(run.store.image(image_id))


def split_images(
    run: Run, chosen: Mapping[str, TrainingLabels], policy: TrainingPolicy
) -> dict[str, ImageIds]:
    """Return the ids of the images that ``train`` and of those held out as ``val``, in the run's order."""
    held_out = FamilySplit(policy.dataset.val_frac, run.seed)
    splits = {"train": ImageIds(), "val": ImageIds()}
    for record in run.store.records():
        in_val = held_out.holds_out(record.family)
        if record.id in chosen and chosen[record.id].instances is not None:
            splits["val" if in_val else "train"].append(record.id)
    return splits


def chosen_items(run: Run, chosen: Mapping[str, TrainingLabels], ids: Iterable[str]) -> Iterator[Item]:
    """Yield images with the labels they train with, one in memory at a time."""
    for image_id in ids:
        one = chosen[image_id]
        if one.instances is not None:
            rgb = painted_over(run.store.image(image_id), one.hidden, one.instances.rles)
            yield image_id, rgb, one.instances


def known_items(known: Truth | None) -> Iterator[Item]:
    """Yield labelled images from outside the run, under names that no image of the run has."""
    yield from ((f"known-{name}", rgb, found) for name, rgb, found in (known.items() if known else ()))


def _pasted(
    round: Round, chosen: Mapping[str, TrainingLabels], ids: Sequence[str], policy: TrainingPolicy
) -> Iterator[Item]:
    """Yield images composed of the run's own: cut-outs of good objects, pasted into its training images."""
    count = int(policy.dataset.paste * len(ids) + 0.5)
    if not count:
        return
    used = [chosen[image_id] for image_id in ids]
    labels = [one.instances for one in used if one.instances is not None]

    def image(number: int) -> NDArray[np.uint8]:
        return painted_over(round.store.image(ids[number]), used[number].hidden, labels[number].rles)

    count = int(policy.dataset.paste * len(ids) + 0.5)
    cut_outs = _cut_outs(labels, [one.origin in CONFIRMED_ORIGINS for one in used])
    yield from composed(labels, image, cut_outs, count, round.seed)


def _cut_outs(labels: Sequence[Instances], confirmed: Sequence[bool]) -> list[CutOut]:
    """Return, of each class, the confirmed objects; where there are none, the half with the higher scores."""
    by_class: dict[str, list[tuple[float, CutOut]]] = {}
    sure: set[CutOut] = set()
    for number, instances in enumerate(labels):
        for index, name in enumerate(instances.class_names):
            cut_out = CutOut(number, index, name)
            by_class.setdefault(name, []).append((float(instances.scores[index]), cut_out))
            if confirmed[number]:
                sure.add(cut_out)
    chosen = []
    for found in by_class.values():
        middle = float(np.median([score for score, _ in found]))
        good = [one for _, one in found if one in sure]
        chosen += good or [one for score, one in found if score >= middle]
    return chosen


def fresh_folder(folder: Path) -> Path:
    """Return a folder without what a stage left there that was killed before its result was kept."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _reasons(chosen: Iterable[TrainingLabels]) -> Counter[str]:
    return Counter(one.reason for one in chosen if one.reason is not None)


def _nothing_to_train_on(round: Round, chosen: Iterable[TrainingLabels]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in _reasons(chosen).items())
    return (
        f"round {round.number} of run {round.run.folder} has nothing to train on "
        f"({reasons or 'there are no labelled images'}). Review some images (diffugen review), lower "
        "dataset.min_score "
        "or labels.accept, or set dataset.trust to the side that is right more often"
    )
