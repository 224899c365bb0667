"""The decisions file: what a person decided, saved by the review page or written by hand.

```
{"run": "piano",                                        the name of the run's folder
 "decisions": [
   {"image_id": "569317217d8000d5", "verdict": "attention"},
   {"image_id": "a709c28d41a83a09", "verdict": "reject", "reviewer": "anna"},
   {"image_id": "0c5a1d6f21b2e874", "verdict": "edited", "objects": [
      {"source": "attention", "index": 0},
      {"source": "model", "index": 2, "class": "person"},
      {"source": "human", "class": "piano", "mask": {"size": [64, 96], "counts": "..."}}]}]}
```

``verdict`` is

- ``attention`` or ``model``: the labels of that source are right;
- ``edited``: the labels are the ``objects``. Each is a label of a source, by its place in the label set, or
  drawn (``human``). ``class`` and ``mask`` (a COCO RLE of the image's size, compressed or not) replace the
  label's own; ``"keep": false`` says that a label is wrong, like leaving it out;
- ``empty``: there is nothing to label;
- ``reject``: the image is useless;
- ``open``: the image is not decided; ``objects`` says what is known so far.

The page adds ``method``, the provenance of the labels that it showed, to a decision or to its objects, so
that a file still means what was seen if it is imported when newer labels exist. Without it, the labels that
a new page would show count. It also adds ``at``, the time of the decision. Knows no FiftyOne.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from diffugen.config.foreign import as_path, parse_json, read_text
from diffugen.dataset.masks import rle_from_coco
from diffugen.errors import DiffugenError, StoreError, brief, did_you_mean, some_lines
from diffugen.records import OPEN, VERDICTS, Decision, Instances, Judged
from diffugen.review.judged import Unclear, kept_instances
from diffugen.review.queue import Queue, read_queue, run_name, same_outcome
from diffugen.run.store import RunStore

_MOST_BYTES, _MOST_CHARACTERS = 64 << 20, 1000
_ALL = (*VERDICTS, OPEN)
_KEYS = ("image_id", "verdict", "reviewer", "method", "objects", "at")
_OBJECT_KEYS = ("source", "index", "keep", "class", "mask", "method")


def read_decisions(store: RunStore, file: Path, *, reviewer: str, round: int) -> list[Decision]:
    """Return the decisions of a file that are new or differ from the run's.

    The caller keeps them with ``store.add_decisions``.

    Args:
        store: The run.
        file: The file; the docstring of this module has its format.
        reviewer: Who decided, if the file does not say.
        round: The round in which it was decided.

    Raises:
        DiffugenError: The file cannot be read or has mistakes; the message lists all of them.
    """
    file = as_path(file, "the decisions file")
    content = _content(file)
    queue = read_queue(store)
    mistakes: list[str] = []
    _check_run(store, content, mistakes)
    found = []
    for number, item in enumerate(_list_of(content, mistakes), start=1):
        try:
            found.append(to_decision(queue, item, reviewer, round))
        except Unclear as mistake:
            mistakes.append(f"decision {number}: {mistake}")
    counts = Counter(one.image_id for one in found)
    mistakes += [
        f"image {name} is decided {count} times; keep one" for name, count in counts.items() if count > 1
    ]
    if mistakes:
        raise DiffugenError(nothing_imported(file, mistakes))
    return [one for one in found if is_news(queue, one)]


def is_news(queue: Queue, decision: Decision) -> bool:
    """Return whether a decision says what its reviewer has not said before.

    A file may be imported twice, and a page saves again what it has saved before: that changes nothing, not
    even if another reviewer has decided differently since, unless the decision was made after that.
    """
    votes = queue.votes.get(decision.image_id, ())
    before = next((one for one in votes if one.reviewer == decision.reviewer), None)
    if before is None or not same_outcome(before, decision):
        return True
    return before is not votes[-1] and decision.made_at > votes[-1].made_at


def nothing_imported(file: Path, mistakes: list[str]) -> str:
    """Return the message that lists the mistakes of a file."""
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n  - ".join([f"{count} in {file}; nothing was imported:", *some_lines(mistakes)])


def _content(file: Path) -> Any:
    try:
        return parse_json(read_text(file, _MOST_BYTES))
    except OSError as error:
        raise DiffugenError(
            f"cannot read the decisions file {file}: {error.strerror or error}. Give the file that the "
            "review page saved"
        ) from error
    except ValueError as error:
        raise DiffugenError(nothing_imported(file, [str(error)])) from error


def _check_run(store: RunStore, content: Any, mistakes: list[str]) -> None:
    if not isinstance(content, dict):
        return
    name, own = content.get("run"), run_name(store)
    if name != own:
        found = f"it belongs to run {brief(name)}" if name is not None else 'it does not name its run ("run")'
        mistakes.append(f'{found}; this run is {own!r}. Give the run it belongs to, or correct its "run"')
    mistakes += [f"unknown key {brief(key)}" for key in content if key not in ("run", "decisions")]


def _list_of(content: Any, mistakes: list[str]) -> list[Any]:
    items = content.get("decisions") if isinstance(content, dict) else None
    if isinstance(items, list):
        return items
    mistakes.append('expected {"run": ..., "decisions": [...]}')
    return []


def to_decision(queue: Queue, item: Any, reviewer: str, round: int) -> Decision:
    """Return the decision that an item of a decisions file expresses.

    Args:
        queue: The queue of the run.
        item: The item, as read from JSON.
        reviewer: Who decided, if the item does not say.
        round: The round in which it was decided.

    Raises:
        Unclear: The item has a mistake.
        StoreError: The run cannot be read.
    """
    _check_item(item)
    image_id, verdict = item["image_id"], item["verdict"]
    if verdict not in _ALL:
        hint = did_you_mean(verdict, _ALL)
        expected = f"expected {', '.join(_ALL[:-1])} or {_ALL[-1]}"
        raise Unclear(f"unknown verdict {brief(verdict)} on image {brief(image_id)}{hint}; {expected}")
    try:
        size_wh = queue.store.record(image_id).size_wh
    except StoreError as error:
        if queue.store.knows_image(image_id):
            raise  # the ledger is damaged, not the file
        raise Unclear(f"the run has no image {brief(image_id)}") from error
    if (verdict == "edited") > ("objects" in item) or ("objects" in item and verdict not in ("edited", OPEN)):
        needs = "needs" if verdict == "edited" else "cannot have"
        raise Unclear(f"a decision {verdict!r} {needs} objects (image {image_id})")
    try:
        judged = tuple(_judged(queue, image_id, size_wh, one) for one in item.get("objects", ()))
        instances: Instances | None = None
        if verdict in ("attention", "model"):
            instances = _labels(queue, image_id, verdict, item.get("method"))
        elif verdict == "edited":
            sources = {one.source: one.method for one in judged if one.source != "human"}
            labels = {source: _labels(queue, image_id, source, method) for source, method in sources.items()}
            instances = kept_instances(judged, labels, size_wh)
        elif verdict == "empty":
            instances = Instances(size_wh, (), (), np.zeros(0))
    except ValueError as error:
        raise Unclear(f"image {image_id}: {error}") from error
    # An image of which nothing is kept is empty, whichever way that was said.
    if verdict == "edited" and not instances:
        verdict = "empty"
    made_at = _time(item["at"]) if "at" in item else ""
    return Decision(image_id, verdict, instances, item.get("reviewer", reviewer), round, judged, made_at)


def _time(text: str) -> str:
    """Return a time as the ledger writes it, UTC; never one in the future, which would outlast all others.

    Raises:
        Unclear: It is not a time in ISO 8601 with its zone.
    """
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
        if datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo is None:
            raise ValueError("no zone")
    except (ValueError, OverflowError) as error:
        raise Unclear(f"at is {brief(text)}; expected a time such as 2026-01-31T12:00:00Z") from error
    return min(time, datetime.now(timezone.utc)).isoformat(timespec="milliseconds")


def _judged(queue: Queue, image_id: str, size_wh: tuple[int, int], value: Any) -> Judged:
    """Return what an entry of ``objects`` says.

    Raises:
        ValueError: It has a mistake.
        Unclear: It names a label that does not exist.
    """
    if not isinstance(value, dict):
        raise ValueError(f"an object is {brief(value)}; expected source, index, keep, class or mask")
    unknown = [key for key in value if key not in _OBJECT_KEYS]
    if unknown:
        raise ValueError(
            f"an object has the unknown key {brief(unknown[0])}; expected {', '.join(_OBJECT_KEYS[:-1])} or "
            f"{_OBJECT_KEYS[-1]}"
        )
    source, index, kept = value.get("source"), value.get("index", 0), value.get("keep", True)
    if type(index) is not int or type(kept) is not bool or not isinstance(source, str):
        raise ValueError(
            f"an object is {brief(value)}; expected a source, a whole index, and true or false as keep"
        )
    name, method = value.get("class"), value.get("method")
    for key, text in (("class", name), ("method", method)):
        if text is not None and not _is_text(text):
            raise ValueError(f"the {key} of an object is {brief(text)}; expected a text")
    known = queue.class_names
    if name is not None and known is not None and name not in known:
        raise ValueError(
            f"the run has no class {brief(name)}{did_you_mean(name, known)}; its classes are "
            f"{', '.join(known)}"
        )
    mask = None if value.get("mask") is None else rle_from_coco(value["mask"], size_wh)
    if source == "human":
        return Judged(source, index, kept, name, mask)
    if source not in ("attention", "model"):
        raise ValueError(f"an object is of {brief(source)}; expected attention, model or human")
    method = method or _shown_method(queue, image_id, source)
    if index >= len(_labels(queue, image_id, source, method)):
        raise Unclear(f"image {image_id} has no {source} label {index}")
    return Judged(source, index, kept, name, mask, method)


def _shown_method(queue: Queue, image_id: str, source: str) -> str:
    entry = queue.entry(image_id)
    labels = entry.attention if source == "attention" else entry.model
    if labels is None:
        raise Unclear(f"image {image_id} has no {source} labels to accept")
    return labels.method


def _check_item(item: Any) -> None:
    if not isinstance(item, dict):
        raise Unclear(f"expected an object with image_id and verdict, not {brief(item)}")
    unknown = [key for key in item if key not in _KEYS]
    if unknown:
        raise Unclear(f"unknown key {brief(unknown[0])}; expected {', '.join(_KEYS[:-1])} or {_KEYS[-1]}")
    if not isinstance(item.get("objects", []), list):
        raise Unclear(f"objects is {brief(item['objects'])}; expected a list")
    texts = {key: item.get(key) for key in ("image_id", "verdict")}
    texts |= {key: item[key] for key in ("reviewer", "method", "at") if key in item}
    for key, value in texts.items():
        if not _is_text(value):
            raise Unclear(
                f"{key} is {brief(value)}; expected a text of at most {_MOST_CHARACTERS} characters"
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_CHARACTERS


def _labels(queue: Queue, image_id: str, source: str, method: str | None) -> Instances:
    if method is None:
        entry = queue.entry(image_id)
        labels = entry.attention if source == "attention" else entry.model
        missing = f"image {image_id} has no {source} labels to accept"
    else:
        labels = queue.labels(image_id, source, method)
        missing = (
            f"image {image_id} no longer has the {source} labels {method!r}; write the page again and review "
            "the image there"
        )
    if labels is None:
        raise Unclear(missing)
    return labels.instances
