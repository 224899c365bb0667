"""The queue goes to CVAT, Label Studio and labelme and back as decisions; a bad file changes nothing."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from diffugen.dataset.files import read_image
from diffugen.dataset.masks import rle_from_rings
from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode
from diffugen.records import Decision, Instances, Judged
from diffugen.review.queue import read_queue
from diffugen.review.trips import cvat, labelstudio
from diffugen.review.trips.brush import brush_from_mask, mask_from_brush
from diffugen.review.trips.trip import SENT, Brought, read_trip, write_trip
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.annotators import ANNOTATORS, Annotator, Cvat, Labelme, LabelStudio, png_base64

FIXTURES = Path(__file__).parents[1] / "fixtures" / "annotation-tools"
Tool = TypeVar("Tool", bound=Annotator)
TRIANGLE = [(20.0, 10.0), (36.0, 12.0), (24.0, 22.0)]
OVERLOOKED, SPURIOUS, SWAPPED, BADLY, ONE_PIXEL = (made.image_id(number) for number in (0, 1, 2, 3, 5))


def sent(store: RunStore, tool: type[Tool], name: str = "out") -> Tool:
    """Write the queue for a tool, and open it there."""
    folder = store.folder / name
    write_trip(store, tool.name, folder, store.folder / "review")
    return tool(folder)


def brought(store: RunStore, path: Path, reviewer: str = "ann") -> Brought:
    return read_trip(store, path, store.folder / "review", reviewer=reviewer, round=2)


def decided(found: Brought) -> dict[str, Decision]:
    return {one.image_id: one for one in found.decisions}


def same(first: Instances | None, second: Instances) -> bool:
    """Whether two label sets have the same masks, classes, scores and score terms."""
    sides = [
        (one.class_names, one.rles, one.scores.tolist(), one.terms) for one in (made.sure(first), second)
    ]
    return sides[0] == sides[1]


every_tool = pytest.mark.parametrize("tool", ANNOTATORS, ids=lambda tool: tool.name)


# -------------------------------------------------------------------- out


@every_tool
def test_the_labels_are_those_of_attention_and_what_the_model_alone_says(
    store: RunStore, tool: type[Annotator]
) -> None:
    annotator = sent(store, tool)
    assert annotator.classes(OVERLOOKED) == [("car", "attention"), ("piano", "model")], "the car only once"
    assert annotator.classes(SWAPPED) == [("piano", "attention"), ("car", "model")]
    assert annotator.classes(BADLY) == [("piano", "attention"), ("piano", "model")]
    assert annotator.classes(ONE_PIXEL) == [("person", "model")]


def test_undecided_images_worst_first_with_their_pixels(store: RunStore) -> None:
    store.add_decisions([Decision(SWAPPED, "reject", None, "ben")])
    annotator = sent(store, Cvat)
    order = [image.get("name") for image in annotator.root.findall("image")]
    assert order == [f"{image_id}.png" for image_id in (ONE_PIXEL, SPURIOUS, BADLY, OVERLOOKED)]
    for name in order:
        pixels = read_image(annotator.folder / "images" / str(name))
        np.testing.assert_array_equal(pixels, store.image(str(name)[:-4]))
    labels = json.loads((annotator.folder / "labels.json").read_text())
    assert [one["name"] for one in labels] == ["piano", "car", "person", "reviewed", "reject"]
    assert len({one["color"] for one in labels[:3]}) == 3


def test_label_studio_gets_images_in_its_json_and_files_if_they_are_large(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotator = sent(store, LabelStudio)
    assert not (annotator.folder / "images").exists()
    head, _, data = annotator.task(SWAPPED)["data"]["image"].partition(",")
    assert head == "data:image/png;base64"
    (store.folder / "embedded.png").write_bytes(base64.b64decode(data))
    np.testing.assert_array_equal(read_image(store.folder / "embedded.png"), store.image(SWAPPED))
    monkeypatch.setattr(labelstudio, "MOST_EMBEDDED", 1000)
    served = sent(store, LabelStudio, "large")
    assert served.task(SWAPPED)["data"]["image"] == f"/data/local-files/?d=images/{SWAPPED}.png"
    assert (served.folder / "images" / f"{SWAPPED}.png").is_file()


@every_tool
def test_a_folder_in_use_an_unknown_tool_and_an_empty_queue(store: RunStore, tool: type[Annotator]) -> None:
    sent(store, tool)
    with pytest.raises(DiffugenError, match="is in use, perhaps by annotations"):
        sent(store, tool)
    with pytest.raises(DiffugenError, match="unknown tool 'cvta', did you mean 'cvat'"):
        write_trip(store, "cvta", store.folder / "new", store.folder / "review")
    store.add_decisions(Decision(name, "reject", None, "ann") for name in read_queue(store).disagreements)
    with pytest.raises(DiffugenError, match="no image of the review queue waits"):
        write_trip(store, tool.name, store.folder / "new", store.folder / "review")
    assert not (store.folder / "new").exists()


# -------------------------------------------------------------------- back


@every_tool
def test_what_nobody_touched_stays_undecided(store: RunStore, tool: type[Annotator]) -> None:
    found = brought(store, sent(store, tool).saved())
    assert found.decisions == ()
    assert found.untouched == (0 if tool is LabelStudio else 5)


@every_tool
def test_untouched_is_known_after_the_labels_have_changed(store: RunStore, tool: type[Annotator]) -> None:
    annotator = sent(store, tool)
    record = store.record(SWAPPED)
    made.put_labels(store, record, attention=made.instances_of(made.AGREED), model=made.instances_of())
    assert brought(store, annotator.saved()).decisions == ()


@every_tool
def test_masks_survive_bit_for_bit(store: RunStore, tool: type[Annotator]) -> None:
    annotator = sent(store, tool)
    for image_id in (OVERLOOKED, SPURIOUS, BADLY, ONE_PIXEL):
        annotator.mark(image_id, "reviewed")
    found = decided(brought(store, annotator.saved()))
    for number, verdict in ((0, "model"), (1, "attention"), (5, "model")):
        one = found[made.image_id(number)]
        assert (one.verdict, one.judged) == (verdict, ())
        assert same(one.instances, made.LABELS[number][verdict == "model"]), "with holes and scores"
    attention, model = made.LABELS[3]
    assert found[BADLY].verdict == "edited" and same(found[BADLY].instances, attention.joined(model))
    assert found[BADLY].judged == (
        Judged("attention", 0, True, None, None, "attention-1"),
        Judged("model", 0, True, None, None, "model-1"),
    )


@every_tool
def test_verdicts(store: RunStore, tool: type[Annotator]) -> None:
    annotator = sent(store, tool)
    annotator.delete(SWAPPED, 0)
    annotator.delete(ONE_PIXEL, 0)
    annotator.mark(SPURIOUS, "reject")
    annotator.delete(BADLY, 1)
    annotator.rename(OVERLOOKED, 1, "person")
    annotator.delete(OVERLOOKED, 0)
    annotator.draw(OVERLOOKED, "piano", TRIANGLE)
    found = brought(store, annotator.saved())
    by_image = decided(found)
    assert {name: one.verdict for name, one in by_image.items()} == {
        SWAPPED: "model",
        ONE_PIXEL: "empty",
        SPURIOUS: "reject",
        BADLY: "attention",
        OVERLOOKED: "edited",
    }
    assert {(one.reviewer, one.round) for one in found.decisions} == {("ann", 2)}
    edited = made.sure(by_image[OVERLOOKED].instances)
    assert edited.class_names == ("person", "piano")
    drawn = rle_from_rings([np.array(TRIANGLE)], made.SIZE_WH)
    assert edited.rles == (made.LABELS[0][1].rles[0], drawn)
    assert by_image[OVERLOOKED].judged == (
        Judged("model", 0, True, "person", None, "model-1"),
        Judged("human", 0, True, "piano", drawn),
    )
    store.add_decisions(found.decisions)
    again = brought(store, annotator.saved())
    assert (again.decisions, again.known) == ((), 5), "importing twice changes nothing"


def test_label_studio_skipped_tasks_and_two_people(store: RunStore) -> None:
    annotator = sent(store, LabelStudio)
    annotator.delete(SWAPPED, 0)
    annotator.result(SPURIOUS)
    for task in annotator.tasks:
        for one in task.get("annotations", []):
            one["updated_at"] = "2026-01-02T10:00:00.5Z"
        if task["data"]["image_id"] == SPURIOUS:
            task["annotations"][0]["was_cancelled"] = True
        if task["data"]["image_id"] == SWAPPED:
            old = {"completed_by": 1, "updated_at": "2025-12-31T10:00:00Z", "result": []}
            other = {"completed_by": {"email": "ben@example.org"}, "updated_at": "2026-01-01T10:00:00Z"}
            task["annotations"] += [old, {**other, "result": []}]
    found = brought(store, annotator.saved()).decisions
    assert [(one.image_id, one.verdict, one.reviewer) for one in found] == [
        (SWAPPED, "model", "1"),
        (SWAPPED, "empty", "ben@example.org"),
    ]
    assert found[0].made_at == "2026-01-02T10:00:00.500+00:00"


def test_labelme_shapes_of_one_group_are_one_object(store: RunStore) -> None:
    annotator = sent(store, Labelme)
    annotator.delete(ONE_PIXEL, 0)
    for points in ([(1.0, 1.0), (4.0, 1.0), (4.0, 4.0), (1.0, 4.0)], TRIANGLE):
        annotator.draw(ONE_PIXEL, "piano", points)
        annotator.content(ONE_PIXEL)["shapes"][-1]["group_id"] = 7
    [found] = brought(store, annotator.saved()).decisions
    assert made.sure(found.instances).class_names == ("piano",)
    assert decode(made.sure(found.instances).rles[0])[:5, :5].sum() == 9


def test_cvat_also_exports_plain_xml(store: RunStore) -> None:
    annotator = sent(store, Cvat)
    file = annotator.folder / "annotations.xml"
    text = file.read_text()
    file.write_text(text.replace('label="person"', 'label="car"'))
    [found] = brought(store, file).decisions
    assert (found.verdict, made.sure(found.instances).class_names) == ("edited", ("car",))


@every_tool
def test_class_names_are_text_whatever_they_contain(tmp_path: Path, tool: type[Annotator]) -> None:
    name = """<b onclick='x'>"&amp; {folder} ü\n</b>"""
    attention = made.instances_of((name, made.box_mask(2, 3, 20, 20), 0.5), made.AGREED)
    with made.make_run(tmp_path / "run", config=None) as store:
        made.put_labels(store, store.record(SPURIOUS), attention=attention)
        annotator = sent(store, tool)
        assert annotator.classes(SPURIOUS)[0] == (name, "attention")
        annotator.delete(SPURIOUS, 1)
        annotator.mark(SWAPPED, "reject")
        found = decided(brought(store, annotator.saved()))
    assert made.sure(found[SPURIOUS].instances).class_names == (name,)


