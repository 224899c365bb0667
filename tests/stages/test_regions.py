from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffugen.config import Region
from diffugen.config.generation import PARTS
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import areas, decode, encode
from diffugen.records import Instances
from diffugen.stages.regions import outside, region_mask, window_around

SIZE_WH = (60, 40)


def box(x0: int, y0: int, x1: int, y1: int) -> Any:
    mask = np.zeros((SIZE_WH[1], SIZE_WH[0]), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def objects(**boxes: tuple[int, int, int, int]) -> Instances:
    """Return box objects by class; ``car_2`` is another car."""
    names = tuple(name.split("_")[0] for name in boxes)
    return Instances(
        SIZE_WH, names, tuple(encode(box(*one)) for one in boxes.values()), np.full(len(boxes), 0.5)
    )


def mask_of(region: Region, instances: Instances | None = None, name: str = "street") -> Any:
    return region_mask(region, SIZE_WH, name, instances)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("all", (0, 0, 60, 40)),
        ("upper half", (0, 0, 60, 20)),
        ("lower half", (0, 20, 60, 40)),
        ("left third", (0, 0, 20, 40)),
        ("lower third", (0, 26, 60, 40)),
        ("middle", (15, 10, 45, 30)),
    ],
)
def test_named_parts(part: str, expected: tuple[int, int, int, int]) -> None:
    assert np.array_equal(mask_of(Region(part=part)), box(*expected))


def test_every_named_part_gives_a_region() -> None:
    assert all(mask_of(Region(part=part)).any() for part in PARTS)


def test_polygon_corners_are_relative_to_width_and_height() -> None:
    mask = mask_of(Region(polygon=((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)), grow_frac=0))
    assert mask[:, 31:].all() and not mask[:, :29].any()


def test_a_label_selects_the_largest_object_of_its_class_and_grows_it() -> None:
    seen = objects(car=(2, 2, 8, 8), car_2=(20, 20, 40, 30), person=(0, 0, 60, 40))
    assert np.array_equal(mask_of(Region(label="car", grow_frac=0), seen), box(20, 20, 40, 30))
    grown = mask_of(Region(label="car", grow_frac=0.05), seen)
    assert grown[box(20, 20, 40, 30)].all() and grown.sum() > 200 and not grown[2:8, 2:8].any()
    assert mask_of(Region(detector="best.pt", find="person", grow_frac=0), seen).all()


@pytest.mark.parametrize("seen", [None, objects(), objects(person=(0, 0, 10, 10))])
def test_without_an_object_there_is_no_region(seen: Instances | None) -> None:
    assert mask_of(Region(label="car"), seen) is None


def test_labelled_objects_are_spared() -> None:
    seen = objects(car=(0, 25, 15, 38))
    region = mask_of(Region(part="lower half"), seen)
    assert not region[box(0, 25, 15, 38)].any() and region[30, 40]
    assert mask_of(Region(part="lower half", spare=False), seen)[30, 5]
    assert outside(seen, region).rles == seen.rles


def test_a_region_with_too_little_room_is_none() -> None:
    assert mask_of(Region(part="lower half"), objects(bus=(0, 18, 60, 40))) is None


def test_objects_are_cut_to_the_outside_or_dropped() -> None:
    seen = objects(car=(0, 0, 20, 10), person=(18, 0, 30, 10), cone=(50, 30, 55, 35))
    rest = outside(seen, box(15, 0, 40, 40))
    assert rest.class_names == ("car", "cone")
    assert areas(rest.rles).tolist() == [150, 25]
    assert not decode(rest.rles[0])[:, 15:].any()


def test_mask_images_by_file_and_by_folder(tmp_path: Path) -> None:
    Image.fromarray(box(5, 5, 30, 30).astype(np.uint8) * 255).save(tmp_path / "street.png")
    for where in (tmp_path, tmp_path / "street.png"):
        assert np.array_equal(mask_of(Region(mask=str(where), grow_frac=0)), box(5, 5, 30, 30))


def other_size(path: Path) -> Path:
    Image.new("L", (40, 60), 255).save(path)
    return path


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "missing.png", "no mask image at .*missing.png"),
        (lambda folder: folder, "no mask for 'street' in .*expected street.png"),
        (lambda folder: other_size(folder / "other.png"), "has 40x60 pixels, the image 60x40"),
        (
            lambda folder: (folder / "broken.png").write_bytes(b"no") and folder / "broken.png",
            "cannot read .*broken.png",
        ),
    ],
)
def test_bad_mask_images(tmp_path: Path, prepare: Any, message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        mask_of(Region(mask=str(prepare(tmp_path))))


@pytest.mark.parametrize(
    ("region", "context_frac", "proportions_wh", "expected"),
    [
        ((20, 10, 30, 20), 0.5, (64, 64), (15, 5, 35, 25)),
        ((20, 10, 30, 20), 0.0, (64, 64), (20, 10, 30, 20)),
        ((20, 10, 30, 20), 0.0, (128, 64), (15, 10, 35, 20)),
        ((20, 10, 30, 15), 0.0, (64, 64), (20, 8, 30, 18)),
        ((0, 30, 10, 40), 0.5, (64, 64), (0, 20, 20, 40)),
        ((50, 0, 60, 4), 1.0, (64, 64), (30, 0, 60, 30)),
        ((0, 20, 60, 40), 0.25, (64, 32), (0, 10, 60, 40)),
        ((0, 20, 60, 40), 0.5, (64, 64), None),
        ((20, 10, 30, 20), 100.0, (64, 64), None),
    ],
)
def test_the_window_around_a_region(
    region: Any, context_frac: float, proportions_wh: Any, expected: Any
) -> None:
    found = window_around(box(*region), context_frac, proportions_wh)
    assert found == expected


@pytest.mark.parametrize("value", [1, 128, 255])
def test_a_mask_may_be_of_zeros_and_ones(tmp_path: Path, value: int) -> None:
    grey = box(5, 5, 30, 30).astype(np.uint8) * np.uint8(value)
    Image.fromarray(grey).save(tmp_path / "street.png")
    found = mask_of(Region(mask=str(tmp_path / "street.png"), grow_frac=0))
    assert np.array_equal(found, box(5, 5, 30, 30))


@pytest.mark.parametrize("value", [0, 2, 127])
def test_a_dark_mask_is_told(tmp_path: Path, value: int) -> None:
    Image.fromarray(box(5, 5, 30, 30).astype(np.uint8) * np.uint8(value)).save(tmp_path / "street.png")
    with pytest.raises(
        DiffugenError, match=f"no bright pixel to paint over: its brightest is {value} of 255"
    ):
        mask_of(Region(mask=str(tmp_path / "street.png")))
