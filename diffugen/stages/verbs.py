"""Single steps on an open run: what the Python API offers and what the commands call.

Each function runs one stage, or a few that belong together, with the run's own configuration and whatever
earlier rounds found, and returns the stage's result. The order of a whole loop is in `loops/`, not here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffugen import stages
from diffugen.config import Config, kept_config, load_config
from diffugen.config.labelling import Labelling
from diffugen.config.load import with_current_keys
from diffugen.errors import DiffugenError, ModelError, StoreError
from diffugen.run import Progress, Round, Run, RunStore, silent
from diffugen.run.changes import changed_keys
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.results import Compared, Evaluated, Generated, Labelled, Promoted, Relabelled, Taught, Tuned
from diffugen.run.temporary import temporary_folder
from diffugen.stages.export import export_dataset
from diffugen.stages.shards import WHOLE, Shard

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffugen.config.files import Option
    from diffugen.records import Decision
    from diffugen.review.queue import Entry


@dataclass(frozen=True)
class OpenRun:
    """A run directory that is open, with its configuration; use it as a context manager, or close it.

    Attributes:
        run: The run.
        config: Its configuration.
    """

    run: Run
    config: Config

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what its stages started, and let other processes write the run."""
        self.run.close()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run.folder

    @property
    def store(self) -> RunStore:
        """The contents of the run: images, labels, disagreements, decisions, results."""
        return self.run.store


def resolve_config(
    config: str | None, overrides: Sequence[str | Option] = (), folder: str | Path | None = None
) -> tuple[Config, Path]:
    """Return the configuration and the run directory that a user means.

    Label settings and score weights that the user sets now, by an override or by a configuration that differs
    from the run's, are pinned: they win over what tuning found. The configuration of an empty run counts only
    where the user names the run and no other configuration: it may be a mistake that is now corrected.

    Args:
        config: Name or file of a configuration; None for the run's own, or the default for a new run.
        overrides: ``key=value`` texts, and options.
        folder: The run directory; None for ``runs/<name of the configuration>``.

    Raises:
        ConfigError: Every mistake in the configuration.
        StoreError: The run's ledger cannot be read.
    """
    settings = load_config(config, overrides)
    path = Path(folder) if folder else Path("runs") / settings.name
    named = config is None and folder is not None
    kept = _kept_config(path, of_empty=named) if (path / LEDGER_NAME).is_file() else None
    if kept is None:
        return settings, path
    if config is None:
        return kept_config(kept, str(path / LEDGER_NAME), overrides), path
    differing = changed_keys(with_current_keys(kept), settings.dump())
    changed = [key for key in differing if key.split(".")[0] in ("labels", "score")]
    return settings.pin({*settings.labelling.pinned, *changed}), path


def open_run(
    folder: str | Path, config: Config | str | None = None, *, progress: Progress = silent
) -> OpenRun:
    """Open a run for writing, or create it.

    Args:
        folder: The run directory.
        config: The configuration, or its name or file. None for the run's own; for a new run, the miniature.
        progress: Shows the progress of stages.

    Raises:
        ConfigError: The configuration has mistakes.
        StoreError: The run was made with another configuration, or another process is writing it.

    Example:
        >>> quick = ["prompts.count=8", "diffusion.num_inference_steps=4", "detector.steps=20"]
        >>> config = dg.load_config("miniature", quick)
        >>> run = dg.open_run("runs/example", config)
    """
    settings = config if isinstance(config, Config) else resolve_config(config, (), folder)[0]
    return OpenRun(Run.open(folder, settings, progress=progress), settings)


@contextmanager
def run_for_detector(
    checkpoint: str, config: Config, *, of_config: bool, progress: Progress = silent
) -> Iterator[OpenRun]:
    """Open an empty run that is deleted afterwards, to use a detector where there is no run.

    Args:
        checkpoint: The detector.
        config: The configuration.
        of_config: Whether the classes of the configuration count, instead of those of the detector.
        progress: Shows the progress of stages.

    Raises:
        ModelError: The checkpoint cannot be loaded.
    """
    from diffugen.detectors import NO_CLASSES
    from diffugen.detectors.load import open_checkpoint

    names = tuple(config.prompts.classes) if of_config else open_checkpoint(checkpoint).class_names
    if not names:
        raise ModelError(f"{checkpoint} {NO_CLASSES}; give a trained detector")
    with temporary_folder("detector") as folder:
        store = RunStore.create_or_open(folder / "run", config=config.dump())
        with OpenRun(Run(store, names, config.seed, progress), config) as opened:
            yield opened


