"""The stage that finds training images whose labels are probably wrong, by cross-validation.

Knows how the images are divided and who judges them; does not know what makes a label doubtful
(`diffugen.comparison.disagreement`) or which images are held back for it (`diffugen.dataset.noise`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from diffugen.comparison.disagreement import compare
from diffugen.config.foreign import read_text
from diffugen.config.sections import DetectorSettings, DisagreementSettings, TrainingPolicy
from diffugen.dataset.files import Item
from diffugen.dataset.noise import contradictions, most_contradicted
from diffugen.dataset.policy import UNCONFIRMED_ORIGINS, TrainingLabels
from diffugen.dataset.truth import Truth
from diffugen.dataset.yolo import write_yolo
from diffugen.records import content_id
from diffugen.run.codec import to_json
from diffugen.run.files import write_file
from diffugen.run.results import Sifted, from_text, to_values
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.spool import Spool
from diffugen.stages.dataset import chosen_items, chosen_labels, fresh_folder, known_items, split_images
from diffugen.stages.detector import OpenDetector, open_detector
from diffugen.stages.relabel import CANDIDATE_CONFIDENCE, PREDICTED_AT_A_TIME, sure_and_unsure
from diffugen.stages.train import fit
from diffugen.tune.folds import split

FOLDS = 3
"""Parts of the images that are judged in turn; with more, detectors learn from more images and cost more."""

TRAINING_SHARE = 0.5
"""Length of a fold's training, relative to a round's: enough to tell gross errors, and the longer a detector
trains on wrong labels, the better it repeats them."""

TRAINING = "sift"
"""Where a fold's checkpoints go, in the run's ``training``, until it has judged."""

SIFTING_VERSION = 1
"""Part of what names a fold's outcome; increment it if a change to the code means another one."""

Severities = Mapping[str, Mapping[str, float]]
"""From the id of an image to the severity of each class in it, in [0, 1]."""


@dataclass(frozen=True)
class _Judged:
    """The outcome of a fold.

    Attributes:
        images: What the detector says about the images of the fold.
    """

    images: Severities


@stage("sift", Sifted, unit="fold", kept="The folds that were judged are kept.")
def sift(
    round: Round,
    on_progress: OnProgress,
    method: str,
    policy: TrainingPolicy,
    settings: DetectorSettings,
    known: Truth | None = None,
) -> Sifted:
    """Choose images to hold back from training: the noise filter of DiffuMask (Wu et al. 2023, section 3.4).

    The images that would train with labels that nobody has confirmed are divided into `FOLDS` folds, each
    family in one of them. A detector is trained on all training images but those of a fold, and judges these.
    It starts from the configured checkpoint: the one promoted last may have learned the labels that it would
    judge. The outcome of a fold is kept, and a fold is judged again only if its images, labels or settings
    have changed. What is held back may be confirmed later: in the next round, a detector that was not trained
    on it labels it.

    Args:
        round: The round.
        on_progress: Called with folds judged, fractions included, and all folds.
        method: Provenance of the attention labels.
        policy: Whose labels count, which images are held out, and the share to hold back.
        settings: The detector, and how to train it.
        known: Further labelled images to train on.

    Raises:
        DiffugenError: The checkpoint cannot be used, or memory runs out even with one image.
    """
    share = policy.dataset.noise_filter
    if not share or (round.results.dataset is not None and not round.redo):
        return Sifted()
    chosen = Spool(chosen_labels(round.run, method, policy))
    splits = split_images(round.run, chosen, policy)
    judge = _Judge(round, chosen, splits, policy.disagreement, settings, known)
    unsure = [image_id for image_id in splits["train"] if chosen[image_id].origin in UNCONFIRMED_ORIGINS]
    fold_of = split([round.store.record(image_id).family for image_id in unsure], FOLDS, round.seed)
    folds = [[unsure[number] for number in np.flatnonzero(fold_of == fold)] for fold in np.unique(fold_of)]
    judged: dict[str, Mapping[str, float]] = {}
    for number, held_out in enumerate(folds):
        judged |= judge.severities(held_out, _part(on_progress, number, len(folds)))
        on_progress(number + 1, len(folds))
    labelled = {image_id: _classes(chosen[image_id]) for image_id in splits["train"]}
    held_back = most_contradicted(judged, share, labelled)
    by_class = Counter(name for image_id in held_back for name in labelled[image_id])
    return Sifted(len(judged), tuple(held_back), by_class)


