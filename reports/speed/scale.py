"""Measure commands on a run with many images, and write ``scale.md`` beside this file.

    python reports/speed/scale.py --images 20000 --work runs/scale

The run is synthetic: a few dozen images of the miniature, repeated under other seeds, with attention labels,
and with slightly shifted copies of them as model labels. Each command runs in its own process, whose time and
peak memory are measured (on Linux). A run with a tenth of the images shows how both grow.
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
from diffugen.records import GeneratedImage, HeatMaps, Instances, LabelSet
from diffugen.run.results import Labelled

HERE = Path(__file__).parent
MOULDS = 40
BATCH = 500
COMMANDS = ("status", "compare", "page", "tune", "report", "export", "resume")


def plant(folder: Path, images: int) -> None:
    """Create a run with this many images, unless it exists."""
    if (folder / "planted").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    config = dg.load_config("miniature", [f"prompts.count={MOULDS}", "loop.truth=null"])
    with dg.open_run(folder, config) as run:
        store = run.store
        dg.generate(run)
        moulds = [(one, store.image(one.id), store.heat_maps(one.id), 0.4) for one in store.records()]
        more = repeated(moulds, images - len(moulds))
        while batch := list(islice(more, BATCH)):
            store.add_images(batch)
        labelled: Labelled = dg.label(run)
        labels = store.labels("attention", labelled.method)
        while part := list(islice(labels, BATCH)):
            store.put_labels(
                LabelSet(one.image_id, "model", moved(one.instances, number), "planted")
                for number, one in enumerate(part)
            )
    (folder / "planted").touch()


def repeated(moulds: list[GeneratedImage], count: int) -> Iterator[GeneratedImage]:
    """Yield the images repeatedly, under new seeds."""
    for number in range(count):
        record, rgb, heat_maps, seconds = moulds[number % len(moulds)]
        other = dataclasses.replace(record, seed=10**6 + number)
        yield (other, rgb, HeatMaps(other.id, heat_maps.size_wh, heat_maps.phrases, heat_maps.maps), seconds)


def moved(instances: Instances, number: int) -> Instances:
    """Return labels like those of a detector: shifted by a few pixels, and none on every tenth image."""
    if number % 10 == 0:
        return instances.take([])
    rles = tuple(encode(np.roll(decode(rle), number % 9, axis=1)) for rle in instances.rles)
    return dataclasses.replace(instances, rles=rles, scores=np.full(len(rles), 0.9), terms=())


def run(command: str, folder: Path) -> dict[str, float]:
    """Run a command in its own process; return its time in seconds and its peak memory in MB."""
    arguments = {
        "status": ["status", str(folder)],
        "export": ["export", str(folder), "--out", str(folder / "export")],
        "page": ["review", "--run", str(folder), "--static"],
        "resume": ["generate", "--run", str(folder)],
    }.get(command, [command, "--run", str(folder)])
    shutil.rmtree(folder / "export", ignore_errors=True)
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
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--work", type=Path, default=Path("runs/scale"))
    arguments = parser.parse_args()
    sizes = (arguments.images // 10, arguments.images)
    measured: dict[str, dict[int, dict[str, float]]] = {command: {} for command in COMMANDS}
    for size in sizes:
        folder = arguments.work / str(size)
        plant(folder, size)
        for command in COMMANDS:
            measured[command][size] = run(command, folder)
            print(size, command, json.dumps(measured[command][size]), flush=True)
    small, large = sizes
    lines = [
        "# A run with many images",
        "",
        fill(
            f"Measured by `python reports/speed/scale.py --images {arguments.images}`, which also describes "
            "the synthetic run (n = 1). Each command runs in its own process on two CPU cores; its time "
            "includes start-up and imports. Other work ran on the same cores, and the smaller run was "
            "measured first, with cold imports. "
            "`resume` is `diffugen generate` on a run whose images all exist; `page` is `diffugen review "
            "--static`, with 200 images; `tune` uses at most 300.",
            120,
            break_on_hyphens=False,
        ),
        "",
        f"| command | {small:,} images: s | MB | {large:,} images: s | MB |",
        "|---|---|---|---|---|",
    ]
    for command, by_size in measured.items():
        cells = " | ".join(f"{by_size[size]['seconds']} | {by_size[size]['mb']:.0f}" for size in sizes)
        lines.append(f"| {command} | {cells} |")
    (HERE / "scale.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
