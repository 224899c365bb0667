"""What is checked before a loop makes its first image: everything that a later stage would stop at.

Knows what stages read: detectors, models, files of the generation, labelled sets. Does not know their order.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from diffugen.config.sections import Config, Generation
from diffugen.dataset.truth import split_of
from diffugen.dataset.yolo_layout import label_of
from diffugen.errors import ConfigError, DiffugenError, did_you_mean
from diffugen.miniature.truth import find_truth
from diffugen.prompts.names import matching_names
from diffugen.prompts.tasks import plan_tasks
from diffugen.records import content_id
from diffugen.run.files import write_file
from diffugen.run.rounds import Run
from diffugen.stages.detector import load_detector, mapped_classes
from diffugen.stages.generate import check_places
from diffugen.stages.segmenter import open_segmenter
from diffugen.stages.sets import open_sets
from diffugen.stages.sources import source_files
from diffugen.stages.witness import source_mistake

LEAST_FREE = 200_000_000
"""Bytes on the disk below which no loop begins."""

CHECKED = "checked.txt"
"""File in the run's folder that says which labelled images have been read whole."""


Check = tuple[str, Callable[[], object]]
"""What is checked, and a function that raises a DiffugenError if something is wrong."""


def preflight(run: Run, config: Config) -> None:
    """Check what the stages of a loop will need, and report all mistakes at once.

    Checked are: where the work is to be done; the disk; that models, LoRAs, embeddings, sources and masks of
    the generation exist; the detector, its class map, and whether it knows what it has to label; the
    segmenter; and every image and label of the labelled sets, but only once.

    Raises:
        ConfigError: Something is missing or damaged.
        DiffugenError: The workers of ``executor`` are not to be had.
    """
    run.executor.open()
    checks: list[Check] = [("disk", partial(_check_disk, run.folder)), *_generation(config.generation)]
    if config.labels.source != "attention" or not run.finished_rounds():
        checks.append(("detector", partial(_check_detector, run, config)))
    checks.append(("labels.segmenter", partial(open_segmenter, run.store, config.labelling)))
    about_sets = _mistakes([("labelled images", partial(_check_images, run, config))])
    if about_sets:  # of sets that cannot be opened, it names only the first
        about_sets = _mistakes(_labelled_sets(run, config)) or about_sets
    mistakes = [*_mistakes(checks), *about_sets]
    if mistakes:
        raise ConfigError(mistakes)


def _mistakes(checks: Iterable[Check]) -> list[str]:
    found: list[str] = []
    for what, check in checks:
        try:
            check()
        except ConfigError as error:
            found += error.mistakes
        except DiffugenError as error:
            found.append(f"{what}: {error}")
    return found


def _generation(generation: Generation) -> Iterator[Check]:
    from diffugen.diffusion.inversion import read_embeddings
    from diffugen.diffusion.pipelines import find_model
    from diffugen.diffusion.pipelines_options import check_lora

    tasks, settings = plan_tasks(generation.tasks), generation.diffusion
    names = {task.step for task in tasks}
    for model in dict.fromkeys([settings.model, *(task.model for task in tasks)]):
        if model is not None:
            yield "model", partial(find_model, model)
    for lora in settings.loras:
        yield "diffusion.loras", partial(check_lora, lora)
    for file in settings.embeddings:
        yield "diffusion.embeddings", partial(read_embeddings, Path(file))
    for task in tasks:
        yield f"task {task.step}", partial(check_places, task, names)


def _labelled_sets(run: Run, config: Config) -> Iterator[Check]:
    names = run.class_names
    yield "dataset.known", partial(find_truth, config.dataset.known, names, "train")
    yield "loop.validation", partial(find_truth, config.loop.validation, names, "decide")
    yield "loop.truth", partial(find_truth, config.loop.truth, names, "measure")


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise DiffugenError(
            f"only {free / 1e6:.0f} MB are free where the run lies ({folder}); images, heat maps and "
            f"checkpoints need more than {LEAST_FREE / 1e6:.0f} MB. Make room, or give another folder with "
            "--run"
        )


def _check_detector(run: Run, config: Config) -> None:
    settings, names = config.detector, run.class_names
    detector = load_detector(run, settings.checkpoint, settings)
    knows = detector.class_names
    told = f"the detector {settings.checkpoint} knows {', '.join(knows) or 'no class'}"
    mistakes = [
        f"detector.class_map.{name} = {theirs}: {told}{did_you_mean(theirs, knows)}"
        for name, theirs in settings.class_map.items()
        if knows and name not in knows and not matching_names([theirs], knows)
    ]
    try:
        detector.check_fit(
            extra=settings.extra, ignore_band=settings.ignore_band, batch_size=settings.batch_size
        )
    except DiffugenError as error:
        mistakes.append(str(error))
    known = set(names) & {*knows, *mapped_classes(knows, names, settings.class_map)}
    mistake = source_mistake(config.labels.source, settings.checkpoint, names, known)
    if mistake is not None:
        mistakes.append(mistake)
    if mistakes:
        raise ConfigError(mistakes)


def _check_images(run: Run, config: Config) -> None:
    sets = open_sets(run, config.dataset, config.loop)
    tasks = plan_tasks(config.tasks)
    steps = {None, *(task.step for task in tasks)}
    given = {task.step: task.source for task in tasks if task.source not in steps}
    for step, source in given.items():
        if split_of(str(source))[0].expanduser().exists():  # else that is a mistake already
            sets.check_apart(f"the source of task {step} ({source})", source_files(str(source)))
    chosen = [one for one in (sets.known, sets.validation, sets.truth) if one is not None and one.files]
    sources = filter(None, (config.dataset.known, config.loop.validation, config.loop.truth))
    images = [path for one in chosen for path in one.files]
    files = [*(split_of(source)[0] for source in sources), *images, *map(label_of, images)]
    found = [(str(path), path.stat()) for path in files if path.is_file()]
    mark = content_id([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found])
    kept = run.folder / CHECKED
    if not chosen or (kept.is_file() and kept.read_text(encoding="utf-8") == mark):
        return
    mistakes: list[str] = []

    def note(error: DiffugenError) -> None:
        mistakes.append(str(error))

    with run.progress("check the labelled images", "image") as on_progress:
        total, done = sum(one.images for one in chosen), 0
        for one in chosen:
            names = Counter[str]()
            for name, _, _ in one.items(note):
                names[name] += 1
                done += 1
                on_progress(done, total)
            mistakes += [
                f"{one.name}: {count} images are called {name}, and share the labels of one; rename them, or "
                "remove all but the one that was annotated"
                for name, count in names.items()
                if count > 1
            ]
    if mistakes:
        raise ConfigError(mistakes)
    write_file(kept, mark.encode())
