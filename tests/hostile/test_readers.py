"""Datasets, rows and heat maps of others: damaged ones are read or refused, and nothing hangs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from diffugen.dataset.coco import CocoSet, read_coco, write_coco
from diffugen.dataset.files import read_image
from diffugen.dataset.masks import rle_from_coco
from diffugen.dataset.truth import read_truth
from diffugen.dataset.yolo import find_yolo, read_yolo, write_yolo
from diffugen.errors import DiffugenError
from diffugen.labels import shapes
from diffugen.records import ImageRecord, Phrase, Prompt
from diffugen.run import codec
from tests.support.dataset_samples import HEIGHT, WIDTH, box_mask, item
from tests.support.hostile import FUZZ, damaged, no_hang

pytestmark = pytest.mark.timeout(300)  # a hang in C code, which no alarm interrupts

RING = box_mask((3, 2, 30, 20), holes=((6, 5, 10, 9),))
ITEM = item("a", ("car", RING, 0.5), ("van", box_mask((1, 1, 9, 9)), 1.0))


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("yolo") / "set", {"train": [ITEM]}, ["car", "van"]).parent


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "set", {"train": [ITEM]}, ["car", "van"])


def read_everything(source: Path) -> None:
    """Read a set in every way that there is; only errors that a user can fix may come out."""
    readers: list[Callable[[], Any]] = [
        lambda: list(read_truth(source, ["car", "van"], purpose="train").items()),
        lambda: list(read_coco(source) if source.suffix == ".json" else read_yolo(source)),
        lambda: CocoSet.open(source).counts if source.suffix == ".json" else find_yolo(source),
    ]
    for read in readers:
        with no_hang():
            try:
                read()
            except DiffugenError as error:
                assert len(str(error)) < 5000


@pytest.mark.parametrize(
    "name", ["data.yaml", "labels/train/a.txt", "instances/train/a.json", "images/train/a.png"]
)
def test_a_damaged_file_of_a_yolo_set(yolo: Path, name: str) -> None:
    file = yolo / name
    valid = file.read_bytes()

    @FUZZ
    @given(damaged(valid))
    def attack(data: bytes) -> None:
        file.write_bytes(data)
        read_everything(yolo)

    try:
        attack()
    finally:
        file.write_bytes(valid)


def test_a_damaged_coco_file(coco: Path) -> None:
    file = coco / "instances_train.json"
    valid = file.read_bytes()

    @FUZZ
    @given(damaged(valid))
    def attack(data: bytes) -> None:
        file.write_bytes(data)
        read_everything(file)

    try:
        attack()
    finally:
        file.write_bytes(valid)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**99, -(10**99), 1e300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@FUZZ
@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(
        [
            *("id", "image_id", "category_id", "file_name", "name", "segmentation"),
            *("bbox", "score", "terms", "iscrowd", "width"),
        ]
    ),
    JSON,
)
def test_any_value_in_a_coco_file(coco: Path, table: str, key: str, value: Any) -> None:
    file = coco / "instances_train.json"
    valid = file.read_text()
    content = json.loads(valid)
    content[table][0][key] = value
    try:
        file.write_text(json.dumps(content))
        read_everything(file)
    finally:
        file.write_text(valid)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../train/a.png", "b/../../a.png", "x" * 300, "a\0", "\ud800"]
)
def test_a_coco_image_outside_the_folder_is_refused(coco: Path, tmp_path: Path, name: str) -> None:
    content = json.loads((coco / "instances_train.json").read_text())
    content["images"][0]["file_name"] = name
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(DiffugenError, match=r"x[.]json"):
        CocoSet.open(tmp_path / "x.json", coco.parent / "images" / "train")


def test_yolo_images_outside_the_folder_are_told(yolo: Path, tmp_path: Path) -> None:
    assert "outside" not in read_truth(yolo, ["car"], purpose="train").census
    (tmp_path / "data.yaml").write_text(f"train: {yolo}/images/train\nnames: [car, van]\n")
    assert f"1 image outside the folder {tmp_path}" in read_truth(tmp_path, ["car"], purpose="train").census
    (tmp_path / "list.txt").write_text("a.png\n")
    (tmp_path / "a.png").symlink_to(yolo / "images" / "train" / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [car, van]\n")
    assert "1 image outside the folder" in read_truth(tmp_path, ["car"], purpose="train").census


def test_names_that_are_not_utf_8_or_not_files_are_refused(yolo: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]\n")
    odd = tmp_path / "images" / "a\udcff.png"
    odd.write_bytes((yolo / "images" / "train" / "a.png").read_bytes())
    with pytest.raises(DiffugenError, match="not UTF-8; rename it"):
        list(read_yolo(tmp_path))
    odd.unlink()
    odd.with_name("b.png").mkdir()
    with pytest.raises(DiffugenError, match="not a regular file"):
        read_image(odd.with_name("b.png"))


NAMES = [
    *(
        "no",
        "on",
        "y",
        "1:30",
        "0x1F",
        "~",
        "null",
        "true",
        "1e3",
        "007",
        "1_000",
        ".inf",
        "<<",
        "=",
        "2024-01-01",
    ),
    *(
        "a: b",
        "# c",
        "- d",
        "é",
        "\x85",
        "a\u2028b",
        "'",
        '"',
        "[x]",
        "{x}",
        "*x",
        "&x",
        "!x",
        "%x",
        "@x",
        "`x",
    ),
    *(" a ", "a\n", "\ta", "\ufeffa", "\\"),
]


def test_class_names_survive_writing_and_reading(tmp_path: Path) -> None:
    names = [name for name in NAMES if name.strip()]
    labelled = item("a", *((name, RING, 1.0) for name in names))
    [(_, _, found)] = read_yolo(write_yolo(tmp_path / "yolo", {"train": [labelled]}, names))
    assert list(found.class_names) == names
    write_coco(tmp_path / "coco", {"train": [labelled]}, names)
    [(_, _, found)] = read_coco(tmp_path / "coco" / "annotations" / "instances_train.json")
    assert list(found.class_names) == names


def test_ultralytics_reads_the_class_names_that_we_write(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from diffugen.detectors.yolo_checkpoint import import_ultralytics

    import_ultralytics()
    from ultralytics.utils import YAML

    names = [name for name in NAMES if name.strip()]
    file = write_yolo(tmp_path / "set", {"train": [ITEM]}, ["car", "van", *names])
    assert YAML.load(file)["names"] == dict(enumerate(["car", "van", *names]))


@pytest.mark.parametrize("form", ["names: [{}]", "names: {{0: {}}}", "names:\n- {}\n", "names:\n  0: {}\n"])
def test_class_names_are_read_as_they_are_written(yolo: Path, form: str) -> None:
    valid = (yolo / "data.yaml").read_text()
    try:
        for name in ("no", "on", "1:30", "0x1F", "~", "1", "1.0", "007", "true"):
            (yolo / "data.yaml").write_text(f"train: images/train\nval: ~\ntest:\n{form.format(name)}\n")
            (yolo / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
            [(_, _, found)] = read_yolo(yolo)
            assert found.class_names == (name,)
    finally:
        (yolo / "data.yaml").write_text(valid)


COUNTS = str(shapes.encode(RING)["counts"])

RLES = [
    *(COUNTS[:-1], COUNTS + "0", COUNTS + "P", COUNTS[1:], "", "0", "P" * 50, "o" * 7 + "0", "ooooooO"),
    *("é", "\0", " ", "~", COUNTS + "\0", "0" * 100_000, "X" * 100_000, [10**30], [2**32 + WIDTH * HEIGHT]),
    *([WIDTH * HEIGHT, -1, 1], [0.5], [float("nan")], ["1"], [True] * 960, [[960]], [], None, 3, {"a": 1}),
]


@pytest.mark.parametrize("counts", RLES, ids=lambda counts: repr(counts)[:20])
def test_run_lengths_that_do_not_fit_never_reach_c_code(counts: Any) -> None:
    with no_hang(), pytest.raises(ValueError, match=r"."):
        rle_from_coco({"size": [HEIGHT, WIDTH], "counts": counts}, (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    "size", [[WIDTH, HEIGHT], [24], [24, 40, 1], ["a", 40], [float("inf"), 40], None, 24, [10**30] * 2]
)
def test_a_mask_of_another_size_never_reaches_c_code(size: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        rle_from_coco({"size": size, "counts": COUNTS}, (WIDTH, HEIGHT))


@FUZZ
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(0, 3))
def test_run_lengths_are_decoded_as_pycocotools_does(sides: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((len(sides) + 1, 1 + max(sides))) < rng.random()
    rle = shapes.encode(np.repeat(mask, 1 + sides[0], axis=0))
    height, width = rle["size"]
    assert rle_from_coco(rle, (width, height)) == rle
    with pytest.raises(ValueError, match=r"cover|size"):
        rle_from_coco({**rle, "size": [height, width + 1]}, (width + 1, height))


@FUZZ
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_counts_are_refused_or_give_a_mask(counts: str) -> None:
    with no_hang():
        try:
            rle = rle_from_coco({"size": [4, 5], "counts": counts}, (5, 4))
        except ValueError:
            return
        assert shapes.decode(rle).shape == (4, 5)


RECORD = codec.record_to_json(
    ImageRecord(Prompt("a car", (Phrase("car", "car"),), attributes={"a": "b"}), 7, (40, 24), "m")
)


@FUZZ
@given(damaged(RECORD.encode()))
def test_a_damaged_record_is_read_or_refused(data: bytes) -> None:
    assert codec.record_from_json(RECORD).id
    try:
        codec.record_from_json(data.decode(errors="replace"))
    except ValueError as error:
        assert "\n" not in str(error)


@FUZZ
@given(damaged(codec.instances_to_json(ITEM[2]).encode()))
def test_damaged_labels_are_read_or_refused(data: bytes) -> None:
    try:
        found = codec.instances_from_json(data.decode(errors="replace"))
    except ValueError:
        return
    assert len(shapes.areas(found.rles)) == len(found)


def npz(**arrays: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def npy(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


ABOUT = '{"image_id":"a","size_wh":[40,24],"phrases":[["car","car"]]}'
WORDS = npy((), f"<U{len(ABOUT)}", ABOUT.encode("utf-32-le"))
MAPS = npy((1, 3, 2, 2), "<f2", b"\0" * 24)


def test_heat_maps_are_checked_before_they_are_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MOST_NPZ_BYTES", 10_000)
    assert codec.heat_maps_from_npz(npz(about=WORDS, up=MAPS)).image_id == "a"
    for arrays in (
        {"about": WORDS, "up": npy((1, 3, 2, 2), "<f2", b"\0" * 10_000)},
        {"about": WORDS, "up": npy((1, 3, 10**6, 10**6), "<f2", b"\0" * 24)},
        {"about": WORDS, "up": npy((1, 3, 2, 1), "<f8", b"\0" * 48)},
        {"about": WORDS, "up": npy((1, 3, 2, 2), "|O", b"\0" * 96)},
        {"about": npy((), "<U2", "[]".encode("utf-32-le")), "up": MAPS},
        {"up": MAPS},
    ):
        with no_hang(), pytest.raises((ValueError, KeyError)):
            codec.heat_maps_from_npz(npz(**arrays))


def test_an_image_is_checked_before_it_is_decompressed() -> None:
    out = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(out, "PNG")
    with pytest.raises(ValueError, match="3000x2000 px, not 40x24"):
        codec.rgb_from_png(out.getvalue(), (40, 24))
