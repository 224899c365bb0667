"""Labelled images from outside the run: further training images, promotion evidence, quoted truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffugen.config.sections import DatasetSettings, LoopSettings
from diffugen.dataset.files import Item, OnMistake
from diffugen.dataset.truth import Truth, common_images
from diffugen.errors import DiffugenError, counted
from diffugen.labels.paint import painted_over
from diffugen.miniature.truth import exact_labels, find_truth
from diffugen.records import Instances
from diffugen.run.rounds import Run


@dataclass(frozen=True)
class LabelledSets:
    """The labelled sets of a configuration, opened; None for those that it does not name.

    Attributes:
        known: Further images to train on.
        validation: Images that decide which detector is better.
        truth: Ground truth that is quoted and decides nothing.
        truth_name: What the configuration calls the ground truth.
        class_names: The run's classes.
    """

    known: Truth | None
    validation: Truth | None
    truth: Truth | None
    truth_name: str | None
    class_names: tuple[str, ...]

    def check_apart(self, what: str, files: Sequence[Path]) -> None:
        """Refuse to train on images that the detector is then measured with, or chosen by.

        Args:
            what: What the images are, for the message.
            files: Images to train on.

        Raises:
            DiffugenError: One of them is also in the truth or the validation set.
        """
        for key, judge in (("loop.truth", self.truth), ("loop.validation", self.validation)):
            same = common_images(files, judge.files) if judge else []
            if same and judge:
                first, second = same[0]
                copy = "" if first.resolve() == second.resolve() else f", which has the content of {second}"
                raise DiffugenError(
                    f"{what} and {key} ({judge.name}) share {counted(len(same), 'image')}, the first being "
                    f"{first}{copy}: a detector cannot be judged by what it was trained on. Use different "
                    "sets, or name different splits of one: <path>:train and <path>:test"
                )

    def exact_labels(self, count: int) -> Truth | None:
        """Return exactly labelled images like those of the truth; None unless the miniature draws them."""
        return exact_labels(self.truth_name, self.class_names, count) if count else None


def open_sets(run: Run, dataset: DatasetSettings, loop: LoopSettings) -> LabelledSets:
    """Open the labelled sets of a configuration, so that a mistake in one is found before anything is made.

    Raises:
        DiffugenError: A set is missing, damaged, or labels none of the classes, or images would be trained on
            that judge the detector.
    """
    names = run.class_names
    sets = LabelledSets(
        known=_to_train_on(find_truth(dataset.known, names, "train"), dataset),
        validation=find_truth(loop.validation, names, "decide"),
        truth=find_truth(loop.truth, names, "measure"),
        truth_name=loop.truth,
        class_names=names,
    )
    for key, found in (
        ("dataset.known", sets.known),
        ("loop.validation", sets.validation),
        ("loop.truth", sets.truth),
    ):
        if found is not None:
            run.notify_once(f"{key}: {found.census}")
    if sets.known is not None:
        sets.check_apart(f"dataset.known ({sets.known.name})", sets.known.files)
    return sets


def _to_train_on(known: Truth | None, settings: DatasetSettings) -> Truth | None:
    """Return a set with its crowds painted over, or as objects: a detector cannot ignore a region."""
    if known is None or not known.crowds:
        return known

    def items(on_mistake: OnMistake | None) -> Iterator[Item]:
        for name, rgb, found in known.items(on_mistake):
            names, rles = tuple(name for name, _ in found.crowds), tuple(rle for _, rle in found.crowds)
            objects = replace(found, crowds=())
            if settings.crowds == "object":
                yield name, rgb, objects.joined(Instances(found.size_wh, names, rles, np.ones(len(rles))))
            else:
                yield name, painted_over(rgb, rles, found.rles), objects

    return replace(known, source=items)
