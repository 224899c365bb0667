"""Measure textual inversion on the miniature: pianos on roads, from words and from learned tokens.

    python reports/textual-inversion/measure.py --work runs/textual-inversion

Words and tokens get the same prompts and the same noise. Writes README.md, numbers.json and pairs.png beside
itself. After an interruption, the same command continues. The oracle, a segmentation model trained on exact
masks, judges pianos; a small network, trained here on renders, judges whether place, weather and time match
the prompt. Both see only the images, and neither is used to train the tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from judges import SIZE_WH, Judges
from numpy.typing import NDArray
from page import page
from PIL import Image

from diffugen.cli.invert import read_images
from diffugen.config import LabelSettings, ScoreWeights
from diffugen.config.load import load_config
from diffugen.diffusion.generate import generate
from diffugen.diffusion.inversion import load_embeddings
from diffugen.diffusion.inversion_train import TEMPLATES, train_inversion
from diffugen.diffusion.pipelines import load_pipeline
from diffugen.labels.label import label
from diffugen.labels.pictures import Panel, contact_sheet, enlarged
from diffugen.labels.shapes import decode
from diffugen.miniature.scenes import PIANO_COLOURS, TIMES, WEATHERS
from diffugen.miniature.sets import scene_set
from diffugen.records import ImageRecord, Phrase, Prompt

HERE = Path(__file__).parent
SAMPLING = {"num_inference_steps": 20, "guidance_scale": 3.0}
DESCRIBED = tuple(
    f"{start}a {{}} in a room, {look}"
    for start in ("a photo of ", "a picture of ", "")
    for look in ("sunny, day", "sunny, during the day")
)
TRAINING = {"steps": 200, "batch_size": 4, "learning_rate": 2e-3}


@dataclass(frozen=True)
class Arm:
    """One way to name a piano in a prompt.

    Attributes:
        name: Its name in the report.
        noun: The noun in the prompts.
        training: Arguments of `train_inversion`; None for plain words.
        words: The noun that the token is compared with; None for plain words.
    """

    name: str
    noun: str
    training: dict[str, Any] | None = None
    words: str | None = None


ARMS = (
    Arm("`grand piano`", "grand piano"),
    Arm("token, neutral captions", "<neutral>", {"init": "piano", "templates": TEMPLATES}, "grand piano"),
    Arm("token, captions name the room", "<told>", {"init": "piano", "templates": DESCRIBED}, "grand piano"),
    Arm(
        "token of 4 vectors, captions name the room",
        "<told-four>",
        {"init": "piano", "templates": DESCRIBED, "vectors": 4},
        "grand piano",
    ),
    Arm("`truck`", "truck"),
    Arm(
        "token started at `truck`, captions name the room",
        "<from-truck>",
        {"init": "truck", "templates": DESCRIBED},
        "truck",
    ),
)


def make_prompts(count: int) -> list[dict[str, str]]:
    """Return the values of the prompts: colour, weather and time, evenly distributed."""
    cells = [{"colour": c, "weather": w, "time": t} for c in PIANO_COLOURS for w in WEATHERS for t in TIMES]
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(len(cells)) for _ in range(-(-count // len(cells)))])
    return [cells[number] for number in order[:count]]


def prompt_of(noun: str, fill: dict[str, str]) -> Prompt:
    """Return the first template of `configs/miniature.yaml`, filled."""
    text = f"a photo of a {fill['colour']} {noun} on a road, {fill['weather']}, {fill['time']}"
    return Prompt(text, (Phrase(noun, "piano"), Phrase("road", None)))


def photos(work: Path) -> list[NDArray[np.uint8]]:
    """Render the 8 photos of a piano into a folder, and read them like a user's photos."""
    folder = work / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for number, drawn in enumerate(scene_set("piano-photos", size_wh=SIZE_WH)):
        Image.fromarray(drawn.rgb).save(folder / f"{number}.png")
    return read_images(folder)


def learn(arm: Arm, seed: int, work: Path) -> Path:
    """Return the file of an arm's token; train the token if needed."""
    out = work / f"{arm.noun.strip('<>')}-{seed}.safetensors"
    if not out.exists():
        pipeline = load_pipeline("miniature", device="cpu", dtype="float32")
        more = {**TRAINING, **(arm.training or {})}
        train_inversion(pipeline, photos(work), token=arm.noun, out=out, seed=seed, **more)
    return out


@dataclass(frozen=True)
class Made:
    """The images of an arm, uint8 (N, H, W, 3), and attention masks of the noun, bool (N, H, W)."""

    rgb: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def make(arm: Arm, fills: Sequence[dict[str, str]], seeds: Sequence[int], work: Path) -> Made:
    """Generate and label the images of an arm, unless they exist.

    Image i has noise i, and the token of training seed number ``i mod len(seeds)``.
    """
    kept = work / f"{arm.noun.strip('<>').replace(' ', '-')}-{len(fills)}-of-{'-'.join(map(str, seeds))}.npz"
    if not kept.exists():
        made = {}
        for place, seed in enumerate(seeds):
            pipeline = load_pipeline("miniature", device="cpu", dtype="float32")
            if arm.training is not None:
                load_embeddings(pipeline, [learn(arm, seed, work)])
            jobs = [
                ImageRecord(
                    prompt_of(arm.noun, fills[number]), number, SIZE_WH, "miniature", settings=SAMPLING
                )
                for number in range(place, len(fills), len(seeds))
            ]
            for record, rgb, heat_maps, _ in generate(pipeline, jobs, batch_size=8):
                instances = label(heat_maps, label_settings(), ScoreWeights(), rgb).of_classes(["piano"])
                mask = np.any([np.zeros(rgb.shape[:2], bool), *map(decode, instances.rles)], axis=0)
                made[record.seed] = rgb, mask
        rgb, masks = (np.stack([made[number][part] for number in range(len(fills))]) for part in (0, 1))
        np.savez_compressed(kept.with_suffix(".partial.npz"), rgb=rgb, masks=masks)
        kept.with_suffix(".partial.npz").replace(kept)
    with np.load(kept) as content:
        return Made(content["rgb"], content["masks"])


