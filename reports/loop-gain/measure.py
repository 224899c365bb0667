"""Measure what each arc of the loop buys on the miniature, on held-out scenes with exact masks.

    python reports/loop-gain/measure.py --seeds 0 1 2 3 4 --work runs/loop-gain

Writes README.md, results.json and gain.png beside itself. After an interruption, the same command continues.
All variants of a seed share its images, prompts and starting detector, and train for the same number of
steps (`detector.steps`); those that label round 0 alike share it. Each adds one arc to the one before:

- attention: the paper's attention labels alone, every image trains;
- witness: heat of rivals subtracted, and the starting detector labels what it knows;
- relabelling: later images train with what attention and detector agree on, with a mask from both, and
  doubtful objects painted over;
- verdicts: 25 or 50 images decided by a simulated person, in our order or in random order;
- tuning: label settings and score weights tuned against these verdicts.

Further variants change one setting of these; they are measured on the first three seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import Any

from reviewer import Reviewer, verdicts

from diffugen import stages
from diffugen.config import Config, load_config
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.oracle import load_oracle
from diffugen.records import Decision
from diffugen.review.queue import read_queue
from diffugen.run import OnProgress, Round, Run, RunStore
from diffugen.run.results import to_values
from diffugen.run.rounds import unseen

HERE = Path(__file__).parent
ROUNDS = 3
TRUTH = "piano-among"
MANY = 100
RARE = "piano"
UNTUNED = ["tune.trials=0", "teach.min_decisions=null"]
WITNESS = [*UNTUNED, "dataset.trust=attention", "dataset.mask=attention"]
# Without a witness, the middle layers separate neighbours better; with one, they blur the rare class.
ATTENTION = [
    *WITNESS,
    "labels.method=paper",
    "labels.source=attention",
    "labels.groups={up@1/2: 2, mid@1/2: 1, down@1/2: 1}",
]


@dataclass(frozen=True)
class Variant:
    """A way to run the loop.

    Attributes:
        name: Its name in the report.
        overrides: Of the configuration.
        budget: Images that the simulated person decides in all rounds.
        order: Their order.
        of: The variants that it is compared with.
        most_seeds: On how many seeds it is measured.
    """

    name: str
    overrides: Sequence[str]
    budget: int = 0
    order: str = ""
    of: Sequence[str] = ()
    most_seeds: int = MANY

    def measured(self, seeds: Sequence[int]) -> Sequence[int]:
        """Return the seeds that it is measured on."""
        return seeds[: self.most_seeds]


FULL = "relabelling"
VARIANTS = (
    Variant("attention", ATTENTION),
    Variant("witness", WITNESS, of=["attention"]),
    Variant(FULL, UNTUNED, of=["witness"]),
    *(
        Variant(f"{budget} verdicts, {name}", [*UNTUNED, f"review.order={order}"], budget, order=order, of=of)
        for budget in (25, 50)
        for name, order, of in (
            ("random order", "random", [FULL]),
            ("our order", "severity", [FULL, f"{budget} verdicts, random order"]),
        )
    ),
    Variant(
        "50 verdicts, our order, tuning",
        ["teach.min_decisions=null"],
        50,
        order="severity",
        of=["50 verdicts, our order"],
    ),
    *(
        Variant(name, [*UNTUNED, setting], of=[FULL], most_seeds=3)
        for name, setting in (
            ("pasted objects", "dataset.paste=0.5"),
            ("disputed images left out", "dataset.trust=none"),
        )
    ),
)


@contextmanager
def announced(title: str, unit: str) -> Iterator[OnProgress]:
    """Print the title of each step."""
    print(title, flush=True)
    yield unseen


def share_images(source: Path, target: RunStore, round: int) -> None:
    """Copy the images of a round from another run, so that they are not generated twice."""
    with RunStore.open(source, readonly=True) as store:
        for record in store.records(round):
            if not target.has_image(record.id):
                target.add_image(record, store.image(record.id), store.heat_maps(record.id), 0.0)


def loop(
    config: Config, run: Run, rounds: int, images: Path | None, decide: Callable[[Round], None]
) -> list[dict[str, Any]]:
    """Run the loop of loops/bootstrap.py with a simulated person; return each round's results as JSON."""
    sets = stages.open_sets(run, config.dataset, config.loop)
    policy = config.training_policy
    for round in run.rounds(at_most=rounds, patience=rounds + 1):
        detector = round.promoted_detector(default=config.detector.checkpoint)
        labelling = round.tuned_labelling(default=config.labelling)
        if images is not None:
            share_images(images, run.store, round.number)
        stages.generate(round, config.generation, labelling)
        stages.teach(round, labelling, config.teach)
        labelling = round.taught_labelling(default=labelling)
        method = stages.label(round, labelling).method
        if round.number > 0:
            stages.relabel(round, detector, config.detector)
            stages.compare(round, method, config.disagreement, config.review.order)
            decide(round)
            stages.tune(round, method, labelling, config.tune)
        sifted = stages.sift(round, method, policy, config.detector, sets.known)
        dataset = stages.choose(round, method, policy, sets.known, sifted.held_back)
        trained = stages.train(round, dataset, detector, config.detector)
        best = stages.promote(round, trained, detector, method, policy, config.detector, sets.validation)
        if sets.truth:
            if round.number == 0:
                stages.evaluate_base(round, config.detector.checkpoint, sets.truth, config.detector)
            stages.evaluate(round, best.checkpoint, sets.truth, config.detector)
    exact = sets.exact_labels(dataset.train)
    if sets.truth and exact and config.loop.reference and round.number == ROUNDS - 1:
        stages.evaluate_reference(round, exact, sets.truth, config.detector)
    kept = [run.store.results(number) for number in range(rounds)]
    return [{name.replace("_", "-"): result for name, result in to_values(one).items()} for one in kept]


