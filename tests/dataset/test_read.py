"""Reading labelled sets: ours exactly, those of other tools correctly, every mistake with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from diffugen.dataset.coco import write_coco
from diffugen.dataset.files import Item
from diffugen.dataset.masks import rle_from_rings, yolo_polygon
from diffugen.dataset.truth import matching_classes, read_truth
from diffugen.dataset.yolo import read_yolo, write_yolo
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from tests.support.dataset_samples import (
    HEIGHT,
    WIDTH,
    assert_equal_instances,
    assert_equal_items,
    box_mask,
    item,
    varied,
)

CLASSES = ["traffic cone", "car"]


def ours(folder: Path) -> Path:
    return write_yolo(folder / "set", {"train": varied()[:4], "val": varied()[4:]}, CLASSES).parent


def theirs(
    folder: Path,
    rows: str | None = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75",
    about: str = "train: images\nnames: [car, truck]",
) -> Path:
    """A set as other tools write it, with one image."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50)).save(folder / "images/one.png")
    (folder / "data.yaml").write_text(about)
    if rows is not None:
        (folder / "labels/one.txt").write_text(rows)
    return folder


def only(folder: Path) -> Item:
    [single] = read_yolo(folder)
    return single


def test_our_set_round_trips_exactly(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    assert_equal_items(list(read_yolo(folder)), varied())
    assert_equal_items(list(read_yolo(folder / "data.yaml", "val")), varied()[4:])
    moved = folder.rename(tmp_path / "moved")
    assert_equal_items(list(read_yolo(moved, "train")), varied()[:4])


def test_holes_pieces_and_non_latin_names_round_trip_exactly(tmp_path: Path) -> None:
    ring, pieces = box_mask((3, 2, 30, 20), holes=((6, 5, 10, 9),)), box_mask((0, 0, 1, 24), (39, 3, 40, 9))
    items = [
        item("Flügel 1", ("Flügel 琴", ring | box_mask((7, 6, 9, 8)), 1 / 7), ("grand piano", pieces, 0.0)),
        item("ü"),
    ]
    folder = write_yolo(
        tmp_path / "Flügel", {"train": items[:1], "test": items[1:]}, ["grand piano", "Flügel 琴"]
    ).parent
    assert_equal_items([*read_yolo(folder, "train"), *read_yolo(folder, "test")], items)


def test_without_sidecar_files_only_scores_are_lost(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    for file in folder.rglob("*.json"):
        file.unlink()
    for (_, _, found), (_, _, written) in zip(read_yolo(folder), varied(), strict=True):
        assert found.class_names == written.class_names
        assert found.rles == written.rles
        assert (found.scores == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=54, max_size=54), st.sampled_from([1, 9, 19]))
def test_label_text_alone_keeps_holes_and_pieces(bits: list[bool], enlarged: int) -> None:
    cells = np.array([*bits[:53], True]).reshape(6, 9)
    mask = np.pad(np.kron(cells, np.ones((3 * enlarged, 3 * enlarged))), ((2, 0), (0, 5))) > 0
    size_wh = (mask.shape[1], mask.shape[0])
    written = np.round(yolo_polygon(shapes.encode(mask)) / size_wh, 6)
    assert (shapes.decode(rle_from_rings([written * size_wh], size_wh)) == mask).all()


def test_an_edited_row_wins_over_the_sidecar(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    label = folder / "labels/train/a-ring.txt"
    ring, pieces, dot = label.read_text().splitlines()
    box = "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
    label.write_text(f"\n{dot}\n\n  {ring.replace(' ', '   ')}  \n{box}\n")
    written = varied()[0][2]
    found = next(iter(read_yolo(folder)))[2]
    assert found.class_names == ("car", "car", "traffic cone")
    assert found.rles[:2] == (written.rles[2], written.rles[0])
    assert (shapes.decode(found.rles[2]) == box_mask((10, 6, 20, 18))).all()
    assert found.scores.tolist() == [0.0, 0.75, 1.0]
    assert pieces  # this row was removed, and so was its object


def test_exact_masks_are_dropped_when_the_image_size_changes(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    image = folder / "images/train/a-ring.png"
    Image.open(image).resize((2 * WIDTH, 2 * HEIGHT)).save(image)
    found, written = next(iter(read_yolo(folder)))[2], varied()[0][2]
    assert found.size_wh == (80, 48)
    assert found.scores.tolist() == written.scores.tolist()
    double = shapes.decode(shapes.rescale(written.rles[0], (80, 48)))
    drawn = shapes.decode(found.rles[0])
    assert (drawn & double).sum() / (drawn | double).sum() > 0.97


def test_a_class_is_renamed_in_data_yaml_alone(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    file = folder / "data.yaml"
    file.write_text(file.read_text().replace("traffic cone", "pylon"))
    found = next(iter(read_yolo(folder)))[2]
    assert found.class_names == ("car", "pylon", "car")
    assert found.rles == varied()[0][2].rles


@pytest.mark.parametrize(
    ("rows", "boxes"),
    [
        ("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", [("car", (10, 6, 30, 18))]),
        ("1 0.5 0.5 0.5 0.5\n", [("truck", (10, 6, 30, 18))]),
        ("1.0 0.5 0.5 0.5 0.5\n\n0 0.5 0.5 1.0 1.0", [("truck", (10, 6, 30, 18)), ("car", (0, 0, 40, 24))]),
        ("0 0.9 0.5 0.4 0.5", [("car", (28, 6, 40, 18))]),
        ("0 -0.005 0 1.009 0 1.009 0.5 -0.005 0.5", [("car", (0, 0, 40, 12))]),
        ("\ufeff0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\r\n", [("car", (10, 6, 30, 18))]),
        ("0 0.49 0.48 0.01 0.02", [("car", (19, 11, 20, 12))]),
        ("", []),
        (None, []),
    ],
)
def test_rows_of_other_tools(
    tmp_path: Path, rows: str | None, boxes: list[tuple[str, tuple[int, int, int, int]]]
) -> None:
    name, rgb, found = only(theirs(tmp_path / "set", rows))
    assert name == "one"
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert tuple(rgb[0, 0]) == (200, 100, 50)
    assert found.class_names == tuple(class_name for class_name, _ in boxes)
    for rle, (_, box) in zip(found.rles, boxes, strict=True):
        assert (shapes.decode(rle) == box_mask(box)).all()
    assert (found.scores == 1).all()


def test_a_row_without_area_gives_the_pixels_that_it_crosses(tmp_path: Path) -> None:
    found = only(theirs(tmp_path / "set", "0 0.25 0.5 0.75 0.5 0.75 0.5"))[2]
    assert (shapes.decode(found.rles[0]) == box_mask((10, 12, 31, 13))).all()


def listed(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists/val.txt").write_text("./../images/one.png\n\n")


def elsewhere(folder: Path) -> None:
    (folder / "valid").mkdir()
    for part in ("images", "labels"):
        (folder / part).rename(folder / "valid" / part)


def nested(folder: Path) -> None:
    for part in ("images", "labels"):
        (folder / part / "val/day").mkdir(parents=True)
    (folder / "images/one.png").rename(folder / "images/val/day/one.png")
    (folder / "labels/one.txt").rename(folder / "labels/val/day/one.txt")


def beside(folder: Path) -> None:
    (folder / "images/one.png").rename(folder / "one.png")
    (folder / "labels/one.txt").rename(folder / "one.txt")
    (folder / "read-me.txt").write_text("not a label")


@pytest.mark.parametrize(
    ("about", "change", "name"),
    [
        ("path: {folder}\nval: images\nnames: {{0: car}}", None, "one"),
        ("path: ./\nval: images\nnames: {{'0': car}}", None, "one"),
        ("path: /moved/away\nval: images/\nnames: [car]", None, "one"),
        ("path: ../datasets/set\nvalidation: images\nnames: [car]", None, "one"),
        ("val: [images]\ntrain: null\nnames: [car]", None, "one"),
        ("val: lists/val.txt\nnames: [car]", listed, "one"),
        ("train: ../train/images\nval: ../valid/images\nnames: [car]", elsewhere, "one"),
        ("val: images/val\nnames: [car]", nested, "day-one"),
        ("val: .\nnames: [car]", beside, "one"),
    ],
)
def test_layouts_of_other_tools(
    tmp_path: Path, about: str, change: Callable[[Path], None] | None, name: str
) -> None:
    folder = theirs(tmp_path / "set", about=about.format(folder=tmp_path / "set"))
    if change:
        change(folder)
    [(found, _, instances)] = read_yolo(folder / "data.yaml", "val")
    assert found == name
    assert instances.class_names == ("car",)


def test_an_image_in_two_splits_is_read_once(tmp_path: Path) -> None:
    folder = theirs(tmp_path / "set", about="train: images\nval: images\nnames: [car]")
    assert len(list(read_yolo(folder))) == 1


def test_greyscale_and_rotated_images_are_read_as_upright_rgb(tmp_path: Path) -> None:
    folder = theirs(tmp_path / "set")
    turned = Image.new("L", (HEIGHT, WIDTH), 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    (folder / "images/one.png").unlink()
    turned.save(folder / "images/one.jpg", exif=exif)
    _, rgb, found = only(folder)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert found.size_wh == (WIDTH, HEIGHT)


def test_reading_is_lazy(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    (folder / "labels/val/f-tall.txt").write_text("0 nonsense")
    items = read_yolo(folder)
    assert [next(items)[0] for _ in range(5)] == ["a-ring", "b.terms", "c-twins", "d-empty", "e-wide"]
    with pytest.raises(DiffugenError, match=r"f-tall\.txt, line 1: expected a class number"):
        next(items)


SQUARE = "0 0.2 0.2 0.8 0.2 0.8 0.8"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            f"{SQUARE}\ncar 0.2 0.2 0.8 0.2 0.8 0.8",
            r"one\.txt, line 2: expected a class number .* got 'car 0\.2",
        ),
        ("0 0.2 0.2 0.8 0.2 0.8", r"one\.txt, line 1: expected .* at least three points, or a box"),
        ("0 0.2 0.2 0.8 0.2 0.8 0.8 0.1", "line 1: expected .* at least three points"),
        ("0 0.2", "line 1: expected"),
        ("0", "line 1: expected"),
        (f"\n\n2{SQUARE[1:]}", r"one\.txt, line 3: class number 2 is not in data\.yaml, which has 0 to 1"),
        (f"-1{SQUARE[1:]}", "line 1: class number -1"),
        (f"0.5{SQUARE[1:]}", r"line 1: class number 0\.5"),
        (f"nan{SQUARE[1:]}", "line 1: class number nan"),
        ("0 0.2 0.2 1.02 0.2 0.8 0.8", r"line 1: coordinate 1\.02; expected values in \[0, 1\]"),
        ("0 0.2 -0.3 0.8 0.2 0.8 0.8", r"line 1: coordinate -0\.3"),
        ("0 0.2 nan 0.8 0.2 0.8 0.8", "line 1: coordinate nan"),
        ("0 16 12 8 6", "line 1: coordinate 16"),
        ("0 0.5 0.5 0 0.5", "line 1: a box of 0 x 12 px"),
        ("0 0.2\x00", "line 1: expected"),
    ],
)
def test_errors_name_an_invalid_row(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        only(theirs(tmp_path / "set", rows))


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def write(path: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / path).write_bytes(data)


def cut_image(folder: Path) -> None:
    path = folder / "images/one.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("data.yaml"), r"no dataset at .*expected a data\.yaml"),
        (write("data.yaml", "train: [images"), "no dataset at"),
        (write("data.yaml", b"\xff\xfe\xfa"), "no dataset at"),
        (write("data.yaml", "- images"), "expected a mapping"),
        (write("data.yaml", "train: images"), "has no class names; expected 'names' as a list"),
        (write("data.yaml", "train: images\nnames: 3"), "has no class names.* got '3'"),
        (write("data.yaml", "train: images\nnames: []"), "has no class names"),
        (write("data.yaml", "train: images\nnames: {car: 0}"), "has no class names"),
        (write("data.yaml", "names: [car]"), "names no images; expected one of the keys train, val, test"),
        (
            write("data.yaml", "train: pictures\nnames: [car]"),
            "names 'pictures', which does not exist; tried",
        ),
        (
            write("data.yaml", "train: labels\nnames: [car]"),
            "no images in labels; expected files ending in .png",
        ),
        (write("data.yaml", "train: list.txt\nnames: [car]"), r"'list\.txt', which does not exist"),
        (write("data.yaml", "train: labels/one.txt\nnames: [car]"), r"one\.txt, line 1: no image "),
        (write("data.yaml", "train: images/one.png\nnames: [car]"), "cannot read the list of images"),
        (write("labels/two.txt", SQUARE), r"two\.txt has no image in .*images; remove it or add its image"),
        (write("labels/one.txt", b"\xff\xfe\xfa"), r"cannot read the labels .*one\.txt"),
        (write("images/one.png", "no pixels"), r"cannot read the image .*one\.png"),
        (write("images/one.png", ""), r"cannot read the image .*one\.png"),
        (cut_image, r"cannot read the image .*one\.png"),
    ],
)
def test_errors_name_the_broken_part_of_a_set(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = theirs(tmp_path / "set")
    (folder / "labels/classes.txt").write_text("car\ntruck\n")
    (folder / "labels/._one.txt").write_bytes(b"\x00")
    (folder / "images/._one.png").write_bytes(b"\x00")
    assert len(only(folder)[2]) == 1
    change(folder)
    with pytest.raises(DiffugenError, match=message):
        list(read_yolo(folder))


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match="has no split 'test'; it has train, val"):
        read_yolo(ours(tmp_path), "test")


ENTRY = {"row": "0", "segmentation": {"size": [HEIGHT, WIDTH], "counts": "0"}, "score": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        "torn [",
        "{}x",
        json.dumps([1]),
        json.dumps([{"row": "0"}]),
        json.dumps([{**ENTRY, "score": 2}]),
        json.dumps([ENTRY]),
        json.dumps([{**ENTRY, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "~~~"}}]),
    ],
)
def test_a_damaged_sidecar_is_named(tmp_path: Path, content: str) -> None:
    folder = ours(tmp_path)
    (folder / "instances/train/a-ring.json").write_text(content)
    with pytest.raises(
        DiffugenError,
        match=r"a-ring\.json does not contain valid exact objects .*remove it to read the label",
    ):
        list(read_yolo(folder))


def test_truth_has_the_classes_of_the_run(tmp_path: Path) -> None:
    truth = read_truth(str(ours(tmp_path)), ["piano", "Traffic_Cone"])
    assert truth.name == "set/val"
    assert truth.class_names == ("Traffic_Cone",)
    assert truth.unlabelled == ("piano",)
    assert truth.images == 2
    first = list(truth.items())
    assert [name for name, _, _ in first] == ["e-wide", "f-tall"]
    assert [found.class_names for _, _, found in first] == [("Traffic_Cone",), ()]
    assert first[0][2].rles == varied()[4][2].rles
    assert_equal_items(list(truth.items()), first)
    assert read_truth(tmp_path / "set/data.yaml", CLASSES, split="train").images == 4


def test_truth_prefers_test_to_val_to_train(tmp_path: Path) -> None:
    car = ("car", box_mask((2, 2, 9, 9)), 1.0)
    splits = {"train": [item("a", car)], "val": [item("b", car)], "test": [item("c", car), item("d")]}
    write_yolo(tmp_path / "all", splits, ["car"])
    assert read_truth(tmp_path / "all", ["car"]).name == "all/test"
    assert read_truth(tmp_path / "all", ["car"], split="val").images == 1
    with pytest.raises(DiffugenError, match="no split 'final'"):
        read_truth(tmp_path / "all", ["car"], split="final")


def test_truth_can_be_a_coco_json(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", {"val": varied()}, CLASSES)
    truth = read_truth(tmp_path / "set/annotations/instances_val.json", ["car", "trafficcone"])
    assert (truth.name, truth.class_names, truth.images, truth.crowds) == (
        "instances_val",
        ("car", "trafficcone"),
        6,
        0,
    )
    for (_, _, found), (_, _, written) in zip(truth.items(), varied(), strict=True):
        assert found.rles == written.rles
    with pytest.raises(DiffugenError, match=r"did you mean .*annotations/instances_val\.json\?"):
        read_truth(tmp_path / "set", ["car"])


def test_a_missing_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DiffugenError, match=r"no labelled set at .*nowhere: expected a YOLO-seg folder, its data\.yaml, or"
    ):
        read_truth(tmp_path / "nowhere", ["car"])


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["car"], ["car"], {"car": "car"}),
        (["Traffic-Cone", "sky"], ["car", "traffic cone"], {"Traffic-Cone": "traffic cone"}),
        (
            ["traffic_cone", "TrafficCone"],
            ["traffic cone"],
            {"traffic_cone": "traffic cone", "TrafficCone": "traffic cone"},
        ),
        (["car", "CAR"], ["Car", "car"], {"car": "car", "CAR": "Car"}),
    ],
)
def test_classes_match_despite_case_and_separators(
    theirs: list[str], ours: list[str], expected: dict[str, str]
) -> None:
    assert matching_classes(theirs, ours, "set") == expected


def test_without_a_common_class_both_sides_are_listed() -> None:
    with pytest.raises(DiffugenError) as error:
        matching_classes(["grand pianos", "sky"], ["grand piano", "car"], "street")
    assert str(error.value) == (
        "street labels none of the run's classes: it has 'grand pianos', 'sky', the run has 'grand piano', "
        "'car'; 'grand piano' looks like 'grand pianos'; use the same class names in both"
    )


def test_equal_masks_keep_their_own_scores(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    found = list(read_yolo(folder))[2][2]
    assert_equal_instances(found, varied()[2][2])
