"""Labels as the App keeps them, and back: a mask cut to its box, the box relative to the image. Exact both
ways.

Reads and makes the values of FiftyOne's detections without importing it; knows no tags and no samples.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import boxes, decode, encode, rescale
from diffugen.records import RLE, Disagreement, Instances, LabelSet, content_id
from diffugen.review.tags import Unclear
from diffugen.run.codec import rgb_from_png

IN_DATABASE_BYTES = 6_000_000
"""Masks of an image beyond this go to files: a document of MongoDB holds 16 MB, and an image has two label
sets and a third."""

Mask = NDArray[np.bool_]


def crop(rle: RLE) -> tuple[list[float], Mask]:
    """Return a mask's box and its pixels inside it.

    Returns:
        The box ``[x, y, width, height]`` relative to the image, in [0, 1], and the mask bool (h, w). An empty
        mask gives the image's first pixel, not set: a box without area cannot be drawn.
    """
    height, width = rle["size"]
    x0, y0, x1, y1 = (int(edge) for edge in boxes([rle])[0])
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    return [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height], decode(rle)[y0:y1, x0:x1]


def paste(box: Sequence[float], mask: NDArray[Any], size_wh: tuple[int, int]) -> RLE:
    """Return the mask of an image from its part inside a box; the reverse of :func:`crop`.

    A mask of another size than its box in pixels, as when a person has pulled at the box, is scaled to it;
    what lies outside the image is cut off.

    Args:
        box: ``[x, y, width, height]`` relative to the image.
        mask: (h, w); what is not 0 is set.
        size_wh: Width and height of the image in pixels.

    Raises:
        Unclear: The box is not four numbers of some extent, or the mask has no pixels.
    """
    width, height = size_wh
    if len(box) != 4 or not np.isfinite(np.asarray(box, dtype=float)).all() or min(box[2:]) <= 0:
        raise Unclear(f"a box must be [x, y, width, height] with some extent, not {list(box)}")
    if mask.ndim != 2 or not mask.size:
        raise Unclear(f"a mask must have two axes and some pixels, not the shape {mask.shape}")
    x0, y0 = round(box[0] * width), round(box[1] * height)
    x1, y1 = round((box[0] + box[2]) * width), round((box[1] + box[3]) * height)
    inside = mask != 0
    if inside.shape != (y1 - y0, x1 - x0):
        inside = decode(rescale(encode(inside), (max(1, x1 - x0), max(1, y1 - y0))))
    pixels = np.zeros((height, width), dtype=bool)
    left, top = min(max(0, x0), width), min(max(0, y0), height)
    seen = inside[top - y0 : max(0, height - y0), left - x0 : max(0, width - x0)]
    pixels[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return encode(pixels)


def to_detections(
    labels: LabelSet, disagreements: Iterable[Disagreement], masks_folder: Path
) -> list[dict[str, Any]]:
    """Return the arguments of a ``fiftyone.Detection`` for each instance of a label set.

    Those are class, box, mask, score, index in the label set, the score terms, and kind, severity and IoU of
    the disagreement that the instance is part of.

    Args:
        labels: Attention, model or human labels.
        disagreements: The disagreements of the image.
        masks_folder: Where masks go that are too large for the database.
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
    """Return the instances that detections stand for, without score terms; one without a confidence has the
    score 1.

    Args:
        detections: ``fiftyone.Detection`` objects, e.g. as a person left them.
        size_wh: Width and height of the image in pixels.
        classes: Classes that are known; None accepts any.

    Raises:
        Unclear: A detection has no mask, an unknown class, or values that are no label.
    """
    rles, names, scores = [], [], []
    for detection in detections:
        name = detection.label
        if not name or (classes is not None and name not in classes):
            near = difflib.get_close_matches(str(name), sorted(classes or ()), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise Unclear(
                f"the class {name!r} is unknown to the run; {hint}Known are "
                f"{', '.join(sorted(classes or ()))}"
            )
        mask = _mask_of(detection)
        if mask is None:
            raise Unclear(f"a label {name!r} has a box but no mask; give it a mask, or delete it")
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
    """Keep a mask as a PNG named by its content, so that what a person was shown is never overwritten by
    another.
    """
    from PIL import Image

    path = folder.resolve() / f"{content_id(encode(mask))}.png"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path
