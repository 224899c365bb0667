"""How a stage is run once, and the stage that makes attention labels.

Every stage (here and in the other files whose names begin with ``stages``) is a function over a run: it takes
flat arguments, named like the configuration's keys, goes on where an earlier call stopped, reports to
``on_progress(done, total)`` and returns what the ledger shall keep of it, as JSON values. It knows the order
of work inside itself, not the order of the stages (that is `loops/`) and not the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diffugen.records import LabelSet, content_id

if TYPE_CHECKING:
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.run.store import RunStore
from diffugen.run.rounds import OnProgress, Result

LABELS_A_TRANSACTION = 200


def label_method(settings: LabelSettings, weights: ScoreWeights) -> str:
    """Return the provenance of attention labels made with these settings."""
    return f"attention-{content_id(settings.asdict(), asdict(weights))}"


def label_settings(
    store: RunStore, round: int, labels: Mapping[str, Any], score: Mapping[str, Any]
) -> tuple[LabelSettings, ScoreWeights]:
    """Return what a round labels with: the settings that an earlier round's tuning found, or else the
    configured ones.

    Args:
        store: The run.
        round: The round.
        labels: The configured `LabelSettings`, by name.
        score: The configured `ScoreWeights`, by name.
    """
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights

    for earlier in reversed(range(round)):
        tuned = store.stage_done(earlier, "tune")
        if tuned and tuned["adopted"]:
            labels, score = tuned["after"]["settings"], tuned["after"]["weights"]
            break
    return LabelSettings(**{**labels, "step_weights": tuple(labels["step_weights"])}), ScoreWeights(**score)


def label_stage(
    store: RunStore,
    settings: LabelSettings,
    weights: ScoreWeights,
    on_progress: OnProgress = lambda done, total: None,
    *,
    round: int = 0,
) -> Result:
    """Label, by attention, the images of the run that these settings have not labelled yet, of earlier rounds
    too.

    Args:
        store: The run, open for writing.
        settings: How heat maps become instances.
        weights: How good an instance is.
        on_progress: Called with images labelled and images to label.
        round: The round that the labels are made in.

    Returns:
        ``method`` (the provenance that the labels are kept under), ``images``, ``objects``, ``settings``,
        ``weights``.

    Raises:
        DiffugenError: A heat map is missing or unreadable, or the settings do not fit it.
    """
    from diffugen.labels.label import label

    method = label_method(settings, weights)
    missing = list(store.label_ids_missing("attention", method))
    on_progress(0, len(missing))
    for first in range(0, len(missing), LABELS_A_TRANSACTION):
        found = []
        for image_id in missing[first : first + LABELS_A_TRANSACTION]:
            rgb = None if settings.refine == "none" else store.image(image_id)
            instances = label(store.heat_maps(image_id), settings, weights, rgb)
            for carried in store.labels("carried", image_id=image_id):
                instances = carried.instances.joined(instances)
            found.append(LabelSet(image_id, "attention", instances, method, round))
            on_progress(first + len(found), len(missing))
        store.put_labels(found)
    counts = [len(labels.instances) for labels in store.labels("attention", method)]
    return {
        "method": method,
        "images": len(counts),
        "objects": sum(counts),
        "settings": settings.asdict(),
        "weights": asdict(weights),
    }
