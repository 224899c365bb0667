"""YOLO training sets on disk: lossless polygons, complete or absent, with every mistake named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image

from diffugen.dataset.files import Item
from diffugen.dataset.masks import yolo_polygon
from diffugen.dataset.yolo import find_yolo, write_yolo
from diffugen.errors import DiffugenError, StoreError
from diffugen.labels import shapes
from tests.support.dataset_samples import HEIGHT, WIDTH, box_mask, item, varied


def filled(ring: NDArray[np.float64]) -> NDArray[np.bool_]:
    return shapes.mask_from_polygons([ring], (WIDTH, HEIGHT))


def test_polygon_keeps_holes() -> None:
    mask = box_mask((3, 2, 30, 20), holes=((6, 5, 10, 9), (15, 8, 25, 17)))
    assert (filled(yolo_polygon(shapes.encode(mask))) == mask).all()


def test_polygon_joins_pieces_with_lines_one_pixel_wide() -> None:
    mask = box_mask((2, 3, 8, 9), (20, 4, 26, 10), (30, 18, 38, 22))
    drawn = filled(yolo_polygon(shapes.encode(mask)))
    assert drawn[mask].all()
    # The gaps are 12 and about 9 px long.
    assert 0 < (drawn & ~mask).sum() <= 12 + 10


def test_polygon_keeps_a_piece_inside_a_hole() -> None:
    mask = box_mask((2, 2, 30, 22), holes=((6, 5, 26, 19),)) | box_mask((14, 10, 18, 14))
    drawn = filled(yolo_polygon(shapes.encode(mask)))
    assert drawn[mask].all()
    assert (drawn & ~mask).sum() <= 8


def test_polygon_includes_the_whole_border_pixels() -> None:
    ring = yolo_polygon(shapes.encode(box_mask((5, 4, 15, 9))))
    assert ring.min(axis=0) == pytest.approx([5, 4], abs=0.2)
    assert ring.max(axis=0) == pytest.approx([15, 9], abs=0.2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_polygon_covers_any_mask(data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=54, max_size=54))
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:21, 5:32] = np.kron(np.array(bits).reshape(6, 9), np.ones((3, 3))) > 0
    ring = yolo_polygon(shapes.encode(mask))
    assert filled(ring)[mask].all()
    assert len(ring) or not mask.any()


def test_a_set_has_images_labels_exact_objects_and_data_yaml(tmp_path: Path) -> None:
    cone, car = box_mask((2, 2, 10, 12)), box_mask((12, 5, 35, 20))
    splits = {
        "train": [item("a", ("car", car, 0.75), ("traffic cone", cone, 0.5)), item("empty")],
        "val": [item("b", ("traffic cone", cone, 1.0), ("car", np.zeros_like(car), 0.1))],
    }
    file = write_yolo(tmp_path / "set", splits, ["traffic cone", "car"])

    assert file == tmp_path / "set" / "data.yaml"
    about = yaml.safe_load(file.read_text())
    assert about == {"train": "images/train", "val": "images/val", "names": {0: "traffic cone", 1: "car"}}
    kept = json.loads((tmp_path / "set/instances/train/a.json").read_text())
    assert [(entry["segmentation"], entry["score"]) for entry in kept] == [
        (shapes.encode(car), 0.75),
        (shapes.encode(cone), 0.5),
    ]
    rows = (tmp_path / "set/labels/train/a.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["1", "0"]
    points = np.array(rows[1].split()[1:], dtype=float).reshape(-1, 2) * (WIDTH, HEIGHT)
    assert (filled(points) == cone).all()
    assert (tmp_path / "set/labels/train/empty.txt").read_text() == ""
    assert (np.asarray(Image.open(tmp_path / "set/images/train/a.png")) == splits["train"][0][1]).all()
    assert not list(tmp_path.glob(".*"))
    assert find_yolo(tmp_path / "set") == file.resolve()


def test_a_single_pixel_becomes_a_polygon_row(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", {"train": [item("dot", ("car", box_mask((7, 5, 8, 6)), 1.0))]}, ["car"])
    assert len((tmp_path / "set/labels/train/dot.txt").read_text().split()) >= 7


def test_without_val_the_train_split_validates(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "set", {"train": [item("a", ("car", box_mask((2, 2, 9, 9)), 1.0))]}, ["car"])
    assert yaml.safe_load(file.read_text())["val"] == "images/train"


CAR = ("car", box_mask((2, 2, 9, 9)), 1.0)


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        ({"val": []}, ["car"], "needs a split 'train'; got only val"),
        ({"train": [], "training": []}, ["car"], "splits are train, val, test"),
        ({"train": []}, ["car"], "at least one image"),
        ({"train": [item("a", CAR)]}, [], "class names"),
        ({"train": [item("a", CAR)]}, ["car", "car"], "without repeats"),
        ({"train": [item("a", CAR)]}, ["truck"], "labels of 'car', not among the classes truck"),
        ({"train": [item("a", CAR)], "val": [item("a")]}, ["car"], "'a' occurs twice"),
        ({"train": [item("../a", CAR)]}, ["car"], "cannot be the name"),
        (
            {"train": [("a", np.zeros((WIDTH, HEIGHT, 3), np.uint8), item("a", CAR)[2])]},
            ["car"],
            r"\(24, 40, 3\)",
        ),
    ],
)
def test_a_failed_call_leaves_nothing_behind(
    tmp_path: Path, splits: object, classes: list[str], message: str
) -> None:
    with pytest.raises(DiffugenError, match=message):
        write_yolo(tmp_path / "set", splits, classes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    splits = {"train": [item("a", CAR)]}
    file = write_yolo(tmp_path / "set", splits, ["car"])
    before = file.stat().st_mtime_ns
    with pytest.raises(StoreError, match="in use"):
        write_yolo(tmp_path / "set", splits, ["car"])
    assert file.stat().st_mtime_ns == before


def test_find_yolo_names_the_missing_part(tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match="no dataset at"):
        find_yolo(tmp_path / "nowhere")
    file = write_yolo(tmp_path / "set", {"train": [item("empty")]}, ["car"])
    with pytest.raises(DiffugenError, match="none of its 1 training images has a labelled object"):
        find_yolo(file)
    file.write_text("train: images/train\nval: images/val\nnames: {0: car}\n")
    with pytest.raises(DiffugenError, match=r"do not exist: .*images/val"):
        find_yolo(file)
    file.write_text("names: {0: car}\n")
    with pytest.raises(DiffugenError, match="it lacks 'train', 'val'"):
        find_yolo(file)


def test_same_items_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_yolo(
            tmp_path / name, {"train": iter(varied()[:3]), "val": iter(varied()[3:])}, ["car", "traffic cone"]
        )
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert first == second
    assert len(first) == 6 + 6 + 5 + 1  # images, labels, instances except for the empty image, data.yaml


def test_each_item_is_written_before_the_next_is_requested(tmp_path: Path) -> None:
    def watched() -> Iterator[Item]:
        for number in range(3):
            assert len(list(tmp_path.rglob("*.png"))) == number
            yield item(f"image-{number}", CAR)

    write_yolo(tmp_path / "set", {"train": watched()}, ["car"])


def test_find_yolo_accepts_list_files_and_paths_of_other_tools(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", {"train": [item("a", CAR)]}, ["car"])
    file = tmp_path / "set/data.yaml"
    (tmp_path / "set/train.txt").write_text("./images/train/a.png\n")
    for train in ("train.txt", "../images/train", "[images/train, train.txt]"):
        file.write_text(f"train: {train}\nval: images/train\nnames: [car]\n")
        assert find_yolo(file) == file.resolve()
