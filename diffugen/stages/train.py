"""The stages that train a detector: on a round's training set, or on images labelled before the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from diffugen.config.sections import DetectorSettings
from diffugen.dataset.files import Item
from diffugen.dataset.policy import in_validation
from diffugen.dataset.truth import Truth
from diffugen.dataset.yolo import read_yolo, write_yolo
from diffugen.detectors import epoch_note
from diffugen.detectors.batches import BATCH_SIZE
from diffugen.errors import DiffugenError
from diffugen.run.results import Chosen, Trained
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.stages.dataset import fresh_folder
from diffugen.stages.detector import open_for_training, unknown_classes

TRAINED_AGAIN = (
    "Earlier stages are kept; a Mask2Former continues after its last epoch, a YOLO model begins again."
)
"""What a user is told when Ctrl-C interrupts a training."""


@stage("train", Trained, unit="epoch", kept=TRAINED_AGAIN)
def train(
    round: Round, on_progress: OnProgress, dataset: Chosen, start: str, settings: DetectorSettings
) -> Trained:
    """Train a detector; an interrupted training continues as its detector can, see `Detector.fit`.

    Args:
        round: The round; checkpoints go to ``training/round-<round>`` in the run's folder.
        on_progress: Called after each step with epochs done, all epochs, and the last epoch's losses and AP.
        dataset: The training set.
        start: The checkpoint to start from.
        settings: How to train.

    Raises:
        DiffugenError: The checkpoint or the training set cannot be used, or memory runs out even with one
            image.
    """
    return fit(round, on_progress, dataset.folder, start, settings, name=f"round-{round.number}")


def first_detector(round: Round, known: Truth | None, settings: DetectorSettings, val_frac: float) -> str:
    """Return the configured detector or, if it lacks a class of the run, one trained on the known images.

    Args:
        round: The first round.
        known: Images that were labelled before the run; None where there are none.
        settings: The detector, and how to train it.
        val_frac: Fraction of the known images that is held out.

    Raises:
        DiffugenError: The detector knows none of the classes, and there are no known images.
    """
    unknown = unknown_classes(round.run, settings.checkpoint, settings)
    if not unknown or (known is None and len(unknown) < len(round.run.class_names)):
        return settings.checkpoint
    if known is None:
        raise DiffugenError(
            f"the detector {settings.checkpoint} knows none of the classes "
            f"{', '.join(round.run.class_names)}, and there is no dataset to train it on: "
            "give --known (a YOLO-seg folder or a COCO .json), another --checkpoint, or begin with "
            "diffugen bootstrap"
        )
    written = write_known(round, known, val_frac)
    return train_known(round, written, settings).checkpoint


@stage("known", Chosen)
def write_known(round: Round, on_progress: OnProgress, known: Truth, val_frac: float) -> Chosen:
    """Write images labelled before the run as a training set, ``datasets/known`` in the run's folder.

    Args:
        round: The first round.
        on_progress: Called with images written and images to write.
        known: The images.
        val_frac: Fraction of them that is held out.
    """
    run = round.run
    counts: Counter[str] = Counter()

    def items(split: str) -> Iterator[Item]:
        labelled = 0
        for name, rgb, instances in known.items():
            labelled += bool(len(instances))
            # However few there are, both splits have an object, unless only one image has any.
            first = len(instances) > 0 and labelled <= 2
            held_out = labelled == 2 if first else in_validation(name, val_frac, run.seed)
            if held_out == (split == "val"):
                counts[split] += 1
                on_progress(counts.total(), known.images)
                yield f"known-{name}", rgb, instances

    folder = fresh_folder(run.folder / "datasets" / "known")
    write_yolo(folder, {"train": items("train"), "val": items("val")}, run.class_names)
    if not counts["val"]:
        run.notify(f"{known.name} is too small to hold images out: they also choose the best epoch.")
    return Chosen(str(folder.relative_to(run.folder)), counts["train"], counts["val"])


@stage("train-known", Trained, unit="epoch", kept=TRAINED_AGAIN)
def train_known(
    round: Round, on_progress: OnProgress, dataset: Chosen, settings: DetectorSettings
) -> Trained:
    """Train the configured detector on the known images alone."""
    return fit(round, on_progress, dataset.folder, settings.checkpoint, settings, name="known")


def fit(
    round: Round,
    on_progress: OnProgress,
    dataset: str,
    start: str,
    settings: DetectorSettings,
    *,
    name: str,
    seed: int | None = None,
) -> Trained:
    """Train a detector on a folder in the YOLO-seg layout.

    Args:
        round: The round.
        on_progress: Called after each step with epochs done, all epochs, and the last epoch's losses and AP.
        dataset: The folder, relative to the run's.
        start: The checkpoint to start from.
        settings: How to train.
        name: Checkpoints go to ``training/<name>`` in the run's folder.
        seed: Seed of the training; None for the round's.
    """
    folder = round.run.folder
    epochs = epochs_of(folder / dataset, settings)
    on_progress(0, epochs)
    note = ""

    def on_step(done: float) -> None:
        on_progress(done, epochs, note)

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal note
        note = epoch_note(metrics)
        on_step(epoch)

    for cache in (folder / dataset).rglob("*.cache"):  # of a training that was killed
        cache.unlink()
    detector, image_size = open_for_training(round.run, start, settings, read_yolo(folder / dataset, "train"))
    best = detector.fit(
        folder / dataset,
        folder / "training" / name,
        epochs=epochs,
        image_size=image_size,
        seed=round.seed if seed is None else seed,
        batch_size=settings.batch_size,
        on_epoch=on_epoch,
        on_step=on_step,
        lr0=settings.lr0,
        freeze=settings.freeze,
        ignore_band=settings.ignore_band,
        extra=settings.extra,
    )
    checkpoint = Path(best).relative_to(folder.resolve())
    return Trained(str(checkpoint), start, epochs, image_size)


def epochs_of(dataset: Path, settings: DetectorSettings) -> int:
    """Return the epochs of a training: those configured, or those that come closest to the configured steps.

    Args:
        dataset: The training set, in the YOLO-seg layout.
        settings: How to train.
    """
    if settings.steps is None:
        return settings.epochs
    images = sum(1 for _ in (dataset / "images" / "train").iterdir())
    batches = -(-images // (settings.batch_size or BATCH_SIZE))
    return max(1, round(settings.steps / batches))
