"""Review without FiftyOne: one HTML page that needs no network and no server, and the file of decisions that
it saves.

The page shows the queue with the labels of both sources beside each other; a person decides by single keys,
and saves ``decisions.json``. :func:`read_decisions` reads that file. It can be written by hand as well:

```
{"run": "piano",                                        the name of the run's folder
 "decisions": [
   {"image_id": "569317217d8000d5", "verdict": "attention"},
   {"image_id": "a709c28d41a83a09", "verdict": "reject", "reviewer": "anna"}]}
```

``verdict`` is ``attention`` or ``model`` (the labels of that source are right), ``empty`` (there is nothing
to label) or ``reject`` (the image is of no use). The page adds to the first two a ``method``, the provenance
of the labels that were on it, so that a file which is read when newer labels exist still means what was seen;
without it the ones that the page would show count.

Knows no FiftyOne.
"""

from __future__ import annotations

import base64
import difflib
import io
import json
from collections import Counter
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import DiffugenError
from diffugen.labels.pictures import enlarged, label_overlay
from diffugen.records import Decision, Disagreement, Instances, LabelSet
from diffugen.review.queue import Entry, Queue, read_queue, same_outcome
from diffugen.run.store import RunStore

PAGE_NAME = "review.html"
PICTURE_HEIGHT = 240
VERDICTS = ("attention", "model", "empty", "reject")
"""What a page can say; it cannot edit."""

MEANINGS = {
    "overlooked": "the model sees it, attention missed it",
    "spurious": "attention sees it, the model does not",
    "swapped": "one place, two classes",
    "badly_located": "one class, hardly the same place",
}

NO_INSTANCES = np.zeros(0)


def write_static(
    store: RunStore,
    folder: Path,
    *,
    round: int | None = None,
    limit: int = 200,
    method: str | None = None,
    class_names: Collection[str] | None = None,
) -> Path:
    """Write the page of a run's review queue.

    Images come in the order of the queue, those that are decided already behind the others, so that the next
    page of a long queue shows what is left.

    Args:
        store: The run.
        folder: Where the page goes; made if needed.
        round: Only images that this round generated; None for all.
        limit: At most so many images; one takes about 30 KB of the page.
        method: As in `diffugen.review.queue.read_queue`.
        class_names: Likewise.

    Returns:
        The page.

    Raises:
        StoreError: An image cannot be read.
        DiffugenError: The page cannot be written.
    """
    queue = read_queue(store, round, method=method, class_names=class_names)
    ranks = {image_id: rank for rank, image_id in enumerate(queue.disagreements, start=1)}
    chosen = sorted(ranks, key=lambda image_id: image_id in queue.decisions)[:limit]
    entries = [queue.entry(image_id) for image_id in chosen]
    classes = _classes(queue, entries)
    content = {
        "run": _run_name(store),
        "key": f"diffugen-review:{_run_name(store)}:{store.summary()['created_at']}",
        "queue": len(ranks),
        "cards": [_card(store, entry, ranks[entry.record.id], classes) for entry in entries],
    }
    template = resources.files("diffugen.review").joinpath("static.html").read_text(encoding="utf-8")
    # A closing tag within a prompt must not end the script that holds it.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = Path(folder) / PAGE_NAME
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(template.replace("{{content}}", data), encoding="utf-8")
    except OSError as error:
        raise DiffugenError(
            f"cannot write the review page {page}: {error.strerror or error}. Free space or choose another "
            "folder"
        ) from error
    return page


def read_decisions(
    store: RunStore,
    file: Path,
    *,
    reviewer: str,
    round: int,
    method: str | None = None,
    class_names: Collection[str] | None = None,
) -> list[Decision]:
    """Return the decisions of a file that the page saved or a person wrote, where they are new or differ from
    the run's.

    The caller keeps them with ``store.add_decisions``.

    Args:
        store: The run.
        file: The file; the module's text has its form.
        reviewer: Who decided, where the file does not say.
        round: The round in which it was decided.
        method: As in `diffugen.review.queue.read_queue`.
        class_names: Likewise.

    Raises:
        DiffugenError: The file cannot be read or has mistakes; names all of them.
    """
    content = _content(Path(file))
    queue = read_queue(store, method=method, class_names=class_names)
    mistakes: list[str] = []
    _check_run(store, content, mistakes)
    found = []
    for number, item in enumerate(_list_of(content, mistakes), start=1):
        try:
            found.append(_decision(queue, item, reviewer, round))
        except _Mistake as mistake:
            mistakes.append(f"decision {number}: {mistake}")
    counts = Counter(one.image_id for one in found)
    mistakes += [
        f"image {name} is decided {count} times; keep one" for name, count in counts.items() if count > 1
    ]
    if mistakes:
        raise DiffugenError(_nothing_imported(Path(file), mistakes))
    before = queue.decisions
    return [one for one in found if one.image_id not in before or not same_outcome(before[one.image_id], one)]


# -------------------------------------------------------------------- the page


def _run_name(store: RunStore) -> str:
    return store.folder.resolve().name


def _classes(queue: Queue, entries: list[Entry]) -> list[str]:
    """Return the classes in an order that decides their colours: the configured ones first, the same on every
    page.
    """
    sets = [labels for entry in entries for labels in (entry.attention, entry.model) if labels is not None]
    seen = sorted({name for labels in sets for name in labels.instances.class_names})
    return list(dict.fromkeys([*(queue.class_names or ()), *seen]))


