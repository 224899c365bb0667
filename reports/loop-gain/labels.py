"""Measure what better labels buy in a loop: five corrected images, teaching with them, and the noise filter.

    python reports/loop-gain/labels.py --seeds 0 1 2 --work runs/loop-gain-labels

Attention labels alone, without a detector that knows some of the classes. All variants of a seed share round
0, whose labels, training and detector are the same, and the images of round 1; between the two, a simulated
person corrects five images of round 0. Round 1 then trains with the labels of both rounds. Writes labels.md
and labels.json beside itself. After an interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any

from measure import (
    MEASURES,
    TRUTH,
    UNTUNED,
    begin,
    copy_once,
    last,
    loop,
    open_run,
    spread,
    verdict,
    without_curves,
)
from reviewer import Reviewer, verdicts

from diffugen.config import load_config
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.oracle import load_oracle
from diffugen.records import Decision
from diffugen.run import RunStore

HERE = Path(__file__).parent
CORRECTED = 5
ROUNDS = 2
TEACHING: Any = import_module("diffugen.stages.teach")
"""The module; the package has its function under that name."""

PLAIN = "no verdicts"


@dataclass(frozen=True)
class Variant:
    """A way to run the loop.

    Attributes:
        name: Its name in the report.
        overrides: Of the configuration, beside those that all have.
        corrected: Whether the simulated person corrects images.
        strict: Whether a decoder is used only if it labels better on decided images that it has not seen.
        of: The variants that it is compared with.
    """

    name: str
    overrides: Sequence[str]
    corrected: bool = False
    strict: bool = True
    of: Sequence[str] = ()


VARIANTS = (
    Variant(PLAIN, UNTUNED),
    Variant("5 verdicts", UNTUNED, corrected=True, of=[PLAIN]),
    Variant("5 verdicts, teaching", ["tune.trials=0"], corrected=True, of=[PLAIN, "5 verdicts"]),
    Variant(
        "5 verdicts, teaching, used in any case",
        ["tune.trials=0"],
        corrected=True,
        strict=False,
        of=["5 verdicts"],
    ),
    Variant("a fifth held back by the noise filter", [*UNTUNED, "dataset.noise_filter=0.2"], of=[PLAIN]),
)


def result_of(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Return the results of a variant with a seed, from their file if they were measured before."""
    folder = work / f"seed-{seed}-{variant.name.replace(',', '').replace(' ', '-')}"
    kept = folder.with_suffix(".json")
    if not kept.exists():
        print(f"seed {seed}: {variant.name}", flush=True)
        partial = folder.with_suffix(".partial.json")
        partial.write_text(json.dumps(run_variant(variant, seed, folder)))
        partial.replace(kept)
    return dict(json.loads(kept.read_text()))


def run_variant(variant: Variant, seed: int, folder: Path) -> dict[str, Any]:
    """Run the loop of a variant in a folder; an interrupted one continues."""
    begun, plain = (folder.with_name(f"seed-{seed}-{name}") for name in ("begun", PLAIN.replace(" ", "-")))
    common = [f"seed={seed}", f"loop.truth={TRUTH}", "loop.reference=false", "review.audits=0"]
    common += ["labels.source=attention"]
    begin(load_config("miniature", [*common, *UNTUNED]), begun)
    copy_once(begun, folder)
    config = load_config("miniature", [*common, *variant.overrides])
    with open_run(folder, config) as run:
        if variant.corrected and not list(run.store.decisions()):
            run.store.add_decisions(corrections(run.store, list(config.prompts.classes), seed))
        with adopting(strictly=variant.strict):
            rounds = loop(config, run, ROUNDS, None if folder == plain else plain, lambda round: None)
        return {"rounds": rounds, "verdicts": verdicts(list(run.store.decisions()))}


@contextmanager
def adopting(*, strictly: bool) -> Iterator[None]:
    """Let decoders be used as in every loop, or whatever their cross-validation says."""
    kept = TEACHING.ADOPTION_ERRORS
    TEACHING.ADOPTION_ERRORS = kept if strictly else -math.inf
    try:
        yield
    finally:
        TEACHING.ADOPTION_ERRORS = kept