def generate(run: OpenRun, only: str | None = None, shard: Shard = WHOLE) -> Generated:
    """Generate the images of the first round that the run does not have yet, with their heat maps.

    Args:
        run: The run.
        only: Do only the task of this name or kind.
        shard: The part of each task's images to generate.

    Example:
        >>> dg.generate(run).images
        8
    """
    round = run.run.round(0, redo=True, keep=False)
    return stages.generate(round, run.config.generation, run.config.labelling, only, shard)


def label(run: OpenRun) -> Labelled:
    """Label all images by attention, with the configured or the tuned label settings.

    Example:
        >>> made = dg.label(run)
        >>> made.images, made.objects > 0
        (8, True)
    """
    round = run.run.newest_round(redo=True)
    taught = round.taught_labelling(default=round.tuned_labelling(default=run.config.labelling))
    if taught.adaptive:
        stages.thresholds(round, taught)
    return stages.label(replace(round, keep=False), labelling_of(round, run.config))


def teach(run: OpenRun) -> Taught:
    """Teach a decoder with the decided images; if it is better, label all images by what it draws.

    Example:
        >>> dg.teach(run).reason
        'only ... images with labels decided, and teach.min_decisions is 5'
    """
    round = run.run.newest_round(redo=True)
    taught = stages.teach(round, round.tuned_labelling(default=run.config.labelling), run.config.teach)
    label(run)
    return taught


def contact_sheet(
    run: OpenRun, *, count: int = 12, name: str = "contact-sheet.png", steps: Collection[str] | None = None
) -> Path:
    """Draw the newest attention labels, and return the picture's file.

    Args:
        run: The run.
        count: Maximum number of images; each is shown with the heat map of its class, its masks, boxes and
            scores.
        name: Name of the PNG in the run's folder.
        steps: Names of the tasks whose images are shown; None for all.

    Example:
        >>> dg.contact_sheet(run, count=4).name
        'contact-sheet.png'
    """
    from diffugen.labels.sheets import attention_sheet

    settings = run.run.newest_round().tuned_labelling(default=run.config.labelling).settings
    method = stages.newest_method(run.store)
    return attention_sheet(run.store, method, settings, run.folder / name, count, steps)


def show(run: OpenRun, count: int = 6) -> Image:
    """Return a picture of the newest attention labels; a notebook shows it inline.

    Args:
        run: The run.
        count: Maximum number of images.

    Example:
        >>> dg.show(run, count=4).mode
        'RGB'
    """
    from PIL import Image

    with Image.open(contact_sheet(run, count=count)) as sheet:
        return sheet.convert("RGB")


def train(run: OpenRun, round: int | None = None) -> Promoted:
    """Choose a round's training labels, train the detector, promote it if it is better; once per round.

    Args:
        run: The run.
        round: The round; None for the newest.

    Example:
        >>> dg.train(run).evidence  # what decided whether the new detector is better
        'agreed'
    """
    config, policy = run.config, run.config.training_policy
    sets = stages.open_sets(run.run, config.dataset, config.loop)
    chosen = run.run.newest_round() if round is None else run.run.round(round)
    method = stages.newest_method(run.store)
    detector = chosen.promoted_detector(default=config.detector.checkpoint)
    sifted = stages.sift(chosen, method, policy, config.detector, sets.known)
    dataset = stages.choose(chosen, method, policy, sets.known, sifted.held_back)
    trained = stages.train(chosen, dataset, detector, config.detector)
    return stages.promote(chosen, trained, detector, method, policy, config.detector, sets.validation)


def relabel(run: OpenRun, checkpoint: str | None = None) -> Relabelled:
    """Label the images that no detector of the run was trained on, with a detector.

    Args:
        run: The run.
        checkpoint: The detector; None for the one that the run promoted last.

    Example:
        >>> dg.relabel(run).images
        3
    """
    round = run.run.newest_round(redo=True, keep=False)
    detector = checkpoint or round.latest_detector(default=run.config.detector.checkpoint)
    return stages.relabel(round, detector, run.config.detector)


def compare(run: OpenRun) -> Compared:
    """Compare attention labels with the detector's, and rank the disagreements for review.

    Example:
        >>> dg.compare(run).images
        3
    """
    round = run.run.newest_round(redo=True, keep=False)
    return stages.compare(
        round, stages.newest_method(run.store), run.config.disagreement, run.config.review.order
    )


