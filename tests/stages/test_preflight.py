"""What would stop a loop hours later is found before its first image, and all of it at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffugen.config.load import load_config
from diffugen.dataset.coco import write_coco
from diffugen.dataset.yolo import write_yolo
from diffugen.errors import ConfigError
from diffugen.run import Run
from diffugen.run.rounds import OnProgress
from diffugen.stages import preflight
from tests.support.command_line import run as command_line
from tests.support.dataset_samples import box_mask, item

BOX = box_mask((2, 2, 9, 9))


def dataset(folder: Path, count: int = 4) -> Path:
    items = [item(f"image{'x' * number}", ("car", BOX, 1.0)) for number in range(count)]
    write_yolo(folder, {"train": items}, ["car"])
    return folder


def check(folder: Path, *overrides: str) -> list[str]:
    """Return the titles of the progress that was shown."""
    shown: list[str] = []

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[OnProgress]:
        shown.append(title)
        yield lambda done, total, note="": None

    config = load_config("miniature", ["loop.truth=null", *overrides])
    with Run.open(folder, config, progress=progress) as run:
        preflight(run, config)
    return shown


def mistakes(folder: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(folder, *overrides)
    return caught.value.mistakes


def test_the_shipped_miniature_passes(tmp_path: Path) -> None:
    assert check(tmp_path / "run", "loop.truth=piano-among") == []


@pytest.mark.parametrize(
    ("override", "expected"),
    {
        "detector": ("detector.checkpoint=lost.pt", "no checkpoint at lost.pt"),
        "class map": (
            "detector.class_map={piano: lorry}",
            "detector.class_map.piano = lorry: the detector miniature knows car, truck",
        ),
        "ignored band": (
            "detector.ignore_band=0.01",
            "but YOLO's loss counts every pixel; set it to 0, or let",
        ),
        "GPU": ("detector.device=cuda:0,7", "device 'cuda:0' is not available"),
        "model": ("diffusion.model=some/models/lost", "model 'some/models/lost' is neither"),
        "model of a task": (
            "tasks=[{task: txt2img}, {task: img2img, model: lost}]",
            "model 'lost' is neither",
        ),
        "LoRA": ("diffusion.loras={lost.safetensors: 0.5}", "LoRA 'lost.safetensors' is neither"),
        "embedding": ("diffusion.embeddings=[lost.safetensors]", "lost.safetensors"),
        "source": ("tasks=[{task: img2img, source: lost}]", "task img2img: source 'lost' not found"),
        "mask": (
            "tasks=[{task: txt2img}, {task: inpaint, region: {mask: lost.png}}]",
            "no mask image at lost.png",
        ),
        "known": ("dataset.known=lost", "dataset.known: no truth 'lost'"),
        "validation": ("loop.validation=lost.json", "loop.validation: no truth 'lost.json'"),
        "truth": ("loop.truth=piano-amongst", "loop.truth: no truth 'piano-amongst'"),
    }.values(),
)
def test_what_is_missing_is_found(tmp_path: Path, override: str, expected: str) -> None:
    [mistake] = mistakes(tmp_path / "run", override)
    assert expected in mistake


def test_all_mistakes_are_in_one_list(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path / "run",
        "detector.checkpoint=lost.pt",
        "diffusion.model=some/models/lost",
        "dataset.known=lost",
        "loop.truth=lost",
    )
    assert len(found) == 4


def test_a_witness_that_knows_none_of_the_classes_is_refused(tmp_path: Path) -> None:
    only = "prompts.classes={piano: [piano]}", 'prompts.templates=["a {piano} on a road"]'
    [mistake] = mistakes(tmp_path / "run", *only, "prompts.attributes={}", "labels.source=both")
    assert "labels.source is both, but the detector miniature knows none of the classes piano" in mistake
    assert mistake.endswith("set labels.source to attention")
    [mistake] = mistakes(tmp_path / "alone", *only, "prompts.attributes={}", "labels.source=detector")
    assert mistake.endswith("set labels.source to attention"), "it knows nothing for `both` either"
    assert check(tmp_path / "other", *only, "prompts.attributes={}", "labels.source=attention") == []


def test_a_detector_that_labels_alone_must_know_all_classes(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path / "run", "labels.source=detector")
    assert "labels.source is detector, but the detector miniature does not know piano; map" in mistake
    assert "set labels.source to both" in mistake
    assert check(tmp_path / "both", "labels.source=both") == []
    assert check(tmp_path / "mapped", "labels.source=detector", "detector.class_map={piano: car}") == []


def test_a_segmenter_is_opened_if_it_is_used(tmp_path: Path) -> None:
    text, run = tmp_path / "sam_b.pt", tmp_path / "run"
    text.write_text("no weights")
    [mistake] = mistakes(run, "labels.refine=sam", f"labels.segmenter={text}")
    assert mistake.startswith(f"labels.segmenter: {text} does not hold the weights")
    [mistake] = mistakes(run, "labels.refine=sam", "labels.segmenter=yolo11n-seg.pt")
    assert "labels.segmenter: yolo11n-seg.pt is not the name of a segmenter" in mistake
    assert check(run, "labels.refine=crf", f"labels.segmenter={text}") == []


def test_every_broken_image_and_label_is_listed(tmp_path: Path) -> None:
    known = dataset(tmp_path / "known")
    images = sorted((known / "images/train").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:60])
    label = known / "labels/train" / f"{images[2].stem}.txt"
    label.write_text("0 0.5 0.5 nonsense\n")
    found = mistakes(tmp_path / "run", f"dataset.known={known}")
    assert len(found) == 2
    assert str(images[0]) in found[0] and f"{label}, line 1" in found[1]


def test_the_last_annotation_of_a_coco_file_is_read(tmp_path: Path) -> None:
    items = [item(name, ("car", BOX, 1.0)) for name in ("a", "bb")]
    write_coco(tmp_path / "truth", {"val": items}, ["car"])
    file = tmp_path / "truth/annotations/instances_val.json"
    about = json.loads(file.read_text())
    about["annotations"][-1]["segmentation"] = [[1, 2, 3]]
    file.write_text(json.dumps(about))
    [mistake] = mistakes(tmp_path / "run", f"loop.truth={file}")
    assert "number 2) has no valid mask" in mistake


def test_sets_are_read_once_unless_they_change(tmp_path: Path) -> None:
    known, title = dataset(tmp_path / "known"), "check the labelled images"
    given = tmp_path / "run", f"dataset.known={known}"
    assert check(*given) == [title]
    assert check(*given) == []
    label = sorted((known / "labels/train").iterdir())[0]
    label.write_text("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    assert check(*given) == [title]


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150_000_000))
    [mistake] = mistakes(tmp_path / "run")
    assert "only 150 MB are free" in mistake


def test_the_command_line_checks_before_it_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: Any = ("--run", str(tmp_path / "run"), "--set", "detector.checkpoint=lost.pt")
    assert command_line(monkeypatch, "bootstrap", *given) == 2
    assert "no checkpoint at lost.pt" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "images").glob("*"))


@pytest.mark.parametrize("copied", [False, True])
def test_photos_that_measure_the_detector_are_not_painted_over(tmp_path: Path, copied: bool) -> None:
    """They would be trained on. A labelled set gives its training images, unless another split is named."""
    items = {"train": [item("a", ("car", BOX, 1.0))], "test": [item("bb", ("car", BOX, 1.0))]}
    truth = write_yolo(tmp_path / "truth", items, ["car"]).parent
    photos = tmp_path / "photos"
    shutil.copytree(truth / "images" / "test", photos) if copied else photos.symlink_to(truth / "images/test")
    given = tmp_path / "run", f"loop.truth={truth}"
    [mistake] = mistakes(*given, f"tasks=[{{task: img2img, source: {photos}}}]")
    assert "the source of task img2img" in mistake and "share 1 image" in mistake
    [mistake] = mistakes(*given, f"tasks=[{{task: img2img, source: '{truth}:test'}}]")
    assert "share 1 image" in mistake
    check(*given, f"tasks=[{{task: img2img, source: {truth}}}]")


def test_two_images_with_the_labels_of_one_are_told(tmp_path: Path) -> None:
    known = dataset(tmp_path / "known")
    image = sorted((known / "images/train").iterdir())[0]
    shutil.copy(image, image.with_suffix(".jpg"))
    [mistake] = mistakes(tmp_path / "run", f"dataset.known={known}")
    assert f"2 images are called {image.stem}" in mistake


def test_the_cause_of_a_size_that_does_not_fit(tmp_path: Path) -> None:
    write_coco(tmp_path / "truth", {"val": [item("a", ("car", BOX, 1.0))]}, ["car"])
    file = tmp_path / "truth/annotations/instances_val.json"
    [image] = (tmp_path / "truth/images/val").iterdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(image) as opened:
        before = opened.copy()
    before.save(image, exif=exif)
    [mistake] = mistakes(tmp_path / "run", f"loop.truth={file}")
    assert "its EXIF data turns it" in mistake
    before.resize((20, 10)).save(image)
    [mistake] = mistakes(tmp_path / "run", f"loop.truth={file}")
    assert "use the images that were annotated" in mistake and "EXIF" not in mistake
