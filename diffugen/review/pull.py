"""Read the tags of a review dataset back as decisions.

A person decides by tagging images ``accept_attention``, ``accept_model``, ``empty``, ``reject`` or ``edited``
(then the field ``human`` holds the correct labels), or by tagging single labels of any source ``accept``.
Labels that were changed before they were accepted count as they are now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from diffugen.errors import StoreError
from diffugen.records import SOURCES, Decision, Instances
from diffugen.review import samples
from diffugen.review.detections import to_instances
from diffugen.review.judged import Unclear, joined, refuse_doubles
from diffugen.review.queue import fingerprint, same_outcome
from diffugen.review.tags import ACCEPT, TAG_OF, misspelt
from diffugen.run.store import RunStore


def pull(
    store: RunStore, dataset: Any, *, reviewer: str, round: int, notify: Callable[[str], None]
) -> list[Decision]:
    """Return the decisions expressed by the tags of a dataset that are new or differ from the run's.

    The caller keeps them with ``store.add_decisions``. Images with contradictory tags or invalid labels are
    reported and left as they are, to be corrected in the next session.

    Args:
        store: The run.
        dataset: What `diffugen.review.push.push` returned.
        reviewer: Who decided.
        round: The round in which it was decided.
        notify: Called with a line for each image or tag that was not understood.
    """
    dataset.reload()
    known = {one.image_id: one for one in store.decisions()}
    label_tags = [tag for source in SOURCES for tag in dataset.distinct(f"{source}.detections.tags")]
    for line in misspelt(dataset.distinct("tags"), label_tags):
        notify(line)
    decisions = []
    imported: dict[str, str] = {}
    for sample in dataset.match(samples.is_decided()).sort_by("rank").iter_samples():
        try:
            decision = _decision(store, sample, dataset.info["classes"], reviewer, round)
        except (Unclear, StoreError) as problem:
            notify(f"image {sample['image_id']} ({sample.filename}) stays undecided: {problem}")
            continue
        imported[sample.id] = decision.verdict
        before = known.get(decision.image_id)
        if before is None or not same_outcome(before, decision):
            decisions.append(decision)
    dataset.set_values("decision", imported, key_field="id")
    return decisions


def _decision(store: RunStore, sample: Any, classes: Collection[str], reviewer: str, round: int) -> Decision:
    image_id, verdict = str(sample["image_id"]), str(samples.verdict(sample))
    size_wh = store.record(image_id).size_wh
    instances: Instances | None = None
    if verdict in ("attention", "model"):
        verdict, instances = _of_source(store, sample, verdict, size_wh, classes)
    elif verdict == "edited":
        instances = _edited(sample, size_wh, classes)
    elif verdict == "empty":
        instances = to_instances([], size_wh, classes)
    return Decision(image_id, verdict, instances, reviewer, round)


def _of_source(
    store: RunStore, sample: Any, source: str, size_wh: tuple[int, int], classes: Collection[str]
) -> tuple[str, Instances]:
    """Return verdict and labels of an accepted source; the verdict is ``edited`` if a person changed them."""
    field = samples.value(sample, source)
    if field is None:
        raise Unclear(f"it has no {source} labels to accept")
    instances = to_instances(field.detections, size_wh, classes)
    if not samples.is_as_pushed(field, size_wh):
        return "edited", instances
    # The run's own copy has the score terms too.
    kept = store.labels(source, image_id=sample["image_id"])
    same = (one.instances for one in kept if fingerprint(one.instances) == field["pushed"])
    return source, next(same, instances)


def _edited(sample: Any, size_wh: tuple[int, int], classes: Collection[str]) -> Instances:
    """Return the single labels that were accepted, or all human labels if there are none.

    Raises:
        Unclear: There are neither, or the same object was accepted from two sources.
    """
    accepted = {
        source: [one for one in samples.detections(sample, source) if ACCEPT in one.tags]
        for source in SOURCES
    }
    if not any(accepted.values()):
        accepted = {"human": samples.detections(sample, "human")}
        if not accepted["human"]:
            raise Unclear(
                f"it is tagged {TAG_OF['edited']}, but its field human is empty; if there is nothing to "
                f"label, tag it {TAG_OF['empty']}"
            )
    parts = [to_instances(found, size_wh, classes) for found in accepted.values()]
    refuse_doubles(parts)
    return joined(parts, size_wh)
