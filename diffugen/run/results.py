"""What stages keep in the ledger: a frozen record for each kind of stage, and all of a round's together.

Stages return these records, later stages and the report read them; the ledger holds them as JSON under the
fields' names. Fields that older ledgers lack have defaults. Records hold results only; they know neither the
order of the stages nor how a result came about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from diffugen.config.labelling import DecoderRef, LabelSettings, ScoreWeights, with_current_names
from diffugen.records import Curve, FalseFinds, SeverityBin, SizeBin

Result = TypeVar("Result")


def _of_any_version(settings: Any) -> Any:
    if isinstance(settings, LabelSettings):
        return settings
    # As JSON once more: what a function returns is checked as Python, where a list is no tuple.
    return LabelSettings.model_validate_json(json.dumps(with_current_names(settings)))


KeptLabelSettings = Annotated[LabelSettings, BeforeValidator(_of_any_version)]
"""Label settings that earlier versions may have kept under other names."""


@dataclass(frozen=True)
class TaskImages:
    """How many images a task of the generation made.

    Attributes:
        images: Planned images, those that existed already included.
        dropped: How many of them are unusable, such as blackened by a safety checker.
        skipped: Sources without a region, or in which nothing can change.
    """

    images: int = 0
    dropped: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class BatchesDone:
    """How far a plan of images is done, kept while its task goes on.

    Attributes:
        batches: Batches that are done, counted from the first.
        dropped: Unusable images in them.
    """

    batches: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Generated(TaskImages):
    """What ``generate`` made; the counts are sums over the tasks.

    Attributes:
        tasks: From the name of a task to its counts.
    """

    tasks: Mapping[str, TaskImages] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """What ``label`` made.

    Attributes:
        method: Provenance of the labels; `diffugen.config.labelling.by_detector` says whether a detector made
            them alone.
        images: Images with such labels.
        objects: Labels on them.
        settings: The label settings.
        weights: The score weights.
    """

    method: str
    images: int
    objects: int
    settings: KeptLabelSettings
    weights: ScoreWeights


@dataclass(frozen=True)
class Relabelled:
    """What ``relabel`` made.

    Attributes:
        method: Provenance of the model labels.
        checkpoint: The detector; relative to the run's folder if it lies there.
        images: Images with such labels.
        objects: Labels on them.
    """

    method: str
    checkpoint: str
    images: int
    objects: int


@dataclass(frozen=True)
class Compared:
    """What ``compare`` found.

    Attributes:
        images: Images with labels of both sources.
        agreements: Objects on which both sources agree.
        kinds: From a kind of disagreement to its count.
        outcomes: Objects whose severities a decision calibrated.
        reliability: How often labels of a severity turned out wrong, by decisions about other images.
    """

    images: int
    agreements: int
    kinds: Mapping[str, int]
    outcomes: int = 0
    reliability: tuple[SeverityBin, ...] = ()


@dataclass(frozen=True)
class Reviewed:
    """What ``review`` brought.

    Attributes:
        mode: How the queue was shown.
        queue: Images in the queue; of an earlier version, its disagreements.
        decisions: New decisions, from verdict to count.
    """

    mode: str
    queue: int
    decisions: Mapping[str, int]


@dataclass(frozen=True)
class TunedSide:
    """Settings before or after tuning.

    Attributes:
        settings: The label settings.
        weights: The score weights.
    """

    settings: KeptLabelSettings
    weights: ScoreWeights


@dataclass(frozen=True)
class HeldOut:
    """Values on evidence that was held out; None where nothing was tried."""

    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` decided.

    Attributes:
        adopted: Whether later rounds label with ``after``.
        reason: Why, or why not, in a sentence.
        evidence: ``verdicts``, ``agreement`` or ``both``.
        before: The current settings.
        after: The settings to use from now on; equal to ``before`` unless adopted.
        held_out: What labels are worth on held-out evidence; see `diffugen.tune.judge`. Versions that
            searched for settings and weights at once subtracted the miscalibration.
        miscalibration: Mean squared difference of score and IoU on held-out evidence, in [0, 1].
        images: Images of the evidence.
        trials: Trials of both searches.
    """

    adopted: bool
    reason: str
    evidence: str
    before: TunedSide
    after: TunedSide
    held_out: HeldOut = field(default_factory=HeldOut)
    miscalibration: HeldOut = field(default_factory=HeldOut)
    images: int = 0
    trials: int = 0


@dataclass(frozen=True)
class Taught:
    """What ``teach`` decided.

    Attributes:
        adopted: Whether labels of this round, and of later ones until the next teaching, are made from what
            the decoder draws.
        reason: Why, or why not, in a sentence.
        decoder: The decoder; None if none was taught.
        corrected: Decided images that it learned from.
        weak: Undecided images whose attention labels it learned from.
        worth: What labels are worth on decided images that it was not taught with, by attention and by what
            it drew; see `diffugen.tune.judge`.
    """

    adopted: bool
    reason: str
    decoder: DecoderRef | None = None
    corrected: int = 0
    weak: int = 0
    worth: HeldOut = field(default_factory=HeldOut)


