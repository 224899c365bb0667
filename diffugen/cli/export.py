"""The command that writes a run's labels as a dataset: `diffugen export`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.shared import SetOption, examples, open_run, resolve_config
from diffugen.errors import DiffugenError

FORMATS = ("yolo-seg", "coco", "fiftyone")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen export runs/pianos",
            "diffugen export runs/pianos --format coco --out pianos-coco",
            "diffugen export runs/pianos --format fiftyone --set dataset.min_score=0.5",
        )
    )(export)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder to write, new or empty. Default: datasets/<name of the run>-<format>.",
        ),
    ] = None,
    set_: SetOption = None,
    format: Annotated[str, typer.Option("--format", help="yolo-seg, coco or fiftyone.")] = "yolo-seg",
) -> None:
    """Write a run's training labels as a dataset, with holes, pieces and scores."""
    from diffugen.errors import did_you_mean
    from diffugen.stages import newest_method
    from diffugen.stages.dataset import chosen_items, chosen_labels, split_images

    if format not in FORMATS:
        raise DiffugenError(
            f"unknown format {format!r}{did_you_mean(format, FORMATS)}; one of {', '.join(FORMATS)}"
        )
    settings, folder = resolve_config(None, set_, run)
    out = out or Path("datasets") / f"{folder.resolve().name}-{format}"
    policy = settings.training_policy
    with open_run(folder, settings, readonly=True) as opened:
        chosen = dict(chosen_labels(opened, newest_method(opened.store), policy))
        ids = split_images(opened, chosen, policy)
        if not ids["train"]:
            raise DiffugenError(f"run {folder} has no labels to export yet; diffugen label makes some")
        splits = {split: chosen_items(opened, chosen, part) for split, part in ids.items() if part}
        with _writer(format, folder) as write:
            write(out, splits, opened.class_names)
    counts = " and ".join(f"{len(part)} {split}" for split, part in ids.items())
    say(f"{counts} images in {out} ({format}); classes: {', '.join(settings.prompts.classes)}")


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
                    f"the format fiftyone needs FiftyOne's database; yolo-seg and coco do not: {error}"
                ) from error
            yield write_fiftyone
    elif format == "coco":
        from diffugen.dataset.coco import write_coco

        yield write_coco
    else:
        from diffugen.dataset.yolo import write_yolo

        yield write_yolo
