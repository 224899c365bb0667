"""Measure the ledger of runs with many images, and write ``ledger.md`` beside this file.

    python reports/speed/ledger.py --work runs/ledger

The ledgers are planted: rows of images with attention and model labels, a disagreement on every seventh, and
a decision on every tenth, but on no more than about 10,000, for people make them. The configuration is that
of the miniature. The files of images are empty; they are only looked for. Each operation runs in its own
process, whose peak memory is measured too (on Linux). The sizes differ by factors of ten, which shows what is
not linear.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from textwrap import fill

import numpy as np

from diffugen.config.load import load_config
from diffugen.labels.shapes import encode
from diffugen.records import ImageRecord, Instances, Phrase, Prompt
from diffugen.run import codec
from diffugen.run.ledger import LEDGER_NAME
from diffugen.run.places import PREFIXES
from diffugen.run.rows import audit_place
from diffugen.run.store import RunStore

HERE = Path(__file__).parent
NOW = "2026-01-01T00:00:00+00:00"
DECISIONS = 10_000
BASE = (
    "import time\nimport contextlib, os, sys\nfrom diffugen.run import Run, RunStore\n"
    "from itertools import islice\nfrom diffugen.review.queue import count_queue, read_queue\n"
    "def status():\n"
    "    from diffugen.cli.app import app\n"
    "    with open(os.devnull, 'w') as out, contextlib.redirect_stdout(out):\n"
    "        app(['status', sys.argv[1]], standalone_mode=False)\n"
    "def files_missing():\n"
    "    with RunStore.open(folder) as store:\n"
    "        assert not Run(store, (), 0).round(0).files_missing()\n"
)
OPERATIONS = {
    "open for reading": "RunStore.open(folder, readonly=True).close()",
    "open for writing": "RunStore.open(folder).close()",
    "counts of all rounds": "RunStore.open(folder, readonly=True).summary()",
    "numbers of the review queue": "count_queue(RunStore.open(folder, readonly=True))",
    "the whole review queue, in its order": "read_queue(RunStore.open(folder, readonly=True)).waiting",
    "the command `status`, imports included": "status()",
    "whether files are lost, first look": "files_missing()",
    "whether files are lost, again": "files_missing()",
    "next batch without labels": (
        "list(islice(RunStore.open(folder, readonly=True).label_ids_missing('attention', 'otsu'), 32))"
    ),
    "first page of newest labels": (
        "list(islice(RunStore.open(folder, readonly=True).latest_labels('model', 0), 500))"
    ),
    "200 audits": "RunStore.open(folder, readonly=True).draw_agreed(0, 200)",
    "number of labels and objects": (
        "RunStore.open(folder, readonly=True).count_labels('attention', 'otsu')"
    ),
    "all decisions": "sum(1 for _ in RunStore.open(folder, readonly=True).decisions())",
    "all records": "sum(1 for _ in RunStore.open(folder, readonly=True).records())",
}


def plant(folder: Path, images: int) -> None:
    """Create a ledger with rows of this many images."""
    shutil.rmtree(folder, ignore_errors=True)
    with RunStore.create_or_open(folder, config=load_config("miniature").dump()) as store:
        kinds = (store.image_files, store.heat_map_files)
    for kind, prefix in itertools.product(kinds, PREFIXES):
        (kind.folder / prefix).mkdir(parents=True)
    phrase = Phrase("grand piano", "piano")
    record = ImageRecord(Prompt("a grand piano on a road", (phrase,)), 0, (96, 64), "miniature")
    mask = np.zeros((64, 96), dtype=np.bool_)
    mask[20:50, 10:40] = True
    labels = codec.instances_to_json(Instances((96, 64), ("piano",), (encode(mask),), np.array([0.8])))

    def rows() -> Iterator[tuple[str, str]]:
        for seed in range(images):
            one = dataclasses.replace(record, seed=seed)
            yield one.id, codec.record_to_json(one)

    source = rows()
    connection = sqlite3.connect(folder / LEDGER_NAME)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -1000000")
    while page := list(islice(source, 10_000)):
        for kind, (image_id, _) in itertools.product(kinds, page):
            (kind.folder / image_id[:2] / f"{image_id}{kind.suffix}").touch()
        with connection:
            connection.executemany(
                "INSERT INTO images (id, round, record, seconds, bytes, created_at, audit) "
                "VALUES (?, 0, ?, 1.0, 9, ?, ?)",
                [(image_id, text, NOW, audit_place(image_id)) for image_id, text in page],
            )
            connection.executemany(
                "INSERT INTO labels (image_id, source, method, round, instances, objects, created_at) "
                "VALUES (?, ?, 'otsu', 0, ?, 1, ?)",
                [(one, source, labels, NOW) for source in ("attention", "model") for one, _ in page],
            )
            connection.executemany(
                "INSERT INTO decisions (image_id, verdict, instances, reviewer, round, created_at) "
                "VALUES (?, 'edited', ?, 'anna', 0, ?)",
                [(one, labels, NOW) for one, _ in page[:: max(10, images // DECISIONS)]],
            )
            connection.executemany(
                "INSERT INTO disagreements (image_id, round, kind, severity, attention, model, iou) "
                "VALUES (?, 0, 'badly_located', 0.5, 0, 0, 0.3)",
                [(one,) for one, _ in page[::7]],
            )
    connection.close()


def measure(operation: str, folder: Path) -> tuple[float, float]:
    """Return the time of an operation in seconds, and the peak memory of its process in MB."""
    code = (
        f"{BASE}folder = sys.argv[1]\n"
        f"start = time.perf_counter()\n{operation}\nspent = time.perf_counter() - start\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(spent, int(peak) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    spent, peak = map(float, done.stdout.split())
    return spent, peak


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/ledger"))
    arguments = parser.parse_args()
    sizes = arguments.sizes
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}
    folders = {size: arguments.work / str(size) for size in sizes}
    for size, folder in folders.items():
        start = time.perf_counter()
        plant(folder, size)
        print(size, "planted", round(time.perf_counter() - start, 1), flush=True)
    for name, operation in OPERATIONS.items():
        repeats = 1 if name.endswith("first look") else arguments.repeats
        # The sizes take turns: what else the machine does meets all of them.
        runs = [[measure(operation, folder) for folder in folders.values()] for _ in range(repeats)]
        for of_size in zip(*runs, strict=True):
            seconds, peaks = zip(*of_size, strict=True)
            measured[name].append((statistics.median(seconds), max(peaks)))
        print(name, json.dumps(measured[name]), flush=True)
    for folder in folders.values():
        shutil.rmtree(folder)
    given = f"--sizes {' '.join(map(str, sizes))} --repeats {arguments.repeats}"
    command = f"python reports/speed/ledger.py {given}"
    lines = [
        "# The ledger of a run with many images",
        "",
        fill(
            f"Measured by `{command}`, which also describes the planted ledgers "
            f"(n = {arguments.repeats}, median; n = 1 for a first look). The machine was shared: compare "
            "ratios, not seconds; for that, the sizes took turns. Every operation opens the run first.",
            120,
            break_on_hyphens=False,
        ),
        "",
        f"| operation | {' | '.join(f'{size:,} images: s | MB' for size in sizes)} |",
        "|---|" + "---|---|" * len(sizes),
    ]
    for name, found in measured.items():
        lines.append(f"| {name} | {' | '.join(f'{spent:.3f} | {peak:.0f}' for spent, peak in found)} |")
    (HERE / "ledger.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