def review_queue(run: OpenRun) -> list[Entry]:
    """Return the images of the review queue that wait for a decision, worst first, audits among them.

    Each entry has the image's record, its disagreements, and the labels of both sources.

    Example:
        >>> [(entry.record.prompt.text, entry.kinds) for entry in dg.review_queue(run)]
        [...]
    """
    from diffugen.review.queue import read_queue

    queue = read_queue(run.store)
    return [queue.entry(image_id) for image_id in queue.waiting]


def decide(run: OpenRun, decisions: Sequence[Decision]) -> None:
    """Keep what a person decided about images; the newest decision about an image counts.

    Raises:
        StoreError: The run has no such image. Nothing is kept then.

    Example:
        >>> for entry in dg.review_queue(run):
        ...     right = entry.attention.instances
        ...     dg.decide(run, [dg.Decision(entry.record.id, "attention", right, reviewer="ann")])
        >>> dg.review_queue(run)
        []
    """
    run.store.add_decisions(decisions)


def tune_labels(run: OpenRun, round: int | None = None) -> Tuned:
    """Search for better label settings and score weights; the next round labels with adopted ones.

    Args:
        run: The run.
        round: The round; None for the newest.

    Example:
        >>> dg.tune_labels(run).reason
        'only ... images are decided and tune.min_decisions is 12; ...'
    """
    chosen = run.run.newest_round(redo=True) if round is None else run.run.round(round, redo=True)
    method = stages.newest_method(run.store)
    return stages.tune(chosen, method, labelling_of(chosen, run.config), run.config.tune)


def evaluate(run: OpenRun, checkpoint: str | None = None) -> Evaluated:
    """Measure a detector on the ground truth ``loop.truth``: average precision of its masks and boxes.

    Args:
        run: The run.
        checkpoint: The detector; None for the one that the run promoted last.

    Raises:
        DiffugenError: The configuration names no ground truth.

    Example:
        >>> found = dg.evaluate(run)
        >>> found.images, 0 <= found.mask.ap50 <= 1
        (360, True)
    """
    truth = stages.open_sets(run.run, run.config.dataset, run.config.loop).truth
    if truth is None:
        raise DiffugenError(
            "no truth to measure on: give --truth (a YOLO-seg folder, a COCO .json, or a scene set of the "
            "miniature), or set loop.truth"
        )
    round = run.run.newest_round(redo=True, keep=False)
    detector = checkpoint or round.latest_detector(default=run.config.detector.checkpoint)
    return stages.evaluate(round, detector, truth, run.config.detector)


def export(run: OpenRun, out: str | Path, format: str = "yolo-seg") -> dict[str, int]:
    """Write a run's training labels as a dataset, and return the number of images in each split.

    Args:
        run: The run.
        out: The folder to write, new or empty.
        format: ``yolo-seg``, ``coco`` or ``fiftyone``.

    Raises:
        DiffugenError: There are no labels, or the format is unknown.
        StoreError: The folder is in use or cannot be written.

    Example:
        >>> sorted(dg.export(run, "datasets/example"))
        ['train', 'val']
    """
    return export_dataset(
        run.run, stages.newest_method(run.store), run.config.training_policy, Path(out), format
    )


def write_report(run: OpenRun) -> Path:
    """Write the report of a run, an HTML page and the same as Markdown, and return the page.

    Example:
        >>> dg.write_report(run).name
        'index.html'
    """
    from diffugen.report import write_report as write

    with run.run.progress("report", "image") as on_progress:
        return write(run.store, on_progress=on_progress)


def labelling_of(round: Round, config: Config) -> Labelling:
    """Return how a round labels: as tuned, by what a decoder draws, by chosen thresholds, as configured."""
    labelling = round.taught_labelling(default=round.tuned_labelling(default=config.labelling))
    return round.adapted_labelling(default=labelling)


def _kept_config(folder: Path, *, of_empty: bool) -> dict[str, object] | None:
    def config_of(store: RunStore) -> dict[str, object] | None:
        return store.config if of_empty or not store.is_empty else None

    try:
        with RunStore.open(folder, readonly=True) as store:
            return config_of(store)
    except StoreError:
        # An older ledger, or one whose making was cut short: opened for writing it is upgraded, if it can be.
        with RunStore.open(folder) as store:
            return config_of(store)
