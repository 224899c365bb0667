"""Label Studio's own format: a JSON of tasks with brush masks as predictions, and its labeling interface.

Images are in the JSON itself, as data URLs, which need no storage and no server; if they take more than
`MOST_EMBEDDED`, they are files that Label Studio serves. Attention labels belong to the brush ``labels``,
those of the model alone to the brush ``model``, so the list of regions shows them apart.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from diffugen.config.foreign import parse_json, read_text
from diffugen.dataset.files import write_image, write_text
from diffugen.dataset.masks import rings_from_lists, rle_from_rings
from diffugen.errors import brief
from diffugen.labels.shapes import decode, encode
from diffugen.records import RLE
from diffugen.review.trips.brush import brush_from_mask, mask_from_brush
from diffugen.review.trips.labels import (
    REJECT,
    REVIEWED,
    Answer,
    Drawn,
    Package,
    Reader,
    Sent,
    SizeOf,
    hex_colours,
    image_of,
)

TASKS, INTERFACE = "tasks.json", "interface.xml"

NEXT = (
    "In Label Studio: make a project, paste interface.xml under Labeling Interface > Code, and import "
    "tasks.json. When done, export as JSON. If the folder has images/, first let Label Studio serve the "
    "folder (LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)."
)

MOST_EMBEDDED = 48 << 20
"""Bytes of images up to which they are in the JSON: Label Studio takes uploads of up to 250 MB."""

_MOST_BYTES = 1 << 30
_BRUSHES = {"attention": "labels", "model": "model"}
_VERDICT = "verdict"


def write(folder: Path, package: Package) -> None:
    """Write ``tasks.json`` and ``interface.xml`` into a folder, and ``images/`` if there are many."""
    write_text(folder / INTERFACE, _interface(package.classes))
    files, tasks = dict[str, Path](), list[dict[str, Any]]()
    for image in package.images:
        files[image.image_id] = folder / "images" / f"{image.image_id}.png"
        write_image(files[image.image_id], image.rgb)
        tasks.append(_task(package.run, image))
    embedded = sum(file.stat().st_size for file in files.values()) <= MOST_EMBEDDED
    for task in tasks:
        file = files[task["data"]["image_id"]]
        task["data"]["image"] = _data_url(file) if embedded else f"/data/local-files/?d=images/{file.name}"
    write_text(folder / TASKS, json.dumps(tasks, ensure_ascii=False) + "\n")
    if embedded:
        shutil.rmtree(folder / "images")


def _data_url(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def read(file: Path, size_of: SizeOf) -> Iterator[Reader]:
    """Yield readers of the annotations in a JSON export: the newest of each person on each task.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a file.
    """
    content = parse_json(read_text(file, _MOST_BYTES))
    if not isinstance(content, list):
        raise ValueError("it is not a list of tasks; export the project from Label Studio as JSON")
    for number, task in enumerate(content, start=1):
        if not isinstance(task, dict) or not isinstance(task.get("annotations", []), list):
            raise ValueError(f"task {number} is not one of Label Studio; export the project as JSON")
        newest: dict[str, Mapping[str, Any]] = {}
        for one in task.get("annotations", []):
            if not isinstance(one, dict):
                raise ValueError(f"an annotation of task {number} is {brief(one)}; expected an object")
            who = _annotator(one)
            if who not in newest or str(one.get("updated_at")) >= str(newest[who].get("updated_at")):
                newest[who] = one
        for who, one in newest.items():
            yield partial(_answer, number, task, one, who, size_of)


# -------------------------------------------------------------------- writing


def _interface(classes: Sequence[str]) -> str:
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
        for name, colour in zip(classes, hex_colours(classes), strict=True)
    )
    brushes = "".join(
        f'  <Header value="{title}"/>\n  <BrushLabels name="{name}" toName="image">\n{labels}'
        "  </BrushLabels>\n"
        for name, title in (("labels", "Labels"), ("model", "Labels of the model alone"))
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'{brushes}  <Choices name="{_VERDICT}" toName="image">\n    <Choice value="{REJECT}"/>\n'
        "  </Choices>\n</View>\n"
    )


def _task(run: str, image: Sent) -> dict[str, Any]:
    width, height = image.size_wh
    result = [
        {
            "id": f"{image.image_id}-{number}",
            "type": "brushlabels",
            "from_name": _BRUSHES[one.source],
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one.score,
            "value": {
                "format": "rle",
                "rle": brush_from_mask(decode(one.mask)),
                "brushlabels": [one.class_name],
            },
        }
        for number, one in enumerate(image.objects)
    ]
    data = {"image": "", "image_id": image.image_id, "run": run, "prompt": image.prompt}
    return {"data": data, "predictions": [{"model_version": "diffugen", "result": result}]}


# -------------------------------------------------------------------- reading


def _annotator(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return "" if who is None else str(who)[:200]


def _answer(
    number: int, task: Mapping[str, Any], annotation: Mapping[str, Any], who: str, size_of: SizeOf
) -> Answer | None:
    if annotation.get("was_cancelled"):
        return None
    try:
        data = task["data"]
        image_id = data.get("image_id") or image_of(data["image"])
        if not isinstance(image_id, str):
            raise TypeError("an image id that is not a text")
        size_wh = size_of(image_id)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"task {number} does not say which image it is (data.image_id)") from error
    try:
        results = [one for one in annotation.get("result", []) if one["type"] != "relation"]
        choices = [name for one in results for name in one["value"].get("choices", [])]
        objects = tuple(_drawn(one, size_wh) for one in results if one["type"] != "choices")
    except ValueError as error:
        raise ValueError(f"image {image_id}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"image {image_id}: an annotation is damaged; export the project again") from error
    at = annotation.get("updated_at") or annotation.get("created_at") or ""
    return Answer(image_id, objects, REJECT if REJECT in choices else REVIEWED, who, str(at))


def _drawn(result: Mapping[str, Any], size_wh: tuple[int, int]) -> Drawn:
    kind, value = result["type"], result["value"]
    if kind not in ("brushlabels", "polygonlabels"):
        raise ValueError(f"a {brief(kind)}; only brush masks and polygons can be read")
    (name,) = value[kind] if len(value[kind]) == 1 else (None,)
    if not isinstance(name, str):
        raise ValueError(f"a region has the labels {brief(value[kind])}; give it one")
    given = result.get("original_width"), result.get("original_height")
    if given != size_wh or result.get("image_rotation", 0):
        raise ValueError(
            f"it has {given[0]} x {given[1]} px here, {size_wh[0]} x {size_wh[1]} in the run, or was turned; "
            "annotate the images that were written"
        )
    try:
        mask = _brush(value, size_wh) if kind == "brushlabels" else _polygon(value, size_wh)
    except ValueError as error:
        raise ValueError(f"a region of {brief(name)}: {error}") from error
    sources = {brush: source for source, brush in _BRUSHES.items()}
    return Drawn(name, mask, sources.get(str(result.get("from_name")), ""))


def _brush(value: Mapping[str, Any], size_wh: tuple[int, int]) -> RLE:
    mask = mask_from_brush(value["rle"], size_wh)
    if not mask.any():
        raise ValueError("it has no pixels")
    return encode(mask)


def _polygon(value: Mapping[str, Any], size_wh: tuple[int, int]) -> RLE:
    """Return the mask of a polygon, whose points are in percent of the image."""
    width, height = size_wh
    flat = [share / 100 * side for x, y in value["points"] for share, side in ((x, width), (y, height))]
    return rle_from_rings(rings_from_lists([flat]), size_wh)
