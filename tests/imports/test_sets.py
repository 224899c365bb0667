"""Labelled sets at the door: a split for each purpose, nothing lost without a word, no image in two roles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffugen.config.files import find_config
from diffugen.config.sections import DatasetSettings, LoopSettings
from diffugen.dataset.coco import write_coco
from diffugen.dataset.files import Item
from diffugen.dataset.truth import Purpose, common_images, read_truth
from diffugen.dataset.yolo import write_yolo
from diffugen.errors import DiffugenError
from diffugen.miniature.truth import find_truth
from diffugen.run import RunStore
from diffugen.stages import open_sets
from diffugen.stages.sources import sources_outside
from tests.support.dataset_samples import box_mask, item
from tests.support.rounds import round_of

BOX = box_mask((2, 2, 9, 9))


def images(prefix: str, count: int, name: str = "car") -> list[Item]:
    # The name decides the pixels: its length is the seed.
    return [item(f"{prefix}{'x' * number}", (name, BOX, 1.0)) for number in range(1, count + 1)]


def yolo(folder: Path, *splits: str, name: str = "car") -> Path:
    """A set of 4 training, 2 validation and 1 test images, as far as those splits are asked for."""
    counts = {"train": 4, "val": 2, "test": 1}
    made = {
        split: images(f"{number * 'long-long-'}{split}", count, name)
        for number, (split, count) in enumerate(counts.items())
    }
    write_yolo(folder, made, [name])
    for split in set(counts) - set(splits):
        shutil.rmtree(folder / "images" / split)
        shutil.rmtree(folder / "labels" / split)
    return folder


# -------------------------------------------------------------------- a split for each purpose


@pytest.mark.parametrize(
    ("splits", "purpose", "chosen", "note"),
    [
        (("train", "val", "test"), "train", "train", ""),
        (("train", "val", "test"), "decide", "val", ""),
        (("train", "val", "test"), "measure", "test", ""),
        (("val", "test"), "train", "val", "its images do not exist (train)"),
        (("train", "test"), "decide", "test", "its images do not exist (val)"),
        (("train",), "decide", "train", "its images do not exist (val, test)"),
        (("train", "val"), "measure", "val", "its images do not exist (test)"),
    ],
)
def test_the_split_fits_the_purpose(
    tmp_path: Path, splits: tuple[str, ...], purpose: Purpose, chosen: str, note: str
) -> None:
    found = read_truth(yolo(tmp_path / "set", *splits), ["car"], purpose=purpose)
    assert found.name == f"set/{chosen}"
    assert (note in found.census) and (bool(found.notes) == bool(note))
    assert found.images == {"train": 4, "val": 2, "test": 1}[chosen]


def test_nothing_trains_on_the_test_split_unless_it_is_named(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", "test")
    (folder / "data.yaml").write_text("test: images/test\nnames: [car]\n")
    with pytest.raises(DiffugenError, match=r"no split to train with, only test.*name it: .*set:test"):
        read_truth(folder, ["car"], purpose="train")
    assert read_truth(f"{folder}:test", ["car"], purpose="train").name == "set/test"


def test_a_split_can_be_named(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", "train", "val", "test")
    for split in ("train", "val", "test"):
        for source in (f"{folder}:{split}", f"{folder / 'data.yaml'}:{split}"):
            found = find_truth(source, ["car"])
            assert found is not None and found.name == f"set/{split}"
    shutil.rmtree(folder / "images" / "test")
    with pytest.raises(DiffugenError, match="names 'images/test', which does not exist"):
        read_truth(f"{folder}:test", ["car"])
    odd = folder.rename(tmp_path / "odd:val")
    assert read_truth(odd, ["car"]).name == "odd:val/val", "a path that exists is a path"


def test_a_coco_file_is_one_split(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", {"val": images("one", 2)}, ["car"])
    file = tmp_path / "set/annotations/instances_val.json"
    with pytest.raises(DiffugenError, match=r"is one split; give the \.json of the split 'train'"):
        read_truth(f"{file}:train", ["car"])


def test_scenes_for_different_purposes_are_different_ones() -> None:
    names = []
    for purpose in ("train", "decide", "measure"):
        found = find_truth("piano-photos", ["piano"], purpose)
        assert found is not None
        names += [name for name, _, _ in found.items()]
    assert len(set(names)) == len(names) == 24


# -------------------------------------------------------------------- nothing is lost without a word


def test_the_census_says_what_is_there_and_what_is_left_out(tmp_path: Path) -> None:
    mixed = [item("a", ("Car", BOX, 1.0), ("tree", BOX, 1.0)), item("bb", ("tree", BOX, 1.0)), item("ccc")]
    write_yolo(tmp_path / "set", {"train": mixed}, ["Car", "tree"])
    (tmp_path / "set/labels/train/ccc.txt").unlink()
    found = read_truth(f"{tmp_path / 'set'}:train", ["car", "van"])
    assert found.objects == {"car": 1}
    assert found.census == (
        "set/train: 3 images; objects: car 1; without labels for van; 1 image without a label file taken as "
        "background; read Car as car; left out, of no class of the run: tree 2"
    )


def test_crowds_are_told_and_a_set_of_nothing_else_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", {"val": images("one", 3)}, ["car"])
    file = tmp_path / "set/annotations/instances_val.json"
    about = json.loads(file.read_text())
    about["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(about))
    found = read_truth(file, ["car"])
    assert (found.objects, found.crowds) == ({"car": 2}, 1)
    assert "1 crowd (iscrowd), no objects but ignored regions" in found.census
    for one in about["annotations"]:
        one["iscrowd"] = 1
    file.write_text(json.dumps(about))
    with pytest.raises(DiffugenError, match=r"3 images, but no object of the run's classes 'car'; 3 crowds"):
        read_truth(file, ["car"])


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        (["truck", "cars"], ["truck", "car"], "no class 'car', but 1 object of a class 'cars'"),
        (["truck", "Buses"], ["truck", "bus"], "no class 'bus', but 1 object of a class 'Buses'"),
        (["truck", "trafic cone"], ["truck", "traffic cone"], "but 1 object of a class 'trafic cone'"),
        (["truck", "traffic light"], ["truck", "traffic cone"], None),
        (["truck", "cart"], ["truck", "car"], None),
        (["Car", "cars"], ["car"], None),
    ],
)
def test_a_class_that_looks_like_a_missing_one_is_not_dropped(
    tmp_path: Path, theirs: list[str], ours: list[str], refused: str | None
) -> None:
    one = item("a", *((name, BOX, 1.0) for name in theirs))
    write_yolo(tmp_path / "set", {"train": [one]}, theirs)
    if refused is None:
        assert f"left out, of no class of the run: {theirs[1]} 1" in read_truth(tmp_path / "set", ours).census
        return
    with pytest.raises(DiffugenError, match=refused):
        read_truth(tmp_path / "set", ours)


def test_labels_beside_the_images_are_found(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", "train")
    for label in (folder / "labels/train").iterdir():
        label.rename(folder / "images/train" / label.name)
    shutil.rmtree(folder / "labels")
    shutil.rmtree(folder / "instances")
    found = read_truth(f"{folder}:train", ["car"])
    assert found.objects == {"car": 4}
    assert [len(labels) for _, _, labels in found.items()] == [1] * 4


def test_a_set_without_objects_is_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", {"train": [item("a"), item("bb")]}, ["car"])
    with pytest.raises(
        DiffugenError, match="set/train has 2 images, but no object of the run's classes 'car'"
    ):
        read_truth(f"{tmp_path / 'set'}:train", ["car"])


# -------------------------------------------------------------------- no image in two roles


def test_images_that_train_cannot_measure(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", "train", "val", "test")
    said: list[str] = []
    with RunStore.create_or_open(tmp_path / "run", config={"seed": 0}) as store:
        run = round_of(store, ["car"], notify=said.append).run
    apart = open_sets(run, DatasetSettings(known=str(folder)), LoopSettings(truth=str(folder)))
    assert apart.known is not None and apart.truth is not None
    assert (apart.known.name, apart.truth.name) == ("set/train", "set/test")
    assert said == [
        "dataset.known: set/train: 4 images; objects: car 4",
        "loop.truth: set/test: 1 image; objects: car 1",
    ]
    same = f"{folder}:train"
    for key, settings in (("truth", LoopSettings(truth=same)), ("validation", LoopSettings(validation=same))):
        with pytest.raises(DiffugenError, match=rf"dataset\.known .* and loop\.{key} .* share 4 images"):
            open_sets(run, DatasetSettings(known=str(folder)), settings)


def test_a_copy_under_another_name_is_the_same_image(tmp_path: Path) -> None:
    first = read_truth(yolo(tmp_path / "one", "train"), ["car"])
    second = yolo(tmp_path / "two", "val")
    assert common_images(first.files, read_truth(second, ["car"]).files) == []
    source, target = sorted((tmp_path / "one/images/train").iterdir())[2], second / "images/val/new.png"
    shutil.copy(source, target)
    assert common_images(first.files, read_truth(second, ["car"]).files) == [(source, target)]


@pytest.mark.parametrize("crowds", ["hide", "object"])
def test_crowds_of_known_images_are_painted_over_or_trained_on(tmp_path: Path, crowds: str) -> None:
    far = box_mask((20, 8, 30, 16))
    write_coco(tmp_path / "set", {"train": [item("a", ("car", BOX, 1.0), ("car", far, 1.0))]}, ["car"])
    file = tmp_path / "set/annotations/instances_train.json"
    about = json.loads(file.read_text())
    about["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(about))
    settings = DatasetSettings(known=str(file), crowds=crowds)  # type: ignore[arg-type]
    with RunStore.create_or_open(tmp_path / "run", config=None) as store:
        known = open_sets(round_of(store, ["car"]).run, settings, LoopSettings()).known
    assert known is not None
    [(_, before, as_read)], [(_, after, found)] = read_truth(file, ["car"]).items(), known.items()
    assert (len(as_read), len(as_read.crowds)) == (1, 1) and not found.crowds
    changed = (before != after).any(axis=2)
    assert len(found) == (2 if crowds == "object" else 1)
    assert changed[far].any() == (crowds == "hide") and not changed[BOX].any()


# -------------------------------------------------------------------- other tools' layouts


def label_studio(folder: Path) -> Path:
    """A set as Label Studio exports it: no ``data.yaml``, one folder of images, notes in a file beside it."""
    made = yolo(folder, "train")
    for kind in ("images", "labels"):
        shutil.move(made / kind / "train", made / "flat")
        shutil.rmtree(made / kind)
        shutil.move(made / "flat", made / kind)
    shutil.rmtree(made / "instances", ignore_errors=True)
    (made / "data.yaml").unlink()
    (made / "classes.txt").write_text("car\npiano\n\n")
    (made / "notes.json").write_text('{"categories": [{"id": 0, "name": "car"}], "info": {"year": 2025}}')
    return made


def test_label_studios_layout_is_a_training_split(tmp_path: Path) -> None:
    made = label_studio(tmp_path / "export")
    for given in (made, made / "classes.txt"):
        truth = read_truth(str(given), ["car", "piano"], purpose="train")
        assert [name.rstrip("x") for name, _, _ in truth.items()] == ["train"] * 4
        assert {name for _, _, found in truth.items() for name in found.class_names} == {"car"}
    with RunStore.create_or_open(tmp_path / "run", config={}) as store:
        sources = list(sources_outside(store, str(made), None))
    assert [set(one.instances.class_names) for one in sources if one.instances] == [{"car"}] * 4


def test_a_hint_names_only_files_that_describe_a_set(tmp_path: Path) -> None:
    made = label_studio(tmp_path / "export")
    (made / "classes.txt").unlink()
    with pytest.raises(DiffugenError, match="no dataset at") as caught:
        read_truth(str(made), ["car"], purpose="train")
    assert "did you mean" not in str(caught.value), "notes.json describes no images"
    (made / "cars.yml").write_text("names: [car]\ntrain: images\n")
    with pytest.raises(DiffugenError, match=r"did you mean .*cars\.yml\?"):
        read_truth(str(made), ["car"], purpose="train")


def test_a_link_that_leads_nowhere_is_not_said_to_be_missing(tmp_path: Path) -> None:
    link = tmp_path / "set"
    link.symlink_to(tmp_path / "moved")
    for ask in (
        lambda: find_truth(str(link), ["car"]),
        lambda: find_config(link.rename(tmp_path / "my.yaml")),
    ):
        with pytest.raises(DiffugenError, match=r"is a link to '.*moved', where nothing is$"):
            ask()
