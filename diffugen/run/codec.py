"""Convert records to JSON, PNG and npz and back: the formats of the files in a run directory.

Lossless in both directions: floats keep every bit, masks stay run-length encoded, heat maps stay float16, and
equal records give equal bytes. Nothing is pickled. Does not know where the bytes are stored or who reads
them. Pillow is imported only to encode or decode a PNG.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.foreign import parse_json
from diffugen.errors import brief, first_line
from diffugen.records import HeatMaps, ImageRecord, Instances, Judged, Phrase, Prompt
from diffugen.run.rle import check_counts, check_rle, check_size

_ABOUT = "about"
"""Name of the JSON entry in an npz of heat maps; no layer group has it (``<place>-<h>x<w>``)."""

_SELF_ATTENTION = "self-attention"
"""Name of the entry with the self-attention, if it was kept."""

_SOURCE_ID = re.compile(r"[0-9A-Za-z_-]{1,80}")
"""What may name a source image: the id names a file."""

MOST_NPZ_BYTES = 1 << 29
"""The most that the heat maps of an image take in memory."""


def to_json(value: Any) -> str:
    """Return compact JSON with sorted keys, so that equal values give equal text.

    Raises:
        TypeError: ``value`` contains something that JSON cannot represent, such as a path or an array.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def config_to_json(config: Mapping[str, Any]) -> str:
    """Return a configuration as compact JSON, its keys in their order, which is that of the classes' numbers.

    Raises:
        TypeError: As in `to_json`.
    """
    return json.dumps(config, separators=(",", ":"), ensure_ascii=False)


def record_to_json(record: ImageRecord) -> str:
    """Return an image record as JSON."""
    prompt = record.prompt
    return to_json(
        {
            "prompt": {
                "text": prompt.text,
                "phrases": _phrases_to_lists(prompt.phrases),
                "negative": prompt.negative,
                "attributes": dict(prompt.attributes),
                "template": prompt.template,
            },
            "seed": record.seed,
            "size_wh": list(record.size_wh),
            "model": record.model,
            "task": record.task,
            "settings": dict(record.settings),
            "round": record.round,
            "parent": record.parent,
            "region": record.region,
            "origin": record.origin,
            "source": record.source,
            "step": record.step,
        }
    )


def record_from_json(text: str) -> ImageRecord:
    """Return the image record that :func:`record_to_json` wrote.

    Raises:
        ValueError: The text is not such a record.
    """
    fields = _fields(text, prompt=dict, seed=int, size_wh=list, model=str)
    prompt = _typed(fields.pop("prompt"), text=str, phrases=list)
    for name, kind in (("task", str), ("settings", dict), ("round", int), ("origin", str), ("source", str)):
        if not isinstance(fields.get(name, kind()), kind):
            raise ValueError(f"{name} is {fields[name]!r}")
    parent = fields.get("parent")
    if parent is not None and not (isinstance(parent, str) and _SOURCE_ID.fullmatch(parent)):
        raise ValueError(f"parent is {brief(parent)}, not the id of an image or a photo")
    size_wh = check_size(fields.pop("size_wh"))
    if fields.get("region") is not None:
        region = _typed(fields["region"], size=list, counts=str)
        check_rle(region["size"], region["counts"], size_wh)
    phrases = _phrases_from_lists(prompt.pop("phrases"))
    with _as_value_errors():
        return ImageRecord(prompt=Prompt(phrases=phrases, **prompt), size_wh=size_wh, **fields)


def instances_to_json(instances: Instances) -> str:
    """Return the objects of a label set as JSON; the image size, which all masks share, is stored once."""
    values = {
        "size_wh": list(instances.size_wh),
        "class_names": list(instances.class_names),
        "counts": [rle["counts"] for rle in instances.rles],
        "scores": instances.scores.tolist(),
        "terms": [{name: float(value) for name, value in terms.items()} for terms in instances.terms],
    }
    if any(instances.rivals):  # rare, and unknown to earlier versions
        values["rivals"] = [dict(rivals) for rivals in instances.rivals]
    return to_json(values)


