"""The commands that run one stage of a loop on a run, and those that take results out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.loops import PortOption, ReviewerOption, rounds_table
from diffugen.cli.shared import ConfigArgument, RunOption, SetOption, console, progress, settle
from diffugen.errors import DiffugenError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diffugen.config.sections import Config
    from diffugen.dataset.files import Item
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.run.store import RunStore

RoundOption = Annotated[
    int | None, typer.Option("--round", min=0, help="The round; the newest if not given.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", help="A detector; the one that the run promoted last if not given."),
]
FORMATS = ("yolo-seg", "coco", "fiftyone")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog="Examples:  diffugen relabel --run runs/pianos   |   diffugen relabel --run runs/pianos "
        "--checkpoint best.pt"
    )(relabel)
    app.command(
        epilog="Examples:  diffugen compare --run runs/pianos   |   "
        "diffugen compare --run runs/pianos --set disagreement.good_iou=0.7"
    )(compare)
    app.command(
        epilog="Examples:  diffugen review --run runs/pianos   |   diffugen review --run runs/pianos "
        "--static   |   "
        "diffugen review --run runs/pianos --decisions decisions.json --reviewer ann"
    )(review)
    app.command(
        epilog="Examples:  diffugen tune --run runs/pianos   |   diffugen tune --run runs/pianos --set "
        "tune.trials=200"
    )(tune)
    app.command(
        epilog="Examples:  diffugen train --run runs/pianos   |   diffugen train --run runs/pianos --set "
        "detector.epochs=50"
    )(train)
    app.command(
        epilog="Examples:  diffugen evaluate --run runs/pianos --truth datasets/pianos   |   "
        "diffugen evaluate --checkpoint best.pt --truth instances_val.json"
    )(evaluate)
    app.command(epilog="Example:  diffugen report --run runs/pianos")(report)
    app.command(
        epilog="Examples:  diffugen export runs/pianos   |   diffugen export runs/pianos --format coco --out "
        "pianos-coco   |   "
        "diffugen export runs/pianos --format fiftyone --set dataset.min_score=0.5"
    )(export)


def relabel(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Label images by the detector: those that it was not trained on and has not labelled yet."""
    from diffugen.stages.relabel import relabel_stage

    settings, folder = settle(config, set_, run)
    with _open(folder) as store:
        round = _newest_round(store)
        detector = _detector(store, settings, checkpoint)
        with progress("relabelling", "image") as on_progress:
            made = relabel_stage(
                store,
                detector,
                on_progress,
                device=settings.detector.device,
                image_size=settings.detector.image_size,
                confidence=settings.detector.confidence,
                refine=settings.labels.refine,
                round=round,
                class_names=list(settings.prompts.classes),
                class_map=settings.detector.class_map,
            )
    console().print(
        f"{made['objects']} labels on {made['images']} images by {made['checkpoint']}", soft_wrap=True
    )


def compare(config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None) -> None:
    """Compare attention labels with the detector's. Ranks the disagreements for review."""
    from diffugen.stages.relabel import attention_method, compare_stage

    settings, folder = settle(config, set_, run)
    with _open(folder) as store:
        method = attention_method(store)
        with progress("comparing", "image") as on_progress:
            made = compare_stage(
                store,
                method,
                on_progress,
                class_names=list(settings.prompts.classes),
                **dict(settings.disagreement),
            )
    kinds = (
        ", ".join(f"{count} {kind}" for kind, count in made["kinds"].items() if count) or "no disagreement"
    )
    console().print(f"{made['images']} images: {made['agreements']} objects agreed on, {kinds}")


def review(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    static: Annotated[
        bool, typer.Option("--static", help="Write a page instead of opening FiftyOne.")
    ] = False,
    decisions: Annotated[
        Path | None, typer.Option("--decisions", help="Take in a decisions file and do nothing else.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the person is done.")] = True,
    reviewer: ReviewerOption = "reviewer",
    port: PortOption = 5151,
) -> None:
    """Look at disagreements and decide. Opens the queue in FiftyOne, or writes it as a page; decisions train
    the next round.
    """
    from diffugen.stages.review import import_decisions, review_stage

    _, folder = settle(config, set_, run)
    out = console()
    with _open(folder) as store:
        round = _newest_round(store)
        if decisions is not None:
            made = import_decisions(store, decisions, reviewer=reviewer, round=round)
        else:
            made = review_stage(
                store,
                round=round,
                mode="static" if static else "fiftyone",
                wait=wait and not static,
                reviewer=reviewer,
                port=port,
                tell=partial(out.print, soft_wrap=True),
            )
        kept = sum(1 for _ in store.decisions())
    new = ", ".join(f"{count} {verdict}" for verdict, count in made["decisions"].items()) or "none"
    out.print(f"new decisions: {new}; the run has decisions on {kept} images")


