"""The command that labels a run, or any images with a detector: `diffugen label`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import RunOption, SetOption, examples, open_existing_run, printing
from diffugen.errors import DiffugenError, counted

if TYPE_CHECKING:
    from diffugen.stages.finders import Finder
    from diffugen.stages.verbs import OpenRun


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen label",
            "diffugen label --run runs/pianos --set labels.method=compete",
            "diffugen label photos --detector best.pt --out datasets/photos --format coco",
            "diffugen label aerial --detector best.pt --tile-size 1024",
            "diffugen label photos --detector yolov8n-seg.pt --class-map sedan=car --only sedan",
            "diffugen label photos --decoder runs/pianos --prompt 'a photo of a grand piano on a road'",
            "diffugen label runs/pianos --detector best.pt --set detector.confidence=0.5",
        )
    )(label)


def label(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|IMAGES",
            help="The run's configuration, as for other commands. With --detector or --decoder: a folder of "
            "photos, an image, a labelled set, or a run.",
        ),
    ] = None,
    set_: SetOption = None,
    run: RunOption = None,
    detector: Annotated[
        str | None, typer.Option("--detector", help="Label the images with this checkpoint, as a dataset.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder",
            metavar="RUN",
            help="Label the images with what this run was taught, as a dataset; needs --prompt.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="With --decoder: what all the images show.")
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
    """Label a run, or any images with a detector or a decoder.

    Needs no GPU; draws a contact sheet. What a detector found is kept while it works: the same command
    continues after an interruption.
    """
    if detector is not None and decoder is not None:
        raise DiffugenError("give --detector or --decoder, not both")
    if detector is not None or decoder is not None:
        option, value = ("--decoder", "RUN --prompt TEXT") if decoder else ("--detector", "CHECKPOINT")
        if what is None or run is not None or (prompt is None) != (decoder is None):
            raise DiffugenError(f"{option} labels what is named: diffugen label FOLDER {option} {value}")
        if decoder is not None and tile_size is not None:
            raise DiffugenError("--tile-size needs --detector; a decoder sees whole images")
        with _opened(set_ or (), detector, decoder, prompt, tile_size) as (opened, finder):
            _label_images(
                opened, what, finder, out, format or "yolo-seg", _renamed(class_map or ()), only or ()
            )
        return
    idle = {
        "--prompt": prompt,
        "--out": out,
        "--format": format,
        "--class-map": class_map,
        "--only": only,
        "--tile-size": tile_size,
    }
    if any(idle.values()):
        given = ", ".join(name for name, value in idle.items() if value)
        raise DiffugenError(
            f"{given} needs --detector or --decoder; diffugen export writes a run's labels as a dataset"
        )
    from diffugen.stages import verbs

    with open_existing_run(what, set_, run) as opened:
        made = verbs.label(opened)
        sheet = verbs.contact_sheet(opened)
    say(f"{made.objects} labels on {made.images} images\ncontact sheet: {sheet}")


@contextmanager
def _opened(
    set_: Sequence[str], detector: str | None, decoder: str | None, prompt: str | None, tile_size: int | None
) -> Iterator[tuple[OpenRun, Finder]]:
    """Open the run that labels images, or what stands in for one, and what finds their objects."""
    from diffugen.config import load_config
    from diffugen.stages import verbs
    from diffugen.stages.finders import decoder_finder, detector_finder

    if detector is not None:
        config = load_config(None, set_)
        with verbs.run_for_detector(detector, config, of_config=False, progress=progress) as opened:
            yield opened, detector_finder(printing(opened).run, detector, config.detector, tile_size)
        return
    with open_existing_run(None, set_, Path(str(decoder)), readonly=True) as opened:
        labelling = verbs.labelling_of(opened.run.newest_round(), opened.config)
        yield opened, decoder_finder(opened.run, opened.config, labelling, str(prompt))


def _label_images(
    opened: OpenRun,
    source: str,
    finder: Finder,
    out: Path | None,
    format: str,
    renamed: Mapping[str, str],
    only: Sequence[str],
) -> None:
    from diffugen.stages.photos import label_images

    out = out or Path("datasets") / f"{Path(source).resolve().stem}-{format}"
    made = label_images(opened.run, source, finder, out, format, renamed=renamed, only=only)
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