def deciding(variant: Variant, reviewer: Reviewer) -> Callable[[Round], None]:
    """Return the simulated review of a round: its share of the budget, from the head of the queue."""

    def decide(round: Round) -> None:
        store, made = round.store, list[Decision]()
        decided = {one.image_id for one in store.decisions()}
        # Each later round gets its share of the budget, whatever a killed run has already decided.
        wanted = variant.budget * round.number // (ROUNDS - 1) - len(decided)
        queue = read_queue(store)
        for image_id in [one for one in queue.disagreements if one not in decided][: max(0, wanted)]:
            entry = queue.entry(image_id)
            if entry.attention and entry.model:
                rgb = store.image(image_id)
                given = entry.attention.instances, entry.model.instances
                made.append(reviewer.decide(entry.record, rgb, *given, round.number))
        store.add_decisions(made)
        if made:
            print(f"  decided: {verdicts(made)}", flush=True)

    return decide


def measure(seeds: list[int], work: Path, workers: int) -> dict[str, Any]:
    """Run all variants of all seeds, several at a time; return the results by variant, seed and round."""
    full, core, few = (
        [one for one in VARIANTS if one.name == FULL],  # it makes the images
        [one for one in VARIANTS if one.name != FULL and one.most_seeds == MANY],
        [one for one in VARIANTS if one.most_seeds < MANY],
    )
    results: dict[str, Any] = {one.name: {} for one in VARIANTS}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for wave in (full, core, few):
            todo = [(seed, one) for seed in seeds for one in wave if seed in one.measured(seeds)]
            futures = [pool.submit(result_of, one.name, seed, work) for seed, one in todo]
            for (seed, one), future in zip(todo, futures, strict=True):
                results[one.name][str(seed)] = future.result()
    return results


def result_of(name: str, seed: int, work: Path) -> dict[str, Any]:
    """Return the results of a variant with a seed, from their file if they were measured before."""
    variant = next(one for one in VARIANTS if one.name == name)
    folder = work / f"seed-{seed}-{name.replace(',', '').replace(' ', '-')}"
    kept = folder.with_suffix(".json")
    if not kept.exists():
        print(f"seed {seed}: {name}", flush=True)
        partial = folder.with_suffix(".partial.json")
        partial.write_text(json.dumps(run_variant(variant, seed, folder)))
        partial.replace(kept)
    return dict(json.loads(kept.read_text()))


def run_variant(variant: Variant, seed: int, folder: Path) -> dict[str, Any]:
    """Run the loop of a variant in a folder; an interrupted one continues."""
    reviewer = Reviewer(load_oracle(WEIGHTS / "oracle"), list(load_config("miniature").prompts.classes))
    begun, full = (folder.with_name(f"seed-{seed}-{name}") for name in ("begun", FULL))
    reference = str(variant.name == FULL).lower()  # shared by all variants of a seed
    # Audits buy calibration, not labels, so they would blur the comparison of orders.
    common = [f"seed={seed}", f"loop.truth={TRUTH}", f"loop.reference={reference}", "review.audits=0"]
    config = load_config("miniature", [*common, *variant.overrides])
    if variant.overrides != ATTENTION:
        begin(config, begun)
        copy_once(begun, folder)
    with open_run(folder, config) as run:
        images = None if variant.name == FULL else full
        rounds = loop(config, run, ROUNDS, images, deciding(variant, reviewer))
        return {"rounds": rounds, "verdicts": verdicts(list(run.store.decisions()))}


