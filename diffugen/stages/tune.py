"""The stage that tunes label settings and score weights. Does not know how the search works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from diffugen.config.labelling import Labelling
from diffugen.config.sections import TuneSettings
from diffugen.run.results import HeldOut, Tuned, TunedSide
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.stages.compare import label_pair
from diffugen.stages.decoder import heat_maps_reader
from diffugen.stages.segmenter import open_segmenter
from diffugen.stages.witness import witnesses
from diffugen.tune.evidence import Evidence, spread
from diffugen.tune.study import tune as tune_labelling

HUMAN_WEIGHT, AGREEMENT_WEIGHT = 1.0, 0.25
"""How much the labels of a person count, and those of a detector, which repeats what it was taught."""

_NO_HEAT = (
    "labels.source is detector, whose labels depend on no heat map, so there are no label settings and no "
    "score weights to tune"
)


@stage("tune", Tuned, unit="trial", kept="The trials so far are kept.")
def tune(
    round: Round, on_progress: OnProgress, method: str, labelling: Labelling, settings: TuneSettings
) -> Tuned:
    """Search for label settings, and then for score weights, that agree better with the evidence.

    The evidence is human labels, of images in dispute and of others; and as far as there is room for more
    images, with a lower weight, out-of-sample model labels of images that nobody has decided. The study is
    kept in the run's folder as ``tune.sqlite``. Nothing is searched as long as fewer than
    ``settings.min_decisions`` images are decided, nor where a detector labels alone: its labels depend on no
    heat map.

    Args:
        round: The round; later ones label with what it adopts.
        on_progress: Called with trials done and all trials.
        method: Provenance of the current attention labels.
        labelling: What they were made with.
        settings: How long to search, and on how many images.
    """
    store = round.store
    evidence = list(islice(_evidence(round, method), settings.images))
    kind = _kind_of(evidence)
    decided = sum(one.instances is not None for one in store.decisions())
    idle = _NO_HEAT if not labelling.uses_heat else None
    if idle is None and settings.trials and decided < settings.min_decisions:
        idle = _too_few(decided, settings.min_decisions)
    if idle is not None:
        now = TunedSide(labelling.settings, labelling.weights)
        return Tuned(False, idle, kind, now, now)
    seen = dict(witnesses(round, labelling, [one.image_id for one in evidence]))
    found = tune_labelling(
        evidence,
        heat_maps_reader(store, labelling),
        store.image,
        labelling.settings,
        labelling.weights,
        storage=store.folder / "tune.sqlite",
        witness=seen.get,
        segmenter=open_segmenter(store, labelling),
        terms=labelling.terms,
        trials=settings.trials,
        images=settings.images,
        folds=settings.folds,
        seed=round.seed,
        executor=round.run.executor,
        notify=round.run.notify,
        on_progress=on_progress,
    )
    return Tuned(
        adopted=found.adopted,
        reason=found.reason,
        evidence=kind,
        before=TunedSide(labelling.settings, labelling.weights),
        after=TunedSide(found.settings, found.weights),
        held_out=HeldOut(found.worth.before, found.worth.after),
        miscalibration=HeldOut(found.miscalibration.before, found.miscalibration.after),
        images=found.images,
        trials=found.trials,
    )


def _too_few(decided: int, least: int) -> str:
    return (
        f"only {decided} images are decided and tune.min_decisions is {least}; model labels alone favour "
        "settings that repeat what the model was taught"
    )


class _Candidate(NamedTuple):
    """An image whose labels may become evidence."""

    image_id: str
    family: str
    weight: float


def _evidence(round: Round, method: str) -> Iterator[Evidence]:
    """Yield evidence in the order in which it should be used; labels are read when they are asked for."""
    store, class_names = round.store, round.run.class_names
    human = {one.image_id: one.instances for one in store.decisions()}

    def candidates() -> Iterator[_Candidate]:
        for image_id, instances in human.items():
            if instances is not None:
                yield _Candidate(image_id, store.record(image_id).family, HUMAN_WEIGHT)
        if any(one.label_sets.get("model") for one in store.summary().rounds.values()):
            for record in store.records():
                if record.id not in human:
                    yield _Candidate(record.id, record.family, AGREEMENT_WEIGHT)

    for image_id, family, weight in spread(candidates(), round.seed):
        instances = human.get(image_id)
        if instances is not None:
            yield Evidence(image_id, family, instances.of_classes(class_names), weight)
        elif (pair := label_pair(store, image_id, method, class_names)) and len(pair.model):
            yield Evidence(image_id, family, pair.model, weight)


def _kind_of(evidence: Sequence[Evidence]) -> str:
    """Return which kind of evidence it is: ``verdicts``, ``agreement`` or ``both``."""
    human = [one.weight == HUMAN_WEIGHT for one in evidence]
    return "agreement" if not any(human) else "verdicts" if all(human) else "both"