def label_settings() -> LabelSettings:
    """Return the label settings of `configs/miniature.yaml`."""
    return LabelSettings(**load_config("miniature").labels.model_dump())


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def sign_test(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int, float]:
    """Return the number of pairs gained and lost, and the two-sided p-value (exact McNemar test)."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    of = gained + lost
    tail = sum(math.comb(of, number) for number in range(min(gained, lost) + 1)) / 2**of
    return gained, lost, min(1.0, 2 * tail)


def measure(
    count: int, seeds: Sequence[int], work: Path
) -> tuple[dict[str, Any], dict[str, Made], dict[str, Any]]:
    """Run everything; return the numbers, and the images and judgements of each noun."""
    started = time.process_time()
    work.mkdir(parents=True, exist_ok=True)
    fills, judges = make_prompts(count), Judges()
    images: dict[str, Made] = {}
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for arm in ARMS:
        print(f"{arm.name} (after {time.process_time() - started:.0f} s)", flush=True)
        images[arm.noun] = make(arm, fills, seeds, work)
        found[arm.noun] = judges.judge(images[arm.noun].rgb, images[arm.noun].masks, fills)
    results = {arm.noun: rates(found[arm.noun]) for arm in ARMS}
    for arm in ARMS:
        halves = [found[arm.noun]["strict"][place :: len(seeds)].mean() for place in range(len(seeds))]
        results[arm.noun]["strict_by_seed"] = [round(float(share), 3) for share in halves]
        if arm.words is not None:
            results[arm.noun]["against"] = compare(found[arm.words], found[arm.noun], arm.words)
    numbers = {
        "images_an_arm": count,
        "training_seeds": list(seeds),
        "training": TRAINING,
        "sampling": SAMPLING,
        "limits": {name: round(value, 4) for name, value in judges.limits.items()},
        "renders": rates(judges.yardstick()),
        "scenes_right": judges.scenes_right(),
        "arms": results,
    }
    print(f"{time.process_time() - started:.0f} s of one core", flush=True)
    return numbers, images, found


def compare(words: dict[str, NDArray[Any]], token: dict[str, NDArray[Any]], noun: str) -> dict[str, Any]:
    """Compare a token with words, pair by pair: strict success, and label IoU where both show a piano."""
    gained, lost, p = sign_test(words["strict"], token["strict"])
    result: dict[str, Any] = {"words": noun, "gained": gained, "lost": lost, "p": round(p, 5)}
    change = (token["iou"] - words["iou"])[~np.isnan(token["iou"]) & ~np.isnan(words["iou"])]
    if len(change) > 1:
        error = float(change.std(ddof=1) / math.sqrt(len(change)))
        result["iou_change"] = {"mean": round(float(change.mean()), 3), "standard_error": round(error, 3)}
    return result


def rates(found: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the share of images that meet each criterion, with its interval, and the mean IoU."""
    shares = {}
    for name, values in found.items():
        if name != "iou":
            low, high = wilson(int(values.sum()), len(values))
            shares[name] = [round(float(values.mean()), 3), round(low, 3), round(high, 3)]
    iou = found["iou"][~np.isnan(found["iou"])]
    return {**shares, "iou": round(float(iou.mean()), 3) if len(iou) else None}


def draw(images: dict[str, Made], found: dict[str, Any], path: Path) -> None:
    """Draw the first images of each arm; a column is one prompt and noise, a frame shows the result."""
    panels = []
    for arm in ARMS:
        passed, tiles = found[arm.noun]["strict"], []
        for rgb, good in zip(images[arm.noun].rgb[:10], passed[:10], strict=True):
            frame = np.full((112, 112, 3), 250, np.uint8)
            frame[2:-2, 2:-2] = (40, 150, 70) if good else (205, 60, 50)
            frame[5:-5, 5:-5] = enlarged(rgb, 102)
            tiles.append(frame)
        panels.append(
            Panel(tiles, f"{arm.name.replace('`', '')}:  {passed.mean():.2f} of {len(passed)} pass")
        )
    title = "each column: one prompt, one noise; green frame: passes the strict test, red: fails"
    contact_sheet(panels, path, columns=1, height=112, title=title)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=90, help="images per arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds of the tokens")
    parser.add_argument("--work", type=Path, default=Path("runs/textual-inversion"))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    numbers, images, found = measure(arguments.prompts, arguments.seeds, arguments.work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    draw(images, found, arguments.out / "pairs.png")
    (arguments.out / "README.md").write_text(
        page(numbers, {arm.name: arm.noun for arm in ARMS}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