def tune(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Search for better label settings and score weights. The next round labels with them."""
    from diffugen.run.rounds import round_seed, run_stage
    from diffugen.stages.relabel import attention_method, tune_stage

    settings, folder = settle(config, set_, run)
    with _open(folder) as store:
        number = _newest_round(store) if round is None else round
        labels, weights = _label_settings(store, settings, number)
        work = partial(
            tune_stage,
            store,
            attention_method(store),
            labels,
            weights,
            class_names=list(settings.prompts.classes),
            seed=round_seed(settings.seed, number),
            **dict(settings.tune),
        )
        made = run_stage(store, number, "tune", work, progress)
    out = console()
    out.print(f"round {number}: {'adopted' if made['adopted'] else 'kept what was there'}: {made['reason']}")
    for name, value in made["after"]["weights"].items():
        out.print(f"  score.{name}: {made['before']['weights'][name]:g} -> {value:g}")
    for name, value in made["after"]["settings"].items():
        if value != made["before"]["settings"][name]:
            out.print(f"  labels.{name}: {made['before']['settings'][name]} -> {value}")


def train(
    config: ConfigArgument = None, set_: SetOption = None, run: RunOption = None, round: RoundOption = None
) -> None:
    """Choose training labels, train the detector, promote it if it is better. A round is trained once."""
    from diffugen.miniature.truth import find_truth
    from diffugen.run.rounds import promoted, round_seed, run_stage
    from diffugen.stages.evaluate import promote_stage
    from diffugen.stages.relabel import attention_method
    from diffugen.stages.train import dataset_stage, train_stage

    settings, folder = settle(config, set_, run)
    classes, agree = list(settings.prompts.classes), dict(settings.disagreement)
    fit, policy = dict(settings.detector), dict(settings.dataset)
    base, _, _, known = (
        fit.pop("checkpoint"),
        fit.pop("confidence"),
        fit.pop("class_map"),
        policy.pop("known"),
    )
    validation = find_truth(settings.loop.validation, classes)
    with _open(folder) as store:
        number = _newest_round(store) if round is None else round
        method, detector = attention_method(store), promoted(store, number, base)
        stage = partial(run_stage, store, number, watch=progress)
        made = stage(
            "dataset",
            partial(
                dataset_stage,
                store,
                method,
                class_names=classes,
                **policy,
                **agree,
                seed=settings.seed,
                round=number,
                known=find_truth(known, classes),
            ),
        )
        trained = stage(
            "train",
            partial(
                train_stage,
                store,
                made["folder"],
                detector,
                **fit,
                seed=round_seed(settings.seed, number),
                name=f"round-{number}",
            ),
        )
        trusted = {name: policy[name] for name in ("trust", "min_score", "val_frac")}
        stage(
            "promote",
            partial(
                promote_stage,
                store,
                trained["checkpoint"],
                detector,
                method,
                validation=validation,
                class_names=classes,
                device=fit["device"],
                image_size=fit["image_size"],
                **trusted,
                **agree,
                seed=settings.seed,
            ),
        )
        console().print(rounds_table(store))


def evaluate(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    truth: Annotated[
        str | None,
        typer.Option("--truth", help="Labelled images; loop.truth of the configuration if not given."),
    ] = None,
) -> None:
    """Measure a detector on labelled images: average precision of its masks and boxes."""
    from diffugen.miniature.truth import find_truth
    from diffugen.stages.evaluate import evaluate_stage

    settings, folder = settle(config, set_, run)
    images = find_truth(truth or settings.loop.truth, list(settings.prompts.classes))
    if images is None:
        raise DiffugenError(
            "no truth to measure on: give --truth (a YOLO-seg folder, a COCO .json, or a scene set of the "
            "miniature), "
            "or set loop.truth"
        )
    with _open(folder, readonly=True) as store:
        detector = _detector(store, settings, checkpoint)
        with progress("measuring", "image") as on_progress:
            made = evaluate_stage(
                detector,
                images,
                on_progress,
                store=store,
                device=settings.detector.device,
                image_size=settings.detector.image_size,
            )
    sides = (
        f"{side} AP50 {_value(made[side]['ap50'])}, AP50-95 {_value(made[side]['ap50_95'])}"
        for side in ("mask", "box")
    )
    console().print(
        f"{made['checkpoint']} on {made['images']} images of {made['truth']}: {'; '.join(sides)}",
        soft_wrap=True,
    )


def report(config: ConfigArgument = None, run: RunOption = None) -> None:
    """Write the report of a run: a page to look at and the same as Markdown."""
    from diffugen.report.write import write_report

    _, folder = settle(config, None, run)
    with _open(folder, readonly=True) as store:
        path = write_report(store)
    console().print(f"report: {path}", soft_wrap=True)


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder to write, new or empty; datasets/<name of the run>-<format> if not given.",
        ),
    ] = None,
    set_: SetOption = None,
    format: Annotated[str, typer.Option("--format", help="yolo-seg, coco or fiftyone.")] = "yolo-seg",
) -> None:
    """Write the labels that a round would train with as a dataset. Holes, pieces and scores are kept."""
    from diffugen.stages.relabel import attention_method
    from diffugen.stages.train import chosen_labels, held_out_families

    if format not in FORMATS:
        raise DiffugenError(f"unknown format {format!r}; one of {', '.join(FORMATS)}")
    settings, folder = settle(None, set_, run)
    out = out or Path("datasets") / f"{folder.resolve().name}-{format}"
    classes, policy = list(settings.prompts.classes), dict(settings.dataset)
    policy.pop("known")
    val_frac = policy.pop("val_frac")
    with _open(folder, readonly=True) as store:
        held_out = held_out_families(store, val_frac, settings.seed)
        chosen = dict(
            chosen_labels(
                store, attention_method(store), class_names=classes, **policy, **dict(settings.disagreement)
            )
        )
        ids: dict[str, list[str]] = {"train": [], "val": []}
        for record in store.records():
            if record.id in chosen and chosen[record.id].instances is not None:
                ids["val" if record.family in held_out else "train"].append(record.id)
        if not ids["train"]:
            raise DiffugenError(f"run {folder} has no labels to export yet; diffugen label makes some")
        splits = {split: _items(store, chosen, part) for split, part in ids.items() if part}
        with _writer(format, folder) as write:
            write(out, splits, classes)
    counts = " and ".join(f"{len(part)} {split}" for split, part in ids.items())
    console().print(f"{counts} images in {out} ({format}); classes: {', '.join(classes)}", soft_wrap=True)


@contextmanager
def _writer(format: str, run: Path) -> Iterator[Callable[..., Path]]:
    """Yield what writes a dataset of a format; FiftyOne writes its own, and needs its database for that."""
    if format == "fiftyone":
        from diffugen.review.database import database
        from diffugen.review.export import write_fiftyone

        with ExitStack() as session:
            try:
                session.enter_context(database(run / "review"))
            except DiffugenError as error:
                raise DiffugenError(
                    "the formats yolo-seg and coco need nothing more, but fiftyone needs its database: "
                    f"{error}"
                ) from error
            yield write_fiftyone
    elif format == "coco":
        from diffugen.dataset.coco import write_coco

        yield write_coco
    else:
        from diffugen.dataset.yolo import write_yolo

        yield write_yolo


def _items(store: RunStore, chosen: Any, ids: list[str]) -> Iterable[Item]:
    return ((image_id, store.image(image_id), chosen[image_id].instances) for image_id in ids)


def _open(folder: Path, readonly: bool = False) -> RunStore:
    from diffugen.run.store import RunStore

    return RunStore.open(folder, readonly=readonly)


def _newest_round(store: RunStore) -> int:
    return max((number for number, one in store.summary()["rounds"].items() if one["images"]), default=0)


def _detector(store: RunStore, settings: Config, checkpoint: str | None) -> str:
    from diffugen.run.rounds import promoted
    from diffugen.stages.relabel import find

    return checkpoint or str(
        find(store, promoted(store, _newest_round(store) + 1, settings.detector.checkpoint))
    )


def _label_settings(store: RunStore, settings: Config, round: int) -> tuple[LabelSettings, ScoreWeights]:
    from diffugen.stages.label import label_settings

    return label_settings(store, round, dict(settings.labels), dict(settings.score))


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