def begin(config: Config, folder: Path) -> None:
    """Run round 0, which all variants but the first share."""
    with open_run(folder, config) as run:
        if not run.finished_rounds():
            loop(config, run, 1, None, lambda round: None)


def open_run(folder: Path, config: Config) -> Run:
    """Open a run, also one that another variant began."""
    if folder.exists():
        return Run.open_existing(folder, config, progress=announced)
    return Run.open(folder, config, progress=announced)


def copy_once(source: Path, target: Path) -> None:
    """Copy a folder unless the copy exists; an interrupted copy is made again."""
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(target)


# -------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation."""

    name: str
    of: Callable[[dict[str, Any]], float]
    lower_is_better: bool = False


def false_share(one: dict[str, Any]) -> float:
    """Return the share of scenes without the rare class in which it is found."""
    finds = one["false_finds"][RARE]
    return float(finds["found"] / finds["images"])


MEASURES = (
    Measure(f"{RARE} AP50-95", lambda one: float((one["by_class"].get(RARE) or {}).get("ap50_95") or 0.0)),
    Measure(f"{RARE} AP50", lambda one: float((one["by_class"].get(RARE) or {}).get("ap50") or 0.0)),
    Measure("AP50-95, all classes", lambda one: float(one["mask"]["ap50_95"] or 0.0)),
    Measure("false finds", false_share, lower_is_better=True),
)


def last(result: dict[str, Any], stage: str = "evaluate") -> dict[str, Any]:
    """Return the last evaluation of a run."""
    return dict(result["rounds"][-1][stage])


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def verdict(gains: Sequence[float]) -> str:
    """Return the verdict: noise unless the mean exceeds 2 standard errors and all seeds but one agree."""
    if len(gains) < 3:
        return f"inconclusive, {len(gains)} seeds"
    error = statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.mean(gains)
    same = max(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)) >= len(gains) - 1
    return ("a gain" if mean > 0 else "a loss") if same and abs(mean) > 2 * error else "noise"


def without_curves(result: Any) -> Any:
    """Return results without their curves, which fill megabytes and are drawn nowhere."""
    if isinstance(result, list):
        return [without_curves(one) for one in result]
    if isinstance(result, dict):
        return {name: without_curves(one) for name, one in result.items() if "curve" not in name}
    return result


def images_seen(result: dict[str, Any]) -> int:
    """Return how many images a run's detectors were trained on, each counted once per epoch."""
    total = 0
    for one in result["rounds"]:
        dataset = one["dataset"]
        total += (dataset["train"] + dataset["known"] + dataset["pasted"]) * one["train"]["epochs"]
    return total


