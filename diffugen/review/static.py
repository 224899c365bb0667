"""Review without FiftyOne: one HTML page that needs no network and no server, and its decisions file.

The page shows the queue with the labels of both sources side by side; a person decides with single keys and
saves ``decisions.json``. :func:`read_decisions` reads that file. It can also be written by hand:

```
{"run": "piano",                                        the name of the run's folder
 "decisions": [
   {"image_id": "569317217d8000d5", "verdict": "attention"},
   {"image_id": "a709c28d41a83a09", "verdict": "reject", "reviewer": "anna"}]}
```

``verdict`` is ``attention`` or ``model`` (the labels of that source are right), ``empty`` (there is nothing
to label) or ``reject`` (the image is useless). To the first two, the page adds ``method``, the provenance of
the labels that it showed, so that a file still means what was seen if it is imported when newer labels exist.
Without it, the labels that a new page would show count.

Knows no FiftyOne.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from diffugen.config.foreign import as_path, parse_json, read_text
from diffugen.config.labelling import by_detector
from diffugen.errors import DiffugenError, StoreError, brief, did_you_mean, shell_command, some_lines
from diffugen.labels.pictures import enlarged, label_overlay
from diffugen.records import Decision, Disagreement, Instances, LabelSet
from diffugen.review.queue import AUDIT, Entry, Queue, read_queue, same_outcome
from diffugen.run.files import write_file
from diffugen.run.store import RunStore

PAGE_NAME = "review.html"
PICTURE_HEIGHT = 240
AUDITED = "{labeller} and model agree; are both right?"
"""What the page says about an image on which the sources agree; see `_labeller`."""

MOST_IMAGES = 200
"""Maximum number of images on a page; each takes about 30 KB."""

VERDICTS = ("attention", "model", "empty", "reject")
"""Verdicts of a page; it cannot edit labels."""

MEANINGS = {
    "overlooked": "the model sees an object that {labeller} missed",
    "spurious": "{labeller} sees an object that the model does not",
    "swapped": "same place, different classes",
    "badly_located": "same class, but the masks hardly overlap",
}


def write_static(store: RunStore, folder: Path) -> Path:
    """Write the page of a run's review queue.

    Images are in the order of the queue, those already decided after the others, so that the next page of a
    long queue shows the rest.

    Args:
        store: The run.
        folder: Folder of the page; made if needed.

    Returns:
        The page.

    Raises:
        StoreError: An image cannot be read.
        DiffugenError: The page cannot be written.
    """
    queue = read_queue(store)
    ranks = {image_id: rank for rank, image_id in enumerate(queue.disagreements, start=1)}
    chosen = sorted(ranks, key=lambda image_id: image_id in queue.decisions)[:MOST_IMAGES]
    entries = [queue.entry(image_id) for image_id in chosen]
    classes = _classes(queue, entries)
    names = {"attention": _labeller(store), "model": "model"}
    content = {
        "run": _run_name(store),
        "key": f"diffugen-review:{_run_name(store)}:{store.summary().created_at}",
        "command": shell_command("review", "--run", store.folder, "--decisions", "decisions.json"),
        "queue": len(ranks),
        "names": names,
        "cards": [_card(store, entry, ranks[entry.record.id], classes, names) for entry in entries],
    }
    templates = Environment(
        loader=PackageLoader("diffugen.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = templates.get_template("review.html").render(content=content)
    page = Path(folder) / PAGE_NAME
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_file(page, text.encode())
    except OSError as error:
        raise DiffugenError(
            f"cannot write the review page {page}: {error.strerror or error}. Free some space, or choose "
            "another folder"
        ) from error
    return page


def read_decisions(store: RunStore, file: Path, *, reviewer: str, round: int) -> list[Decision]:
    """Return the decisions of a file that are new or differ from the run's.

    The caller keeps them with ``store.add_decisions``.

    Args:
        store: The run.
        file: The file, saved by the page or written by hand; the docstring of this module has its format.
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
            found.append(_decision(queue, item, reviewer, round))
        except _Mistake as mistake:
            mistakes.append(f"decision {number}: {mistake}")
    counts = Counter(one.image_id for one in found)
    mistakes += [
        f"image {name} is decided {count} times; keep one" for name, count in counts.items() if count > 1
    ]
    if mistakes:
        raise DiffugenError(_nothing_imported(file, mistakes))
    before = queue.decisions
    return [one for one in found if one.image_id not in before or not same_outcome(before[one.image_id], one)]


# -------------------------------------------------------------------- the page


def _labeller(store: RunStore) -> str:
    """Return what made the labels whose verdict is called ``attention``; a detector can have made them."""
    return "starting detector" if by_detector(store.latest_method("attention")) else "attention"


