"""The stage that decides which detector is better, on evidence that a user has, never on the quoted truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from diffugen.comparison.metrics import average_precision, lead_error
from diffugen.config.labelling import by_detector
from diffugen.config.sections import DetectorSettings, TrainingPolicy
from diffugen.dataset.files import Item
from diffugen.dataset.policy import TrainingLabels
from diffugen.dataset.truth import Truth
from diffugen.run.results import Precision, Promoted, Trained
from diffugen.run.rounds import OnProgress, Round, Run, stage
from diffugen.run.spool import Spool
from diffugen.stages.dataset import chosen_items, chosen_labels, split_images
from diffugen.stages.detector import open_detector, unknown_classes
from diffugen.stages.evaluate import guesses

EXACT = ("validation", "human")
"""Kinds of evidence that a person vouches for."""

GOLD_IMAGES = 20
"""Once this many reviewed images are held out, they alone decide which detector is better."""


LAG_ERRORS = 2.0
"""Standard errors by which a new detector must lag on the run's own labels to be refused.

With one, chance alone would refuse one in six of those that are just as good, and each refusal throws a
round's training away.
"""


@dataclass(frozen=True)
class _Evidence:
    """What decides: its kind, how many images, and what opens them."""

    kind: str
    images: int
    items: Callable[[], Iterator[Item]]


@stage("promote", Promoted)
def promote(
    round: Round,
    on_progress: OnProgress,
    candidate: Trained,
    incumbent: str,
    method: str,
    policy: TrainingPolicy,
    settings: DetectorSettings,
    validation: Truth | None = None,
) -> Promoted:
    """Decide whether a new detector takes the place of the one before.

    The evidence is the named validation set; or else the reviewed images of held-out families, once there are
    `GOLD_IMAGES`; or else the images of held-out families on which attention and detector agree, with the
    masks of the attention labels, because those of the model would favour the detector that drew them. For
    the same reason, an incumbent that does not know all classes is compared on those that it does not know:
    as a witness, it may have drawn the labels of the others. Where it has drawn all of them
    (``labels.source: detector``), they are no evidence; the user is told.

    On exact labels, the better one wins. The run's own are not exact, and they are hard on a new detector:
    what the one before was sure of is in them, what it doubted is painted over. So the new one, which has
    learned from more images, loses only if it lags by more than `LAG_ERRORS` standard errors.

    Args:
        round: The round.
        on_progress: Called with images done and all images, those of both detectors.
        candidate: The new detector.
        incumbent: The checkpoint of the one before.
        method: Provenance of the attention labels.
        policy: Whose labels count, and which images are held out.
        settings: Device and image size.
        validation: Labelled images that decide; None for the run's own.
    """
    run = round.run
    if validation is not None:
        evidence = _Evidence("validation", validation.images, validation.items)
    else:
        evidence = _own_evidence(run, Spool(chosen_labels(run, method, policy, mask="attention")), policy)
    if evidence.kind == "agreed" and by_detector(method) and incumbent == settings.checkpoint:
        run.notify_once(
            f"promote: the labels are those of {incumbent} itself, so they cannot tell whether a detector "
            "that was trained on them is better, and the new one is taken. To have it decided, set "
            f"loop.validation, or review images until {GOLD_IMAGES} held-out ones are decided"
        )
        evidence = _Evidence("none", 0, lambda: iter(()))
    detectors = [
        open_detector(run, checkpoint, settings, allow_untrained=True)
        for checkpoint in (candidate.checkpoint, incumbent)
    ]
    unknown = unknown_classes(run, incumbent, settings)
    names = unknown if unknown and evidence.kind == "agreed" else run.class_names
    seen = []
    for number, detector in enumerate(detectors, start=1):
        seen.append(guesses(detector, evidence.items(), names))
        on_progress(number * evidence.images, 2 * evidence.images)
    new, old = (average_precision(pairs) for pairs in seen)
    tolerance = 0.0 if evidence.kind in EXACT else LAG_ERRORS * lead_error(*seen)
    promoted = (new.ap50_95 or 0.0) - (old.ap50_95 or 0.0) > -tolerance
    return Promoted(
        promoted,
        candidate.checkpoint if promoted else incumbent,
        evidence.kind,
        evidence.images,
        Precision(new.ap50, new.ap50_95),
        Precision(old.ap50, old.ap50_95),
        tolerance,
        validation.name if validation else "",
    )


def _own_evidence(run: Run, chosen: Mapping[str, TrainingLabels], policy: TrainingPolicy) -> _Evidence:
    held_out = split_images(run, chosen, policy)["val"]
    human = [image_id for image_id in held_out if chosen[image_id].origin == "human"]
    kind, ids = ("human", human) if len(human) >= GOLD_IMAGES else ("agreed", held_out)
    return _Evidence(kind if ids else "none", len(ids), lambda: chosen_items(run, chosen, ids))
