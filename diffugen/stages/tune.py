"""The stage that tunes label settings and score weights. Does not know how the search works."""

from __future__ import annotations

from collections.abc import Sequence

from diffugen.config.labelling import Labelling
from diffugen.config.sections import TuneSettings
from diffugen.run.results import HeldOut, Tuned, TunedSide
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.run.store import RunStore
from diffugen.stages.compare import label_pairs
from diffugen.stages.decoder import heat_maps_reader
from diffugen.stages.segmenter import open_segmenter
from diffugen.stages.witness import witnesses
from diffugen.tune.evidence import Evidence
from diffugen.tune.study import tune as tune_labelling

AGREEMENT_WEIGHT = 0.25
"""How much a detector's labels count beside a person's, which count 1: it repeats what it was taught."""

_NO_HEAT = (
    "labels.source is detector, whose labels depend on no heat map, so there are no label settings and no "
    "score weights to tune"
)


@stage("tune", Tuned, unit="trial", kept="The trials so far are kept.")
def tune(
    round: Round, on_progress: OnProgress, method: str, labelling: Labelling, settings: TuneSettings
) -> Tuned:
    """Search for label settings, and then for score weights, that agree better with the evidence.

    The evidence is human labels, of images in dispute and of others, and with a lower weight out-of-sample
    model labels of the other images. The study is kept in the run's folder as ``tune.sqlite``. Nothing is
    searched as long as fewer than ``settings.min_decisions`` images are decided, nor where a detector labels
    alone: its labels depend on no heat map.

    Args:
        round: The round; later ones label with what it adopts.
        on_progress: Called with trials done and all trials.
        method: Provenance of the current attention labels.
        labelling: What they were made with.
        settings: How long to search, and on how many images.
    """
    store = round.store
    kind, evidence = _evidence(store, method, round.run.class_names)
    decided = sum(one.weight == 1.0 for one in evidence)
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


def _evidence(store: RunStore, method: str, class_names: Sequence[str]) -> tuple[str, list[Evidence]]:
    """Return which kind of evidence there is, ``verdicts``, ``agreement`` or ``both``, and the evidence."""
    human = {
        one.image_id: Evidence(
            one.image_id, store.record(one.image_id).family, one.instances.of_classes(class_names)
        )
        for one in store.decisions()
        if one.instances is not None
    }
    model = [
        Evidence(pair.image_id, store.record(pair.image_id).family, pair.model, AGREEMENT_WEIGHT)
        for pair in label_pairs(store, method, class_names)
        if len(pair.model) and pair.image_id not in human
    ]
    kind = "both" if human and model else "verdicts" if human else "agreement"
    return kind, [*human.values(), *model]
