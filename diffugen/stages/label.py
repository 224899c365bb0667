"""The stage that labels images: by attention, with a detector, or by both.

Does not know how heat maps or label settings came about. Whatever made them, the labels are stored and
compared as those of source ``attention``, the first of the two sides; their provenance says what made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from diffugen.config.labelling import Labelling
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode, encode
from diffugen.labels.witness import Witness, within
from diffugen.records import ImageRecord, Instances, LabelSet
from diffugen.run.results import Labelled
from diffugen.run.rounds import OnProgress, Round, stage, unseen
from diffugen.run.spool import ImageIds
from diffugen.run.store import RunStore
from diffugen.stages.decoder import draw, heat_maps_reader
from diffugen.stages.labellers import Evidence
from diffugen.stages.regions import outside
from diffugen.stages.segmenter import heat_labeller
from diffugen.stages.witness import witnesses

LABELS_PER_TRANSACTION = 200

LABELLED_AT_A_TIME = 8
"""Images that a worker is given at a time; how many makes no difference to their labels."""


@stage("label", Labelled, kept="The labels saved so far are kept.")
def label(round: Round, on_progress: OnProgress, labelling: Labelling) -> Labelled:
    """Label all images of the run, those of earlier rounds too, that this labelling has not labelled yet.

    Where it has labelled an image before, and another labelling since, its labels are the newest again.

    Args:
        round: The round that the labels are made in.
        on_progress: Called with images labelled and images to label.
        labelling: Label settings and score weights.

    Raises:
        DiffugenError: A heat map is missing or unreadable, or the settings do not fit it; or the detector or
            segmenter that they name cannot be loaded, or does not know the classes.
    """
    label_images(round, labelling, on_progress)
    round.store.renew_labels("attention", labelling.method)
    images, objects = round.store.count_labels("attention", labelling.method)
    return Labelled(labelling.method, images, objects, labelling.settings, labelling.weights)


def label_images(round: Round, labelling: Labelling, on_progress: OnProgress = unseen) -> None:
    """Keep labels of all images of a run that this labelling has not labelled yet.

    Args:
        round: The round that the labels are made in.
        labelling: Label settings and score weights.
        on_progress: Called with images labelled and images to label.
    """
    round.run.executor.open()
    store = round.store
    missing = ImageIds(store.label_ids_missing("attention", labelling.method))
    if labelling.uses_heat:
        draw(store, labelling, missing, on_progress)
    on_progress(0, len(missing))
    found: list[LabelSet] = []
    for done, (image_id, instances) in enumerate(
        labelled_images(round, labelling, missing, on_progress), start=1
    ):
        found.append(LabelSet(image_id, "attention", instances, labelling.method, round.number))
        if len(found) == LABELS_PER_TRANSACTION or done == len(missing):
            store.put_labels(found)
            found = []
        on_progress(done, len(missing))


def labelled_images(
    round: Round, labelling: Labelling, image_ids: Sequence[str], on_progress: OnProgress = unseen
) -> Iterator[tuple[str, Instances]]:
    """Yield images with their labels, in order; the labels are not kept.

    Args:
        round: The round that asks; what a detector finds is kept in its run.
        labelling: Label settings and score weights.
        image_ids: The images; if it has a decoder, that has drawn them. Images come before those that were
            made from them.
        on_progress: Called with images that the detector has seen and those that it has to see.
    """
    new: dict[str, Instances] = {}
    seen = witnesses(round, labelling, image_ids, on_progress)
    found = _by_heat(round, labelling, image_ids, seen) if labelling.uses_heat else None
    for number, image_id in enumerate(image_ids):
        if number % LABELS_PER_TRANSACTION == 0:  # the earlier ones are in the store
            new = {}
        if found is None:
            new[image_id] = _detected(round, image_id, labelling, next(seen)[1], new)
        else:
            new[image_id] = _with_carried(round, image_id, labelling, next(found), new)
        yield image_id, new[image_id]


def _by_heat(
    round: Round, labelling: Labelling, image_ids: Sequence[str], seen: Iterator[tuple[str, Witness]]
) -> Iterator[Instances]:
    """Yield the labels of images by their heat maps, in order."""
    run, heat_maps = round.run, heat_maps_reader(round.store, labelling)

    def evidence(image_id: str) -> Evidence:
        rgb = run.store.image(image_id) if labelling.needs_images else None
        witness = None if labelling.detector is None else next(seen)[1]
        return Evidence(heat_maps(image_id), rgb, witness)

    batches = (
        [evidence(image_id) for image_id in image_ids[first : first + LABELLED_AT_A_TIME]]
        for first in range(0, len(image_ids), LABELLED_AT_A_TIME)
    )
    work = heat_labeller(run.store, labelling)
    work = replace(work, device=run.executor.worker_device(work.device))
    return run.executor.spread(work, batches, run.notify)


def _detected(
    round: Round, image_id: str, labelling: Labelling, seen: Witness, new: Mapping[str, Instances]
) -> Instances:
    """Return a detector's objects of the run's classes, with those carried over outside a painted region."""
    record, found = round.store.record(image_id), seen.instances.of_classes(round.run.class_names)
    carried = _carried(round.store, record, labelling.method, new)
    if carried is None or record.region is None:
        return found
    painted = decode(record.region)
    masks = [within(decode(rle), painted) for rle in found.rles]
    inside = replace(found, rles=tuple(map(encode, masks)))
    return carried.joined(inside.take([index for index, mask in enumerate(masks) if mask.any()]))


def _with_carried(
    round: Round, image_id: str, labelling: Labelling, found: Instances, new: Mapping[str, Instances]
) -> Instances:
    """Return an image's attention labels with those carried over from the image it was made from."""
    if labelling.detector is not None:  # it may know classes that the run does not have
        found = found.of_classes(round.run.class_names)
    carried = _carried(round.store, round.store.record(image_id), labelling.method, new)
    return found if carried is None else carried.joined(found)


def _carried(
    store: RunStore, record: ImageRecord, method: str, new: Mapping[str, Instances]
) -> Instances | None:
    """Return the objects outside the painted region, labelled by the same settings if it is in the run.

    Args:
        store: The run.
        record: The image.
        method: Provenance of the labels.
        new: Labels that are not in the store yet, by image; sources come before what is made from them.
    """
    if record.parent is not None and record.region is not None:
        kept = (one.instances for one in store.labels("attention", method, image_id=record.parent))
        labels = new[record.parent] if record.parent in new else next(kept, None)
        if labels is not None:
            return outside(labels, decode(record.region))
    return next((labels.instances for labels in store.labels("carried", image_id=record.id)), None)


def newest_method(store: RunStore) -> str:
    """Return the provenance of a run's newest attention labels.

    Raises:
        DiffugenError: There are none yet.
    """
    newest = store.latest_method("attention")
    if newest is None:
        raise DiffugenError(f"run {store.folder} has no attention labels yet; diffugen label makes them")
    return newest
