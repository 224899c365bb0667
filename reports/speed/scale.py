"""Measure commands on runs with many images, and write ``scale.md`` beside this file.

    python reports/speed/scale.py --work runs/scale

The runs are synthetic: a few dozen images of the miniature, repeated under other seeds, with attention
labels, and with slightly shifted copies of them as model labels. Each command runs in its own process, whose
time and peak memory are measured (on Linux). The sizes differ by factors of ten, which shows what is not
linear.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from textwrap import fill

import numpy as np

import diffugen as dg
from diffugen.labels.shapes import decode, encode
from diffugen.records import Instances, LabelSet
from diffugen.run.codec import EncodedImage, heat_maps_to_npz, rgb_to_png
from diffugen.run.store import RunStore

HERE = Path(__file__).parent
MOULDS = 40
BATCH = 500
VARIANTS = 10
COMMANDS = ("compare", "status", "page", "tune", "report", "export", "resume")

Measured = dict[str, dict[str, dict[str, float]]]
"""By command and number of images, the seconds and the megabytes."""


def plant(folder: Path, images: int) -> None:
    """Create a run with this many images, unless it exists."""
    if (folder / "planted").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    config = dg.load_config("miniature", [f"prompts.count={MOULDS}", "loop.truth=null"])
    with dg.open_run(folder, config) as run:
        dg.generate(run)
        method = dg.label(run).method
        moulds = list(run.store.labels("attention", method))
        run.store.put_labels(shifted(one, number) for number, one in enumerate(moulds))
        more = repeated(run.store, moulds, images - len(moulds))
        while batch := list(islice(more, BATCH)):
            run.store.add_encoded(image for image, _ in batch)
            run.store.put_labels(one for _, labels in batch for one in labels)
    (folder / "planted").touch()


def repeated(
    store: RunStore, moulds: list[LabelSet], count: int
) -> Iterator[tuple[EncodedImage, list[LabelSet]]]:
    """Yield the images and labels of a run repeatedly, under new seeds."""
    kept = [
        (store.record(one.image_id), rgb_to_png(store.image(one.image_id)), store.heat_maps(one.image_id))
        for one in moulds
    ]
    variants = [[shifted(one, number) for number in range(VARIANTS)] for one in moulds]
    for number in range(count):
        mould = number % len(moulds)
        record, png, heat_maps = kept[mould]
        other = dataclasses.replace(record, seed=10**6 + number)
        npz = heat_maps_to_npz(dataclasses.replace(heat_maps, image_id=other.id))
        like_model = variants[mould][number // len(moulds) % VARIANTS]
        labels = [dataclasses.replace(one, image_id=other.id) for one in (moulds[mould], like_model)]
        yield EncodedImage(other, png, npz, 0.4), labels


def shifted(labels: LabelSet, number: int) -> LabelSet:
    """Return model labels that resemble attention labels."""
    return LabelSet(labels.image_id, "model", moved(labels.instances, number), "planted")


def moved(instances: Instances, number: int) -> Instances:
    """Return labels like those of a detector: shifted by a few pixels, and none in one variant."""
    if number % VARIANTS == 0:
        return instances.take([])
    rles = tuple(encode(np.roll(decode(rle), number, axis=1)) for rle in instances.rles)
    return dataclasses.replace(instances, rles=rles, scores=np.full(len(rles), 0.9), terms=())


def run(command: str, folder: Path) -> dict[str, float]:
    """Run a command in its own process; return its time in seconds and its peak memory in MB."""
    arguments = {
        "status": ["status", str(folder)],
        "tune": ["tune", "--run", str(folder), "--set", "tune.min_decisions=0", "--set", "tune.trials=3"],
        "export": ["export", str(folder), "--out", str(folder / "export")],
        "page": ["review", "--run", str(folder), "--static"],
        "resume": ["generate", "--run", str(folder)],
    }.get(command, [command, "--run", str(folder)])
    shutil.rmtree(folder / "export", ignore_errors=True)
    (folder / "tune.sqlite").unlink(missing_ok=True)
    code = (
        "import sys; sys.argv = ['diffugen', *sys.argv[1:]]\n"
        "from diffugen.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as stop:\n"
        "    if stop.code: raise\n"
        "print('peak', next(line.split()[1] for line in open('/proc/self/status') if "
        "line.startswith('VmHWM')))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "mb": round(float(done.stdout.rsplit("peak", 1)[1]) / 1024)}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--work", type=Path, default=Path("runs/scale"))
    arguments = parser.parse_args()
    kept = HERE / "scale.json"
    measured: Measured = json.loads(kept.read_text()) if kept.is_file() else {}
    for size in arguments.sizes:
        started = time.perf_counter()
        plant(arguments.work / str(size), size)
        print(size, "planted", round(time.perf_counter() - started, 1), flush=True)
    run("resume", arguments.work / str(arguments.sizes[0]))  # so that no other reads the code from the disk
    for command in arguments.commands:
        found = [run(command, arguments.work / str(size)) for size in arguments.sizes]
        of_command = measured.setdefault(command, {})
        of_command |= {str(size): one for size, one in zip(arguments.sizes, found, strict=True)}
        print(command, json.dumps(measured[command]), flush=True)
        kept.write_text(json.dumps(measured, indent=1) + "\n")
    (HERE / "scale.md").write_text(page(measured))


def page(measured: Measured) -> str:
    """Return the page; what was not measured is a dash."""
    sizes = sorted({int(size) for of_command in measured.values() for size in of_command})
    lines = [
        "# A run with many images",
        "",
        fill(
            f"Measured by `python reports/speed/scale.py --sizes {' '.join(map(str, sizes))}`, which also "
            "describes the runs (n = 1); with fewer `--sizes` or some `--commands`, it measures these again, "
            "and keeps the rest. Each command runs in its own process on two CPU cores, one of which other "
            "work may have used; its time includes start-up and imports. `resume` is `diffugen generate` on "
            "a run whose images all exist; `page` is `diffugen review --static`, with 200 images; `tune` "
            "makes 3 trials of each kind on 300 images, at which a detector looks first. What was not "
            "measured is a dash.",
            120,
            break_on_hyphens=False,
        ),
        "",
        f"| command | {' | '.join(f'{size:,} images: s | MB' for size in sizes)} |",
        "|---|" + "---|---|" * len(sizes),
    ]
    for command in COMMANDS:
        found = [measured.get(command, {}).get(str(size)) for size in sizes]
        cells = [f"{one['seconds']} | {one['mb']:.0f}" if one else "- | -" for one in found]
        lines.append(f"| {command} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
