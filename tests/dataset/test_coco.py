"""COCO datasets: ours round-trip exactly and load in pycocotools; those of other tools are read correctly."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from diffugen.dataset.coco import CocoSet, read_coco, write_coco
from diffugen.dataset.files import Item
from diffugen.errors import DiffugenError, StoreError
from diffugen.labels import shapes
from tests.support.dataset_samples import HEIGHT, WIDTH, assert_equal_items, box_mask, item, varied

CLASSES = ["traffic cone", "car"]
SQUARE = [10, 6, 30, 6, 30, 18, 10, 18]


def test_our_set_round_trips_exactly(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path / "set", {"train": varied()[:4], "test": varied()[4:]}, CLASSES)
    assert sorted(path.name for path in annotations.iterdir()) == [
        "instances_test.json",
        "instances_train.json",
    ]
    assert_equal_items(list(read_coco(annotations / "instances_train.json")), varied()[:4])
    assert_equal_items(list(read_coco(annotations / "instances_test.json")), varied()[4:])
    assert not list((tmp_path / "set").glob("*.json")) + list(tmp_path.glob(".*"))


def test_holes_pieces_and_non_latin_names_round_trip_exactly(tmp_path: Path) -> None:
    ring, pieces = box_mask((3, 2, 30, 20), holes=((6, 5, 10, 9),)), box_mask((0, 0, 1, 24), (39, 3, 40, 9))
    items = [
        item("Flügel 1", ("Flügel 琴", ring | box_mask((7, 6, 9, 8)), 1 / 7), ("grand piano", pieces, 0.0)),
        item("ü"),
    ]
    folder = write_coco(
        tmp_path / "Flügel", {"train": items[:1], "test": items[1:]}, ["grand piano", "Flügel 琴"]
    )
    assert_equal_items(list(read_coco(folder / "instances_train.json")), items[:1])
    assert_equal_items(list(read_coco(folder / "instances_test.json")), items[1:])


def test_pycocotools_reads_our_set(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "set", {"val": varied()}, CLASSES) / "instances_val.json"
    with redirect_stdout(io.StringIO()):
        reference = COCO(str(file))
    assert [category["name"] for category in reference.loadCats(reference.getCatIds())] == CLASSES
    for entry, (name, _, written) in zip(reference.loadImgs(reference.getImgIds()), varied(), strict=True):
        assert (entry["file_name"], entry["width"], entry["height"]) == (f"{name}.png", *written.size_wh)
        found = reference.loadAnns(reference.getAnnIds(entry["id"]))
        assert [reference.cats[one["category_id"]]["name"] for one in found] == list(written.class_names)
        assert [one["score"] for one in found] == written.scores.tolist()
        for one, rle in zip(found, written.rles, strict=True):
            mask = shapes.decode(rle)
            assert (reference.annToMask(one) == mask).all()
            ys, xs = np.nonzero(mask)
            assert one["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert one["area"] == mask.sum()


def test_same_items_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_coco(tmp_path / name, {"train": iter(varied())}, CLASSES)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert first == second
    assert len(first) == 7


def failing_items() -> Iterator[Item]:
    yield item("a")
    raise DiffugenError("no more")


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        ({}, ["car"], "splits are train, val, test; .* not none"),
        ({"train": [], "training": []}, ["car"], "splits are train, val, test"),
        ({"train": []}, ["car"], "at least one image"),
        ({"train": [item("a")]}, [], "class names"),
        (
            {"train": [item("a", ("car", box_mask((1, 1, 9, 9)), 1.0))]},
            ["truck"],
            "labels of 'car', not among",
        ),
        ({"train": [item("a")], "val": [item("a")]}, ["car"], "'a' occurs twice"),
        ({"train": failing_items()}, ["car"], "no more"),
    ],
)
def test_a_failed_call_leaves_nothing_behind(
    tmp_path: Path, splits: Any, classes: list[str], message: str
) -> None:
    with pytest.raises(DiffugenError, match=message):
        write_coco(tmp_path / "set", splits, classes)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").touch()
    with pytest.raises(StoreError, match="in use"):
        write_coco(tmp_path / "set", {"train": [item("a")]}, ["car"])
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "mine.txt"]


def theirs(
    folder: Path, *annotations: dict[str, Any], at: str = "instances_val2017.json", **changes: Any
) -> Path:
    """A set as other tools write it: image 7 with all annotations and image 3 with none, next to the JSON."""
    for name, size_wh in (("one.png", (WIDTH, HEIGHT)), ("two.png", (HEIGHT, WIDTH))):
        Image.new("RGB", size_wh, (200, 100, 50)).save(folder / name)
    about = {
        "images": [
            {"id": 7, "file_name": "one.png", "width": WIDTH, "height": HEIGHT},
            {"id": 3, "file_name": "two.png", "width": HEIGHT, "height": WIDTH},
        ],
        "categories": [{"id": 18, "name": "car"}, {"id": 44, "name": "truck"}],
        "annotations": [
            {"id": 90 + number, "image_id": 7, "category_id": 44, **one}
            for number, one in enumerate(annotations)
        ],
        **changes,
    }
    file = folder / at
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return file


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


RING = box_mask((3, 0, 30, 24), holes=((6, 5, 10, 9),))


@pytest.mark.parametrize(
    ("annotation", "mask"),
    [
        ({"segmentation": [SQUARE]}, box_mask((10, 6, 30, 18))),
        ({"segmentation": [SQUARE, [0, 0, 4, 0, 4, 4, 0, 4]]}, box_mask((10, 6, 30, 18), (0, 0, 4, 4))),
        ({"segmentation": [[10, 6, 40.3, 6, 40.3, 24.2, 10, 24.2]]}, box_mask((10, 6, 40, 24))),
        ({"segmentation": uncompressed(RING)}, RING),
        ({"segmentation": uncompressed(box_mask((0, 0, 5, 5)))}, box_mask((0, 0, 5, 5))),
        ({"segmentation": shapes.encode(RING)}, RING),
        ({"bbox": [10, 6, 20, 12]}, box_mask((10, 6, 30, 18))),
        ({"segmentation": [], "bbox": [10, 6, 20, 12], "iscrowd": 0}, box_mask((10, 6, 30, 18))),
        ({"bbox": [30.4, -3, 20, 12]}, box_mask((30, 0, 40, 9))),
    ],
)
def test_masks_of_other_tools(tmp_path: Path, annotation: dict[str, Any], mask: np.ndarray) -> None:
    items = list(read_coco(theirs(tmp_path, annotation)))
    assert [(name, found.size_wh, len(found)) for name, _, found in items] == [
        ("one", (WIDTH, HEIGHT), 1),
        ("two", (HEIGHT, WIDTH), 0),
    ]
    found = items[0][2]
    assert found.class_names == ("truck",)
    assert (shapes.decode(found.rles[0]) == mask).all()
    assert found.scores.tolist() == [1.0]


def test_polygons_are_filled_as_by_pycocotools(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rings = [(random.random(2 * count) * ([WIDTH, HEIGHT] * count)).tolist() for count in (3, 4, 7, 12)]
    found = next(iter(read_coco(theirs(tmp_path, *({"segmentation": [ring]} for ring in rings)))))[2]
    for rle, ring in zip(found.rles, rings, strict=True):
        expected = coco_mask.decode(coco_mask.frPyObjects([ring], HEIGHT, WIDTH))[:, :, 0]
        assert expected.any()
        assert (shapes.decode(rle) == expected).all()


def test_crowds_are_no_objects(tmp_path: Path) -> None:
    crowd = {"segmentation": uncompressed(RING), "iscrowd": 1}
    file = theirs(tmp_path, crowd, {"segmentation": [SQUARE], "score": 0.5}, crowd)
    found = CocoSet.open(file)
    assert (found.crowds, found.class_names) == (2, ("car", "truck"))
    [(_, _, instances), _] = found.items()
    assert instances.scores.tolist() == [0.5]
    assert [(name, (shapes.decode(rle) == RING).all()) for name, rle in instances.crowds] == [
        ("truck", True)
    ] * 2
    assert [name for name, _ in instances.renamed({"truck": "van"}).take([]).crowds] == ["van"] * 2
    assert instances.of_classes(["car"]).crowds == ()


@pytest.mark.parametrize(
    ("at", "images"),
    [
        ("instances_val2017.json", ""),
        ("annotations/instances_val.json", ""),
        ("annotations/instances_val.json", "images"),
        ("annotations/instances_val.json", "val2017"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "images/val"),
        ("labels.json", "images"),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path: Path, at: str, images: str) -> None:
    file = theirs(tmp_path, {"segmentation": [SQUARE]}, at=at)
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    for name in ("one.png", "two.png"):
        (tmp_path / name).rename(tmp_path / images / name)
    assert [name for name, _, _ in read_coco(file)] == ["one", "two"]


def test_the_images_folder_can_be_given(tmp_path: Path) -> None:
    file = theirs(tmp_path, at="notes/labels.json")
    away = tmp_path / "far/away"
    away.mkdir(parents=True)
    (tmp_path / "one.png").rename(away / "one.png")
    with pytest.raises(DiffugenError, match=r"no image one\.png of .*labels\.json in .*put the images there"):
        read_coco(file)
    items = read_coco(file, away)
    assert next(items)[0] == "one"
    with pytest.raises(DiffugenError, match=r"names the image two\.png, which is not in "):
        next(items)


def test_terms_of_other_tools_are_ignored(tmp_path: Path) -> None:
    others = [{"segmentation": [SQUARE], "terms": terms} for terms in ("of use", {"license": "free"}, None)]
    found = next(iter(read_coco(theirs(tmp_path, *others))))[2]
    assert found.terms == ({}, {}, {})


def test_sub_folders_become_part_of_the_name(tmp_path: Path) -> None:
    file = theirs(tmp_path, images=[{"id": 7, "file_name": "day/one.png"}])
    (tmp_path / "day").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "day/one.png")
    assert [name for name, _, _ in read_coco(file)] == ["day-one"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, r"annotation 90 \(number 1\) has no valid mask: neither 'segmentation' nor 'bbox'"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            r"annotation 90 \(number 1\) has no valid mask: a polygon has 4 numbers",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon has 7 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "a value that is not a number"),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "a polygon has 6 numbers"),
        ({"segmentation": "x"}, "has no valid mask"),
        ({"segmentation": 7}, "has no valid mask"),
        ({"segmentation": [[50, 2, 53, 4, 55, 6]]}, "lies outside the image of 40 x 24 px"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "not a run-length encoding with 'size' and 'counts'"),
        (
            {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [960]}},
            r"size \(h, w\) = \[40, 24\] in an image of \[24, 40\]",
        ),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [900]}}, "run lengths cover 900 of 960 px"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [970, -10]}},
            "a run length is -10; expected 0 or more",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": shapes.encode(RING)["counts"][:-3]}},
            "truncated|run lengths",
        ),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "a b"}}, "invalid character ' ' in 'counts'"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ""}}, "cover 0 of 960 px"),
        ({"bbox": [1, 2, 0, 4]}, "has no valid mask: a box of 0 x 4 px has no area"),
        ({"bbox": [1, 2, 3]}, "has no valid mask"),
        ({"bbox": None, "segmentation": None}, "has no valid mask: neither"),
        ({"bbox": [1, 2, float("nan"), 4]}, "has no valid mask"),
        ({"segmentation": [SQUARE], "score": 1.5}, r"has the score 1\.5; expected a number in \[0, 1\]"),
        ({"segmentation": [SQUARE], "score": "high"}, "has the score 'high'"),
    ],
)
def test_errors_name_an_invalid_annotation(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        list(read_coco(theirs(tmp_path, annotation)))


def text(content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "labels.json").write_text(content)
        return folder / "labels.json"

    return make


def changed(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: theirs(folder, **changes)


IMAGE = {"id": 7, "file_name": "one.png", "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.json", r"cannot read .*none\.json as a COCO JSON"),
        (text("{'a': 1}"), "cannot read .* as a COCO JSON"),
        (text("[1, 2]"), "missing lists: 'images', 'annotations', 'categories'"),
        (changed(annotations=None), "is not a COCO instances JSON: missing lists: 'annotations'"),
        (changed(images={"7": IMAGE}), "missing lists: 'images'"),
        (changed(images=[]), "has 0 images and 2 categories"),
        (changed(categories=[]), "has 2 images and 0 categories"),
        (changed(images=[IMAGE, {"id": 3}]), "number 2 of 'images' lacks 'file_name'"),
        (changed(images=[IMAGE, IMAGE]), "2 images share 1 ids"),
        (changed(categories=[{"id": 1, "name": None}]), "number 1 of 'categories' lacks 'name'"),
        (
            changed(annotations=[{"image_id": [7], "category_id": 18}]),
            "number 1 of 'annotations' lacks 'image_id'",
        ),
        (changed(annotations=[5]), "number 1 of 'annotations' lacks 'image_id', 'category_id'"),
        (
            changed(annotations=[{"id": 5, "image_id": 8, "category_id": 18}]),
            r"annotation 5 \(number 1\) has the image_id 8, which is not in 'images'",
        ),
        (
            changed(annotations=[{"image_id": 7, "category_id": 19}]),
            r"annotation without id \(number 1\) has the category_id 19, which is not in 'categories'",
        ),
        (
            changed(images=[{**IMAGE, "width": HEIGHT}]),
            r"one\.png is 40 x 24 px, but .* says 24 x 24; use the images that",
        ),
    ],
)
def test_errors_name_an_invalid_file(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        list(read_coco(make(tmp_path)))
