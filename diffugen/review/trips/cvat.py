"""CVAT's own format, "CVAT for images 1.1": one XML file with masks, and the labels for its label editor.

A mask is the run lengths of its rows inside its box, beginning with those of the background.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import read_text
from diffugen.dataset.files import write_image, write_text
from diffugen.dataset.masks import rings_from_lists, rle_from_rings
from diffugen.errors import brief
from diffugen.labels.shapes import cropped, encode
from diffugen.records import RLE
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
    hex_colours,
    image_of,
)

ANNOTATIONS, LABELS = "annotations.xml", "labels.json"

NEXT = (
    "In CVAT: make a project or task with the labels of labels.json (Raw) and the files of images/, then "
    "upload annotations.xml as CVAT 1.1. When done, export as CVAT for images 1.1."
)

MOST_BYTES = 256 << 20
_SHAPES = ("mask", "polygon")
_OTHERS = ("box", "polyline", "points", "ellipse", "cuboid", "skeleton")


def write(folder: Path, package: Package) -> None:
    """Write ``images/``, ``annotations.xml`` and ``labels.json`` into a folder."""
    labels = _labels(package.classes)
    write_text(folder / LABELS, json.dumps(labels, indent=2, ensure_ascii=False) + "\n")
    parts = ['<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n']
    parts.append(_text(_meta(package.run, labels)))
    for number, image in enumerate(package.images):
        write_image(folder / "images" / f"{image.image_id}.png", image.rgb)
        parts.append(_text(_image(number, image)))
    write_text(folder / ANNOTATIONS, "".join([*parts, "</annotations>\n"]))


def read(file: Path, size_of: SizeOf) -> Iterator[Reader]:
    """Yield readers of the images of ``annotations.xml``, or of a zip file that contains it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a file.
    """
    text = _from_zip(file) if file.suffix.lower() == ".zip" else read_text(file, MOST_BYTES)
    # No tool writes a document type, and only there can a text grow when it is read.
    if re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise ValueError("it has a document type; CVAT writes none. Export it from CVAT again")
    try:
        root = xml.fromstring(text)
    except (xml.ParseError, ValueError) as error:
        raise ValueError(f"invalid XML: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError(
            f"it has <{'track' if root.tag == 'annotations' else root.tag[:40]}>, not CVAT's annotations of "
            "images; export the task as CVAT for images 1.1"
        )
    for element in root.iter("image"):
        yield partial(_answer, element, size_of)


# -------------------------------------------------------------------- writing


def _labels(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the labels as CVAT's raw label editor takes them."""
    source = {
        "name": "source",
        "mutable": False,
        "input_type": "select",
        "default_value": "human",
        "values": ["human", *SIDES],
    }
    labels: list[dict[str, Any]] = [
        {"name": name, "color": colour, "type": "any", "attributes": [source]}
        for name, colour in zip(classes, hex_colours(classes), strict=True)
    ]
    marks = (one for one in (REVIEWED, REJECT) if one not in classes)
    return [*labels, *({"name": one, "type": "tag", "attributes": []} for one in marks)]


def _meta(run: str, labels: Sequence[dict[str, Any]]) -> xml.Element:
    meta = xml.Element("meta")
    task = xml.SubElement(meta, "task")
    xml.SubElement(task, "name").text = run
    listed = xml.SubElement(task, "labels")
    for label in labels:
        one = xml.SubElement(listed, "label")
        for key in ("name", "color", "type"):
            if key in label:
                xml.SubElement(one, key).text = label[key]
        attributes = xml.SubElement(one, "attributes")
        for about in label["attributes"]:
            attribute = xml.SubElement(attributes, "attribute")
            for key in ("name", "input_type", "default_value"):
                xml.SubElement(attribute, key).text = about[key]
            xml.SubElement(attribute, "mutable").text = str(about["mutable"])
            xml.SubElement(attribute, "values").text = "\n".join(about["values"])
    return meta


