"""The stage that chooses a threshold for each class. Does not know by what."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from diffugen.config.labelling import Labelling
from diffugen.labels.heatmaps import combine
from diffugen.labels.thresholds import LEAST_MAPS, Worth, choose, worths
from diffugen.run.results import Thresholds
from diffugen.run.rounds import OnProgress, Round, stage
from diffugen.stages.decoder import draw, heat_maps_reader
from diffugen.stages.witness import witnesses

MAPS_PER_CLASS = 30
"""Maps of a class that decide about its threshold."""


@stage("thresholds", Thresholds)
def thresholds(round: Round, on_progress: OnProgress, labelling: Labelling) -> Thresholds:
    """Choose a threshold for each class whose maps it has not chosen one for.

    What was chosen once stands, so that labels do not change from round to round; a class waits for a
    threshold until there are enough maps of it.

    Args:
        round: The round.
        on_progress: Called with images looked at and images to look at.
        labelling: How images are labelled, by ``adaptive`` thresholds; with the decoder if one is in use.
    """
    drawn_by = None if labelling.decoder is None else labelling.decoder.id
    before = round.chosen_thresholds(labelling) or Thresholds(drawn_by=drawn_by)
    wanted = [name for name in round.run.class_names if name not in before.maps]
    by_class: dict[str, list[Worth]] = {name: [] for name in wanted}
    ids = _images(round, wanted)
    draw(round.store, labelling, ids, on_progress)
    on_progress(0, len(ids))
    for done, found in enumerate(_worths(round, labelling, ids), start=1):
        for name in found.keys() & by_class.keys():
            by_class[name].append(found[name])
        on_progress(done, len(ids))
    enough = {name: len(values) for name, values in by_class.items() if len(values) >= LEAST_MAPS}
    return Thresholds({**before.chosen, **choose(by_class)}, {**before.maps, **enough}, drawn_by)


def _images(round: Round, wanted: list[str]) -> list[str]:
    """Return images drawn at random by the run's seed, `MAPS_PER_CLASS` of each class if there are."""
    ids = sorted(round.store.image_ids())
    random.Random(round.run.seed).shuffle(ids)
    counts: Counter[str] = Counter()
    chosen = []
    for image_id in ids:
        if all(counts[name] >= MAPS_PER_CLASS for name in wanted):
            break
        phrases = round.store.record(image_id).prompt.phrases
        names = {phrase.class_name for phrase in phrases if phrase.class_name in wanted}
        if any(counts[name] < MAPS_PER_CLASS for name in names if name is not None):
            counts.update(name for name in names if name is not None)
            chosen.append(image_id)
    return sorted(chosen)


def _worths(round: Round, labelling: Labelling, ids: list[str]) -> Iterator[dict[str, Worth]]:
    store, settings, read = round.store, labelling.settings, heat_maps_reader(round.store, labelling)
    seen = dict(witnesses(round, labelling, ids))
    for image_id in ids:
        maps, witness = read(image_id), seen.get(image_id)
        heats = combine(maps, settings.groups, settings.step_weights, settings.self_attention)
        yield worths(heats, maps.phrases, settings, store.image(image_id), maps.region, witness)
