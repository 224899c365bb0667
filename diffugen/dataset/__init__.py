"""Labelled sets: which labels an image trains with, and YOLO-seg and COCO, written and read."""
