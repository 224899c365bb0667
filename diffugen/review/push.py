"""Put the review queue of a run into its FiftyOne dataset.

Each image of the queue becomes a sample with one label field for each source: ``attention``, ``model``,
``human``. An image on which a person left anything keeps its labels when the queue is pushed again. Expects
FiftyOne to be connected (`diffugen.review.database`); writes nothing into the run's ledger.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.pictures import enlarged, heat_picture, label_overlay
from diffugen.records import Decision, LabelSet, content_id
from diffugen.review import samples
from diffugen.review.cards import heat_of, in_words, jpeg, labeller
from diffugen.review.detections import to_detections
from diffugen.review.judged import Unclear
from diffugen.review.queue import AUDIT, Entry, Queue, configured_classes, fingerprint, read_queue
from diffugen.review.schema import declare, make_editable, open_dataset, prompt_field, save_views
from diffugen.review.tags import ACCEPT, TAG_OF, VERDICT_OF
from diffugen.review.words import AUDITED
from diffugen.run.files import write_file
from diffugen.run.store import RunStore

SAMPLES_A_BATCH = 100
STRIP_HEIGHT = 160


def push(store: RunStore, reviewer: str = "reviewer") -> Any:
    """Put the review queue of a run into its FiftyOne dataset, or bring the dataset up to date.

    Args:
        store: The run.
        reviewer: Who decides in the App, unless a name is given there.

    Returns:
        The ``fiftyone.Dataset``, named after the run's folder, with the saved views ``queue``, ``undecided``,
        ``decided``, ``audit``, and one for each kind of disagreement.

    Raises:
        DiffugenError: The database has another run's dataset of that name.
        StoreError: The run cannot be read.
    """
    queue = read_queue(store)
    dataset = open_dataset(store)
    declare(dataset, [store.record(image_id).prompt.attributes for image_id in queue.disagreements])
    _fill_dataset(dataset, queue, reviewer)
    save_views(dataset)
    return dataset


def _fill_dataset(dataset: Any, queue: Queue, reviewer: str) -> None:
    import fiftyone as fo

    known = dict(zip(*dataset.values(["image_id", "id"]), strict=True))
    # Images of an earlier queue stay in the dataset, but leave the queue.
    dataset.set_values("rank", [None] * len(dataset))
    classes = {*dataset.info["classes"], *configured_classes(queue.store)}
    fresh: list[Any] = []
    for rank, image_id in enumerate(queue.disagreements, start=1):
        entry = queue.entry(image_id)
        path = str(queue.store.image_path(image_id).resolve())
        sample = dataset[known[image_id]] if image_id in known else fo.Sample(filepath=path)
        sample.filepath = path
        sample["rank"] = rank
        _fill(sample, entry, queue)
        classes.update(_class_names(entry))
        if image_id in known:
            sample.save()
        else:
            fresh.append(sample)
        if len(fresh) == SAMPLES_A_BATCH:
            dataset.add_samples(fresh, progress=False)
            fresh = []
    if fresh:
        dataset.add_samples(fresh, progress=False)
    dataset.info["classes"] = sorted(classes)
    dataset.info["reviewer"] = reviewer
    make_editable(dataset, classes)
    dataset.save()


def _class_names(entry: Entry) -> set[str]:
    names = {phrase.class_name for phrase in entry.record.prompt.phrases if phrase.class_name}
    for labels in (entry.attention, entry.model):
        names.update(labels.instances.class_names if labels else ())
    return names


def _fill(sample: Any, entry: Entry, queue: Queue) -> None:
    import fiftyone as fo

    record, masks_folder = entry.record, queue.store.folder / "review" / "masks"
    names = {"attention": labeller(queue.store), "model": "model"}
    said = [in_words(one, entry, names) for one in entry.disagreements]
    said = said or [AUDITED.format(labeller=names["attention"])]
    width, height = record.size_wh
    sample["metadata"] = fo.ImageMetadata(mime_type="image/png", width=width, height=height, num_channels=3)
    values = {
        "image_id": record.id,
        "prompt": record.prompt.text,
        "round": record.round,
        "task": record.task,
        "kinds": entry.kinds or [AUDIT],
        "severity": entry.severity,
        "why": said,
        **{prompt_field(name): value for name, value in record.prompt.attributes.items()},
    }
    for name, value in values.items():
        sample[name] = value
    heat = heat_of(queue.store, record.id)
    if heat is not None and samples.value(sample, "heat") is None:
        sample["heat"] = fo.Heatmap(map=np.round(heat * 255).astype(np.uint8))
    sample["strip"] = str(_strip(entry, heat, queue))
    if not samples.is_touched(sample, record.size_wh):
        for source, labels in (("attention", entry.attention), ("model", entry.model)):
            _put_labels(sample, source, labels, entry, masks_folder)
    if entry.decision is not None:
        _carry_over(sample, entry, entry.decision, masks_folder)


def _strip(entry: Entry, heat: NDArray[np.float32] | None, queue: Queue) -> Path:
    """Write the picture of an image that the panel shows, and return its file: image, heat, both labels.

    It is named by what it shows, so that the App never shows an earlier one.
    """
    rgb, names = queue.store.image(entry.record.id), list(queue.class_names or ())
    panels = [enlarged(rgb, STRIP_HEIGHT)]
    if heat is not None:
        panels.append(enlarged(heat_picture(heat), STRIP_HEIGHT))
    for labels in (entry.attention, entry.model):
        if labels is not None:
            panels.append(label_overlay(rgb, labels.instances, STRIP_HEIGHT, names))
    data = jpeg(np.concatenate(panels, axis=1), 85)
    path = (
        queue.store.folder.resolve() / "review" / "strips" / f"{content_id(entry.record.id, data.hex())}.jpg"
    )
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    return path


def _put_labels(sample: Any, source: str, labels: LabelSet | None, entry: Entry, masks_folder: Path) -> None:
    """Fill a label field; if it already holds these labels, update only their disagreements."""
    field = samples.value(sample, source)
    if field is None or labels is None or field["pushed"] != fingerprint(labels.instances):
        sample[source] = labels and samples.label_field(labels, entry.disagreements, masks_folder)
        return
    field["method"] = labels.method
    made = to_detections(labels, entry.disagreements, masks_folder)
    for one, values in zip(field.detections, made, strict=True):
        for name in ("kind", "severity", "iou"):
            one[name] = values.get(name)


def _carry_over(sample: Any, entry: Entry, decision: Decision, masks_folder: Path) -> None:
    """Tag an image with the run's decision, unless a person has tagged it differently since."""
    try:
        tagged = samples.verdict(sample)
    except Unclear:
        return
    before = samples.value(sample, "imported")
    sample["decision"] = sample["imported"] = decision.verdict
    sample["reviewer"], sample["decided_at"] = decision.reviewer, datetime.fromisoformat(decision.made_at)
    if tagged is not None and (tagged != before or tagged == decision.verdict):
        return
    verdict = decision.verdict
    labels = {"attention": entry.attention, "model": entry.model}.get(verdict)
    if decision.instances is not None and verdict in ("attention", "model"):
        # The labels accepted then may not be those shown now.
        same = labels is not None and fingerprint(labels.instances) == fingerprint(decision.instances)
        verdict = verdict if same else "edited"
    if verdict == "edited" and decision.instances is not None:
        made = LabelSet(decision.image_id, "human", decision.instances, decision.reviewer, decision.round)
        sample["human"] = samples.label_field(made, entry.disagreements, masks_folder)
    for source in samples.SHOWN:
        for one in samples.detections(sample, source):
            one.tags = [tag for tag in one.tags if tag != ACCEPT]
    sample.tags = [*(tag for tag in sample.tags if tag not in VERDICT_OF), TAG_OF[verdict]]
