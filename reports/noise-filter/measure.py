"""Measure whether the noise filter holds back the images whose labels are wrong, on the miniature.

    python reports/noise-filter/measure.py [--images 240] [--share 0.2] [--work runs/noise-filter]

Generates the first round of the demo, labels it with and without the detector that knows four of the classes,
and has the filter choose images to hold back (`dataset.noise_filter`). The oracle, a segmentation model
trained on exact masks, says which labels are wrong. Writes README.md and numbers.json beside itself. After an
interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from scipy.stats import binomtest

import diffugen as dg
from diffugen import stages
from diffugen.miniature import oracle
from diffugen.miniature.measure import BAD_IOU, WEIGHTS, class_mask, iou
from diffugen.miniature.scenes import CLASSES
from diffugen.records import Instances
from diffugen.stages.dataset import chosen_labels, split_images

HERE = Path(__file__).parent
SOURCES = {"both": "attention and the detector", "attention": "attention alone"}


def is_wrong(labels: Instances, truth: Any, prompted: Sequence[str]) -> bool:
    """Return whether the label of a prompted class is bad or missing, or where there is no such object."""
    return any(
        iou(class_mask(labels, name), truth == 1 + CLASSES.index(name)) < BAD_IOU
        for name in prompted
        if oracle.found(truth, name) or class_mask(labels, name).any()
    )


def measure(work: Path, source: str, images: int, share: float) -> dict[str, Any]:
    """Return how many images of those held back, and of the others, have wrong labels."""
    overrides = [f"prompts.count={images}", f"labels.source={source}", f"dataset.noise_filter={share}"]
    config = dg.load_config("miniature", overrides)
    policy = config.training_policy
    with dg.open_run(work / f"{source}-{images}", config) as run:
        dg.generate(run)
        method = dg.label(run).method
        sifted = stages.sift(run.run.round(0), method, policy, config.detector)
        labels = {one.image_id: one.instances for one in run.store.labels("attention", method)}
        ids = split_images(run.run, dict(chosen_labels(run.run, method, policy)), policy)["train"]
        judge = oracle.load_oracle(WEIGHTS / "oracle")
        truths = oracle.segment(judge, [run.store.image(one) for one in ids])
        prompts = [run.store.record(one).prompt for one in ids]
    named = [[one.class_name for one in prompt.phrases if one.class_name] for prompt in prompts]
    wrong = {
        image_id: is_wrong(labels[image_id], truth, names)
        for image_id, truth, names in zip(ids, truths, named, strict=True)
    }
    held_back = set(sifted.held_back)
    groups = {
        "held back": [wrong[one] for one in ids if one in held_back],
        "kept": [wrong[one] for one in ids if one not in held_back],
    }
    return {name: {"images": len(values), "wrong": sum(values)} for name, values in groups.items()}


def page(numbers: dict[str, Any], command: str) -> str:
    """Return the page."""
    text = (
        f"Made by `{command}`: {numbers['images']} images of the demo's first round for each row, of which "
        f"the training split is judged; `dataset.noise_filter={numbers['share']:g}`. An image is *wrong* if "
        f"the label of a class in its prompt has an IoU below {BAD_IOU:g} with what the oracle sees, which "
        "counts for missing labels and for labels of missing objects too. In brackets: 95% Wilson intervals."
    )
    lines = [
        "# The noise filter",
        "",
        fill(text, 120, break_on_hyphens=False, break_long_words=False),
        "",
        "| labels by | wrong among those held back | wrong among those kept | wrong among all |",
        "|---|---|---|---|",
    ]
    for source, groups in numbers["sources"].items():
        everything = {key: sum(one[key] for one in groups.values()) for key in ("images", "wrong")}
        cells = [in_words(one) for one in (groups["held back"], groups["kept"], everything)]
        lines.append(f"| {SOURCES[source]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_words(group: dict[str, int]) -> str:
    """Return, e.g., ``12 of 48: 25% (15% to 39%)``."""
    interval = binomtest(group["wrong"], group["images"]).proportion_ci(method="wilson")
    share = group["wrong"] / group["images"]
    return f"{group['wrong']} of {group['images']}: {share:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--work", type=Path, default=Path("runs/noise-filter"), help="keeps the runs")
    given = parser.parse_args()
    found = {source: measure(given.work, source, given.images, given.share) for source in SOURCES}
    numbers = {"images": given.images, "share": given.share, "sources": found}
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    command = f"python reports/noise-filter/measure.py --images {given.images} --share {given.share:g}"
    (HERE / "README.md").write_text(page(numbers, command), encoding="utf-8")
    print((HERE / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
