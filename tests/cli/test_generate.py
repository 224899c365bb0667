"""`diffugen generate`: tasks, sources, the paper's format; one clear message for every kind of bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from diffugen.labels.shapes import decode
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.sets import scene_set
from diffugen.run.store import RunStore
from tests.support.command_line import run

SIZE_WH = (101, 67)
CONFIG = {
    "name": "mine",
    "prompts": {
        "templates": ["a photo of a {piano} on a road, {weather}"],
        "attributes": {"weather": {"sunny": 3, "snowy": 1}},
        "classes": {"piano": ["grand piano"]},
        "background": ["road"],
        "count": 2,
    },
    "diffusion": {"num_inference_steps": 3, "device": "cpu"},
}
PHOTOS = {
    "task": "inpaint",
    "source": "photos",
    "region": {"part": "lower half"},
    "templates": ["a photo of a {piano} on a road, {weather}"],
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def configured(*tasks: dict[str, Any], **changes: Any) -> str:
    Path("mine.yaml").write_text(yaml.safe_dump({**CONFIG, "tasks": list(tasks), **changes}, sort_keys=False))
    return "mine.yaml"


def photos(name: str = "photos", count: int = 2) -> Path:
    Path(name).mkdir()
    for number, drawn in enumerate(scene_set("known", count, SIZE_WH)):
        Image.fromarray(drawn.rgb).save(Path(name, f"{number}.png"))
    return Path(name)


def test_own_photos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos("streets")
    assert run(monkeypatch, "generate", configured(PHOTOS), "--source", "streets") == 0
    assert "2 images in runs/mine, " in capsys.readouterr().out
    assert Path("runs/mine/contact-sheet.png").stat().st_size > 10_000
    with RunStore.open("runs/mine", readonly=True) as store:
        for record in store.records():
            given, outside = np.array(Image.open(record.source)), ~decode(record.region)  # type: ignore[arg-type]
            assert np.array_equal(store.image(record.id)[outside], given[outside])
    assert run(monkeypatch, "generate", "mine.yaml", "--source", "streets") == 0, (
        "repeating the command does nothing and succeeds"
    )


def test_the_task_can_precede_the_configuration_or_be_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = ({"task": "txt2img"}, {"task": "img2img", "attributes": {"weather": ["rainy"]}})
    config = configured(*chain)
    assert run(monkeypatch, "generate", "txt2img", config) == 0
    with RunStore.open("runs/mine", readonly=True) as store:
        assert [record.task for record in store.records()] == ["txt2img"] * 2
    assert run(monkeypatch, "generate", config, "--task", "img2img") == 0
    with RunStore.open("runs/mine", readonly=True) as store:
        assert [record.task for record in store.records()] == ["txt2img"] * 2 + ["img2img"] * 2


def test_the_format_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {
        "dataset_name": "small",
        "dataset_root": "out",
        "image_format": "png",
        "image_size": {"width": 64, "height": 64},
        "steps": 3,
        "dataset_classes": ["car", "truck"],
        "dataset_to_model_class_map": {"car": "car", "truck": "truck"},
        "label_model": {"type": "YOLOSeg", "weights": "yolo.pt", "classes": "classes.txt"},
        "unsupervised": True,
        "deterministic": True,
        "images_per_shard": 10,
        "txt2img": {
            "stable_diffusion_model": "miniature",
            "seed_range": {"min": 1, "max": 9},
            "seed_count_per_prompt": 1,
            "object_names": ["car", "truck"],
            "view_points": ["front"],
            "times_of_day": ["day"],
            "sky_conditions": ["clear"],
            "weather_conditions": ["sunny"],
            "negative_prompt": "person",
            "prompts": [
                "{view_point} photo of a {object_name} on a road, {sky_condition}, {weather_condition}, "
                "{time_of_day}"
            ],
        },
        "img2img": {
            "stable_diffusion_model": "miniature",
            "source_dataset": "out/small/txt2img",
            "times_of_day": ["night"],
            "sky_conditions": ["clouds"],
            "weather_conditions": ["rainy", "snowy"],
        },
    }
    Path("small.json").write_text(json.dumps(about))
    assert run(monkeypatch, "generate", "txt2img", "small.json") == 0
    assert run(monkeypatch, "generate", "img2img", "small.json") == 0
    with RunStore.open("runs/small", readonly=True) as store:
        records = list(store.records())
    assert sorted(record.prompt.text for record in records if record.task == "txt2img") == [
        f"front photo of a {name} on a road, clear, sunny, day" for name in ("car", "truck")
    ]
    assert {record.prompt.text for record in records if record.task == "img2img"} == {
        f"front photo of a {name} on a road, clouds, {weather}, night"
        for name in ("car", "truck")
        for weather in ("rainy", "snowy")
    }


def wrong_token() -> None:
    save_file({"<piano>": torch.zeros(2, 768)}, "wide.safetensors")


def model_without_weights() -> None:
    shutil.copytree(WEIGHTS / "diffusion", "model")
    for file in Path("model/unet").glob("*.safetensors"):
        file.unlink()


def small_mask() -> None:
    photos()
    Image.new("L", (10, 10), 255).save("mask.png")


MISTAKES = {
    "a template's attribute is missing": (
        None,
        (PHOTOS | {"templates": ["a {piano}, {season}"]},),
        (),
        r"tasks.*\{season\}",
    ),
    "an attribute is unused": (
        None,
        (),
        ("--set", "prompts.attributes.season=[may]"),
        r"no template uses the attribute 'season'",
    ),
    "a prompt without a class": (
        None,
        (),
        ("--set", "prompts.templates=['a road, {weather}']"),
        r"name no object|no prompt can name",
    ),
    "beyond 77 tokens": (
        None,
        (),
        ("--set", f"prompts.templates=['{'a road ' * 45} {{weather}} {{piano}}']"),
        r"beyond the token limit",
    ),
    "an unreadable photo": (
        lambda: (photos() / "0.png").write_bytes(b"no image"),
        (PHOTOS,),
        (),
        r"cannot read the image photos/0\.png",
    ),
    "an empty folder": (lambda: Path("photos").mkdir(), (PHOTOS,), (), r"photos contains no images"),
    "no folder": (None, (PHOTOS,), (), r"source 'photos' not found \(looked in"),
    "a mask of the wrong size": (
        small_mask,
        (PHOTOS | {"region": {"mask": "mask.png"}},),
        (),
        r"mask\.png has 10x10 pixels, the image 101x67",
    ),
    "two regions": (
        None,
        (PHOTOS | {"region": {"part": "middle", "mask": "mask.png"}},),
        (),
        r"exactly one of label",
    ),
    "no region": (None, ({**PHOTOS, "region": None},), (), r"a region for inpaint"),
    "an unknown part": (
        None,
        (PHOTOS | {"region": {"part": "lower hall"}},),
        (),
        r"did you mean 'lower half'",
    ),
    "an unknown task": (None, (PHOTOS | {"task": "inpant"},), (), r"did you mean 'inpaint'"),
    "an unknown key": (None, (PHOTOS | {"strenght": 1.0},), (), r"did you mean 'strength'"),
    "strength too high": (None, (PHOTOS | {"strength": 1.5},), (), r"at most 1"),
    "strength too low for the number of steps": (photos, (PHOTOS | {"strength": 0.1},), (), r"strength"),
    "an unknown scheduler": (None, (), ("--set", "diffusion.scheduler=DDIMM"), r"DDIMScheduler"),
    "a token of the wrong width": (
        wrong_token,
        (),
        ("--set", "diffusion.embeddings=[wide.safetensors]"),
        r"768.*128|128.*768",
    ),
    "no embedding": (None, (), ("--set", "diffusion.embeddings=[none.safetensors]"), r"none\.safetensors"),
    "no LoRA": (None, (), ("--set", "diffusion.loras={none.safetensors: 1.0}"), r"none\.safetensors"),
    "a model without weights": (model_without_weights, (), ("--set", "diffusion.model=./model"), r"model"),
    "no such task": (None, (), ("--task", "inpaint"), r"no task 'inpaint'; the configuration has txt2img"),
    "a source without a task": (
        None,
        (),
        ("--source", "photos"),
        r"--source needs a task that starts from images",
    ),
}


@pytest.mark.parametrize(("prepare", "tasks", "options", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare, tasks, options, expected
) -> None:
    if prepare is not None:
        prepare()
    assert run(monkeypatch, "generate", configured(*tasks), *options) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and "Traceback" not in errors
    assert re.search(expected, errors), errors
    assert not list(Path("runs").rglob("images/**/*.png")), "no image was written"


def test_two_tasks_or_two_configurations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured()
    for arguments, expected in (
        (("txt2img", config, "--task", "img2img"), "two tasks are named"),
        (("txt2img", config, "cars"), "expected one configuration, got mine.yaml and cars"),
    ):
        assert run(monkeypatch, "generate", *arguments) == 2
        assert expected in capsys.readouterr().err
