"""Train all weights of the miniature from scratch, in resumable stages.

    diffugen miniature train --out weights-new --recipe cpu

Stages: ``data`` (rendered scenes), ``autoencoder``, ``diffusion``, ``detector``, ``oracle``. Each writes its
result into the output folder, in the layout of ``diffugen/miniature/weights``, and is skipped if the result
exists. Working files (scenes, checkpoints, log, sample images) are in its folder ``work/``.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.training import TrainingArguments
from diffugen.dataset.files import Item
from diffugen.errors import DiffugenError
from diffugen.miniature.scenes import KNOWN_CLASSES
from diffugen.miniature.sets import exact_instances

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

STAGES = ("data", "autoencoder", "diffusion", "detector", "oracle")
WORDS = (
    "orange purple dog cat tree building house street city the with two big small old new parked driving "
    "standing"
)
"""Words that are not in any training caption but get their own tokens."""
SAMPLE_PROMPTS = (
    "a photo of a red car on a road, sunny, day",
    "a photo of a blue truck and a traffic cone on a road, snowy, sunset",
    "a photo of a black grand piano in a room, sunny, day",
    "a photo of a brown piano on a road, rainy, night",
    "a photo of a black piano and a red car on a road, sunny, day",
    "a photo of two cars on a road, cloudy, day",
    "a photo of a yellow bus and a person in red on a road, sunny, day",
    "a photo of a brown bench and a crate on a road, cloudy, day",
)


@dataclass(frozen=True)
class Recipe:
    """Amounts of data and training.

    Attributes:
        size_wh: Width and height of the scenes in pixels.
        scenes: Number of scenes for the autoencoder and the diffusion model.
        decoder_steps: Optimiser steps of the autoencoder's decoder.
        widths: Channels of the UNet at full and half resolution.
        steps: Optimiser steps of the denoiser.
        batch_size: Samples per step of the denoiser.
        learning_rate: Peak learning rate of the denoiser.
        detector_scenes: Number of training scenes of the detector.
        detector_epochs: Epochs of the detector.
        oracle_steps: Optimiser steps of the oracle.
    """

    size_wh: tuple[int, int]
    scenes: int
    decoder_steps: int
    widths: tuple[int, int]
    steps: int
    batch_size: int
    learning_rate: float
    detector_scenes: int
    detector_epochs: int
    oracle_steps: int


RECIPES = {
    "cpu": Recipe((64, 64), 60_000, 1500, (80, 160), 8000, 32, 1.0e-3, 2400, 12, 2500),
    "gpu": Recipe((64, 64), 200_000, 4000, (80, 160), 5000, 512, 1.0e-3, 2400, 12, 2500),
    "smoke": Recipe((32, 32), 64, 4, (16, 32), 4, 4, 1.0e-3, 8, 1, 4),
}


class _Log:
    """Writes each report as a line of ``work/log.jsonl`` and passes it to the caller."""

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self.path, self.notify, self.start = folder / "log.jsonl", notify, time.time()

    def __call__(self, stage: str, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(
                json.dumps({"stage": stage, "seconds": round(time.time() - self.start, 1), **values}) + "\n"
            )
        self.notify(f"{stage}: " + ", ".join(f"{key} {value}" for key, value in values.items()))


def train(
    out: Path,
    *,
    recipe: str = "cpu",
    stages: Sequence[str] = STAGES,
    device: str = "cpu",
    notify: Callable[[str], None] = print,
) -> None:
    """Train the miniature's weights.

    Args:
        out: Output folder; an interrupted training in it is continued.
        recipe: ``cpu`` (about 100 minutes on 2 cores), ``gpu`` (up to the denoiser 11 minutes on an H200; the
            shipped weights) or ``smoke`` (seconds; useless weights).
        stages: The stages to run, of `STAGES`.
        device: Torch device.
        notify: Called with each line of progress.

    Raises:
        DiffugenError: The recipe or a stage is unknown.
    """
    if recipe not in RECIPES:
        raise DiffugenError(f"unknown recipe {recipe!r}; one of {', '.join(RECIPES)}")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise DiffugenError(f"unknown stage {unknown[0]!r}; one of {', '.join(STAGES)}")
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = _Log(work, notify)
    settings = RECIPES[recipe]
    if "data" in stages:
        _make_data(work, settings, log)
    if "autoencoder" in stages:
        _train_autoencoder(out, settings, device, log)
    if "diffusion" in stages:
        _train_diffusion(out, settings, device, log)
    if "detector" in stages:
        _train_detector(out, settings, device, log)
    if "oracle" in stages:
        _train_oracle(out, settings, device, log)


def _make_data(work: Path, recipe: Recipe, log: _Log) -> None:
    """Render the training scenes and fit the encoder to them."""
    from diffugen.miniature.autoencoder import build_autoencoder

    if (work / "scenes.npy").exists():
        return
    width, height = recipe.size_wh
    rgb = np.lib.format.open_memmap(
        work / "scenes.partial.npy", "w+", np.uint8, (recipe.scenes, height, width, 3)
    )
    captions: list[str] = []
    parts = [(start, min(1000, recipe.scenes - start)) for start in range(0, recipe.scenes, 1000)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for part_rgb, part_captions in pool.map(partial(_rendered, recipe.size_wh), parts):
            rgb[len(captions) : len(captions) + len(part_rgb)] = part_rgb
            captions.extend(part_captions)
            if len(captions) % 10_000 == 0:
                log("data", scenes=len(captions))
    rgb.flush()
    (work / "captions.json").write_text(json.dumps(captions))
    build_autoencoder(np.asarray(rgb[:4000])).save_pretrained(work / "encoder")
    os.replace(work / "scenes.partial.npy", work / "scenes.npy")


def _rendered(size_wh: tuple[int, int], part: tuple[int, int]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return images uint8 (N, H, W, 3) and captions of the training scenes of a part: (first, N)."""
    from diffugen.miniature.sets import scene_set

    start, count = part
    drawn = list(scene_set("training", count, size_wh, start))
    return np.stack([one.rgb for one in drawn]), [one.scene.caption for one in drawn]


