"""Any images can be labelled with a detector: photos, labelled sets and runs, continued after a kill."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffugen.comparison.matching import match
from diffugen.config import load_config
from diffugen.dataset.coco import read_coco
from diffugen.dataset.files import write_image
from diffugen.dataset.yolo import read_yolo, write_yolo
from diffugen.errors import DiffugenError, StoreError
from diffugen.labels.shapes import placed
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.records import RLE, Instances
from diffugen.run import OnProgress, Run
from diffugen.stages.finders import detector_finder
from diffugen.stages.photos import LabelledImages, label_images
from diffugen.stages.verbs import run_for_detector
from tests.support.command_line import run

CLASSES = ["car", "truck", "person", "traffic cone"]
SCENES = list(scene_set("streets", 18, start=880_000))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, drawn in enumerate(SCENES):
        where = folder / "night" if number % 5 == 0 else folder
        write_image(where / f"s{number:02}.png", drawn.rgb)
    return folder


@pytest.fixture
def detecting() -> Iterator[Run]:
    with run_for_detector("miniature", load_config(), of_config=False) as opened:
        yield opened.run


def labelled(run: Run, source: Path, out: Path, format: str = "yolo-seg", **more: object) -> LabelledImages:
    tile_size = more.pop("tile_size", None)
    arguments: dict[str, object] = {"renamed": {}, **more}
    finder = detector_finder(run, "miniature", load_config().detector, tile_size)  # type: ignore[arg-type]
    return label_images(run, str(source), finder, out, format, **arguments)  # type: ignore[arg-type]


def test_photos_get_the_objects_that_are_in_them(detecting: Run, photos: Path, tmp_path: Path) -> None:
    made = labelled(detecting, photos, tmp_path / "set")
    items = {name: (rgb, found) for name, rgb, found in read_yolo(made.folder)}
    assert set(items) == {f"{'night-' * (number % 5 == 0)}s{number:02}" for number in range(18)}
    good = total = 0
    for number, drawn in enumerate(SCENES):
        rgb, found = items[f"{'night-' * (number % 5 == 0)}s{number:02}"]
        assert (rgb == drawn.rgb).all()
        pairs = match(exact_instances(drawn).of_classes(CLASSES), found, min_iou=0.5, min_iou_swapped=None)
        good += sum(pair.first is not None and pair.second is not None for pair in pairs)
        total += len(pairs)
    assert good / total > 0.7
    assert sum(made.objects.values()) == sum(len(found) for _, found in items.values())
    assert made.empty == sum(not len(found) for _, found in items.values())
    assert made.sheet.is_file() and not list(tmp_path.glob(".*"))


def test_classes_are_renamed_and_chosen(detecting: Run, photos: Path, tmp_path: Path) -> None:
    everything = labelled(detecting, photos, tmp_path / "all", "coco")
    made = labelled(
        detecting, photos, tmp_path / "some", "coco", renamed={"truck": "lorry"}, only=["lorry", "car"]
    )
    assert made.objects == {"car": everything.objects["car"], "lorry": everything.objects["truck"]}
    found = {
        name
        for _, _, one in read_coco(tmp_path / "some/annotations/instances_train.json")
        for name in one.class_names
    }
    assert found == {"car", "lorry"}


def test_labelled_sets_and_single_images_are_sources_too(
    detecting: Run, photos: Path, tmp_path: Path
) -> None:
    drawn = SCENES[1]
    write_yolo(
        tmp_path / "old", {"train": [("a", drawn.rgb, exact_instances(drawn).of_classes(["car"]))]}, ["car"]
    )
    again = labelled(detecting, tmp_path / "old", tmp_path / "new")
    alone = labelled(detecting, photos / "s01.png", tmp_path / "one")
    assert again.objects == alone.objects and again.images == alone.images == 1


def test_photos_of_one_stem_keep_apart(detecting: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.png", SCENES[0].rgb)
    write_image(tmp_path / "photos/a.bmp", SCENES[1].rgb)
    labelled(detecting, tmp_path / "photos", tmp_path / "set")
    assert {name for name, _, _ in read_yolo(tmp_path / "set")} == {"a-png", "a-bmp"}


def test_several_classes_can_become_one(detecting: Run, photos: Path, tmp_path: Path) -> None:
    apart = labelled(detecting, photos, tmp_path / "apart").objects
    merged = labelled(
        detecting, photos, tmp_path / "merged", renamed={"car": "vehicle", "truck": "vehicle"}
    ).objects
    assert merged["vehicle"] == apart["car"] + apart["truck"] > 0
    assert "car" not in merged and merged["person"] == apart["person"]


@pytest.mark.parametrize(
    ("first", "second"), [("a/b.png", "a-b.png"), ("a/b/c.png", "a/b-c.png"), ("x.png", "x-png.bmp")]
)
def test_no_image_takes_the_place_of_another(detecting: Run, tmp_path: Path, first: str, second: str) -> None:
    files = {first, second, "x.bmp"} if first.startswith("x") else {first, second, "other/c.png"}
    for number, name in enumerate(sorted(files)):
        write_image(tmp_path / "photos" / name, SCENES[number].rgb)
    try:
        made = labelled(detecting, tmp_path / "photos", tmp_path / "set")
    except DiffugenError as error:
        assert "two images would be called" in str(error)
    else:
        assert made.images == len(files) == len(list(read_yolo(made.folder)))


COLUMNS, ROWS = 6, 3


@pytest.fixture(scope="module")
def panorama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Instances]:
    """Return a photo of 18 scenes side by side, 384 x 192 px, and the objects in it."""
    rows = [SCENES[number : number + COLUMNS] for number in range(0, COLUMNS * ROWS, COLUMNS)]
    rgb = np.vstack([np.hstack([drawn.rgb for drawn in row]) for row in rows])
    height, width = rgb.shape[:2]
    size_wh = (width, height)
    names, rles = list[str](), list[RLE]()
    for number, drawn in enumerate(SCENES):
        x, y = 64 * (number % COLUMNS), 64 * (number // COLUMNS)
        truth = exact_instances(drawn).of_classes(CLASSES)
        names += truth.class_names
        rles += [placed(rle, (x, y, x + 64, y + 64), size_wh) for rle in truth.rles]
    folder = tmp_path_factory.mktemp("panorama")
    write_image(folder / "wide.png", rgb)
    return folder, Instances(size_wh, tuple(names), tuple(rles), np.ones(len(names)))


def found_share(truth: Instances, made: LabelledImages) -> tuple[float, int]:
    """Return the share of the objects that were found, and how many objects there are too many."""
    [(_, _, found)] = read_yolo(made.folder)
    pairs = match(truth, found, min_iou=0.5, min_iou_swapped=None)
    hits = sum(pair.first is not None and pair.second is not None for pair in pairs)
    return hits / len(truth), len(found) - hits


def test_tiles_find_what_is_too_small_in_the_whole_photo(
    detecting: Run, panorama: tuple[Path, Instances], tmp_path: Path
) -> None:
    """Of the same detector; most scenes lie on the borders of several tiles, and nothing is found twice."""
    source, truth = panorama
    whole, _ = found_share(truth, labelled(detecting, source, tmp_path / "whole"))
    tiled, wrong = found_share(truth, labelled(detecting, source, tmp_path / "tiled", tile_size=80))
    assert whole < 0.1 and tiled > 0.8
    assert wrong < len(truth) / 4


def test_photos_smaller_than_a_tile_are_labelled_as_they_are(
    detecting: Run, photos: Path, tmp_path: Path
) -> None:
    one, other = (
        labelled(detecting, photos, tmp_path / str(size), tile_size=size).folder for size in (None, 64)
    )
    for first, second in zip(read_yolo(one), read_yolo(other), strict=True):
        assert first[2].rles == second[2].rles


def test_tiles_of_another_size_are_predicted_again(
    detecting: Run, panorama: tuple[Path, Instances], tmp_path: Path
) -> None:
    """After a call that found everything and was killed before it wrote the dataset."""
    source, _ = panorama
    calls = [(None, 1), (80, 1), (80, 0), (96, 1), (None, 1)]
    assert [predicted(detecting, source, tmp_path / "set", size) for size, _ in calls] == [
        count for _, count in calls
    ]


def predicted(run: Run, source: Path, out: Path, tile_size: int | None) -> int:
    """Label images, but die at the end, and return how many images the detector looked at."""
    totals: list[int] = []

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[OnProgress]:
        yield lambda done, total, note="": totals.append(total)
        if title == "label":
            raise Killed

    run.progress = progress
    with pytest.raises(Killed):
        labelled(run, source, out, tile_size=tile_size)
    return totals[-1]


class Killed(BaseException):
    pass


def test_a_killed_call_continues(detecting: Run, photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    def watched(kill_after: int) -> None:
        @contextmanager
        def progress(title: str, unit: str) -> Iterator[OnProgress]:
            def report(done: float, total: int, note: str = "") -> None:
                if title == "label":
                    seen.append((done, total))
                    if done == kill_after:
                        raise Killed

            yield report

        detecting.progress = progress

    watched(16)
    with pytest.raises(Killed):
        labelled(detecting, photos, tmp_path / "set")
    assert not (tmp_path / "set").exists() and seen[-1] == (16, 18)
    watched(-1)
    seen.clear()
    late = labelled(detecting, photos, tmp_path / "set")
    assert seen == [(0, 2), (2, 2)]
    whole = labelled(detecting, photos, tmp_path / "whole")
    assert late.objects == whole.objects
    for one, other in zip(read_yolo(tmp_path / "set"), read_yolo(tmp_path / "whole"), strict=True):
        assert one[2].rles == other[2].rles


def test_what_changed_since_is_labelled_again(detecting: Run, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"photos/{number}.png", SCENES[number].rgb)
    out = tmp_path / "set"
    out.mkdir()
    (tmp_path / "photos/9.png").write_text("no image")
    with pytest.raises(DiffugenError, match=r"9\.png \(it is no image, or of an unknown format\)"):
        labelled(detecting, tmp_path / "photos", out)
    write_image(tmp_path / "photos/9.png", np.zeros((40, 60, 3), np.uint8))
    assert labelled(detecting, tmp_path / "photos", out).images == 4


def test_bad_input_is_refused_before_any_work(detecting: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, object], str]] = [
        ({"out": tmp_path / "full"}, "full is in use"),
        ({"format": "voc"}, "unknown format 'voc'"),
        ({"renamed": {"trucks": "lorry"}}, "no class 'trucks' to rename, did you mean 'truck'"),
        ({"only": ["cat"]}, "--only cat: there is no such class, did you mean 'car'"),
        ({"source": tmp_path / "empty"}, "empty has no images"),
        ({"source": tmp_path / "absent"}, "not found"),
    ]
    for change, message in cases:
        arguments: dict[str, object] = {"source": photos, "out": tmp_path / "set", **change}
        with pytest.raises((DiffugenError, StoreError), match=re.escape(message)):
            labelled(detecting, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()


def test_the_command_labels_photos_and_says_what_it_found(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = str(photos)
    out = ["--out", str(tmp_path / "set")]
    assert run(monkeypatch, "label", some, "--detector", "miniature", *out, "--class-map", "lorry=truck") == 0
    printed = capsys.readouterr().out
    assert "18 images in" in printed and "lorry" in printed and "truck" not in printed
    for arguments, message in (
        (["label", some, *out], "--out needs --detector or --decoder"),
        (["label", some, "--tile-size", "640"], "--tile-size needs --detector or --decoder"),
        (["label", some, "--detector", "miniature", "--tile-size", "9"], "Invalid value for '--tile-size'"),
        (["label", "--detector", "miniature"], "diffugen label FOLDER --detector CHECKPOINT"),
        (["label", some, "--detector", "miniature", "--class-map", "x"], "expected NAME=THEIRS"),
        (
            ["label", some, "--detector", "miniature", "--class-map", "a=car", "--class-map", "b=car"],
            "car is called a already",
        ),
    ):
        assert run(monkeypatch, *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
