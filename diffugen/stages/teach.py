"""The stage that teaches a decoder with decided images. Does not know how a decoder works."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import HEAT_TERMS, TERMS, DecoderRef, Labelling
from diffugen.config.sections import TeachSettings
from diffugen.errors import counted
from diffugen.records import HeatMaps, PixelFeatures, content_id
from diffugen.run.results import HeldOut, Taught
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.spool import ImageIds
from diffugen.stages.decoder import draw, features_of
from diffugen.stages.label import labelled_images
from diffugen.stages.models import load_model
from diffugen.stages.segmenter import open_segmenter
from diffugen.stages.witness import witnesses
from diffugen.tune.evidence import Evidence
from diffugen.tune.folds import split, standard_error
from diffugen.tune.judge import Judge

if TYPE_CHECKING:
    from diffugen.labels.decoder import Decoder, Lesson

TEACHING_VERSION = 1
"""Part of a decoder's id; increment it if a change to the code means that the same lessons teach another."""

PROJECTED_IMAGES = 32
"""Images whose activations decide which components of them are kept."""

TRAINING_SHARE = 20
"""Images that can be read in about the time of one training, for the progress."""

ADOPTION_ERRORS = 1.0
"""Standard errors that the gain of a decoder must exceed: fewer than for the best of many settings, because
nothing was chosen by these images."""

_NO_HEAT = "labels.source is detector, so no heat maps become labels, and better ones are of no use"


@stage("teach", Taught, kept="The decoder will be taught again.")
def teach(round: Round, on_progress: OnProgress, labelling: Labelling, settings: TeachSettings) -> Taught:
    """Teach a decoder with the images that a person decided; adopt it if it labels others better.

    It also learns from attention labels of undecided images. Whether its labels are better is found out on
    decided images that it was not taught with, fold by fold. If it is adopted, it draws all images of the
    run. As long as no image is decided anew, the last outcome stands. Nothing is taught where a detector
    labels alone, because no heat map becomes a label then.

    Args:
        round: The round.
        on_progress: Called with steps done and all steps.
        labelling: How images are labelled without a decoder.
        settings: When to teach, and on how many images.

    Raises:
        ModelError: The diffusion model cannot be loaded, or it cannot read features of images.
    """
    from diffugen.labels.decoder import Decoder, Lesson, Projection

    run, store, diffusion = round.run, round.store, labelling.diffusion
    if not labelling.uses_heat:
        return Taught(False, _NO_HEAT)
    evidence = _decided(round)
    if settings.min_decisions is None or len(evidence) < settings.min_decisions:
        return Taught(False, _too_few(len(evidence), settings.min_decisions))
    if len({one.family for one in evidence if len(one.instances)}) < 2:
        return Taught(False, "decided images with objects go back to fewer than two prompts or photos")
    assert diffusion is not None
    key = content_id(
        TEACHING_VERSION,
        [[one.image_id, list(one.instances.class_names), list(one.instances.rles)] for one in evidence],
        labelling.method,
        settings.model_dump(mode="json"),
        run.seed,
    )
    everything = ImageIds(store.image_ids())
    last = _last(round)
    if last is not None and last.decoder is not None and last.decoder.id == key:
        draw(store, round.taught_labelling(labelling), everything, on_progress)
        return last
    shown = {name for one in evidence for name in one.instances.class_names}
    for name in [one for one in run.class_names if one not in shown]:
        run.notify_once(f"teach: no decided image shows a {name}; it is drawn by what other classes teach")
    about = {"model": diffusion.model, "corrected": len(evidence), "classes": list(run.class_names)}
    weak = _undecided(round, settings.images)
    folds = split([one.family for one in evidence], settings.folds, round.seed)
    ids = [*(one.image_id for one in evidence), *weak]
    probed = random.Random(round.seed).sample(ids, min(PROJECTED_IMAGES, len(ids)))
    trainings = 1 + int(folds.max())
    steps = _Steps(on_progress, len(probed) + len(ids) + (1 + trainings) * TRAINING_SHARE + len(everything))
    pipeline = load_model(diffusion)

    def read(image_ids: Sequence[str]) -> Iterator[tuple[str, PixelFeatures]]:
        for pair in features_of(store, image_ids, diffusion, pipeline):
            yield pair
            steps.take()

    projection = Projection.fit((one for _, one in read(probed)), len(probed), round.seed)
    features = {image_id: projection.compact(one) for image_id, one in read(ids)}
    corrected = [Lesson(features[one.image_id], one.instances, corrected=True) for one in evidence]
    lessons = [
        Lesson(features[image_id], instances, corrected=False)
        for image_id, instances in labelled_images(round, labelling, weak)
    ]

    def train(known: Sequence[Lesson]) -> Decoder:
        decoder = Decoder.teach(projection, [*known, *lessons], seed=round.seed, about=about)
        steps.take(TRAINING_SHARE)
        return decoder

    drawn: dict[str, HeatMaps] = {}
    for fold in range(trainings):
        decoder = train([one for number, one in enumerate(corrected) if folds[number] != fold])
        for number in np.flatnonzero(folds == fold):
            image_id = evidence[number].image_id
            region = store.record(image_id).region
            drawn[image_id] = decoder.heat_maps(image_id, features[image_id], region)
    values = _worth(round, labelling, evidence, drawn)
    gain = float((values[1] - values[0]).mean())
    limit = ADOPTION_ERRORS * standard_error(values[1] - values[0], [one.family for one in evidence])
    adopted = gain > limit
    reason = (
        f"the cross-validated gain of {gain:.4f} {'exceeds' if adopted else 'does not exceed'} "
        f"{ADOPTION_ERRORS:g} standard error ({limit:.4f})"
    )
    ref = DecoderRef(f"decoders/{key}", key)
    train(corrected).save(store.folder / ref.folder)
    if adopted:
        draw(store, replace(labelling, decoder=ref), everything, lambda *_: steps.take(), pipeline)
    before, after = values.mean(axis=1).tolist()
    return Taught(adopted, reason, ref, len(corrected), len(lessons), HeldOut(before, after))