@dataclass(frozen=True)
class _Judge:
    """Has images judged by a detector that is trained on all others.

    Attributes:
        round: The round.
        chosen: What images train with.
        splits: Ids of the images of the splits ``train`` and ``val``.
        disagreement: When two labels contradict each other.
        settings: The detector, and how to train it in a round.
        known: Further labelled images to train on.
    """

    round: Round
    chosen: Mapping[str, TrainingLabels]
    splits: Mapping[str, Sequence[str]]
    disagreement: DisagreementSettings
    settings: DetectorSettings
    known: Truth | None

    def severities(self, held_out: Sequence[str], on_progress: OnProgress) -> Severities:
        """Return the severity of each class in each image; none if nothing is left to learn from.

        Args:
            held_out: The images; the detector is not trained on them.
            on_progress: Called with epochs done and all epochs.
        """
        inside = set(held_out)
        others = [image_id for image_id in self.splits["train"] if image_id not in inside]
        if not self.known and not any(_classes(self.chosen[image_id]) for image_id in others):
            return {}
        run = self.round.run
        outcome = run.folder / "sifting" / f"{self._key(others, held_out)}.json"
        try:
            return from_text(_Judged, read_text(outcome)).images
        except (OSError, ValueError):  # not judged yet, or the file is damaged
            pass
        dataset = fresh_folder(run.folder / "sifting" / "dataset")
        detector = open_detector(run, self._train(others, dataset, on_progress), self.settings)
        items = chosen_items(run, self.chosen, held_out)
        found = _Judged(dict(_compared(detector, items, run.class_names, self.disagreement)))
        write_file(outcome, to_json(to_values(found)).encode())
        for used in (dataset, run.folder / "training" / TRAINING):
            shutil.rmtree(used)
        return found.images

    def _train(self, others: Sequence[str], dataset: Path, on_progress: OnProgress) -> str:
        run, steps = self.round.run, self.settings.steps
        splits = {name: ids for name, ids in (("train", others), ("val", self.splits["val"])) if ids}
        items = {name: chosen_items(run, self.chosen, ids) for name, ids in splits.items()}
        items["train"] = chain(items.get("train", ()), known_items(self.known))
        write_yolo(dataset, items, run.class_names)
        shorter = self.settings.changed(
            epochs=max(1, round(self.settings.epochs * TRAINING_SHARE)),
            steps=None if steps is None else max(1, round(steps * TRAINING_SHARE)),
        )
        folder, start = str(dataset.relative_to(run.folder)), self.settings.checkpoint
        return fit(self.round, on_progress, folder, start, shorter, name=TRAINING).checkpoint

    def _key(self, others: Sequence[str], held_out: Sequence[str]) -> str:
        """Return a hash of everything that decides what a detector says about the images."""
        lessons = [
            [image_id, list(found.class_names), list(found.rles), found.scores.tolist(), list(one.hidden)]
            for image_id in (*others, *self.splits["val"], *held_out)
            if (found := (one := self.chosen[image_id]).instances) is not None
        ]
        return content_id(
            SIFTING_VERSION,
            lessons,
            list(held_out),
            None if self.known is None else [self.known.name, self.known.images],
            self.disagreement.model_dump(mode="json"),
            self.settings.model_dump(mode="json"),
            self.round.seed,
        )


def _compared(
    detector: OpenDetector, items: Iterable[Item], class_names: Sequence[str], settings: DisagreementSettings
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield the ids of images with the severity of each class, by what a detector sees in them."""
    least, stream = detector.settings.confidence, iter(items)
    while batch := list(islice(stream, PREDICTED_AT_A_TIME)):
        images = [rgb for _, rgb, _ in batch]
        seen = detector.predict(images, min(CANDIDATE_CONFIDENCE, least))
        for (image_id, _, labels), found in zip(batch, seen, strict=True):
            model, candidates = sure_and_unsure(found.of_classes(class_names), least)
            comparison = compare(
                image_id, labels, model, candidates, min_iou=settings.min_iou, good_iou=settings.good_iou
            )
            yield image_id, contradictions(labels, model, comparison)


def _classes(labels: TrainingLabels) -> set[str]:
    return set() if labels.instances is None else set(labels.instances.class_names)


def _part(on_progress: OnProgress, number: int, parts: int) -> OnProgress:
    """Return what reports the progress of one of several parts as that of the whole."""

    def report(done: float, total: int, note: str = "") -> None:
        on_progress(number + done / total, parts, note)

    return report
