"""The commands that run single stages of a loop on a run, outside the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffugen.cli.output import as_value, console, say
from diffugen.cli.progress import progress
from diffugen.cli.shared import (
    CheckpointOption,
    ConfigArgument,
    RoundOption,
    RunOption,
    SetOption,
    examples,
    open_existing_run,
    printing,
    run_or_config,
)
from diffugen.cli.status import queue_lines, rounds_table
from diffugen.errors import DiffugenError, counted

if TYPE_CHECKING:
    from diffugen.config.files import Option
    from diffugen.stages.verbs import OpenRun


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
            "diffugen review runs/pianos",
            "diffugen review runs/pianos --serve",
            "diffugen review runs/pianos --static",
            "diffugen review runs/pianos --decisions pianos-decisions.json --reviewer ann",
            "diffugen review runs/pianos --out cvat --folder to-cvat",
            "diffugen review runs/pianos --in annotations.zip --reviewer ann",
            "diffugen review runs/pianos --out labelme",
            "diffugen review runs/pianos --in runs/pianos/review/labelme",
        )
    )(review)
    app.command(
        epilog=examples(
            "diffugen tune --run runs/pianos", "diffugen tune --run runs/pianos --set tune.trials=200"
        )
    )(tune)
    app.command(
        epilog=examples(
            "diffugen teach --run runs/pianos", "diffugen teach --run runs/pianos --set teach.min_decisions=2"
        )
    )(teach)
    app.command(
        epilog=examples("diffugen train --run runs/pianos", "diffugen train --run runs/pianos --round 1")
    )(train)
    app.command(
        epilog=examples(
            "diffugen evaluate --run runs/pianos --truth datasets/pianos",
            "diffugen evaluate --checkpoint best.pt --truth datasets/pianos",
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
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        made = verbs.relabel(opened, checkpoint)
    say(f"{made.objects} labels on {made.images} images by {made.checkpoint}")


def compare(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Compare attention and detector labels; rank disagreements."""
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        made = verbs.compare(opened)
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.kinds.items() if count) or "no disagreement"
    say(f"{made.images} images: {made.agreements} objects agreed on, {kinds}")


def review(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|CONFIG",
            help="Folder of the run, or the configuration whose run it is. Default: see --run.",
        ),
    ] = None,
    set_: SetOption = None,
    run: RunOption = None,
    static: Annotated[
        bool, typer.Option("--static", help="Write an HTML page instead of opening the FiftyOne App.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine and store each decision at once.")
    ] = False,
    decisions: Annotated[
        Path | None, typer.Option("--decisions", help="Import a decisions file and exit.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the review is done.")] = True,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Name kept with each decision. Default: review.reviewer.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the App or the page. Default: review.port.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="TOOL", help="Write the queue for cvat, labelstudio or labelme, and exit."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder for --out, new or empty. Default: review/TOOL in the run."),
    ] = None,
    in_: Annotated[
        Path | None,
        typer.Option("--in", metavar="PATH", help="Import what such a tool has exported, and exit."),
    ] = None,
) -> None:
    """Review the queue in the FiftyOne App, or elsewhere.

    --out writes the images that wait for a decision, with the labels of attention and those of the model that
    are not the same (same class, IoU above 0.5); each label names its source. --in takes CVAT's .xml or .zip
    (CVAT for images 1.1), Label Studio's .json, or labelme's folder. An image whose labels were not changed
    stays undecided unless it is marked as reviewed, or was submitted in Label Studio.
    """
    from diffugen import stages
    from diffugen.config.files import Option

    _check_way(
        {"--out": out, "--in": in_, "--decisions": decisions, "--static": static, "--serve": serve}, folder
    )
    config, run = run_or_config(what, run)
    mode = "static" if static else "serve" if serve else "fiftyone"
    given = [
        Option(f"--{mode}", "review.mode", mode),
        Option("--wait", "review.wait", wait and not static),
        *([] if reviewer is None else [Option("--reviewer", "review.reviewer", reviewer)]),
        *([] if port is None else [Option("--port", "review.port", port)]),
    ]
    with open_existing_run(config, [*(set_ or ()), *given], run) as opened:
        round = opened.run.newest_round(redo=True, keep=False)
        if out is not None:
            stages.send_queue(round, out, folder)
            return
        if in_ is not None:
            made = stages.import_annotations(round, in_, opened.config.review.reviewer)
        elif decisions is not None:
            made = stages.import_decisions(round, decisions, opened.config.review.reviewer)
        else:
            made = stages.review(round, opened.config.review)
        kept = sum(1 for _ in opened.store.decisions())
        standing = queue_lines(opened.store)
    new = ", ".join(f"{count} {verdict}" for verdict, count in made.decisions.items()) or "none"
    say(f"new decisions: {new}; the run has decisions on {counted(kept, 'image')}")
    for line in standing:
        say(line)


