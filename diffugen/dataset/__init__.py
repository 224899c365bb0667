"""Labelled image sets: YOLO-seg and COCO, written and read, and the choice of what to train on.

`write_yolo`, `read_yolo`, `write_coco` and `read_coco` are the formats, `read_truth` reads either with the
classes of a run, and `training_labels` and `split_by_family` choose what a detector is trained on.
"""

from diffugen.dataset.coco import CocoSet, read_coco, write_coco
from diffugen.dataset.files import Item, read_image
from diffugen.dataset.policy import TrainingLabels, split_by_family, training_labels
from diffugen.dataset.truth import Truth, read_truth
from diffugen.dataset.yolo import find_yolo, read_yolo, write_yolo

__all__ = [
    "CocoSet",
    "Item",
    "TrainingLabels",
    "Truth",
    "find_yolo",
    "read_coco",
    "read_image",
    "read_truth",
    "read_yolo",
    "split_by_family",
    "training_labels",
    "write_coco",
    "write_yolo",
]