def instances_from_json(text: str) -> Instances:
    """Return the objects that :func:`instances_to_json` wrote.

    Raises:
        ValueError: The text does not contain such objects.
    """
    fields = _fields(text, size_wh=list, class_names=list, counts=list, scores=list, terms=list)
    width, height = size_wh = check_size(fields["size_wh"])
    if not all(isinstance(one, str) for one in (*fields["class_names"], *fields["counts"])):
        raise ValueError("a class name or a mask is not text")
    check_counts(fields["counts"], size_wh)
    tables = (*fields["terms"], *fields.get("rivals", ()))
    if not all(isinstance(one, dict) for one in tables) or not all(
        isinstance(value, (int, float)) for one in tables for value in one.values()
    ):
        raise ValueError("score terms that are not numbers by name")
    with _as_value_errors():
        return Instances(
            size_wh=size_wh,
            class_names=tuple(fields["class_names"]),
            rles=tuple({"size": [height, width], "counts": counts} for counts in fields["counts"]),
            scores=np.array(fields["scores"], dtype=np.float64),
            terms=tuple(fields["terms"]),
            rivals=tuple(fields.get("rivals", ())),
        )


def judged_to_json(judged: Iterable[Judged]) -> str:
    """Return what a reviewer said about single objects as JSON."""
    return to_json([{name: value for name, value in asdict(one).items() if value != ""} for one in judged])


def judged_from_json(text: str, size_wh: tuple[int, int]) -> tuple[Judged, ...]:
    """Return what :func:`judged_to_json` wrote about the objects of an image.

    Raises:
        ValueError: The text does not contain that.
    """
    found = []
    with _as_value_errors():
        for one in parse_json(text):
            made = Judged(**one)
            texts = (made.source, made.method, made.class_name or "")
            if type(made.index) is not int or type(made.kept) is not bool or {*map(type, texts)} != {str}:
                raise ValueError("a value of another type")
            if made.mask is not None:
                check_rle(made.mask["size"], made.mask["counts"], size_wh)
            found.append(made)
    return tuple(found)


@dataclass(frozen=True)
class EncodedImage:
    """A generated image as its files contain it.

    Attributes:
        record: Its record.
        png: Its pixels, the bytes of a PNG file.
        npz: Its heat maps, the bytes of an npz file.
        seconds: Time that it took to generate.
    """

    record: ImageRecord
    png: bytes
    npz: bytes
    seconds: float


def encode_image(
    record: ImageRecord, rgb: NDArray[np.uint8], heat_maps: HeatMaps, seconds: float
) -> EncodedImage:
    """Encode a generated image.

    Args:
        record: Its record.
        rgb: Its pixels, uint8 (H, W, 3).
        heat_maps: Its heat maps.
        seconds: Time that it took to generate.

    Raises:
        ValueError: Pixels or heat maps do not match the record.
    """
    width, height = record.size_wh
    if rgb.dtype != np.uint8 or rgb.shape != (height, width, 3):
        raise ValueError(
            f"image {record.id} needs pixels uint8 of shape (h, w, 3) = {(height, width, 3)}, got "
            f"{rgb.dtype} {rgb.shape}"
        )
    if (heat_maps.image_id, heat_maps.size_wh) != (record.id, record.size_wh):
        raise ValueError(
            f"image {record.id} of size {record.size_wh} was given the heat maps of image "
            f"{heat_maps.image_id} of size {heat_maps.size_wh}"
        )
    return EncodedImage(record, rgb_to_png(rgb), heat_maps_to_npz(heat_maps), seconds)


def rgb_to_png(rgb: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 (H, W, 3), as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)  # many times faster, slightly larger
    return buffer.getvalue()


