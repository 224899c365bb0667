"""The stages that bring the two label sources together: relabel, compare, review by a page or in FiftyOne,
tune.

Knows what each stage reads and writes in a run; not the order of the stages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffugen.comparison.disagreement import compare, rank
from diffugen.errors import DiffugenError
from diffugen.records import KINDS, Disagreement, Instances, LabelSet, Prompt, content_id
from diffugen.run.rounds import OnProgress, Result
from diffugen.stages.label import LABELS_A_TRANSACTION

if TYPE_CHECKING:
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.run.store import RunStore
    from diffugen.tune.judge import Evidence

PREDICTED_AT_A_TIME = 64


def attention_method(store: RunStore) -> str:
    """Return the provenance of a run's newest attention labels.

    Raises:
        DiffugenError: There are none yet.
    """
    newest = store.latest_method("attention")
    if newest is None:
        raise DiffugenError(f"run {store.folder} has no attention labels yet; diffugen label makes them")
    return newest


def checkpoint_method(checkpoint: Path | str, meanings: Mapping[str, str] | None = None) -> str:
    """Return the provenance of model labels: a hash of the checkpoint and of how its classes are read,
    ``model-<16 hex digits>``.

    Args:
        checkpoint: The detector, hashed by its content.
        meanings: What `mapped_classes` returned; none or empty where the detector knows the run's classes
            itself.

    Raises:
        DiffugenError: The checkpoint cannot be read.
    """
    from diffugen.detectors.yolo_checkpoint import find_checkpoint

    path = find_checkpoint(checkpoint)
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    except OSError as error:
        raise DiffugenError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if meanings:
        digest.update(content_id(list(meanings.items())).encode())
    return f"model-{digest.hexdigest()[:16]}"


def find(store: RunStore, checkpoint: Path | str) -> Path | str:
    """Return a checkpoint of the run by its path within the run, and any other as it is."""
    return store.folder / checkpoint if (store.folder / checkpoint).exists() else checkpoint


def mapped_classes(
    known: Collection[str], class_names: Sequence[str], class_map: Mapping[str, str]
) -> dict[str, str]:
    """Return the part of a class map that applies: classes of the run that a detector knows by another name
    only.

    Args:
        known: The detector's classes.
        class_names: The run's classes.
        class_map: From a class of the run to the class that a detector may know it as.
    """
    return {
        name: theirs
        for name, theirs in class_map.items()
        if name in class_names and name not in known and theirs in known
    }


def knows_any(
    store: RunStore,
    checkpoint: Path | str,
    class_names: Sequence[str],
    device: str,
    class_map: Mapping[str, str],
) -> bool:
    """Return whether a detector has been taught any of the classes, by its own name or by that of the class
    map.
    """
    from diffugen.detectors.yolo import YoloDetector

    known = YoloDetector(find(store, checkpoint), device=device).class_names
    return not set(class_names).isdisjoint(known) or bool(mapped_classes(known, class_names, class_map))


def trained_on(store: RunStore) -> set[str]:
    """Return the ids of all images that a detector of this run has been trained on."""
    return {path.stem for path in (store.folder / "datasets").glob("*/images/train/*")}


def relabel_stage(
    store: RunStore,
    checkpoint: Path | str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    device: str,
    image_size: int,
    confidence: float,
    refine: Literal["none", "crf"],
    class_names: Sequence[str],
    class_map: Mapping[str, str],
    round: int,
) -> Result:
    """Label, with a detector, the images of the run that no detector of the run was trained on and that it
    has not labelled.

    Args:
        store: The run, open for writing.
        checkpoint: The detector.
        on_progress: Called with images labelled and images to label.
        device: Torch device or ``auto``.
        image_size: Longer side in pixels that images are scaled to.
        confidence: Least confidence of a label, in [0, 1].
        refine: ``crf`` moves the edges of its masks to where the image's colours change, as for attention
            labels.
        class_names: The run's classes.
        class_map: From a class of the run to the class that the detector knows it as, where it does not know
            the run's own. Which of several is meant, the image's prompt says: with ``{sedan: car, suv:
            car}``, a car is a sedan where the prompt names a sedan.
        round: The round that the labels are made in.

    Returns:
        ``method`` (the provenance), ``checkpoint``, ``images``, ``objects``.

    Raises:
        DiffugenError: The checkpoint or an image cannot be read.
    """
    from diffugen.detectors.yolo import YoloDetector
    from diffugen.labels.refine import refined

    checkpoint = find(store, checkpoint)
    detector = YoloDetector(checkpoint, device=device)
    meanings = mapped_classes(detector.class_names, class_names, class_map)
    method = checkpoint_method(checkpoint, meanings)
    seen = trained_on(store)
    missing = [image_id for image_id in store.label_ids_missing("model", method) if image_id not in seen]
    on_progress(0, len(missing))
    for first in range(0, len(missing), PREDICTED_AT_A_TIME):
        ids = missing[first : first + PREDICTED_AT_A_TIME]
        images = [store.image(image_id) for image_id in ids]
        found = detector.predict(images, image_size=image_size, confidence=confidence)
        if meanings:
            found = [
                _as_prompted(instances, store.record(image_id).prompt, meanings, class_names)
                for image_id, instances in zip(ids, found, strict=True)
            ]
        store.put_labels(
            LabelSet(
                image_id, "model", instances if refine == "none" else refined(instances, rgb), method, round
            )
            for image_id, rgb, instances in zip(ids, images, found, strict=True)
        )
        on_progress(first + len(ids), len(missing))
    counts = [len(labels.instances) for labels in store.labels("model", method)]
    return {"method": method, "checkpoint": str(checkpoint), "images": len(counts), "objects": sum(counts)}


def _as_prompted(
    instances: Instances, prompt: Prompt, meanings: Mapping[str, str], class_names: Sequence[str]
) -> Instances:
    """Give instances the classes of the run that the prompt names and that the detector's classes may stand
    for.
    """
    named = {phrase.class_name for phrase in prompt.phrases}
    means: dict[str, str] = {}
    for theirs in set(instances.class_names):
        meant = [name for name, other in meanings.items() if other == theirs and name in named]
        # A class of the run keeps its own objects, where it cannot be told which of the named ones an object
        # is.
        if meant and not (theirs in class_names and (len(meant) > 1 or theirs in named)):
            means[theirs] = meant[0]
    return replace(instances, class_names=tuple(means.get(name, name) for name in instances.class_names))


def label_pairs(
    store: RunStore, method: str, class_names: set[str]
) -> Iterator[tuple[str, Instances, Instances]]:
    """Yield image id, attention labels and newest model labels of each image that has both, a few at a time.

    Args:
        store: The run.
        method: Provenance of the attention labels.
        class_names: Classes that count; what the model finds of other classes does not contradict anything.
    """
    for labels in store.latest_labels("model"):
        attention = next(store.labels("attention", method, image_id=labels.image_id), None)
        if attention is not None:
            yield labels.image_id, attention.instances, labels.instances.of_classes(class_names)


def compare_stage(
    store: RunStore,
    method: str,
    on_progress: OnProgress = lambda done, total: None,
    *,
    class_names: Sequence[str],
    min_iou: float,
    good_iou: float,
) -> Result:
    """Compare attention labels and model labels of all images that have both, and keep the review queue of
    each round.

    Args:
        store: The run, open for writing.
        method: Provenance of the attention labels.
        on_progress: Called with images compared and images to compare.
        class_names: Classes that count.
        min_iou: Below this IoU two instances are not the same object.
        good_iou: From this IoU on they agree on where it is.

    Returns:
        ``images``, ``agreements``, ``kinds`` (from kind to count).
    """
    total = sum(one["label_sets"].get("model", 0) for one in store.summary()["rounds"].values())
    by_round: dict[int, list[Disagreement]] = {}
    prompt_ids: dict[str, str] = {}
    images = agreements = 0
    for image_id, attention, model in label_pairs(store, method, set(class_names)):
        found = compare(image_id, attention, model, min_iou=min_iou, good_iou=good_iou)
        images, agreements = images + 1, agreements + len(found.agreements)
        if found.disagreements:
            record = store.record(image_id)
            prompt_ids[image_id] = record.family
            by_round.setdefault(record.round, []).extend(found.disagreements)
        if images % LABELS_A_TRANSACTION == 0:
            on_progress(images, max(images, total))
    on_progress(images, images)
    for number in store.summary()["rounds"]:
        queue = rank(by_round.get(number, []), prompt_ids=prompt_ids, balance_kinds=True)
        store.put_disagreements(number, queue)
    kinds = Counter(one.kind for queue in by_round.values() for one in queue)
    return {"images": images, "agreements": agreements, "kinds": {kind: kinds[kind] for kind in KINDS}}


def tune_stage(
    store: RunStore,
    method: str,
    settings: LabelSettings,
    weights: ScoreWeights,
    on_progress: OnProgress = lambda done, total: None,
    *,
    class_names: Sequence[str],
    trials: int,
    images: int,
    folds: int,
    seed: int,
) -> Result:
    """Search for label settings and score weights that agree better with what is taken for right.

    Args:
        store: The run, open for writing; the study is kept in its folder as ``tune.sqlite``.
        method: Provenance of the attention labels of now.
        settings: What they were made with.
        weights: How they were scored.
        on_progress: Called with trials done and all trials.
        class_names: Classes that count.
        trials: How many settings are tried.
        images: At most so many images are looked at.
        folds: Parts of the evidence that are held out in turn.
        seed: Decides what is tried.

    Returns:
        ``adopted``, ``reason``, ``evidence`` (``verdicts`` or ``agreement``), ``before`` and ``after``
        (``settings``, ``weights``, ``value``), ``held_out`` (``before``, ``after``), ``images``, ``trials``.
    """
    from diffugen.tune.study import tune

    kind, evidence = _evidence(store, method, set(class_names))
    found = tune(
        evidence,
        store.heat_maps,
        store.image,
        settings,
        weights,
        trials=trials,
        folds=folds,
        images=images,
        seed=seed,
        storage=store.folder / "tune.sqlite",
        on_progress=on_progress,
    )
    return {
        "adopted": found.adopted,
        "reason": found.reason,
        "evidence": kind,
        "before": {"settings": settings.asdict(), "weights": asdict(weights), "value": found.value_before},
        "after": {
            "settings": found.settings.asdict(),
            "weights": asdict(found.weights),
            "value": found.value_after,
        },
        "held_out": {"before": found.held_out_before, "after": found.held_out_after},
        "images": found.images,
        "trials": found.trials,
    }


def _evidence(store: RunStore, method: str, class_names: set[str]) -> tuple[str, list[Evidence]]:
    """Return human labels where there are enough of them, or else out-of-sample model labels, and which of
    both they are.
    """
    from diffugen.tune.judge import Evidence
    from diffugen.tune.study import SMALLEST_EVIDENCE

    human = [
        Evidence(one.image_id, store.record(one.image_id).family, one.instances.of_classes(class_names))
        for one in store.decisions()
        if one.instances is not None
    ]
    if len(human) >= SMALLEST_EVIDENCE:
        return "verdicts", human
    return "agreement", [
        Evidence(image_id, store.record(image_id).family, model)
        for image_id, _, model in label_pairs(store, method, class_names)
        if len(model)
    ]