def _run_name(store: RunStore) -> str:
    return store.folder.resolve().name


def _classes(queue: Queue, entries: Sequence[Entry]) -> list[str]:
    """Return the classes in the order of their colours: the configured ones first, the same on every page."""
    sets = [labels for entry in entries for labels in (entry.attention, entry.model) if labels is not None]
    seen = sorted({name for labels in sets for name in labels.instances.class_names})
    return list(dict.fromkeys([*(queue.class_names or ()), *seen]))


def _card(
    store: RunStore, entry: Entry, rank: int, classes: Sequence[str], names: Mapping[str, str]
) -> dict[str, Any]:
    rgb = store.image(entry.record.id)
    decision = entry.decision
    return {
        "id": entry.record.id,
        "rank": rank,
        "severity": None if entry.severity is None else round(entry.severity, 2),
        "prompt": entry.record.prompt.text,
        "points": [{"kind": one.kind, "text": _in_words(one, entry, names)} for one in entry.disagreements]
        or [{"kind": AUDIT, "text": AUDITED.format(labeller=names["attention"])}],
        "image": _data_uri(enlarged(rgb, PICTURE_HEIGHT)),
        "attention": _side(rgb, entry.attention, classes),
        "model": _side(rgb, entry.model, classes),
        "decided": decision and {"verdict": decision.verdict, "reviewer": decision.reviewer},
    }


def _side(rgb: NDArray[np.uint8], labels: LabelSet | None, classes: Sequence[str]) -> dict[str, Any] | None:
    if labels is None:
        return None
    picture = label_overlay(rgb, labels.instances, PICTURE_HEIGHT, classes)
    return {"picture": _data_uri(picture), "labels": len(labels.instances), "method": labels.method}


def _in_words(one: Disagreement, entry: Entry, names: Mapping[str, str]) -> str:
    """Return, e.g., ``attention piano 0.40, model car 0.80: same place, different classes``."""
    sides = [
        f"{names[labels.source]} {labels.instances.class_names[index]} {labels.instances.scores[index]:.2f}"
        for labels, index in ((entry.attention, one.attention), (entry.model, one.model))
        if labels is not None and index is not None and index < len(labels.instances)
    ]
    meaning = MEANINGS[one.kind].format(labeller=names["attention"])
    return f"{', '.join(sides)}: {meaning}" if sides else meaning


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    # Without subsampling, which smears thin coloured outlines.
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# -------------------------------------------------------------------- the decisions file


_MOST_BYTES, _MOST_CHARACTERS = 64 << 20, 1000


class _Mistake(Exception):
    pass


def _nothing_imported(file: Path, mistakes: list[str]) -> str:
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
        raise DiffugenError(_nothing_imported(file, [str(error)])) from error


def _check_run(store: RunStore, content: Any, mistakes: list[str]) -> None:
    if not isinstance(content, dict):
        return
    name, own = content.get("run"), _run_name(store)
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


def _decision(queue: Queue, item: Any, reviewer: str, round: int) -> Decision:
    _check_item(item)
    image_id, verdict = item["image_id"], item["verdict"]
    if verdict not in VERDICTS:
        hint = did_you_mean(verdict, VERDICTS)
        expected = f"expected {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}"
        raise _Mistake(f"unknown verdict {brief(verdict)} on image {brief(image_id)}{hint}; {expected}")
    try:
        size_wh = queue.store.record(image_id).size_wh
    except StoreError as error:
        if queue.store.knows_image(image_id):
            raise  # the ledger is damaged, not the file
        raise _Mistake(f"the run has no image {brief(image_id)}") from error
    instances: Instances | None = None
    if verdict in ("attention", "model"):
        instances = _labels(queue, image_id, verdict, item.get("method"))
    elif verdict == "empty":
        instances = Instances(size_wh, (), (), np.zeros(0))
    return Decision(image_id, verdict, instances, item.get("reviewer", reviewer), round)


def _check_item(item: Any) -> None:
    if not isinstance(item, dict):
        raise _Mistake(f"expected an object with image_id and verdict, not {brief(item)}")
    unknown = [key for key in item if key not in ("image_id", "verdict", "reviewer", "method")]
    if unknown:
        raise _Mistake(f"unknown key {brief(unknown[0])}; expected image_id, verdict, reviewer or method")
    texts = {key: item.get(key) for key in ("image_id", "verdict")}
    texts |= {key: item[key] for key in ("reviewer", "method") if key in item}
    for key, value in texts.items():
        if not isinstance(value, str) or not value or len(value) > _MOST_CHARACTERS:
            raise _Mistake(
                f"{key} is {brief(value)}; expected a text of at most {_MOST_CHARACTERS} characters"
            )


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
        raise _Mistake(missing)
    return labels.instances