def _check_way(ways: Mapping[str, object], folder: Path | None) -> None:
    """Refuse options that do not go together, before the run is opened."""
    names = [name for name, value in ways.items() if value]
    if len(names) > 1:
        raise DiffugenError(f"{' and '.join(names)} cannot be used together; give one of them")
    if folder is not None and not ways["--out"]:
        raise DiffugenError("--folder needs --out: cvat, labelstudio or labelme")


def tune(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Search for better label settings and score weights."""
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        made = verbs.tune_labels(opened, round)
    say(f"{'adopted' if made.adopted else 'kept the current settings'}: {made.reason}")
    for name, weight in made.after.weights:
        say(f"  score.{name}: {getattr(made.before.weights, name):g} -> {weight:g}")
    for name, value in made.after.settings:
        before = getattr(made.before.settings, name)
        if value != before:
            say(f"  labels.{name}: {before} -> {value}")


def teach(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Learn better heat maps from decided images; relabel all images.

    Reads features of the images with the diffusion model, so it is faster on a GPU. What was learned is used
    only if its labels are better on decided images that it has not seen.
    """
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        made = verbs.teach(opened)
        sheet = verbs.contact_sheet(opened)
    say(f"{'adopted' if made.adopted else 'kept the current labels'}: {made.reason}")
    if made.decoder is not None:
        say(
            f"learned from {counted(made.corrected, 'decided image')} and the attention labels of {made.weak}"
        )
    say(f"contact sheet: {sheet}")


def train(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Train the detector on a round's labels; promote it if better."""
    from diffugen.stages import verbs

    with open_existing_run(config, set_, run) as opened:
        chosen = opened.run.newest_round() if round is None else opened.run.round(round)
        if chosen.results.promote:
            say(f"round {chosen.number} of run {opened.folder} is already trained")
        verbs.train(opened, chosen.number)
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
    """Measure a detector on labelled images: AP of masks and boxes.

    With --checkpoint and --truth, no run is needed; the detector's classes count then, or CONFIG's.
    """
    from diffugen.config.files import Option
    from diffugen.stages import verbs

    overrides = [*(set_ or ()), *([] if truth is None else [Option("--truth", "loop.truth", truth)])]
    alone = None
    if run is None and checkpoint is not None and truth is not None:
        alone = _without_run(config, overrides, checkpoint)
    with alone or open_existing_run(config, overrides, run, readonly=True) as opened:
        made = verbs.evaluate(printing(opened), checkpoint)
    sides = "; ".join(
        f"{name} AP50 {as_value(one.ap50)}, AP50-95 {as_value(one.ap50_95)}"
        for name, one in (("mask", made.mask), ("box", made.box))
    )
    say(f"{made.checkpoint} on {made.images} images of {made.truth}: {sides}")


def _without_run(
    config: str | None, overrides: Sequence[str | Option], checkpoint: str
) -> AbstractContextManager[OpenRun] | None:
    """Return what stands in for a run to measure in; None if the configuration is named and has a run."""
    from diffugen.config import load_config
    from diffugen.run.ledger import LEDGER_NAME
    from diffugen.stages.verbs import resolve_config, run_for_detector

    if config is None:
        return run_for_detector(checkpoint, load_config(None, overrides), of_config=False, progress=progress)
    settings, folder = resolve_config(config, overrides)
    if (folder / LEDGER_NAME).is_file():
        return None
    return run_for_detector(checkpoint, settings, of_config=True, progress=progress)


def report(config: ConfigArgument = None, run: RunOption = None) -> None:
    """Write the report of a run, as an HTML page and as Markdown."""
    from diffugen.stages import verbs

    with open_existing_run(config, None, run, readonly=True) as opened:
        say(f"report: {verbs.write_report(opened)}")