# -------------------------------------------------------------------- the tools' own files


def test_the_tools_own_encoders_are_read() -> None:
    """Written by label-studio-sdk 2.1.2: the mask of a piano in `LABELS`, with its hole."""
    fixture = json.loads((FIXTURES / "label-studio-brush.json").read_text())
    mask = mask_from_brush(fixture["rle"], tuple(fixture["size_wh"]))
    np.testing.assert_array_equal(mask, decode(made.LABELS[1][0].rles[0]))


def test_a_file_that_labelme_saved_is_read(store: RunStore) -> None:
    """Written by labelme 6.3.1 after it had read ours, with the flag reviewed set."""
    sent(store, Labelme)
    [found] = brought(store, FIXTURES / "labelme.json").decisions
    assert (found.image_id, found.verdict) == (SPURIOUS, "attention")
    assert same(found.instances, made.LABELS[1][0])


def test_a_file_of_cvat_that_datumaro_wrote_is_read(store: RunStore) -> None:
    """Written by datumaro 1.13.12 after it had read ours: the masks of all five images, unchanged."""
    found = brought(store, FIXTURES / "cvat.xml")
    assert (found.decisions, found.untouched) == ((), 5)


@pytest.mark.parametrize("shape", [(24, 40), (61, 33), (300, 421)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_brush_round_trip(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(1).random(shape) < share
    np.testing.assert_array_equal(mask_from_brush(brush_from_mask(mask), shape[::-1]), mask)


# -------------------------------------------------------------------- mistakes


def refuse(store: RunStore, path: Path, *words: str) -> None:
    before = list(store.votes())
    with pytest.raises(DiffugenError) as caught:
        brought(store, path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert list(store.votes()) == before


@every_tool
def test_mistakes_are_listed_and_nothing_is_imported(store: RunStore, tool: type[Annotator]) -> None:
    annotator = sent(store, tool)
    annotator.rename(OVERLOOKED, 1, "painos")
    annotator.resize(SPURIOUS)
    annotator.damage(BADLY)
    annotator.call(SWAPPED, "0123456789abcdef")
    refuse(
        store,
        annotator.saved(),
        "4 mistakes",
        "the run has no class 'painos', did you mean 'piano'?",
        "41 x 24 px here, 40 x 24 in the run",
        BADLY,
        "the run has no image '0123456789abcdef'",
    )


@every_tool
def test_one_object_kept_from_both_sources(store: RunStore, tool: type[Annotator]) -> None:
    annotator = sent(store, tool)
    annotator.mark(SWAPPED, "reviewed")
    refuse(store, annotator.saved(), SWAPPED, "one object is kept twice")


def zipped(folder: Path, **files: str) -> Path:
    file = folder / "bad.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return file


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


def away(folder: Path) -> Path:
    file = folder / "away.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
        archive.writestr("../../outside.txt", "x")
    return file


def cut(folder: Path) -> Path:
    file = zipped(folder, annotations__xml="<annotations/>" * 200)
    file.write_bytes(file.read_bytes()[:60])
    return file


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;&b;">]><annotations>&c;</annotations>'


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (text_file("a.xml", "<annotations><image"), "invalid XML"),
        (text_file("a.xml", BOMB), "document type"),
        (text_file("a.xml", "<html/>"), "not CVAT's annotations"),
        (text_file("a.xml", "<annotations><track id='0'/></annotations>"), "<track>"),
        (text_file("a.json", "[{]"), "invalid JSON"),
        (text_file("a.json", "[3]"), "task 1 is not one of Label Studio"),
        (text_file("a.json", "{}"), "not a file of labelme"),
        (text_file("a.json", '{"run": "x", "decisions": []}'), "import it with --decisions"),
        (text_file("a.txt", "x"), "it is no export that can be read"),
        (away, "leaves its folder"),
        (cut, "damaged or encrypted zip"),
        (lambda folder: zipped(folder, other__xml="<a/>"), "contains no annotations.xml"),
        (lambda folder: folder / "missing.xml", "No such file"),
        (lambda folder: folder, "no JSON files"),
    ],
)
def test_files_that_are_no_export(
    store: RunStore, tmp_path: Path, write: Callable[[Path], Path], word: str
) -> None:
    (tmp_path / "given").mkdir()
    refuse(store, write(tmp_path / "given"), word)


def test_a_zip_bomb(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat, "MOST_BYTES", 1 << 20)
    text = "<annotations>" + " " * (2 << 20) + "</annotations>"
    refuse(store, zipped(tmp_path, annotations__xml=text), "annotations.xml is larger than 1 MB")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rle": "10, -2, 1000"}, "run lengths cover"),
        ({"rle": "9" * 5000}, "mask"),
        ({"left": "-1"}, "left is '-1'"),
        ({"width": "99"}, "is not inside the image"),
        ({"height": "0"}, "is not inside the image"),
    ],
)
def test_damaged_masks_of_cvat(store: RunStore, change: dict[str, str], word: str) -> None:
    annotator = sent(store, Cvat)
    mask = annotator.image(SPURIOUS).find("mask")
    for key, value in change.items():
        mask.set(key, value)
    refuse(store, annotator.saved(), SPURIOUS, word)