def page(results: dict[str, Any], seeds: list[int]) -> str:
    """Return the report as Markdown."""
    names = [variant.name for variant in VARIANTS]
    full = [results[FULL][str(seed)] for seed in seeds]
    scenes = last(full[0])["images"]
    free = last(full[0])["false_finds"][RARE]["images"]
    intro = (
        f"Measured on the {scenes} held-out scenes of `{TRUTH}`: a third shows a piano alone on a road, a "
        f"third a piano among other objects, often partly hidden, and {free} show none. Mean ± standard "
        f"deviation over {len(seeds)} seeds. The loop never sees these scenes. False finds: the share of "
        "scenes without a piano in which one is found, at the confidence from which on detections are labels."
    )
    command = " ".join(map(str, seeds))
    lines = ["# What each arc of the loop buys", "", fill(intro, 120, break_on_hyphens=False), ""]
    lines += [f"Command: `python reports/loop-gain/measure.py --seeds {command} --work runs/loop-gain`", ""]
    lines += ["![by round](gain.png)", "", "## Variants, after the last round", ""]
    head = ["variant", *(one.name for one in MEASURES), f"{RARE} AP50-95 / reference", "images seen"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    reference = [last(one, "evaluate-reference") for one in full]

    def row(name: str, found: list[dict[str, Any]], seen: str) -> str:
        cells = [spread([one.of(each) for each in found]) for one in MEASURES]
        ratios = [
            MEASURES[0].of(each) / max(1e-9, MEASURES[0].of(of))
            for each, of in zip(found, reference, strict=False)  # some variants have fewer seeds
        ]
        return f"| {name} | " + " | ".join([*cells, spread(ratios), seen]) + " |"

    lines.append(row("before the loop", [dict(one["rounds"][0]["evaluate-base"]) for one in full], "0"))
    for name in names:
        runs = list(results[name].values())
        seen = f"{statistics.mean(map(images_seen, runs)):.0f}"
        fewer = f" ({len(runs)} seeds)" if len(runs) < len(seeds) else ""
        lines.append(row(name + fewer, [last(one) for one in runs], seen))
    lines.append(row("reference: exact labels, as many images and steps", reference, "the same as " + FULL))
    lines += ["", "## What each arc buys, seed by seed", ""]
    rule = (
        "A gain or a loss: the mean exceeds two standard errors, and at most one seed disagrees on the sign."
    )
    lines += [fill(rule + " Everything else is called noise. For false finds, fewer is a gain.", 120), ""]
    for variant, of in ((one, of) for one in VARIANTS for of in one.of):
        lines.append(f"- **{of} -> {variant.name}**")
        for measure in MEASURES:
            gains = [
                measure.of(last(results[variant.name][str(seed)])) - measure.of(last(results[of][str(seed)]))
                for seed in variant.measured(seeds)
            ]
            signed = [-gain if measure.lower_is_better else gain for gain in gains]
            shown = ", ".join(f"{gain:+.3f}" for gain in gains)
            lines.append(
                f"  - {measure.name}: {shown} (mean {statistics.mean(gains):+.3f}): {verdict(signed)}"
            )
    lines += ["", "## Verdicts of the simulated person", "", "| variant | verdicts, all seeds |", "|---|---|"]
    for variant in VARIANTS:
        if variant.budget:
            sums: dict[str, int] = {}
            for one in results[variant.name].values():
                for name, count in one["verdicts"].items():
                    sums[name] = sums.get(name, 0) + count
            told = ", ".join(f"{name} {count}" for name, count in sorted(sums.items())) or "none"
            lines.append(f"| {variant.name} | {told} |")
    lines += ["", "## What tuning changed", ""]
    lines += ["On held-out images, each time that something was adopted:", ""]
    for name, runs in results.items():
        for seed, one in runs.items():
            for number, kept in enumerate(one["rounds"]):
                tuned = kept["tune"]
                if tuned and tuned["adopted"]:
                    worth, error = tuned["held_out"], tuned["miscalibration"]
                    lines.append(
                        f"- {name}, seed {seed}, round {number}: worth of labels {worth['before']:.3f} to "
                        f"{worth['after']:.3f}, squared error of scores {error['before']:.3f} to "
                        f"{error['after']:.3f}"
                    )
    lines += ["", f"## The loop by round ({FULL})", ""]
    head = ["round", *(one.name for one in MEASURES), "disputed images left out", "objects painted over"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number in range(ROUNDS):
        kept = [one["rounds"][number] for one in full]
        cells = [spread([measure.of(one["evaluate"]) for one in kept]) for measure in MEASURES]
        left = statistics.mean(one["dataset"]["left_out"].get("disagreement", 0) for one in kept)
        hidden = statistics.mean(one["dataset"]["hidden"] for one in kept)
        lines.append(f"| {number} | " + " | ".join([*cells, f"{left:.1f}", f"{hidden:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], seeds: list[int], path: Path) -> None:
    """Draw AP and false finds by round: a thin line for each seed, a thick line for the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    shown = ("attention", "witness", FULL, "50 verdicts, our order")
    colours = ("#999999", "#e69f00", "#0072b2", "#cc79a7")
    for axis, measure in zip(axes, (MEASURES[0], MEASURES[3]), strict=True):
        for name, colour in zip(shown, colours, strict=True):
            curves = [
                [measure.of(one["evaluate"]) for one in results[name][str(seed)]["rounds"]] for seed in seeds
            ]
            for curve in curves:
                axis.plot(range(ROUNDS), curve, color=colour, linewidth=0.7, alpha=0.4)
            means = [statistics.mean(values) for values in zip(*curves, strict=True)]
            axis.plot(range(ROUNDS), means, color=colour, linewidth=2.5, marker="o", label=name)
        exact = [measure.of(last(results[FULL][str(seed)], "evaluate-reference")) for seed in seeds]
        axis.axhline(statistics.mean(exact), color="#009e73", linestyle="--", label="exact labels")
        axis.set(title=f"{measure.name} on {TRUTH}", xlabel="after round", xticks=range(ROUNDS))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/loop-gain"))
    parser.add_argument("--workers", type=int, default=1, help="variants that run at a time")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    results = measure(arguments.seeds, arguments.work, arguments.workers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = json.dumps(without_curves(results), separators=(",", ":"))
    (arguments.out / "results.json").write_text(kept + "\n")
    (arguments.out / "README.md").write_text(page(results, arguments.seeds))
    draw(results, arguments.seeds, arguments.out / "gain.png")
    print(page(results, arguments.seeds))


if __name__ == "__main__":
    main()