def _image(number: int, image: Sent) -> xml.Element:
    width, height = image.size_wh
    element = xml.Element(
        "image", id=str(number), name=f"{image.image_id}.png", width=str(width), height=str(height)
    )
    for one in image.objects:
        part, (left, top) = cropped(one.mask)
        runs = ", ".join(map(str, _runs(part)))
        box = {"left": left, "top": top, "width": part.shape[1], "height": part.shape[0], "z_order": 0}
        about = {"label": one.class_name, "source": "auto", "occluded": "0", "rle": runs}
        mask = xml.SubElement(element, "mask", {**about, **{key: str(value) for key, value in box.items()}})
        xml.SubElement(mask, "attribute", name="source").text = one.source
    return element


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of a mask's rows, the first of the background."""
    flat = mask.ravel().view(np.int8)
    borders = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    edges = [0, *borders, flat.size]
    return [second - first for first, second in pairwise(edges)]


def _text(element: xml.Element) -> str:
    xml.indent(element)
    return xml.tostring(element, encoding="unicode") + "\n"


# -------------------------------------------------------------------- reading


def _from_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            away = [
                name for name in names if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts
            ]
            if away:
                raise ValueError(f"it has the path {brief(away[0])}, which leaves its folder")
            if ANNOTATIONS not in names:
                raise ValueError(
                    f"it contains no {ANNOTATIONS}; export the task from CVAT as CVAT for images 1.1"
                )
            with archive.open(ANNOTATIONS) as entry:
                data = entry.read(MOST_BYTES + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged or encrypted zip file ({error}); export it from CVAT again") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{ANNOTATIONS} is larger than {MOST_BYTES / 1e6:,.0f} MB, the most that is read")
    return data.decode("utf-8-sig")


def _answer(element: xml.Element, size_of: SizeOf) -> Answer:
    image_id = image_of(element.get("name", ""))
    size_wh = size_of(image_id)
    given = tuple(_number(element, key) for key in ("width", "height"))
    if given != size_wh:
        raise ValueError(
            f"image {image_id} has {given[0]} x {given[1]} px here, {size_wh[0]} x {size_wh[1]} "
            "in the run; annotate the images that were written"
        )
    marks = {child.get("label", "") for child in element if child.tag == "tag"}
    try:
        objects = tuple(_drawn(child, size_wh) for child in element if child.tag in (*_SHAPES, *_OTHERS))
    except ValueError as error:
        raise ValueError(f"image {image_id}: {error}") from error
    return Answer(image_id, objects, next((one for one in (REJECT, REVIEWED) if one in marks), ""))


def _drawn(shape: xml.Element, size_wh: tuple[int, int]) -> Drawn:
    name = shape.get("label", "")
    if shape.tag in _OTHERS:
        raise ValueError(f"a {shape.tag} of {brief(name)}; only masks and polygons can be read")
    attributes = {one.get("name"): one.text or "" for one in shape.iter("attribute")}
    try:
        mask = _mask(shape, size_wh) if shape.tag == "mask" else _polygon(shape, size_wh)
    except ValueError as error:
        raise ValueError(f"a {shape.tag} of {brief(name)}: {error}") from error
    return Drawn(name, mask, attributes.get("source", ""))


def _polygon(shape: xml.Element, size_wh: tuple[int, int]) -> RLE:
    numbers = re.split("[,;]", shape.get("points", ""))
    return rle_from_rings(rings_from_lists([[float(one) for one in numbers]]), size_wh)


def _mask(shape: xml.Element, size_wh: tuple[int, int]) -> RLE:
    left, top, width, height = (_number(shape, key) for key in ("left", "top", "width", "height"))
    if not (0 <= left < left + width <= size_wh[0] and 0 <= top < top + height <= size_wh[1]):
        raise ValueError(f"its box, {width} x {height} px at {left}, {top}, is not inside the image")
    runs = [int(one) for one in shape.get("rle", "").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"its run lengths cover {sum(runs)} of {width * height} px")
    whole = np.zeros(size_wh[::-1], dtype=np.bool_)
    values = np.arange(len(runs)) % 2 == 1
    whole[top : top + height, left : left + width] = np.repeat(values, runs).reshape(height, width)
    if not whole.any():
        raise ValueError("it has no pixels")
    return encode(whole)


def _number(element: xml.Element, key: str) -> int:
    text = element.get(key, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{key} is {brief(text)}; expected a whole number")
    return int(text)
