from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffugen.dataset.coco import write_coco
from diffugen.dataset.yolo import write_yolo
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import encode
from diffugen.records import HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run.store import RunStore
from diffugen.stages.sources import SourceImage, images_of_task, source_files, sources_outside, with_classes

SIZE_WH = (24, 16)


def pixels(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)


def car() -> Instances:
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=bool)
    mask[4:9, 3:12] = True
    mask[5, 5] = False
    return Instances(SIZE_WH, ("car",), (encode(mask),), np.array([0.7]))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with RunStore.create_or_open(tmp_path / "run", config=None) as opened:
        yield opened


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(pixels(number)).save(folder / name)
    return folder


def test_photos_of_a_folder_are_sorted_by_name(tmp_path: Path, store: RunStore) -> None:
    folder = photos(tmp_path / "photos", "b.png", "a.PNG", "c.bmp")
    (folder / "notes.txt").write_text("no image")
    found = list(sources_outside(store, str(folder), None))
    assert [one.name for one in found] == ["a", "b", "c"]
    for one, number in zip(found, (1, 0, 2), strict=True):
        assert (one.size_wh, one.prompt, one.instances) == (SIZE_WH, None, None)
        assert one.id.startswith("photo-") and one.family == one.id and one.place.startswith(str(folder))
        assert np.array_equal(store.source(one.id), pixels(number))
    assert list(sources_outside(store, str(folder), 2)) == found[:2]
    assert [one.name for one in sources_outside(store, str(folder / "c.bmp"), None)] == ["c"]


def test_the_same_photo_twice_is_one_source(tmp_path: Path, store: RunStore) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels(0)).save(folder / name)
    assert len(list(sources_outside(store, str(folder), None))) == 1


def test_exif_rotation_is_applied(tmp_path: Path, store: RunStore) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(0)).save(tmp_path / "a.png", exif=exif)
    [one] = sources_outside(store, str(tmp_path / "a.png"), None)
    assert one.size_wh == (SIZE_WH[1], SIZE_WH[0])


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_a_labelled_dataset_keeps_its_objects(tmp_path: Path, store: RunStore, form: str) -> None:
    folder = tmp_path / "set"
    splits: Any = {"train": [("one", pixels(1), car())], "val": [("two", pixels(2), car())]}
    (write_yolo if form == "yolo" else write_coco)(folder, splits, ["car"])
    source = folder if form == "yolo" else folder / "annotations" / "instances_train.json"
    found = list(sources_outside(store, str(source), None))
    assert [one.name for one in found] == ["one"], "of a YOLO-seg set, what is meant for training"
    assert all(one.instances is not None and one.instances.rles == car().rles for one in found)


def made(store: RunStore, number: int, step: str = "", **changes: Any) -> ImageRecord:
    prompt = Prompt(f"a car {number}", (Phrase("car", "car"),))
    record = ImageRecord(prompt, number, SIZE_WH, "tiny", step=step, **changes)
    maps = {"up-4x6": np.zeros((1, 3, 4, 6), np.float16)}
    store.add_image(record, pixels(number), HeatMaps(record.id, SIZE_WH, prompt.phrases, maps), 0.1)
    return record


def test_images_of_a_task_and_their_labels(store: RunStore) -> None:
    first, second, other, later = (
        made(store, 1, "streets"),
        made(store, 2, "streets"),
        made(store, 3, "rain"),
        made(store, 4, "streets", round=1),
    )
    store.put_labels([LabelSet(first.id, "attention", car(), "m")])
    found = list(images_of_task(store, "streets", 0, "m"))
    assert [one.id for one in found] == [first.id, second.id]
    assert (
        found[0].instances is not None
        and found[0].instances.rles == car().rles
        and found[1].instances is None
    )
    assert (found[0].prompt, found[0].family) == (first.prompt, first.prompt.id)
    assert [one.id for one in images_of_task(store, "rain", 0, "m")] == [other.id]
    assert [one.id for one in images_of_task(store, "streets", 1, "m")] == [later.id]
    assert [one.id for one in images_of_task(store, "txt2img", 0, "m")] == []


def test_another_run_can_be_the_source(tmp_path: Path, store: RunStore) -> None:
    with RunStore.create_or_open(tmp_path / "other", config=None) as other:
        record = made(other, 5)
        other.put_labels([LabelSet(record.id, "attention", car(), "m")])
    [one] = sources_outside(store, str(tmp_path / "other"), None)
    assert (one.id, one.prompt, one.family) == (record.id, record.prompt, record.prompt.id)
    assert one.instances is not None and np.array_equal(store.source(one.id), pixels(5))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "photos", "source .*photos' not found .*: give a folder of photos"),
        (lambda folder: folder, "contains no images; expected files ending in .png"),
        (lambda folder: (folder / "a.png").write_bytes(b"no") and folder, "cannot read the image .*a.png"),
        (
            lambda folder: (folder / "a.txt").write_text("no") and folder / "a.txt",
            "neither a folder, nor a labelled dataset, nor an image",
        ),
    ],
)
def test_bad_sources(tmp_path: Path, store: RunStore, prepare: Any, message: str) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(DiffugenError, match=message):
        list(sources_outside(store, str(prepare(folder)), None))


def labelled(*names: str) -> SourceImage:
    objects = car().take([0] * len(names))
    instances = Instances(SIZE_WH, names, objects.rles, objects.scores)
    return SourceImage("a", "a", "a.png", SIZE_WH, "a", None, instances)


def test_labels_are_named_as_in_the_run_and_counted() -> None:
    images = [labelled("Car", "dog"), replace(labelled(), instances=None), labelled("car")]
    named, told = with_classes("photos", images, ["piano", "car"], None)
    assert [one.instances and one.instances.class_names for one in named] == [("car", "dog"), None, ("car",)]
    assert told == (
        "photos: 3 images; objects: car 2; left out, of no class of the run: dog 1; 1 image without labels"
    )
    assert with_classes("photos", images[1:2], ["piano"], None)[1] == "photos: 1 image"
    assert "objects: none of the run" in with_classes("photos", [labelled("dog")], ["piano"], None)[1]


def test_the_class_to_paint_over_need_not_be_one_of_the_run() -> None:
    [named], told = with_classes("photos", [labelled("Van")], ["piano"], "van")
    assert named.instances and named.instances.class_names == ("van",) and "left out" not in told


@pytest.mark.parametrize(("classes", "region"), [(["piano", "car"], None), (["piano"], "car")])
def test_labels_with_a_misspelt_class_are_refused(classes: list[str], region: str | None) -> None:
    with pytest.raises(DiffugenError, match=r"photos has no class 'car', but 1 object of a class 'cars'"):
        with_classes("photos", [labelled("cars")], classes, region)


def test_a_labelled_set_gives_the_images_of_its_training_split(tmp_path: Path, store: RunStore) -> None:
    splits = {name: [(name, pixels(number), car())] for number, name in enumerate(("train", "val", "test"))}
    folder = write_yolo(tmp_path / "set", splits, ["car"])
    for source, names in ((str(folder), ["train"]), (f"{folder}:test", ["test"])):
        assert [one.name for one in sources_outside(store, source, None)] == names
        assert [path.stem for path in source_files(source)] == names
