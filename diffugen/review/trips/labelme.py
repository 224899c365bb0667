"""labelme's own format: beside each image a JSON file of its name, with masks and polygons.

A mask is a PNG of its box, in base64; the points are the first and the last pixel of the box. Shapes of one
label and one group are one object, as labelme has it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import parse_json, read_text
from diffugen.dataset.files import write_image, write_text
from diffugen.dataset.masks import rings_from_lists, rle_from_rings
from diffugen.errors import brief
from diffugen.labels.shapes import cropped, encode, union
from diffugen.records import RLE
from diffugen.review.judged import Unclear
from diffugen.review.trips.labels import (
    REJECT,
    REVIEWED,
    SIDES,
    Answer,
    Drawn,
    Package,
    Reader,
    Sent,
    SizeOf,
    image_of,
)

NEXT = (
    "Open the folder in labelme: "
    "labelme {folder} --labels {folder}/labels.txt --flags {folder}/flags.txt --nodata"
)

_VERSION = "5.5.0"
_MOST_BYTES = 256 << 20
_ABOUT = "diffugen"


def write(folder: Path, package: Package) -> None:
    """Write an image and a JSON file for each image, and the texts for labelme's options."""
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in package.classes))
    write_text(folder / "flags.txt", f"{REVIEWED}\n{REJECT}\n")
    for image in package.images:
        write_image(folder / f"{image.image_id}.png", image.rgb)
        content = json.dumps(_content(package.run, image), indent=2, ensure_ascii=False)
        write_text(folder / f"{image.image_id}.json", content + "\n")


def read(path: Path, size_of: SizeOf) -> Iterator[Reader]:
    """Yield readers of the JSON files of a folder, or of one file.

    Raises:
        ValueError: The folder has no JSON files.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError("it contains no JSON files; give the folder in which labelme has saved them")
    for file in files:
        yield partial(_answer, file, size_of)


def _content(run: str, image: Sent) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "flags": {REVIEWED: False, REJECT: False},
        "shapes": [_shape(one) for one in image.objects],
        "imagePath": f"{image.image_id}.png",
        "imageData": None,
        "imageHeight": image.size_wh[1],
        "imageWidth": image.size_wh[0],
        _ABOUT: {"run": run, "image_id": image.image_id, "prompt": image.prompt},
    }


def _shape(one: Drawn) -> dict[str, Any]:
    part, (left, top) = cropped(one.mask)
    height, width = part.shape
    return {
        "label": one.class_name,
        "points": [[float(left), float(top)], [float(left + width - 1), float(top + height - 1)]],
        "group_id": None,
        "description": one.source,
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(_png(part)).decode("ascii"),
    }


def _png(mask: NDArray[np.bool_]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
    return buffer.getvalue()


# -------------------------------------------------------------------- reading


def _answer(file: Path, size_of: SizeOf) -> Answer:
    try:
        return _read(file, size_of)
    except OSError as error:
        raise ValueError(f"cannot read {file.name}: {error.strerror or error}") from error
    except (ValueError, Unclear) as error:
        raise ValueError(f"{file.name}: {error}") from error
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file.name}: {_NOT_LABELME}") from error


_NOT_LABELME = "not a file of labelme; expected shapes, imagePath, imageHeight, imageWidth and flags"


def _read(file: Path, size_of: SizeOf) -> Answer:
    content = parse_json(read_text(file, _MOST_BYTES))
    if isinstance(content, dict) and "decisions" in content:
        raise ValueError("it is a decisions file; import it with --decisions")
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError(_NOT_LABELME)
    about = content.get(_ABOUT) or {}
    image_id = about.get("image_id") or image_of(content["imagePath"])
    if not isinstance(image_id, str):
        raise ValueError(_NOT_LABELME)
    size_wh = size_of(image_id)
    given = content.get("imageWidth"), content.get("imageHeight")
    if given != size_wh:
        raise ValueError(
            f"the image has {given[0]} x {given[1]} px here, {size_wh[0]} x {size_wh[1]} in the "
            "run; annotate the images that were written"
        )
    flags = content.get("flags") or {}
    mark = next((one for one in (REJECT, REVIEWED) if flags.get(one) is True), "")
    return Answer(image_id, _objects(content["shapes"], size_wh), mark)


def _objects(shapes: list[Any], size_wh: tuple[int, int]) -> tuple[Drawn, ...]:
    """Return the objects; shapes of one label and one group are pieces of the same one."""
    grouped: dict[Any, list[Drawn]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        key = number if group is None else (shape["label"], str(group))
        grouped.setdefault(key, []).append(_drawn(shape, size_wh))
    return tuple(
        pieces[0]
        if len(pieces) == 1
        else Drawn(pieces[0].class_name, union([one.mask for one in pieces]), pieces[0].source)
        for pieces in grouped.values()
    )


def _drawn(shape: dict[str, Any], size_wh: tuple[int, int]) -> Drawn:
    name, kind, points = shape["label"], shape.get("shape_type"), shape["points"]
    if kind not in ("mask", "polygon"):
        raise ValueError(f"a {brief(kind)} of {brief(name)}; only masks and polygons can be read")
    if not isinstance(name, str):
        raise ValueError(f"a {kind} has the label {brief(name)}; expected a text")
    source = shape.get("description")
    try:
        if kind == "mask":
            mask = _mask(shape["mask"], points, size_wh)
        else:
            mask = rle_from_rings(rings_from_lists([[value for point in points for value in point]]), size_wh)
    except ValueError as error:
        raise ValueError(f"a {kind} of {brief(name)}: {error}") from error
    return Drawn(name, mask, source if source in SIDES else "")


def _mask(text: str, points: list[list[float]], size_wh: tuple[int, int]) -> RLE:
    (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
    if not (0 <= left <= right < size_wh[0] and 0 <= top <= bottom < size_wh[1]):
        raise ValueError(f"its box, from {left}, {top} to {right}, {bottom}, is not inside the image")
    part = _pixels(text, (right - left + 1, bottom - top + 1))
    whole = np.zeros(size_wh[::-1], dtype=np.bool_)
    whole[top : bottom + 1, left : right + 1] = part
    if not part.any():
        raise ValueError("it has no pixels")
    return encode(whole)


def _pixels(text: str, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.size == size_wh:  # checked before anything is decompressed
                return np.asarray(image.convert("L")) > 0
            found = image.size
    except Exception as error:  # Pillow's errors are of several unrelated types
        raise ValueError(f"its PNG is damaged ({error})") from error
    raise ValueError(f"its PNG has {found[0]} x {found[1]} px; its points say {size_wh[0]} x {size_wh[1]}")
