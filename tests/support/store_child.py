"""Sample records for the tests of the store, and the child processes that these tests kill.

store_child.py write FOLDER        write the sample run, or continue it; print one line per image
store_child.py hold FOLDER         open the run for writing and wait
store_child.py limit FOLDER BYTES  write the sample run with files limited to BYTES; print the error
store_child.py merge FOLDER STEP   for n = 1, 1 + STEP, ...: merge two runs, killed before line n, twice
store_child.py lines FOLDER STEP   for n = 1, 1 + STEP, ...: write FOLDER/n, killed before its n-th line
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from pycocotools import mask as coco

from diffugen.errors import StoreError
from diffugen.records import Decision, HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run.results import TaskImages
from diffugen.run.store import RunStore

CONFIG = {"prompts": {"seed": 3}, "generate": {"batch_size": 4, "steps": 20}}
SIZE_WH = (40, 24)


def make_record(number: int, **changes: Any) -> ImageRecord:
    prompt = Prompt(
        f"a grand piano on a wet road, {number}",
        (Phrase("grand piano", "piano"), Phrase("road", None)),
        negative="blurry",
        attributes={"weather": "Regen, völlig nass"},
    )
    fields: dict[str, Any] = {
        "seed": number,
        "size_wh": SIZE_WH,
        "model": "miniature",
        "round": number % 3,
        **changes,
    }
    return ImageRecord(
        prompt, settings={"num_inference_steps": 20, "guidance_scale": 7.5, "scheduler": None}, **fields
    )


def make_rgb(record: ImageRecord) -> np.ndarray:
    width, height = record.size_wh
    return np.random.default_rng(record.seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_heat_maps(record: ImageRecord) -> HeatMaps:
    random = np.random.default_rng(record.seed)
    shapes = {"up-3x5": (2, 3, 3, 5), "mid-2x3": (2, 3, 2, 3)}
    maps = {group: random.random(shape).astype(np.float16) for group, shape in shapes.items()}
    return HeatMaps(record.id, record.size_wh, record.prompt.phrases, maps)


def make_labels(
    record: ImageRecord, source: str = "attention", method: str = "otsu", objects: int = 2
) -> LabelSet:
    width, height = record.size_wh
    masks = np.asfortranarray(
        np.random.default_rng(objects).integers(0, 2, (height, width, objects), np.uint8)
    )
    instances = Instances(
        record.size_wh,
        ("piano", "car", "car")[:objects],
        tuple({"size": [height, width], "counts": rle["counts"].decode()} for rle in coco.encode(masks)),
        np.array([1 / 3, 0.0, 1.0])[:objects],
        tuple({"size": 0.1 + n / 7, "contrast": 1.0} for n in range(objects)),
    )
    return LabelSet(record.id, source, instances, method, record.round)


def write_run(folder: Path, count: int, after_image: Callable[[], None] = lambda: None) -> None:
    """Write the sample run of ``count`` images, or continue it."""
    with RunStore.create_or_open(folder, config=CONFIG) as store:
        for record in map(make_record, range(count)):
            if not store.has_image(record.id):
                store.add_image(record, make_rgb(record), make_heat_maps(record), seconds=1.5)
                after_image()
        missing = set(store.label_ids_missing("attention", "otsu"))
        store.put_labels(make_labels(record) for record in store.records() if record.id in missing)
        if store.result(0, "label", TaskImages) is None:
            store.finish_stage(0, "label", TaskImages(count), seconds=0.5)


def hold(folder: Path) -> None:
    with RunStore.create_or_open(folder, config=CONFIG):
        print("ready", flush=True)
        sys.stdin.read()


def limit(folder: Path, size_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    try:
        write_run(folder, 100)
    except StoreError as error:
        print(error)


def lines(folder: Path, step: int) -> None:
    """Fork for each kill, because starting Python and importing everything a hundred times takes minutes."""
    write_run(folder / "warm-up", 1)
    shutil.rmtree(folder)
    number = 1
    while True:
        pid = os.fork()
        if pid == 0:
            sys.settrace(killer(number))
            write_run(folder / str(number), 2)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return
        number += step


def merge(folder: Path, step: int) -> None:
    from diffugen.run.merge import merge as merge_runs

    parts = [folder / "part-1", folder / "part-2"]
    for part, numbers in zip(parts, (range(2), range(1, 4)), strict=True):
        write_part(part, numbers)
    merge_runs(parts, folder / "whole")
    number = 1
    while True:
        into = folder / str(number)
        pid = os.fork()
        if pid == 0:
            sys.settrace(killer(number, "merge"))
            merge_runs(parts, into)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        merge_runs(parts, into)
        if not os.WIFSIGNALED(status):
            return
        number += step


def write_part(folder: Path, numbers: Iterable[int], **changes: Any) -> None:
    """Write a run of the miniature's configuration with these sample images, their labels and a decision."""
    from diffugen.config import load_config

    overrides = [f"{key}={value}" for key, value in changes.items()]
    with RunStore.create_or_open(folder, config=load_config("miniature", overrides).dump()) as store:
        for record in [make_record(number, round=0) for number in numbers]:
            store.add_image(record, make_rgb(record), make_heat_maps(record), seconds=1.5)
            store.put_labels([make_labels(record)])
            labels = make_labels(record, objects=1).instances
            store.add_decisions([Decision(record.id, "edited", labels, folder.name, 0)])
        store.put_source("photo", np.zeros((4, 6, 3), np.uint8))
        store.drop_image(make_record(100 + max(numbers)), "black")


def killer(number: int, *more: str) -> Any:
    """Return a trace function that kills this process before the ``number``-th line in the store's files."""
    own = tuple(
        str(Path(sys.modules[f"diffugen.run.{name}"].__file__ or ""))
        for name in ("store", "images", "labels", "files", "places", "ledger", *more)
    )
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in own:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def main(job: str, folder: Path, *numbers: str) -> None:
    if job == "write":
        write_run(folder, 30, lambda: print("image", flush=True))
    elif job == "hold":
        hold(folder)
    elif job == "limit":
        limit(folder, int(numbers[0]))
    elif job == "merge":
        merge(folder, int(numbers[0]))
    else:
        lines(folder, int(numbers[0]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
