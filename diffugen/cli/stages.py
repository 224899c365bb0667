"""The commands that run single stages of a loop on a run, outside the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import as_value, console, say
from diffugen.cli.shared import (
    CheckpointOption,
    ConfigArgument,
    RoundOption,
    RunOption,
    SetOption,
    examples,
    open_run,
    resolve_config,
)
from diffugen.cli.status import rounds_table
from diffugen.errors import DiffugenError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "diffugen relabel --run runs/pianos",
            "diffugen relabel --run runs/pianos --checkpoint best.pt --set detector.confidence=0.5",
        )
    )(relabel)
    app.command(
        epilog=examples(
            "diffugen compare --run runs/pianos",
            "diffugen compare --run runs/pianos --set disagreement.good_iou=0.7",
        )
    )(compare)
    app.command(
        epilog=examples(
            "diffugen review --run runs/pianos",
            "diffugen review --run runs/pianos --static",
            "diffugen review --run runs/pianos --decisions decisions.json --reviewer ann",
        )
    )(review)
    app.command(
        epilog=examples(
            "diffugen tune --run runs/pianos", "diffugen tune --run runs/pianos --set tune.trials=200"
        )
    )(tune)
    app.command(
        epilog=examples("diffugen train --run runs/pianos", "diffugen train --run runs/pianos --round 1")
    )(train)
    app.command(
        epilog=examples(
            "diffugen evaluate --run runs/pianos --truth datasets/pianos",
            "diffugen evaluate --run runs/pianos --checkpoint best.pt --truth instances_val.json",
        )
    )(evaluate)
    app.command(epilog=examples("diffugen report --run runs/pianos"))(report)


def relabel(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Label images with the detector. Skips images that it was trained on."""
    from diffugen import stages

    settings, folder = resolve_config(config, set_, run)
    with open_run(folder, settings) as opened:
        round = opened.newest_round(redo=True, keep=False)
        detector = checkpoint or round.latest_detector(default=settings.detector.checkpoint)
        labelling = round.tuned_labelling(default=settings.labelling)
        made = stages.relabel(round, detector, labelling, settings.detector)
    say(f"{made.objects} labels on {made.images} images by {made.checkpoint}")


def compare(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Compare attention labels with the detector's, and rank disagreements."""
    from diffugen import stages

    settings, folder = resolve_config(config, set_, run)
    with open_run(folder, settings) as opened:
        round = opened.newest_round(redo=True, keep=False)
        made = stages.compare(round, stages.newest_method(opened.store), settings.disagreement)
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.kinds.items() if count) or "no disagreement"
    say(f"{made.images} images: {made.agreements} objects agreed on, {kinds}")


def review(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    static: Annotated[
        bool, typer.Option("--static", help="Write an HTML page instead of opening the FiftyOne App.")
    ] = False,
    decisions: Annotated[
        Path | None, typer.Option("--decisions", help="Import a decisions file and exit.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the review is done.")] = True,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Name kept with each decision. Default: review.reviewer.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the FiftyOne App. Default: review.port.")
    ] = None,
) -> None:
    """Review disagreements in the FiftyOne App, or on a page."""
    from diffugen import stages
    from diffugen.config.files import Option

    given = [
        Option("--static", "review.mode", "static" if static else "fiftyone"),
        Option("--wait", "review.wait", wait and not static),
        *([] if reviewer is None else [Option("--reviewer", "review.reviewer", reviewer)]),
        *([] if port is None else [Option("--port", "review.port", port)]),
    ]
    settings, folder = resolve_config(config, [*(set_ or ()), *given], run)
    with open_run(folder, settings) as opened:
        round = opened.newest_round(redo=True, keep=False)
        if decisions is not None:
            made = stages.import_decisions(round, decisions, settings.review.reviewer)
        else:
            made = stages.review(round, settings.review)
        kept = sum(1 for _ in opened.store.decisions())
    new = ", ".join(f"{count} {verdict}" for verdict, count in made.decisions.items()) or "none"
    say(f"new decisions: {new}; the run has decisions on {kept} images")


def tune(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Search for better label settings and score weights for the next round."""
    from diffugen import stages

    settings, folder = resolve_config(config, set_, run)
    with open_run(folder, settings) as opened:
        chosen = opened.newest_round(redo=True) if round is None else opened.round(round, redo=True)
        labelling = chosen.tuned_labelling(default=settings.labelling)
        made = stages.tune(chosen, stages.newest_method(opened.store), labelling, settings.tune)
    say(f"round {chosen.number}: {'adopted' if made.adopted else 'kept the current settings'}: {made.reason}")
    for name, weight in made.after.weights:
        say(f"  score.{name}: {getattr(made.before.weights, name):g} -> {weight:g}")
    for name, value in made.after.settings:
        before = getattr(made.before.settings, name)
        if value != before:
            say(f"  labels.{name}: {before} -> {value}")


def train(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Train the detector on a round's labels, and promote it if it is better."""
    from diffugen import stages

    settings, folder = resolve_config(config, set_, run)
    policy = settings.training_policy
    with open_run(folder, settings) as opened:
        sets = stages.open_sets(opened, settings.dataset, settings.loop)
        chosen = opened.newest_round() if round is None else opened.round(round)
        if chosen.results.promote:
            say(f"round {chosen.number} of run {folder} is already trained")
        method = stages.newest_method(opened.store)
        detector = chosen.promoted_detector(default=settings.detector.checkpoint)
        dataset = stages.choose(chosen, method, policy, sets.known)
        trained = stages.train(chosen, dataset, detector, settings.detector)
        stages.promote(chosen, trained, detector, method, policy, settings.detector, sets.validation)
        console().print(rounds_table(opened.store))


def evaluate(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    truth: Annotated[
        str | None, typer.Option("--truth", help="Labelled images. Default: loop.truth of the configuration.")
    ] = None,
) -> None:
    """Measure a detector on labelled images: AP of its masks and boxes."""
    from diffugen import stages
    from diffugen.config.files import Option

    given = [] if truth is None else [Option("--truth", "loop.truth", truth)]
    settings, folder = resolve_config(config, [*(set_ or ()), *given], run)
    with open_run(folder, settings, readonly=True) as opened:
        images = stages.open_sets(opened, settings.dataset, settings.loop).truth
        if images is None:
            raise DiffugenError(
                "no truth to measure on: give --truth (a YOLO-seg folder, a COCO .json, or a scene set of "
                "the miniature), "
                "or set loop.truth"
            )
        round = opened.newest_round(redo=True, keep=False)
        detector = checkpoint or round.latest_detector(default=settings.detector.checkpoint)
        made = stages.evaluate(round, detector, images, settings.detector)
    sides = "; ".join(
        f"{name} AP50 {as_value(one.ap50)}, AP50-95 {as_value(one.ap50_95)}"
        for name, one in (("mask", made.mask), ("box", made.box))
    )
    say(f"{made.checkpoint} on {made.images} images of {made.truth}: {sides}")


def report(config: ConfigArgument = None, run: RunOption = None) -> None:
    """Write the report of a run, as an HTML page and as Markdown."""
    from diffugen.report import write_report

    settings, folder = resolve_config(config, None, run)
    with open_run(folder, settings, readonly=True) as opened:
        say(f"report: {write_report(opened.store)}")
