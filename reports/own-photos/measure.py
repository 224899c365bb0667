"""Measure the loop on your own photos, and write ``README.md`` beside this file.

    python reports/own-photos/measure.py

Three loops of the same length: pianos on roads from prompts alone, painted into the lower half of photos of
streets, and painted into their lower two thirds. The photos are rendered scenes of the miniature without
pianos; the ground truth is the same for all three. Each loop is a call of `diffugen bootstrap`. After an
interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from textwrap import fill

from diffugen.run.store import RunStore

HERE = Path(__file__).parent
PHOTOS = 80
ROUNDS = 3
WAYS = {
    "prompts alone": [],
    "photos, lower half": ["part: lower half"],
    "photos, lower two thirds": ["part: lower two thirds"],
}
TEMPLATES = "['a photo of a {colour} {piano} on a road', 'a picture of a {piano} on a road']"
COLOURS = "{colour: [black, brown, white]}"


def bootstrap(way: str, seed: int, work: Path) -> list[tuple[float, float]]:
    """Run or continue a loop; return mask AP50 and AP50-95 on the ground truth after each round."""
    folder = work / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
    settings = [f"seed={seed}", f"prompts.count={PHOTOS}", "loop.reference=false", f"loop.patience={ROUNDS}"]
    for region in WAYS[way]:
        tasks = f"[{{task: inpaint, source: '{work / 'photos'}', region: {{{region}}}}}]"
        settings += [f"tasks={tasks}", f"prompts.templates={TEMPLATES}", f"prompts.attributes={COLOURS}"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "diffugen.cli",
        "bootstrap",
        "miniature",
        "--run",
        str(folder),
        "--rounds",
        str(ROUNDS),
    ]
    subprocess.run([*command, *options], check=True)
    with RunStore.open(folder, readonly=True) as store:
        found = [store.results(round).evaluate for round in range(ROUNDS)]
    masks = [one.mask for one in found if one]
    return [(mask.ap50, mask.ap50_95) for mask in masks if mask.ap50 is not None and mask.ap50_95 is not None]


def page(results: dict[str, list[list[tuple[float, float]]]], seeds: list[int]) -> str:
    """Return the page: one row per source of images, one column per round."""
    lines = [
        "# The loop on your own photos",
        "",
        f"Measured by `python reports/own-photos/measure.py --seeds {' '.join(map(str, seeds))}`.",
        "",
        fill(
            f"`diffugen bootstrap` runs {ROUNDS} rounds of {PHOTOS} images on the miniature, without review. "
            "The table gives mask AP on 320 held-out scenes of pianos on roads, whose masks are exact. The "
            f"photos are {PHOTOS} scenes without pianos; each round paints new pianos into the same photos. "
            f"{'One seed' if len(seeds) == 1 else f'Mean of {len(seeds)} seeds, with their range'}.",
            120,
            break_on_hyphens=False,
        ),
        "",
        "| images from | " + " | ".join(f"round {number}: AP50 / AP50-95" for number in range(ROUNDS)) + " |",
        "|---|" + "---|" * ROUNDS,
    ]
    for way, runs in results.items():
        cells = []
        for number in range(ROUNDS):
            cells.append(" / ".join(_cell([one[number][place] for one in runs]) for place in (0, 1)))
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += [
        "",
        fill(
            "A region must have room for the whole object. Pianos in the test scenes reach above the "
            "horizon, where the lower half ends. A detector trained on pianos that are cut off there "
            "probably predicts masks that are too short; we did not check this.",
            120,
            break_on_hyphens=False,
        ),
        "",
    ]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Render the photos, run the loops, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/own-photos-report"))
    arguments = parser.parse_args()
    photos = arguments.work / "photos"
    render = [sys.executable, "-m", "diffugen.cli", "miniature", "render", "known", "--count", str(PHOTOS)]
    subprocess.run(
        [*render, "--photos", str(photos), "--out", str(arguments.work / "photos.png")], check=True
    )
    results = {way: [bootstrap(way, seed, arguments.work) for seed in arguments.seeds] for way in WAYS}
    (HERE / "README.md").write_text(page(results, arguments.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