def _too_few(decided: int, least: int | None) -> str:
    if least is None:
        return "teach.min_decisions is null"
    return f"only {counted(decided, 'image')} with labels decided, and teach.min_decisions is {least}"


def _decided(round: Round) -> list[Evidence]:
    """Return the decided images whose prompts name a class, by id."""
    found = []
    for one in round.store.decisions():
        record = round.store.record(one.image_id)
        if one.instances is not None and any(phrase.class_name for phrase in record.prompt.phrases):
            instances = one.instances.of_classes(round.run.class_names)
            found.append(Evidence(one.image_id, record.family, instances))
    return sorted(found, key=lambda one: one.image_id)


def _last(round: Round) -> Taught | None:
    """Return the outcome of the last teaching in this round or before it."""
    kept = (round.store.result(number, "teach", Taught) for number in reversed(range(round.number + 1)))
    return next((one for one in kept if one is not None), None)


def _undecided(round: Round, most: int) -> list[str]:
    """Return at most so many images that are not decided, drawn at random by the round's seed.

    Rejected images are decided, too: a person has seen that they are unusable.
    """
    decided = {one.image_id for one in round.store.decisions()}
    ids = sorted(one for one in round.store.image_ids() if one not in decided)
    return random.Random(round.seed).sample(ids, min(most, len(ids)))


def _worth(
    round: Round, labelling: Labelling, evidence: Sequence[Evidence], drawn: Mapping[str, HeatMaps]
) -> NDArray[np.float64]:
    """Return what labels are worth in each decided image, by attention and as a decoder drew it: (2, N)."""
    store, seen = round.store, dict(witnesses(round, labelling, [one.image_id for one in evidence]))
    segmenter = open_segmenter(store, labelling)
    judges = [
        Judge(evidence, reader, store.image, seen.get, segmenter, terms)
        for reader, terms in ((store.heat_maps, HEAT_TERMS), (drawn.__getitem__, TERMS))
    ]
    return np.stack([judge.judge(labelling.settings, labelling.weights).worth for judge in judges])


class _Steps:
    """Counts the steps of a teaching: images that are read or drawn, and trainings."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0
        on_progress(0, total)

    def take(self, steps: int = 1) -> None:
        """Take some steps."""
        self._done += steps
        self._on_progress(self._done, self._total)