def _card(store: RunStore, entry: Entry, rank: int, classes: list[str]) -> dict[str, Any]:
    rgb = store.image(entry.record.id)
    decision = entry.decision
    return {
        "id": entry.record.id,
        "rank": rank,
        "severity": round(entry.severity or 0.0, 2),
        "prompt": entry.record.prompt.text,
        "points": [{"kind": one.kind, "text": _told(one, entry)} for one in entry.disagreements],
        "image": _data_uri(enlarged(rgb, PICTURE_HEIGHT)),
        "attention": _side(rgb, entry.attention, classes),
        "model": _side(rgb, entry.model, classes),
        "decided": decision and {"verdict": decision.verdict, "reviewer": decision.reviewer},
    }


def _side(rgb: NDArray[np.uint8], labels: LabelSet | None, classes: list[str]) -> dict[str, Any] | None:
    if labels is None:
        return None
    picture = label_overlay(rgb, labels.instances, PICTURE_HEIGHT, classes)
    return {"picture": _data_uri(picture), "labels": len(labels.instances), "method": labels.method}


def _told(one: Disagreement, entry: Entry) -> str:
    """Say what one disagreement is about: ``piano 0.40 against car 0.80: one place, two classes``."""
    sides = [
        _name_and_score(labels.instances, index)
        for labels, index in ((entry.attention, one.attention), (entry.model, one.model))
        if labels is not None and index is not None and index < len(labels.instances)
    ]
    return f"{' against '.join(sides)}: {MEANINGS[one.kind]}" if sides else MEANINGS[one.kind]


def _name_and_score(instances: Instances, index: int) -> str:
    return f"{instances.class_names[index]} {instances.scores[index]:.2f}"


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    # Without subsampling: it smears thin coloured outlines.
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# -------------------------------------------------------------------- the file


class _Mistake(Exception):
    pass


def _nothing_imported(file: Path, mistakes: list[str]) -> str:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n".join([f"{count} in {file}; nothing was imported:", *(f"  - {line}" for line in mistakes)])


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DiffugenError(
            f"cannot read the decisions {file}: {error.strerror or error}. Give the file that the review "
            "page saved"
        ) from error
    except ValueError as error:
        raise DiffugenError(_nothing_imported(file, [f"it is not JSON ({error})"])) from error


def _check_run(store: RunStore, content: Any, mistakes: list[str]) -> None:
    if not isinstance(content, dict):
        return
    name, own = content.get("run"), _run_name(store)
    if name != own:
        found = f"it is of run {name!r}" if name is not None else 'it does not name its run ("run")'
        mistakes.append(f'{found}; this run is {own!r}. Give the run it belongs to, or correct its "run"')
    mistakes += [f"unknown key {key!r}" for key in content if key not in ("run", "decisions")]


def _list_of(content: Any, mistakes: list[str]) -> list[Any]:
    items = content.get("decisions") if isinstance(content, dict) else None
    if isinstance(items, list):
        return items
    mistakes.append('expected {"run": ..., "decisions": [...]}')
    return []


def _decision(queue: Queue, item: Any, reviewer: str, round: int) -> Decision:
    if not isinstance(item, dict):
        raise _Mistake(f"{item!r} is no object with image_id and verdict")
    unknown = [key for key in item if key not in ("image_id", "verdict", "reviewer", "method")]
    if unknown:
        raise _Mistake(f"unknown key {unknown[0]!r}; there are image_id, verdict, reviewer and method")
    texts = {key: item.get(key) for key in ("image_id", "verdict")}
    for key, value in (*texts.items(), *((key, item[key]) for key in ("reviewer", "method") if key in item)):
        if not isinstance(value, str) or not value:
            raise _Mistake(f"{key} is {value!r}; expected a text")
    image_id, verdict = item["image_id"], item["verdict"]
    if verdict not in VERDICTS:
        near = difflib.get_close_matches(verdict, VERDICTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(VERDICTS)}"
        raise _Mistake(f"unknown verdict {verdict!r} on image {image_id}{hint}")
    size_wh = _size_of(queue.store, image_id)
    instances: Instances | None = None
    if verdict in ("attention", "model"):
        instances = _labels(queue, image_id, verdict, item.get("method"))
    elif verdict == "empty":
        instances = Instances(size_wh, (), (), NO_INSTANCES)
    return Decision(image_id, verdict, instances, item.get("reviewer", reviewer), round)


def _size_of(store: RunStore, image_id: str) -> tuple[int, int]:
    from diffugen.errors import StoreError

    try:
        return store.record(image_id).size_wh
    except StoreError as error:
        raise _Mistake(f"the run has no image {image_id!r}") from error


def _labels(queue: Queue, image_id: str, source: str, method: str | None) -> Instances:
    if method is None:
        entry = queue.entry(image_id)
        labels = entry.attention if source == "attention" else entry.model
        missing = f"image {image_id} has no {source} labels that could be right"
    else:
        labels = queue.labels(image_id, source, method)
        missing = (
            f"the run has no {source} labels {method!r} of image {image_id} any more; write the page again"
        )
    if labels is None:
        raise _Mistake(missing)
    return labels.instances