def rgb_from_png(data: bytes, size_wh: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return the image, uint8 (H, W, 3), in the bytes of a PNG file.

    Args:
        data: The bytes.
        size_wh: Width and height that it must have, checked before it is decompressed; None for any.

    Raises:
        Exception: One of Pillow's errors, of several unrelated types: the bytes are not a complete PNG.
        ValueError: The image has another size.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if size_wh is not None and image.size != size_wh:
            raise ValueError(f"is {image.width}x{image.height} px, not {size_wh[0]}x{size_wh[1]}")
        return np.array(image.convert("RGB"), dtype=np.uint8)


def heat_maps_to_npz(heat_maps: HeatMaps) -> bytes:
    """Return heat maps as a compressed npz: float16 arrays by name, and ``about`` as JSON."""
    about = {
        "image_id": heat_maps.image_id,
        "size_wh": list(heat_maps.size_wh),
        "phrases": _phrases_to_lists(heat_maps.phrases),
        "region": heat_maps.region,
        "window": heat_maps.window_xyxy,
    }
    entries: dict[str, Any] = {
        group: np.asarray(array, dtype=np.float16) for group, array in heat_maps.maps.items()
    }
    if heat_maps.self_attention is not None:
        entries[_SELF_ATTENTION] = np.asarray(heat_maps.self_attention, dtype=np.float16)
    entries[_ABOUT] = np.array(to_json(about))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **entries)
    return buffer.getvalue()


def heat_maps_from_npz(data: bytes) -> HeatMaps:
    """Return the heat maps that :func:`heat_maps_to_npz` wrote; pickled content is refused.

    Raises:
        Exception: One of numpy's or zipfile's errors, of several unrelated types: the bytes are not such a
            file.
    """
    _check_npz(data)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        about = _fields(str(archive[_ABOUT]), image_id=str, size_wh=list, phrases=list)
        maps = {group: archive[group] for group in archive.files if group != _ABOUT}
    self_attention = maps.pop(_SELF_ATTENTION, None)
    phrases = _phrases_from_lists(about["phrases"])
    window = about.get("window")
    return HeatMaps(
        about["image_id"],
        check_size(about["size_wh"]),
        phrases,
        maps,
        about.get("region"),
        None if window is None else tuple(window),
        self_attention,
    )


def _check_npz(data: bytes) -> None:
    """Check the sizes that an npz declares, before any of it is decompressed.

    Raises:
        ValueError: It is larger than any heat maps are, or the shape of an array does not fit its size.
        Exception: As in :func:`heat_maps_from_npz`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_NPZ_BYTES:
            raise ValueError(f"its arrays take {size / 1e6:,.0f} MB, more than heat maps ever do")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"{entry.filename} has the npy version {version}, not (1, 0)")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} is not as large as its shape {shape} says")
                if dtype != np.float16 and entry.filename != f"{_ABOUT}.npy":
                    raise ValueError(f"{entry.filename} has values of type {dtype}, not float16")


def _phrases_to_lists(phrases: tuple[Phrase, ...]) -> list[list[str | None]]:
    return [[phrase.text, phrase.class_name] for phrase in phrases]


def _phrases_from_lists(lists: list[Any]) -> tuple[Phrase, ...]:
    for one in lists:
        if not isinstance(one, list) or len(one) != 2 or not isinstance(one[0], str):
            raise ValueError(f"{one!r} is not a phrase and its class")
        if not isinstance(one[1], (str, type(None))):
            raise ValueError(f"{one[1]!r} is not the name of a class")
    return tuple(Phrase(text, class_name) for text, class_name in lists)


def _fields(text: str, **kinds: type) -> dict[str, Any]:
    """Return the object in a JSON text after checking that it has values of these types."""
    return _typed(parse_json(text), **kinds)


def _typed(fields: Any, **kinds: type) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{name} is {fields[name]!r}" if name in fields else f"there is no {name}")
    return fields


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Turn what a record raises over values of wrong types or unknown names into a ValueError."""
    try:
        yield
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(first_line(error)) from error
