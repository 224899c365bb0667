"""FiftyOne's own form: ours comes back exactly, stock FiftyOne reads it, nothing stays in the database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.dataset.files import Item
from diffugen.errors import DiffugenError, StoreError
from diffugen.labels import shapes
from diffugen.records import Instances
from diffugen.review import detections
from diffugen.review.export import read_fiftyone, write_fiftyone
from diffugen.run.store import RunStore
from tests.support.children import WAIT_SECONDS
from tests.support.dataset_samples import (
    HEIGHT,
    WIDTH,
    assert_equal_instances,
    assert_equal_items,
    box_mask,
    item,
    varied,
)

CLASSES = ["traffic cone", "car", "Flügel 琴"]
CAR = ("car", box_mask((2, 2, 9, 9)), 1.0)


@pytest.fixture(autouse=True)
def _database_stays_empty(connected: str) -> Iterator[None]:
    import fiftyone as fo

    before = fo.list_datasets()
    yield
    assert fo.list_datasets() == before


@pytest.fixture
def loaded(connected: str) -> Iterator[Callable[[Path], Any]]:
    """Read a folder as anyone with FiftyOne would."""
    import fiftyone as fo

    datasets = []

    def load(folder: Path) -> Any:
        datasets.append(fo.Dataset.from_dir(dataset_dir=str(folder), dataset_type=fo.types.FiftyOneDataset))
        return datasets[-1]

    yield load
    for dataset in datasets:
        dataset.delete()


def items() -> list[Item]:
    return [*varied(), item("g-Flügel 1", ("Flügel 琴", box_mask((39, 23, 40, 24)), 1 / 7))]


def test_our_set_comes_back_exactly(tmp_path: Path) -> None:
    folder = tmp_path / "piano set"
    assert write_fiftyone(folder, {"train": iter(items()[:3]), "val": iter(items()[3:])}, CLASSES) == folder
    assert_equal_items(list(read_fiftyone(folder)), items())
    assert_equal_items(list(read_fiftyone(folder, "val")), items()[3:])
    moved = folder.rename(tmp_path / "moved")
    assert_equal_items(list(read_fiftyone(moved, "train")), items()[:3])
    assert sorted(path.name for path in moved.iterdir()) == ["data", "metadata.json", "samples.json"]
    assert not list(tmp_path.glob(".*"))


def test_fiftyone_reads_it(tmp_path: Path, loaded: Callable[[Path], Any]) -> None:
    dataset = loaded(write_fiftyone(tmp_path / "set", {"train": items()[:3], "test": items()[3:]}, CLASSES))
    assert dataset.default_classes == CLASSES
    assert dataset.count_sample_tags() == {"train": 3, "test": 4}
    assert dataset.count_values("ground_truth.detections.label") == {
        "car": 6,
        "traffic cone": 2,
        "Flügel 琴": 1,
    }
    for sample, (name, rgb, instances) in zip(dataset, items(), strict=True):
        assert Path(sample.filepath).is_file() and Path(sample.filepath).stem == name
        assert (
            (sample.metadata.width, sample.metadata.height)
            == instances.size_wh
            == (rgb.shape[1], rgb.shape[0])
        )
        assert len(sample.ground_truth.detections) == len(instances)
        for detection, rle, score in zip(
            sample.ground_truth.detections, instances.rles, instances.scores, strict=True
        ):
            assert detection.confidence == score and detection.index is None
            found = detection.to_segmentation(frame_size=instances.size_wh).mask > 0
            assert (found == shapes.decode(rle)).all()
    terms = dataset.match({"filepath": {"$regex": "b.terms"}}).first().ground_truth.detections[0]
    assert (terms.contrast, terms.margin) == (1 / 3, 0.0)
    assert "ground_truth.detections.contrast" in dataset.get_field_schema(flat=True)


def test_nothing_of_this_machine_is_written_down(tmp_path: Path) -> None:
    folder = write_fiftyone(tmp_path / "set", {"train": items()}, CLASSES)
    for name in ("metadata.json", "samples.json"):
        assert str(tmp_path) not in (folder / name).read_text()


def test_masks_that_are_too_large_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Callable[[Path], Any]
) -> None:
    monkeypatch.setattr(detections, "IN_DATABASE_BYTES", 40)
    folder = write_fiftyone(tmp_path / "set", {"train": items()}, CLASSES)
    assert len(list((folder / "fields/ground_truth.detections").iterdir())) >= 4
    moved = folder.rename(tmp_path / "moved")
    assert_equal_items(list(read_fiftyone(moved)), items())
    first = loaded(moved).first().ground_truth.detections[0]
    assert Path(first.mask_path).is_file() and first.mask is None


def test_a_set_that_a_person_changed_in_fiftyone(tmp_path: Path, loaded: Callable[[Path], Any]) -> None:
    import fiftyone as fo

    dataset = loaded(write_fiftyone(tmp_path / "set", {"train": items()}, CLASSES))
    sample = dataset.first()
    kept, relabelled, _ = sample.ground_truth.detections
    relabelled.label = "truck"
    box = fo.Detection(label="car", bounding_box=[0.25, 0.25, 0.5, 0.5])
    sample.ground_truth.detections = [kept, relabelled, box]
    sample.tags.append("checked")
    sample.save()
    dataset.rename_sample_field("ground_truth", "labels")
    dataset.export(str(tmp_path / "theirs"), fo.types.FiftyOneDataset, progress=False)
    [(name, _, instances)] = read_fiftyone(tmp_path / "theirs", "checked")
    assert name == items()[0][0]
    assert instances.class_names == ("car", "truck", "car")
    assert instances.rles[:2] == items()[0][2].rles[:2]
    assert (
        shapes.decode(instances.rles[2])
        == box_mask((WIDTH // 4, HEIGHT // 4, 3 * WIDTH // 4, 3 * HEIGHT // 4))
    ).all()
    assert instances.scores.tolist() == [0.75, 1 / 3, 1.0]


def test_reading_is_lazy(tmp_path: Path) -> None:
    folder = write_fiftyone(tmp_path / "set", {"train": items()}, CLASSES)
    found = read_fiftyone(folder)
    next(found)
    shutil.rmtree(folder / "data")
    with pytest.raises(DiffugenError, match="cannot read the image"):
        next(found)


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        ({"train": []}, ["car"], "at least one image"),
        ({}, ["car"], "splits are train, val, test"),
        ({"train": [item("a", CAR)]}, [], "class names"),
        ({"train": [item("a", CAR)]}, ["truck"], "labels of 'car', not among the classes truck"),
        ({"train": [item("a", CAR)], "val": [item("a")]}, ["car"], "'a' occurs twice"),
        ({"train": [item("a", CAR), item("b/c", CAR)]}, ["car"], "cannot be the name"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, splits: Any, classes: list[str], message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        write_fiftyone(tmp_path / "set", splits, classes)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_fiftyone(tmp_path / "set", {"train": [item("a", CAR)]}, ["car"])
    before = (folder / "samples.json").read_bytes()
    with pytest.raises(StoreError, match="in use"):
        write_fiftyone(folder, {"train": [item("b", CAR)]}, ["car"])
    assert (folder / "samples.json").read_bytes() == before


def _without_metadata(folder: Path) -> None:
    (folder / "metadata.json").unlink()


def _without_samples(folder: Path) -> None:
    (folder / "samples.json").unlink()


def _cut(folder: Path) -> None:
    file = folder / "samples.json"
    file.write_bytes(file.read_bytes()[:200])


def _score_beyond(folder: Path) -> None:
    file = folder / "samples.json"
    about = json.loads(file.read_text())
    about["samples"][0]["ground_truth"]["detections"][0]["confidence"] = 3.0
    file.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (_without_metadata, None, "no FiftyOne dataset at .*metadata.json is missing.*diffugen export"),
        (_without_samples, None, "cannot read the FiftyOne dataset"),
        (_cut, None, "cannot read the FiftyOne dataset"),
        (_score_beyond, None, r"a\.png: the confidence of a label 'car' is 3\.0"),
        (lambda folder: None, "val", "no sample of .* has the tag 'val'; its tags are train"),
    ],
)
def test_broken_sets_are_named(
    tmp_path: Path, change: Callable[[Path], None], split: str | None, message: str
) -> None:
    folder = write_fiftyone(tmp_path / "set", {"train": [item("a", CAR)]}, ["car"])
    change(folder)
    with pytest.raises(DiffugenError, match=message):
        list(read_fiftyone(folder, split))


def test_which_field_holds_the_labels(tmp_path: Path, loaded: Callable[[Path], Any]) -> None:
    import fiftyone as fo

    dataset = loaded(write_fiftyone(tmp_path / "set", {"train": [item("a", CAR)]}, ["car"]))
    dataset.clone_sample_field("ground_truth", "other")
    dataset.rename_sample_field("ground_truth", "one")
    dataset.export(str(tmp_path / "two"), fo.types.FiftyOneDataset, progress=False)
    with pytest.raises(DiffugenError, match=r"several fields with detections \((one, other|other, one)\)"):
        read_fiftyone(tmp_path / "two")
    dataset.delete_sample_fields(["one", "other"])
    dataset.export(str(tmp_path / "none"), fo.types.FiftyOneDataset, progress=False)
    with pytest.raises(DiffugenError, match="no field with detections"):
        read_fiftyone(tmp_path / "none")


def test_many_images_are_not_held_in_memory(tmp_path: Path) -> None:
    def watched() -> Iterator[Item]:
        for number in range(30):
            assert len(list(tmp_path.rglob("*.png"))) == number
            yield item(f"image-{number:02}", CAR)

    folder = write_fiftyone(tmp_path / "set", {"train": watched()}, ["car"])
    assert [name for name, _, _ in read_fiftyone(folder)] == [f"image-{number:02}" for number in range(30)]


def test_labels_without_a_pixel_are_left_out(tmp_path: Path) -> None:
    empty = Instances(
        (WIDTH, HEIGHT), ("car",), (shapes.encode(np.zeros((HEIGHT, WIDTH), bool)),), np.array([0.5])
    )
    folder = write_fiftyone(tmp_path / "set", {"train": [(*item("a")[:2], empty)]}, ["car"])
    [(_, _, found)] = read_fiftyone(folder)
    assert len(found) == 0


@pytest.mark.slow
def test_export_of_a_run(tmp_path: Path, connected: str) -> None:
    """In processes of their own: the tests' own database stays connected."""

    def diffugen(*arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "diffugen.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200", **environment},
            timeout=WAIT_SECONDS,
        )
        return done.returncode, done.stdout + done.stderr

    def export(out: str, **environment: str) -> tuple[int, str]:
        return diffugen("export", "runs/miniature", "--out", out, "--format", "fiftyone", **environment)

    assert (
        diffugen("generate", "--set", "diffusion.num_inference_steps=2", "--set", "prompts.count=3")[0] == 0
    )
    code, said = export("set")
    assert code == 0 and "images in set (fiftyone)" in said
    found = {name: instances for name, _, instances in read_fiftyone(tmp_path / "set")}
    with RunStore.open(tmp_path / "runs/miniature", readonly=True) as store:
        assert found.keys() == set(store.image_ids())
        for image_id, instances in found.items():
            [labels] = store.labels("attention", image_id=image_id)
            assert_equal_instances(instances, labels.instances)
    code, said = export("set")
    assert code == 2 and "in use" in said
    code, said = export("other", FIFTYONE_DATABASE_URI="mongodb://127.0.0.1:9")
    assert code == 2 and "yolo-seg and coco do not" in said and "127.0.0.1:9" in said
    assert "Traceback" not in said and not (tmp_path / "other").exists()