def corrections(store: RunStore, class_names: Sequence[str], seed: int) -> list[Decision]:
    """Return the decisions of a person who looks at images in random order until five have labels."""
    reviewer = Reviewer(load_oracle(WEIGHTS / "oracle"), class_names)
    labels = {one.image_id: one.instances for one in store.latest_labels("attention", round=0)}
    made: list[Decision] = []
    for image_id in random.Random(seed).sample(sorted(labels), len(labels)):
        given = labels[image_id]
        made.append(reviewer.decide(store.record(image_id), store.image(image_id), given, given, 0))
        if sum(one.instances is not None for one in made) == CORRECTED:
            break
    return made


def page(results: dict[str, Any], seeds: Sequence[int]) -> str:
    """Return the report as Markdown."""
    given = " ".join(map(str, seeds))
    scenes = last(results[PLAIN][str(seeds[0])])["images"]
    intro = (
        f"Made by `python reports/loop-gain/labels.py --seeds {given} --work runs/loop-gain-labels`: two "
        "rounds of the demo with attention labels alone (`labels.source: attention`), on the "
        f"{scenes} held-out scenes of `{TRUTH}`; mean ± standard deviation over {len(seeds)} seeds. After "
        f"round 0, a simulated person looks at images in random order until {CORRECTED} have labels; the "
        "others are rejected. All variants of a seed share round 0 and the images of round 1. Gains and "
        "losses are called as in [README.md](README.md)."
    )
    head = ["variant", *(one.name for one in MEASURES)]
    lines = ["# What better labels buy in a loop", "", filled(intro), ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    before = [dict(one["rounds"][0]["evaluate"]) for one in results[PLAIN].values()]
    for name, found in (
        ("after round 0", before),
        *((one.name, [last(each) for each in results[one.name].values()]) for one in VARIANTS),
    ):
        cells = [spread([one.of(each) for each in found]) for one in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for variant, of in ((one, of) for one in VARIANTS for of in one.of):
        lines.append(f"- **{of} -> {variant.name}**")
        for measure in MEASURES:
            pairs = [(results[variant.name][str(seed)], results[of][str(seed)]) for seed in seeds]
            gains = [measure.of(last(one)) - measure.of(last(other)) for one, other in pairs]
            signed = [-gain if measure.lower_is_better else gain for gain in gains]
            shown = ", ".join(f"{gain:+.3f}" for gain in gains)
            lines.append(
                f"  - {measure.name}: {shown} (mean {statistics.mean(gains):+.3f}): {verdict(signed)}"
            )
    lines += ["", filled(told(results, seeds))]
    return "\n".join(lines) + "\n"


def told(results: dict[str, Any], seeds: Sequence[int]) -> str:
    """Return what the verdicts were, and where a decoder was used."""
    corrected = next(one.name for one in VARIANTS if one.corrected)
    sums: dict[str, int] = {}
    for one in results[corrected].values():
        for name, count in one["verdicts"].items():
            sums[name] = sums.get(name, 0) + count
    shown = ", ".join(f"{name} {count}" for name, count in sorted(sums.items()))
    taught = [results[VARIANTS[2].name][str(seed)]["rounds"][1]["teach"] for seed in seeds]
    used = sum(one["adopted"] for one in taught)
    return (
        f"Verdicts, all seeds: {shown}. The decoder's labels were better in cross-validation, by more than "
        f"one standard error, with {used} of {len(seeds)} seeds; with the others, *teaching* changed "
        "nothing. *Used in any case*: this script lets the loop use it whatever cross-validation says, which "
        "no loop does otherwise."
    )


def filled(text: str) -> str:
    """Return a paragraph in lines of at most 120 columns."""
    return fill(text, 120, break_on_hyphens=False, break_long_words=False)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/loop-gain-labels"))
    given = parser.parse_args()
    results: dict[str, Any] = {one.name: {} for one in VARIANTS}
    for seed in given.seeds:
        for variant in VARIANTS:
            results[variant.name][str(seed)] = result_of(variant, seed, given.work)
    kept = json.dumps(without_curves(results), separators=(",", ":"))
    (HERE / "labels.json").write_text(kept + "\n", encoding="utf-8")
    (HERE / "labels.md").write_text(page(results, given.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
