"""The command that learns a new word from a few images: `diffugen invert`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.output import say
from diffugen.cli.progress import progress
from diffugen.cli.shared import examples
from diffugen.errors import DiffugenError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_PROMPTS = ("a photo of a {}", "a photo of a {} on a road")
SAMPLE_SEEDS = 4
SAMPLE_STEPS = 20
NEUTRAL_HINT = (
    "The captions said nothing but {token}, so it also means what all images share, such as their "
    "background: it may show "
    "up in images, and heat maps of {token} may point at it. To keep it out, name it: "
    "--template 'a photo of a {{}} in a room'"
)
SETTINGS_HELP = (
    "A training setting: vectors=1, steps=500, learning_rate=0.001, batch_size=4, flip=true, seed=0, "
    "guidance_scale=3.0 "
    "(of the sample pictures), device=auto, dtype=float32. May be repeated."
)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "diffugen invert --token '<grand-piano>' --images photos --init piano",
            "diffugen invert --token '<grand-piano>' --images photos --init piano --template 'a photo of a "
            "{} in a room' --model /models/sd15 --set dtype=bfloat16 --set steps=2000",
        )
    )(invert)


def invert(
    token: Annotated[str, typer.Option("--token", help="The new word, e.g. '<grand-piano>'.")],
    images: Annotated[Path, typer.Option("--images", help="Folder with 3 to 8 images of what it means.")],
    init: Annotated[str, typer.Option("--init", help="A word that the model knows, where learning starts.")],
    model: Annotated[
        str, typer.Option(help="The miniature, or a Stable Diffusion 1.x or 2.x model.")
    ] = "miniature",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A caption with {} for the token. May be repeated. Name what all images share and the token "
            "should not "
            "mean, such as the room they were taken in. Default: neutral captions."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: embeddings/<token>.safetensors.")
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(help="A prompt with {} for the sample pictures. May be repeated.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SETTINGS_HELP)] = None,
) -> None:
    """Learn a new word from a few images (textual inversion). Run it again to continue."""
    from diffugen.config.load import load_section
    from diffugen.config.sections import InversionSettings
    from diffugen.diffusion.inversion import load_embeddings
    from diffugen.diffusion.inversion_train import TEMPLATES, train_inversion
    from diffugen.diffusion.pipelines import load_pipeline

    settings = load_section(InversionSettings, set_ or ())
    prompts = tuple(sample or SAMPLE_PROMPTS)
    if wrong := [text for text in prompts if "{}" not in text]:
        raise DiffugenError(f"a sample prompt needs {{}} where the token stands; got {wrong[0]!r}")
    name = re.sub(r"[^\w.-]+", "-", token).strip("-.") or "token"
    target = out or Path("embeddings") / f"{name}.safetensors"
    photos = read_images(images)
    pipeline = load_pipeline(model, device=settings.device, dtype=settings.dtype)
    with progress("learning", "step") as on_progress:
        train_inversion(
            pipeline,
            photos,
            token=token,
            init=init,
            out=target,
            vectors=settings.vectors,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            templates=template or TEMPLATES,
            flip=settings.flip,
            on_progress=on_progress,
        )
    with progress("drawing", "picture") as on_progress:
        before = _samples(pipeline, prompts, init, settings.guidance_scale, on_progress, 0)
        load_embeddings(pipeline, [target])
        after = _samples(pipeline, prompts, token, settings.guidance_scale, on_progress, len(prompts))
    sheet = _draw(target.with_suffix(".png"), prompts, {init: before, token: after})
    say(f"learned {token} from {len(photos)} images: {target}\nbefore and after: {sheet}")
    if not template:
        say(NEUTRAL_HINT.format(token=token))
    say(
        f"Use it: add {token} to a class's phrases (prompts.classes), and the file to the configuration:\n"
        f"  diffusion:\n    embeddings: [{target}]"
    )


def read_images(folder: Path) -> list[NDArray[np.uint8]]:
    """Return the images of a folder, sorted by name, as uint8 RGB (H, W, 3), EXIF orientation applied.

    Raises:
        DiffugenError: The folder is missing or has no images, or one cannot be read.
    """
    from diffugen.dataset.files import IMAGE_SUFFIXES, read_image

    if not folder.is_dir():
        raise DiffugenError(f"no folder {folder}: put 3 to 8 images of the thing into one folder and name it")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DiffugenError(
            f"{folder} holds no images; put 3 to 8 of the thing there ({', '.join(IMAGE_SUFFIXES)})"
        )
    return [read_image(path) for path in files]


def _samples(
    pipeline: Any,
    prompts: Sequence[str],
    word: str,
    guidance_scale: float,
    on_progress: Callable[[int, int], None],
    rows_before: int,
) -> list[list[NDArray[np.uint8]]]:
    """Return pictures of each prompt, one a seed; the same seeds whatever the word."""
    import numpy as np
    import torch

    rows: list[list[NDArray[np.uint8]]] = []
    for prompt in prompts:
        on_progress(SAMPLE_SEEDS * (rows_before + len(rows)), SAMPLE_SEEDS * 2 * len(prompts))
        images = pipeline(
            [prompt.replace("{}", word)] * SAMPLE_SEEDS,
            num_inference_steps=SAMPLE_STEPS,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(SAMPLE_SEEDS)],
            output_type="np",
        ).images
        rows.append([(image * 255).round().astype(np.uint8) for image in images])
    on_progress(SAMPLE_SEEDS * (rows_before + len(rows)), SAMPLE_SEEDS * 2 * len(prompts))
    return rows


def _draw(path: Path, prompts: Sequence[str], made: dict[str, list[list[NDArray[np.uint8]]]]) -> Path:
    from diffugen.labels.pictures import Panel, contact_sheet

    panels = [
        Panel(rows[number], prompt.replace("{}", word))
        for number, prompt in enumerate(prompts)
        for word, rows in made.items()
    ]
    before, after = made
    return contact_sheet(
        panels, path, columns=2, height=128, title=f"left {before}, right {after}; the same seeds"
    )
