"""Write a run's training labels as a dataset for other programs. Not a stage: a run does not keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from diffugen.config.sections import TrainingPolicy
from diffugen.dataset.policy import without_noisy
from diffugen.errors import DiffugenError, counted, did_you_mean
from diffugen.run.results import Sifted
from diffugen.run.rounds import OnProgress, Run
from diffugen.run.spool import Spool
from diffugen.stages.dataset import chosen_items, chosen_labels, split_images

T = TypeVar("T")

FORMATS = ("yolo-seg", "coco", "fiftyone")


def export_dataset(run: Run, method: str, policy: TrainingPolicy, out: Path, format: str) -> dict[str, int]:
    """Write a dataset, and return the number of images in each split.

    As in training, doubtful objects are painted over in the images with ``dataset.trust: evidence``, and what
    the newest round's noise filter held back is left out while ``dataset.noise_filter`` is set. The user is
    told how many.

    Args:
        run: The run; open for reading is enough.
        method: Provenance of the attention labels.
        policy: Whose labels count, and which images are held out.
        out: The folder to write, new or empty.
        format: One of `FORMATS`.

    Raises:
        DiffugenError: There are no labels, or the format is unknown.
        StoreError: The folder is in use or cannot be written.
    """
    check_format(format)
    labelled, _ = run.store.count_labels("attention", method)
    with run.progress("export: choose labels", "image") as on_progress:
        labels = _counted(chosen_labels(run, method, policy), count(1), labelled, on_progress)
        chosen = Spool(without_noisy(labels, _held_back(run, policy)))
    ids = split_images(run, chosen, policy)
    if not ids["train"]:
        raise DiffugenError(f"run {run.folder} has no labels to export yet; diffugen label makes some")
    hidden = noisy = 0
    for one in chosen.values():
        hidden, noisy = hidden + len(one.hidden), noisy + (one.reason == "noisy")
    if hidden:
        run.notify(
            f"{hidden} doubtful objects are painted over in the images, as in training; to export the images "
            "as they are, give --set dataset.trust=attention"
        )
    if noisy:
        run.notify(
            f"{counted(noisy, 'image')} left out, which the noise filter held back from training; to export "
            "all, give --set dataset.noise_filter=0"
        )
    done, total = count(1), sum(map(len, ids.values()))
    with run.progress(f"export: {format}", "image") as on_progress:
        splits = {
            split: _counted(chosen_items(run, chosen, part), done, total, on_progress)
            for split, part in ids.items()
            if part
        }
        with dataset_writer(format, run.folder) as write:
            write(out, splits, run.class_names)
    return {split: len(part) for split, part in ids.items()}


def _counted(items: Iterable[T], done: Iterator[int], total: int, on_progress: OnProgress) -> Iterator[T]:
    """Yield items, and report each that was used."""
    for item in items:
        yield item
        on_progress(next(done), total)


def _held_back(run: Run, policy: TrainingPolicy) -> Sequence[str]:
    """Return the ids of the images that the noise filter held back last, if it is on."""
    if not policy.dataset.noise_filter:
        return ()
    kept = (run.store.result(number, "sift", Sifted) for number in sorted(run.store.summary().rounds)[::-1])
    return next((one.held_back for one in kept if one is not None), ())


def check_format(format: str) -> None:
    """Raise DiffugenError unless there is such a format."""
    if format not in FORMATS:
        raise DiffugenError(
            f"unknown format {format!r}{did_you_mean(format, FORMATS)}; one of {', '.join(FORMATS)}"
        )


@contextmanager
def dataset_writer(format: str, folder: Path) -> Iterator[Callable[..., Path]]:
    """Yield what writes a dataset of a format: `write_yolo`, or a function of the same arguments.

    Args:
        format: One of `FORMATS`.
        folder: The folder of a run; FiftyOne writes its own format, and keeps its database there meanwhile.

    Raises:
        DiffugenError: The database does not start.
    """
    if format == "fiftyone":
        from diffugen.review.database import database
        from diffugen.review.export import write_fiftyone

        with ExitStack() as session:
            try:
                session.enter_context(database(folder / "review"))
            except DiffugenError as error:
                raise DiffugenError(
                    f"the format fiftyone needs FiftyOne's database; yolo-seg and coco do not: {error}"
                ) from error
            yield write_fiftyone
    elif format == "coco":
        from diffugen.dataset.coco import write_coco

        yield write_coco
    else:
        from diffugen.dataset.yolo import write_yolo

        yield write_yolo
