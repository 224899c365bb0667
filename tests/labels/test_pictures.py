"""Overlays show masks, heat and regions where they are; contact sheets hold all panels of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffugen.config.labelling import LabelSettings
from diffugen.errors import StoreError
from diffugen.labels.pictures import (
    INK,
    PALETTE,
    Panel,
    contact_sheet,
    enlarged,
    heat_overlay,
    label_overlay,
    outlined,
)
from diffugen.labels.shapes import encode
from diffugen.labels.sheets import TILE_HEIGHT, attention_panel, attention_sheet
from diffugen.records import HeatMaps, ImageRecord, Instances, LabelSet, Phrase, Prompt
from diffugen.run.store import RunStore

GREY = np.full((40, 60, 3), 120, dtype=np.uint8)
PHRASES = (Phrase("road", None), Phrase("grand piano", "piano"))


def mask(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    found = np.zeros((40, 60), dtype=np.bool_)
    found[y0:y1, x0:x1] = True
    return found


def instances(*names: str) -> Instances:
    rles = tuple(encode(mask(20, 4 + 30 * index, 36, 24 + 30 * index)) for index in range(len(names)))
    return Instances((60, 40), names, rles, np.full(len(names), 0.5))


def heat_maps(image_id: str = "one", region: np.ndarray | None = None) -> HeatMaps:
    """The road is hot at the top left, the piano at the bottom right."""
    maps = np.zeros((2, 3, 10, 15), dtype=np.float16)
    maps[0, :, :4, :6], maps[1, :, 6:, 9:] = 2e-3, 1e-3
    coded = None if region is None else encode(region)
    return HeatMaps(image_id, (60, 40), PHRASES, {"up-10x15": maps}, region=coded)


@pytest.mark.parametrize("height", [20, 40, 90])
def test_resizing_keeps_the_aspect_ratio(height: int) -> None:
    assert enlarged(GREY, height).shape == (height, height * 3 // 2, 3)


def test_the_hottest_part_is_the_brightest() -> None:
    heat = np.zeros((40, 60), dtype=np.float32)
    heat[:20, :30] = 1e-3
    picture = heat_overlay(GREY, heat, 80).astype(float).sum(axis=2)
    assert picture[:30, :50].min() > picture[50:, 70:].max()
    constant = heat_overlay(GREY, np.full_like(heat, 1e-3), 40)
    assert (constant == constant[0, 0]).all()


def test_a_region_is_outlined_and_nothing_else_changes() -> None:
    picture = outlined(GREY, mask(10, 10, 30, 50), 40)
    changed = (picture != GREY).any(axis=2)
    assert changed[10, 20:40].all() and changed[29, 20:40].all() and changed[15:25, 10].all()
    assert not changed[15:25, 20:40].any() and not changed[:5].any()


def test_masks_have_the_colour_of_their_class() -> None:
    picture = label_overlay(GREY, instances("car", "piano"), 80, ["piano", "car"])
    assert picture.shape == (80, 120, 3)
    for x, colour in ((28, PALETTE[1]), (88, PALETTE[0])):
        np.testing.assert_allclose(picture[56, x], 0.6 * 120 + 0.4 * np.array(colour), atol=1.5)
    assert (picture[56, 56] == 120).all(), "between the masks"
    other = label_overlay(GREY, instances("car"), 80, ["piano"])
    np.testing.assert_allclose(other[56, 28], 0.6 * 120 + 0.4 * np.array(INK), atol=1.5)


def test_a_sheet_has_a_row_for_every_two_panels(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    panels = [
        Panel((np.full((40, 60, 3), colour, np.uint8),), "a long caption " * number)
        for number, colour in enumerate(colours)
    ]
    path = contact_sheet(panels, tmp_path / "new" / "sheet.png", columns=2, height=40, title="a title")
    sheet = np.asarray(Image.open(path))
    for colour, corner in zip(colours, [(0, 0), (0, 1), (1, 0)], strict=True):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert len(rows) == 40 * 60, "the picture is complete: no caption is drawn over it"
        assert (rows.min() > sheet.shape[0] / 2, columns.min() > sheet.shape[1] / 2) == corner


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the picture .*file/sheet\.png"):
        contact_sheet([], tmp_path / "file" / "sheet.png")


def test_a_panel_shows_the_map_of_the_first_class_and_the_source_if_there_is_one() -> None:
    panel = attention_panel(GREY, heat_maps(), instances("piano"), LabelSettings(), "a caption")
    assert panel.caption == "a caption" and [one.shape for one in panel.pictures] == [(160, 240, 3)] * 3
    assert panel.pictures[1][-20, -20].sum() > panel.pictures[1][20, 20].sum(), "the piano, not the road"
    painted, part = np.ones((40, 60), dtype=np.bool_), mask(20, 20, 40, 60)
    for region, drawn in ((None, False), (painted, False), (part, True)):
        made = attention_panel(
            GREY, heat_maps(region=region), instances("piano"), LabelSettings(), "", source=GREY
        )
        assert len(made.pictures) == 4 and (made.pictures[0] != 120).any() == drawn


def test_labels_of_a_detector_alone_are_shown_without_heat_maps(tmp_path: Path) -> None:
    record = ImageRecord(Prompt("a road", ()), 0, (60, 40), "tiny")
    nothing = HeatMaps(record.id, (60, 40), (), {})
    with RunStore.create_or_open(tmp_path / "run", config={}) as store:
        store.add_image(record, GREY, nothing, 1.0)
        store.put_labels([LabelSet(record.id, "attention", instances("piano"), "detector-1")])
        sheet = attention_sheet(store, "detector-1", LabelSettings(), tmp_path / "sheet.png")
    assert Image.open(sheet).width < 3 * 240, "image and labels"


def test_the_sheet_of_a_run_spreads_over_its_images_and_keeps_to_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        ImageRecord(Prompt(f"piano {number}", PHRASES), number, (60, 40), "tiny", step=("a", "b")[number % 2])
        for number in range(8)
    ]
    drawn: list[list[str]] = []

    def watched(panels: list[Panel], path: Path, **options: object) -> Path:
        drawn.append([panel.caption for panel in panels])
        assert options["height"] == TILE_HEIGHT
        return contact_sheet(panels, path, columns=2, height=TILE_HEIGHT)

    monkeypatch.setattr("diffugen.labels.sheets.contact_sheet", watched)
    with RunStore.create_or_open(tmp_path / "run", config={}) as store:
        store.add_images((record, GREY, heat_maps(record.id), 1.0) for record in records)
        store.put_labels(LabelSet(record.id, "attention", instances("piano"), "method") for record in records)
        for count, steps in ((4, None), (12, {"b"}), (12, None)):
            path = attention_sheet(store, "method", LabelSettings(), tmp_path / "sheet.png", count, steps)
            assert Image.open(path).width > 2 * 3 * 240
    assert drawn == [
        [f"piano {number}" for number in numbers] for numbers in ((0, 2, 4, 6), (1, 3, 5, 7), range(8))
    ]