def test_shapes_that_are_no_masks(store: RunStore) -> None:
    annotator = sent(store, Cvat)
    annotator.image(SPURIOUS).find("mask").tag = "box"
    refuse(store, annotator.saved(), f"image {SPURIOUS}: a box of 'piano'; only masks and polygons")


@pytest.mark.parametrize("value", ["text", 1 << 40, {}, [1, 2], [0] * 40, [-1, 2], [256], None, [255] * 60])
def test_damaged_masks_of_label_studio(store: RunStore, value: Any) -> None:
    annotator = sent(store, LabelStudio)
    annotator.result(SPURIOUS)[0]["value"]["rle"] = value
    refuse(store, annotator.saved(), SPURIOUS, "its rle")


@pytest.mark.parametrize("size", [(500_000, 4), (17, 17)])
def test_a_mask_of_labelme_is_not_decompressed_if_its_size_is_wrong(
    store: RunStore, size: tuple[int, int]
) -> None:
    annotator = sent(store, Labelme)
    annotator.content(SPURIOUS)["shapes"][0]["mask"] = png_base64(size)
    refuse(store, annotator.saved(), f"{SPURIOUS}.json", f"its PNG has {size[0]} x {size[1]} px")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shapes", [3]),
        ("shapes", [{"label": ["car"], "points": [], "shape_type": "mask", "mask": ""}]),
        ("shapes", [{"label": 5, "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": ""}]),
        ("shapes", [{"label": "car", "points": [[0, 0], [1e999, 1]], "shape_type": "mask", "mask": ""}]),
        ("shapes", [{"label": "car", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": 7}]),
        ("shapes", [{"label": "car", "points": [[0, 0], [1, 1]], "shape_type": "polygon"}]),
        ("shapes", [{"label": "car", "points": [[0, 0], [1, 1]], "shape_type": "rectangle"}]),
        ("flags", [1]),
        ("diffugen", 3),
        ("diffugen", {"image_id": 3}),
    ],
)
def test_damaged_files_of_labelme(store: RunStore, key: str, value: Any) -> None:
    annotator = sent(store, Labelme)
    annotator.content(SPURIOUS)[key] = value
    refuse(store, annotator.saved(), "1 mistake", f"{SPURIOUS}.json: ")


@pytest.mark.parametrize(
    "change",
    [
        {"data": 3},
        {"data": {}},
        {"annotations": [{"result": 3}]},
        {"annotations": [{"result": [3]}]},
        {"annotations": [{"result": [{"type": "brushlabels", "value": {"brushlabels": []}}]}]},
        {"annotations": [{"result": [{"type": "rectanglelabels", "value": {}}]}]},
        {"annotations": [{"result": [], "updated_at": "yesterday"}]},
        {"annotations": [{"result": [], "updated_at": 5}]},
        {"annotations": [3]},
        {"annotations": {}},
    ],
)
def test_damaged_tasks_of_label_studio(store: RunStore, change: dict[str, Any]) -> None:
    annotator = sent(store, LabelStudio)
    annotator.result(annotator.tasks[0]["data"]["image_id"])
    annotator.tasks[0].update(change)
    refuse(store, annotator.saved(), "1 mistake")


def test_a_damaged_record_of_what_was_sent(store: RunStore) -> None:
    annotator = sent(store, Cvat)
    (store.folder / "review" / SENT).write_text("[")
    with pytest.raises(DiffugenError, match=r"sent\.json.*remove it"):
        brought(store, annotator.saved())