def _train_autoencoder(out: Path, recipe: Recipe, device: str, log: _Log) -> None:
    """Train the decoder to undo the fitted encoder."""
    import torch
    from diffusers import AutoencoderTiny

    from diffugen.miniature.autoencoder import peak_signal_to_noise, train_decoder
    from diffugen.miniature.sets import scene_set

    folder = out / "work" / "autoencoder"
    if folder.exists():
        return
    torch.manual_seed(0)
    rgb = np.load(out / "work" / "scenes.npy", mmap_mode="r")
    model = AutoencoderTiny.from_pretrained(out / "work" / "encoder")

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            log("autoencoder", step=step, of=recipe.decoder_steps, loss=round(loss, 5))

    train_decoder(model, rgb, steps=recipe.decoder_steps, device=device, on_step=report)
    unseen = np.stack([drawn.rgb for drawn in scene_set("uniform", 256, recipe.size_wh)])
    log("autoencoder", psnr_db=round(peak_signal_to_noise(model.cpu(), unseen), 2))
    model.save_pretrained(folder)


def _train_diffusion(out: Path, recipe: Recipe, device: str, log: _Log) -> None:
    """Train text encoder and UNet on the encoder's latents, then save the pipeline, in float16 where large.

    The text encoder is small and stays in float32: transformers loads a model in the precision of its file,
    diffusers in float32, and a pipeline that is loaded without a dtype cannot mix both.
    """
    import torch
    from diffusers import AutoencoderTiny

    from diffugen.miniature import denoiser

    work, folder = out / "work", out / "diffusion"
    if folder.exists():
        return
    torch.manual_seed(0)
    latents = _latents(work, device)
    captions = json.loads((work / "captions.json").read_text())
    tokenizer = denoiser.build_tokenizer([*captions, WORDS], work / "tokenizer")
    token_ids = tokenizer(
        ["", *captions], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    unet = denoiser.build_unet(latents.shape[1], latents.shape[-1], recipe.widths)
    training = denoiser.start_training(unet, denoiser.build_text_encoder(tokenizer), recipe.learning_rate)
    checkpoint = work / "denoiser.pt"
    if checkpoint.exists():
        training.restore(torch.load(checkpoint, weights_only=True))
    vae = AutoencoderTiny.from_pretrained(work / "autoencoder")
    vae.register_to_config(_name_or_path="")  # otherwise the configuration contains a path on this machine
    pipeline = denoiser.assemble_pipeline(vae, tokenizer, training.text_encoder, unet)
    losses: deque[torch.Tensor] = deque(maxlen=200)

    def report(step: int, loss: torch.Tensor) -> None:
        losses.append(loss)
        if step % 50 == 0:
            log("diffusion", step=step, of=recipe.steps, loss=round(float(torch.stack([*losses]).mean()), 4))
        if step % 250 == 0 or step == recipe.steps:
            torch.save(training.state(), work / "denoiser.partial.pt")
            os.replace(work / "denoiser.partial.pt", checkpoint)
        if step % max(1, recipe.steps // 8) == 0 or step == recipe.steps:
            with training.averaged():
                _draw_samples(pipeline.to(device), work / f"samples-{step:06}.png")
            training.unet.train()

    denoiser.train_denoiser(
        training,
        latents,
        token_ids[1:],
        token_ids[0],
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        device=device,
        on_step=report,
    )
    with training.averaged():
        pipeline.to("cpu", torch.float16).text_encoder.float()
        pipeline.save_pretrained(folder.with_suffix(".partial"))
    os.replace(folder.with_suffix(".partial"), folder)


def _draw_samples(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Generate four images of each sample prompt, to monitor the training."""
    import torch

    from diffugen.labels.pictures import Panel, contact_sheet

    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    panels = []
    for text in SAMPLE_PROMPTS:
        noise = [torch.Generator().manual_seed(seed) for seed in range(4)]
        images = pipeline(
            [text] * 4, num_inference_steps=20, guidance_scale=3.0, generator=noise, output_type="np"
        ).images
        panels.append(Panel([(image * 255).round().astype(np.uint8) for image in images], text))
    contact_sheet(panels, path, columns=2, height=96, title=path.stem)


def _latents(work: Path, device: str) -> torch.Tensor:
    """Return the latents of all rendered scenes, float16 (N, C, h, w)."""
    import torch
    from diffusers import AutoencoderTiny

    from diffugen.miniature.autoencoder import to_unit

    rgb = np.load(work / "scenes.npy", mmap_mode="r")
    encoder = AutoencoderTiny.from_pretrained(work / "encoder").encoder.to(device)
    with torch.no_grad():
        return torch.cat(
            [encoder(to_unit(rgb[i : i + 500]).to(device)).half().cpu() for i in range(0, len(rgb), 500)]
        )


def _train_detector(out: Path, recipe: Recipe, device: str, log: _Log) -> None:
    """Train YOLOv8n-seg from scratch on scenes without pianos; it plays the part of COCO weights."""
    from diffugen.dataset.yolo import write_yolo
    from diffugen.detectors.yolo import YoloDetector
    from diffugen.detectors.yolo_checkpoint import save_safetensors

    folder, dataset = out / "detector", out / "work" / "streets"
    if folder.exists():
        return
    if not dataset.exists():
        held_out = max(4, recipe.detector_scenes // 10)
        train_items = _detector_items(recipe.detector_scenes, recipe.size_wh, start=1000)
        val_items = _detector_items(held_out, recipe.size_wh, start=1000 + recipe.detector_scenes)
        write_yolo(dataset, {"train": train_items, "val": val_items}, KNOWN_CLASSES)

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        log(
            "detector",
            epoch=epoch,
            of=recipe.detector_epochs,
            mask_ap50=round(metrics.get("metrics/mAP50(M)", 0.0), 3),
        )

    best = YoloDetector("yolov8n-seg.yaml", device=device).fit(
        dataset,
        out / "work" / "detector",
        epochs=recipe.detector_epochs,
        image_size=2 * max(recipe.size_wh),
        seed=0,
        batch_size=16,
        on_epoch=report,
        extra=TrainingArguments(mosaic=0.0, mask_ratio=2),
    )
    save_safetensors(best, folder)


def _detector_items(count: int, size_wh: tuple[int, int], start: int) -> Iterator[Item]:
    from diffugen.miniature.sets import scene_set

    for number, drawn in enumerate(scene_set("streets", count, size_wh, start)):
        yield f"streets-{start + number}", drawn.rgb, exact_instances(drawn)


def _train_oracle(out: Path, recipe: Recipe, device: str, log: _Log) -> None:
    """Train the segmentation model that is used for measurements."""
    import torch

    from diffugen.miniature import oracle
    from diffugen.miniature.sets import scene_set

    folder = out / "oracle"
    if folder.exists():
        return
    torch.manual_seed(0)
    model = oracle.build_oracle()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            log("oracle", step=step, of=recipe.oracle_steps, loss=round(loss, 4))

    oracle.train_oracle(
        model, size_wh=recipe.size_wh, steps=recipe.oracle_steps, device=device, on_step=report
    )
    drawn = list(scene_set("uniform", 200, recipe.size_wh))
    labels = oracle.segment(model.cpu(), [one.rgb for one in drawn])
    scores = oracle.intersection_over_union(np.stack([oracle.class_map(one) for one in drawn]), labels)
    log("oracle", **{name: round(value, 3) for name, value in scores.items()})
    model.half().save_pretrained(folder)
