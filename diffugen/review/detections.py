"""Labels in FiftyOne's form and back: a mask cut to its box, the box relative to the image; both ways exact.

Reads and makes the values of FiftyOne's detections without importing it; knows no tags and no samples.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import did_you_mean
from diffugen.labels.shapes import boxes, decode, encode
from diffugen.records import RLE, Disagreement, Instances, LabelSet, content_id
from diffugen.review.judged import Unclear
from diffugen.run.codec import rgb_from_png
from diffugen.run.files import write_file

IN_DATABASE_BYTES = 6_000_000
"""Larger masks of a label set go to files: a MongoDB document holds 16 MB and has three label sets."""

Mask = NDArray[np.bool_]


def crop(rle: RLE) -> tuple[list[float], Mask]:
    """Return a mask's box and its pixels inside it.

    Returns:
        The box ``[x, y, width, height]`` relative to the image, in [0, 1], and the mask bool (h, w). For an
        empty mask, one unset pixel: a box without area cannot be drawn.
    """
    height, width = rle["size"]
    x0, y0, x1, y1 = (int(edge) for edge in boxes([rle])[0])
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    return [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height], decode(rle)[y0:y1, x0:x1]


def paste(box: Sequence[float], mask: NDArray[Any], size_wh: tuple[int, int]) -> RLE:
    """Return the mask of an image from its part inside a box; the reverse of :func:`crop`.

    A mask whose size differs from its box in pixels was made at another scale: a person has resized the box,
    or painted in the App, which paints at the resolution of the screen. A pixel is then set where the mask
    covers at least half of it; the box may lie between pixels. Parts outside the image are cut off.

    Args:
        box: ``[x, y, width, height]`` relative to the image.
        mask: (h, w); every value other than 0 is set.
        size_wh: Width and height of the image in pixels.

    Raises:
        Unclear: The box is not four numbers with a positive width and height, or the mask has no pixels.
    """
    width, height = size_wh
    if len(box) != 4 or not np.isfinite(np.asarray(box, dtype=float)).all() or min(box[2:]) <= 0:
        raise Unclear(f"a box must be [x, y, width, height] with positive width and height, not {list(box)}")
    if mask.ndim != 2 or not mask.size:
        raise Unclear(f"a mask must have two axes and at least one pixel, not the shape {mask.shape}")
    x0, y0 = round(box[0] * width), round(box[1] * height)
    x1, y1 = round((box[0] + box[2]) * width), round((box[1] + box[3]) * height)
    inside = mask != 0
    if inside.shape != (y1 - y0, x1 - x0):
        across = _per_pixel(inside.T, box[0] * width, box[2] * width, width)
        return encode(_per_pixel(across.T, box[1] * height, box[3] * height, height) >= 0.5 - 1e-6)
    pixels = np.zeros((height, width), dtype=bool)
    left, top = min(max(0, x0), width), min(max(0, y0), height)
    seen = inside[top - y0 : max(0, height - y0), left - x0 : max(0, width - x0)]
    pixels[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return encode(pixels)


def _per_pixel(values: NDArray[Any], start: float, length: float, count: int) -> NDArray[np.float64]:
    """Return how much of each pixel rows cover that together fill a stretch of an axis.

    Args:
        values: (rows, ...).
        start: Where the first row begins, in pixels.
        length: Length of all rows, in pixels.
        count: How many pixels the axis has.

    Returns:
        (count, ...).
    """
    rows = len(values)
    sums = np.zeros((rows + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:])
    places = np.clip((np.arange(count + 1) - start) / length * rows, 0, rows)
    below = np.minimum(places.astype(int), rows - 1)
    part = (places - below).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(sums[below] * (1 - part) + sums[below + 1] * part, axis=0) * (length / rows)


def to_detections(
    labels: LabelSet, disagreements: Iterable[Disagreement], masks_folder: Path
) -> list[dict[str, Any]]:
    """Return the arguments of a ``fiftyone.Detection`` for each instance of a label set.

    They are class, box, mask, score, index in the label set, the score terms, and kind, severity and IoU of
    the disagreement about the instance.

    Args:
        labels: Attention, model or human labels.
        disagreements: The disagreements of the image.
        masks_folder: Folder for masks that are too large for the database.
    """
    points = {getattr(one, labels.source, None): one for one in disagreements}
    instances = labels.instances
    crops = [crop(rle) for rle in instances.rles]
    in_files = sum(mask.size for _, mask in crops) > IN_DATABASE_BYTES
    found = []
    for index, (box, mask) in enumerate(crops):
        point = points.get(index)
        marks = {"kind": point.kind, "severity": point.severity, "iou": point.iou} if point else {}
        where = {"mask_path": str(_mask_file(masks_folder, mask))} if in_files else {"mask": mask}
        found.append(
            {
                **{name: float(value) for name, value in instances.terms[index].items()},
                "label": instances.class_names[index],
                "bounding_box": box,
                "confidence": float(instances.scores[index]),
                "index": index,
                **where,
                **marks,
            }
        )
    return found


def to_instances(
    detections: Iterable[Any], size_wh: tuple[int, int], classes: Collection[str] | None
) -> Instances:
    """Return the instances that detections describe, without score terms.

    Args:
        detections: ``fiftyone.Detection`` objects, e.g. as a person left them; the confidence becomes the
            score, 1 if there is none.
        size_wh: Width and height of the image in pixels.
        classes: Known classes; None accepts any.

    Raises:
        Unclear: A detection has no mask, an unknown class, or invalid values.
    """
    rles, names, scores = [], [], []
    for detection in detections:
        name = detection.label
        if not name or (classes is not None and name not in classes):
            known = sorted(classes or ())
            raise Unclear(
                f"the run has no class {name!r}{did_you_mean(str(name), known)}; its classes are "
                f"{', '.join(known)}"
            )
        mask = _mask_of(detection)
        if mask is None:
            raise Unclear(f"a label {name!r} has a box but no mask; add a mask, or delete the label")
        score = 1.0 if detection.confidence is None else float(detection.confidence)
        if not 0 <= score <= 1:
            raise Unclear(f"the confidence of a label {name!r} is {score}, not in [0, 1]")
        rles.append(paste(detection.bounding_box, mask, size_wh))
        names.append(name)
        scores.append(score)
    return Instances(size_wh, tuple(names), tuple(rles), np.array(scores))


def _mask_of(detection: Any) -> NDArray[Any] | None:
    if detection.mask is not None:
        return np.asarray(detection.mask)
    if not detection.mask_path:
        return None
    try:
        return rgb_from_png(Path(detection.mask_path).read_bytes())[..., 0]
    except Exception as error:  # Pillow raises a dozen unrelated kinds over damaged bytes
        raise Unclear(f"the mask {detection.mask_path} cannot be read ({error})") from error


def _mask_file(folder: Path, mask: Mask) -> Path:
    """Save a mask as a PNG named by a hash of its content, so that no other mask ever overwrites it."""
    from PIL import Image

    path = folder.resolve() / f"{content_id(encode(mask))}.png"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG")
        write_file(path, buffer.getvalue())
    return path
