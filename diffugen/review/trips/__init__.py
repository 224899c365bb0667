"""Round trips: the review queue to CVAT, Label Studio or labelme, and back as decisions.

`trip` has the two steps, `write_trip` and `read_trip`; `labels` says which labels are written; each tool has
a module that knows its files; `answers` turns what a person left there into decisions.
"""