@dataclass(frozen=True)
class Thresholds:
    """The thresholds that ``thresholds`` chose.

    Attributes:
        chosen: From a class to its threshold, a fraction of the way from a map's minimum to its maximum, for
            classes where that is clearly better than Otsu's.
        maps: From a class to the number of maps that were looked at; classes with too few are missing.
        drawn_by: The id of the decoder that drew these maps; None for attention.
    """

    chosen: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)
    drawn_by: str | None = None


@dataclass(frozen=True)
class Sifted:
    """What ``sift`` holds back from training.

    Attributes:
        judged: Images with unconfirmed labels that a detector judged which was not trained on them.
        held_back: Ids of those whose labels it contradicts most, worst first.
        by_class: From a class to the number of images with labels of it that are held back.
    """

    judged: int = 0
    held_back: tuple[str, ...] = ()
    by_class: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A training set that a stage chose and wrote.

    Attributes:
        folder: Its folder, relative to the run's.
        train: Images of the run that train.
        val: Images of the run that validate.
        known: Further training images from outside the run.
        by_origin: From the origin of the labels to the number of images.
        left_out: From the reason to the number of images.
        pasted: Composed images among those to train on; they are not counted in ``train``.
        hidden: Objects that are painted over.
    """

    folder: str
    train: int
    val: int
    known: int = 0
    by_origin: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    pasted: int = 0
    hidden: int = 0


@dataclass(frozen=True)
class Trained:
    """A training.

    Attributes:
        checkpoint: The best checkpoint, relative to the run's folder.
        start: The checkpoint that it started from.
        epochs: Passes over the training images.
        image_size: Longer side in pixels that images were scaled to.
    """

    checkpoint: str
    start: str
    epochs: int
    image_size: int


@dataclass(frozen=True)
class Precision:
    """Average precision in [0, 1]; None where it is undefined.

    Attributes:
        ap50: At IoU .50.
        ap50_95: Mean over IoU .50 to .95.
    """

    ap50: float | None = None
    ap50_95: float | None = None


@dataclass(frozen=True)
class Measured:
    """How well a detector does on labelled images; the AP of classes is a mean over the classes.

    Attributes:
        mask: AP of its masks.
        box: AP of its boxes.
        raw_mask: AP of its masks as the detector itself returns them; None if that is what was measured.
        by_class: AP of the masks of each class.
        false_finds: How often each class is found where there is none, at the confidence from which on
            detections are labels.
        curves: Of each class, precision by recall at IoU .50.
        sizes: How well objects of different sizes are found, at the same confidence.
    """

    mask: Precision = field(default_factory=Precision)
    box: Precision = field(default_factory=Precision)
    raw_mask: Precision | None = None
    by_class: Mapping[str, Precision] = field(default_factory=dict)
    false_finds: Mapping[str, FalseFinds] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    sizes: tuple[SizeBin, ...] = ()


@dataclass(frozen=True)
class Promoted:
    """What ``promote`` decided.

    Attributes:
        promoted: Whether the new detector takes the place of the one before.
        checkpoint: The better of the two.
        evidence: ``validation``, ``human``, ``agreed`` or ``none``.
        images: Images of the evidence.
        candidate: Mask AP of the new detector.
        incumbent: Mask AP of the one before.
        tolerance: By how much the new one's AP50-95 may be lower; 0 on exact evidence.
        validation: Name of the validation set that decided; empty if none did, or in older runs.
    """

    promoted: bool
    checkpoint: str
    evidence: str = ""
    images: int = 0
    candidate: Precision = field(default_factory=Precision)
    incumbent: Precision = field(default_factory=Precision)
    tolerance: float = 0.0
    validation: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Measured):
    """A measurement on ground truth.

    Attributes:
        truth: Name of the ground truth.
        checkpoint: The detector.
        images: Images of the ground truth.
        labels: Exactly labelled images it was trained on, for the reference; None for detectors of the loop.
    """

    truth: str
    checkpoint: str
    images: int
    labels: int | None = None


@dataclass(frozen=True)
class RoundResults:
    """What the stages of one round kept, ``_`` for ``-`` in their names; None for unfinished ones."""

    generate: Generated | None = None
    label: Labelled | None = None
    relabel: Relabelled | None = None
    compare: Compared | None = None
    review: Reviewed | None = None
    teach: Taught | None = None
    thresholds: Thresholds | None = None
    tune: Tuned | None = None
    known: Chosen | None = None
    train_known: Trained | None = None
    sift: Sifted | None = None
    dataset: Chosen | None = None
    train: Trained | None = None
    promote: Promoted | None = None
    evaluate_base: Evaluated | None = None
    evaluate: Evaluated | None = None
    evaluate_reference: Evaluated | None = None


RESULT_KINDS: Mapping[str, type[Any]] = {
    name: next(kind for kind in get_args(hint) if kind is not type(None))
    for name, hint in get_type_hints(RoundResults).items()
}
"""From each field of `RoundResults` to the record it holds."""


def to_values(result: object) -> Any:
    """Return a result as JSON values."""
    kind: Any = type(result)
    return _adapter(kind).dump_python(result, mode="json")


def from_text(kind: type[Result], text: str) -> Result:
    """Return the result in a JSON text.

    Raises:
        ValueError: The text is not such a result; the message says what is wrong.
    """
    try:
        adapter: TypeAdapter[Result] = _adapter(cast(Any, kind))
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else str(first["msg"])) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
