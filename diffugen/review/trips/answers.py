"""Decisions out of what a person left of the images in an annotation tool.

Each object is looked for among the labels of the run: a mask that is still the same, pixel by pixel, keeps
its score and its place, so the ledger knows what was kept, renamed or drawn. Knows no tool's format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from diffugen.records import Decision, LabelSet
from diffugen.review.decisions import to_decision
from diffugen.review.queue import Queue
from diffugen.review.trips.labels import REJECT, REVIEWED, SIDES, Answer, Drawn, outcome, written_labels


def decided(
    queue: Queue, answer: Answer, sent: Collection[str], reviewer: str, round: int
) -> Decision | None:
    """Return the decision that an answer expresses; None if the image was left as it was written.

    Args:
        queue: The queue of the run.
        answer: What the tool says about an image.
        sent: The `outcome` of the labels that were written for the image, each time that it was written.
        reviewer: Who decided.
        round: The round in which it was decided.

    Raises:
        Unclear: A class is unknown, or one object is kept from both sources.
        StoreError: The run cannot be read.
    """
    item: dict[str, Any] = {"image_id": answer.image_id}
    if answer.at:
        item["at"] = answer.at
    if answer.mark == REJECT:
        return to_decision(queue, {**item, "verdict": "reject"}, reviewer, round)
    if answer.mark != REVIEWED and _untouched(queue, answer, sent):
        return None
    return to_decision(queue, {**item, **_verdict(queue, answer)}, reviewer, round)


def _untouched(queue: Queue, answer: Answer, sent: Collection[str]) -> bool:
    made = outcome(answer.objects)
    return made in sent or made == outcome(written_labels(queue.entry(answer.image_id)))


def _verdict(queue: Queue, answer: Answer) -> dict[str, Any]:
    if not answer.objects:
        return {"verdict": "empty"}
    chosen = {source: _label_set(queue, answer, source) for source in SIDES}
    for source, labels in chosen.items():
        if labels is not None and _same(labels, answer.objects):
            return {"verdict": source, "method": labels.method}
    free = {
        source: set(range(len(labels.instances))) for source, labels in chosen.items() if labels is not None
    }
    return {"verdict": "edited", "objects": [_object(one, chosen, free) for one in answer.objects]}


def _label_set(queue: Queue, answer: Answer, source: str) -> LabelSet | None:
    """Return the label set of a source that most of the objects come from: or the shown one."""
    entry = queue.entry(answer.image_id)
    shown = entry.attention if source == "attention" else entry.model
    older = reversed(list(queue.store.labels(source, image_id=answer.image_id)))
    masks = {one.mask["counts"] for one in answer.objects}
    found = [*([] if shown is None else [shown]), *older]
    return max(found, key=lambda one: len(masks & set(_counts(one))), default=None)


def _counts(labels: LabelSet) -> Iterator[str]:
    yield from (rle["counts"] for rle in labels.instances.rles)


def _same(labels: LabelSet, objects: Sequence[Drawn]) -> bool:
    own = zip(labels.instances.class_names, _counts(labels), strict=True)
    return sorted(own) == sorted((one.class_name, one.mask["counts"]) for one in objects)


def _object(one: Drawn, chosen: dict[str, LabelSet | None], free: dict[str, set[int]]) -> dict[str, Any]:
    """Return an entry of ``objects`` of a decisions file, and take its label out of those that are free."""
    for source in sorted(SIDES, key=lambda source: source != one.source):
        labels = chosen[source]
        if labels is None:
            continue
        same = [
            index
            for index, counts in enumerate(_counts(labels))
            if counts == one.mask["counts"]
            if index in free[source]
        ]
        if same:
            names = labels.instances.class_names
            index = min(same, key=lambda index: names[index] != one.class_name)
            free[source].remove(index)
            renamed = {} if names[index] == one.class_name else {"class": one.class_name}
            return {"source": source, "index": index, "method": labels.method, **renamed}
    return {"source": "human", "class": one.class_name, "mask": one.mask}
