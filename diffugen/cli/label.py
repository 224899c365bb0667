"""The command that labels a run, or any images with a detector: `diffugen label`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import RunOption, SetOption, examples, open_existing_run, printing
from diffugen.errors import DiffugenError, counted


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen label",
            "diffugen label --run runs/pianos --set labels.method=compete",
            "diffugen label photos --detector best.pt --out datasets/photos --format coco",
            "diffugen label aerial --detector best.pt --tile-size 1024",
            "diffugen label photos --detector yolov8n-seg.pt --class-map sedan=car --only sedan",
            "diffugen label runs/pianos --detector best.pt --set detector.confidence=0.5",
        )
    )(label)


def label(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|IMAGES",
            help="The run's configuration, as for other commands. With --detector: a folder of photos, an "
            "image, a labelled set, or a run.",
        ),
    ] = None,
    set_: SetOption = None,
    run: RunOption = None,
    detector: Annotated[
        str | None, typer.Option("--detector", help="Label the images with this checkpoint, as a dataset.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The dataset's folder, new or empty. Default: datasets/<name of the images>-<format>.",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="yolo-seg, coco or fiftyone. Default: yolo-seg.")
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            "--class-map",
            metavar="NAME=THEIRS",
            help="Call the detector's class THEIRS NAME in the dataset. May be repeated; several classes can "
            "get one name.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CLASS", help="Keep only objects of this class. May be repeated."),
    ] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(
            "--tile-size",
            metavar="PIXELS",
            min=64,
            help="Cut larger images into overlapping square tiles of this side, and join what is found in "
            "them and in the whole image: for objects that are small in large photos.",
        ),
    ] = None,
) -> None:
    """Label a run as labels.source says, or any images with a detector.

    Needs no GPU; draws a contact sheet. What a detector found is kept while it works: the same command
    continues after an interruption.
    """
    if detector is not None:
        if what is None or run is not None:
            raise DiffugenError(
                "--detector labels what is named: diffugen label FOLDER --detector CHECKPOINT"
            )
        _with_detector(
            what, set_ or (), detector, out, format or "yolo-seg", class_map or (), only or (), tile_size
        )
        return
    idle = {
        "--out": out,
        "--format": format,
        "--class-map": class_map,
        "--only": only,
        "--tile-size": tile_size,
    }
    if any(idle.values()):
        given = ", ".join(name for name, value in idle.items() if value)
        raise DiffugenError(f"{given} needs --detector; diffugen export writes a run's labels as a dataset")
    from diffugen.stages import verbs

    with open_existing_run(what, set_, run) as opened:
        made = verbs.label(opened)
        sheet = verbs.contact_sheet(opened)
    say(f"{made.objects} labels on {made.images} images\ncontact sheet: {sheet}")


def _with_detector(
    source: str,
    set_: Sequence[str],
    detector: str,
    out: Path | None,
    format: str,
    class_map: Sequence[str],
    only: Sequence[str],
    tile_size: int | None,
) -> None:
    from diffugen.config import load_config
    from diffugen.stages.photos import label_images
    from diffugen.stages.verbs import run_for_detector

    renamed = _renamed(class_map)
    out = out or Path("datasets") / f"{Path(source).resolve().stem}-{format}"
    with run_for_detector(detector, load_config(None, set_), of_config=False, progress=progress) as opened:
        made = label_images(
            printing(opened).run,
            source,
            detector,
            opened.config.detector,
            out,
            format,
            renamed=renamed,
            only=only,
            tile_size=tile_size,
        )
    found = ", ".join(f"{name} {count}" for name, count in made.objects.items() if count) or "none"
    say(f"{counted(made.images, 'image')} in {made.folder} ({format}), {made.empty} without an object")
    say(f"objects: {found}")
    say(f"contact sheet: {made.sheet}")


def _renamed(class_map: Sequence[str]) -> dict[str, str]:
    """Return the new name of each class that --class-map names."""
    renamed: dict[str, str] = {}
    for text in class_map:
        name, equals, theirs = text.partition("=")
        if not (name and equals and theirs):
            raise DiffugenError(f"--class-map {text}: expected NAME=THEIRS, such as sedan=car")
        if theirs in renamed:
            raise DiffugenError(f"--class-map {text}: {theirs} is called {renamed[theirs]} already")
        renamed[theirs] = name
    return renamed
