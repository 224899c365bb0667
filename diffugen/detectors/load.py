"""Open a detector of whatever kind a checkpoint is."""

from __future__ import annotations

from pathlib import Path

from diffugen.detectors import Detector


def open_checkpoint(checkpoint: str | Path, *, device: str = "auto") -> Detector:
    """Return the detector of a checkpoint.

    Args:
        checkpoint: One of the kinds that `diffugen.detectors.mask2former` and
            `diffugen.detectors.yolo_checkpoint` list.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``; or several GPUs to train a YOLO
            model on, such as ``cuda:0,1``.

    Raises:
        ModelError: There is no such checkpoint or device, or it is for another task.

    Example:
        >>> open_checkpoint("miniature").class_names
        ('car', 'truck', 'person', 'traffic cone')
    """
    from diffugen.detectors.mask2former import Mask2FormerDetector, is_mask2former
    from diffugen.detectors.yolo import YoloDetector

    kind = Mask2FormerDetector if is_mask2former(checkpoint) else YoloDetector
    return kind(checkpoint, device=device)
