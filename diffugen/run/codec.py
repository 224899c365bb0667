"""Convert records to JSON, PNG and npz and back: the formats of the files in a run directory.

Lossless in both directions: floats keep every bit, masks stay run-length encoded, heat maps stay float16, and
equal records give equal bytes. Nothing is pickled. Does not know where the bytes are stored or who reads
them. Pillow is imported only to encode or decode a PNG.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.records import HeatMaps, ImageRecord, Instances, Phrase, Prompt

_ABOUT = "about"
"""Name of the JSON entry in an npz of heat maps; no layer group has it (``<place>-<h>x<w>``)."""


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
    """Return the image record that :func:`record_to_json` wrote."""
    fields = json.loads(text)
    prompt = fields.pop("prompt")
    width, height = fields.pop("size_wh")
    phrases = _phrases_from_lists(prompt.pop("phrases"))
    return ImageRecord(prompt=Prompt(phrases=phrases, **prompt), size_wh=(width, height), **fields)


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
    """Return the objects that :func:`instances_to_json` wrote."""
    fields = json.loads(text)
    width, height = fields["size_wh"]
    return Instances(
        size_wh=(width, height),
        class_names=tuple(fields["class_names"]),
        rles=tuple({"size": [height, width], "counts": counts} for counts in fields["counts"]),
        scores=np.array(fields["scores"], dtype=np.float64),
        terms=tuple(fields["terms"]),
        rivals=tuple(fields.get("rivals", ())),
    )


def rgb_to_png(rgb: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 (H, W, 3), as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)  # many times faster, slightly larger
    return buffer.getvalue()


def rgb_from_png(data: bytes) -> NDArray[np.uint8]:
    """Return the image, uint8 (H, W, 3), in the bytes of a PNG file.

    Raises:
        Exception: One of Pillow's errors, of several unrelated types: the bytes are not a complete PNG.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.array(image.convert("RGB"), dtype=np.uint8)


def heat_maps_to_npz(heat_maps: HeatMaps) -> bytes:
    """Return heat maps as a compressed npz: one float16 array per layer group, and ``about`` as JSON."""
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
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        about = json.loads(str(archive[_ABOUT]))
        maps = {group: archive[group] for group in archive.files if group != _ABOUT}
    width, height = about["size_wh"]
    phrases = _phrases_from_lists(about["phrases"])
    window = about.get("window")
    return HeatMaps(
        about["image_id"],
        (width, height),
        phrases,
        maps,
        about.get("region"),
        None if window is None else tuple(window),
    )


def _phrases_to_lists(phrases: tuple[Phrase, ...]) -> list[list[str | None]]:
    return [[phrase.text, phrase.class_name] for phrase in phrases]


def _phrases_from_lists(lists: list[Any]) -> tuple[Phrase, ...]:
    return tuple(Phrase(text, class_name) for text, class_name in lists)
