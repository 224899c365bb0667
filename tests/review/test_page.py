"""The review page in a real browser: keys, labels, brush, zoom, memory, phone; and its file comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from diffugen.comparison.disagreement import compare
from diffugen.labels.shapes import decode
from diffugen.records import Decision, HeatMaps, ImageRecord, Judged, Prompt
from diffugen.review.decisions import read_decisions
from diffugen.review.static import write_static
from diffugen.run.store import RunStore
from tests.support import run_for_review as made, store_child as child
from tests.support.page import DESKTOP, PHONE, Reviewer, mask_of

Open = Callable[..., Reviewer]


@pytest.fixture
def open_page(browser: Browser, store: RunStore, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a run; the queue is, by rank: overlooked 5, spurious 1, swapped 2, badly 3, 0."""
    opened: list[Reviewer] = []

    def open(other: RunStore | None = None, **changes: Any) -> Reviewer:
        address = write_static(other or store, tmp_path / "page").as_uri()
        opened.append(Reviewer(browser, address, **changes))
        return opened[-1]

    yield open
    for one in opened:
        one.close()


def verdicts(content: dict[str, Any]) -> list[str]:
    return [one["verdict"] for one in content["decisions"]]


def test_one_key_is_one_verdict(open_page: Open, store: RunStore, tmp_path: Path) -> None:
    reviewer = open_page()
    assert (reviewer.rank, reviewer.count) == ("#1", "0 of 5 decided")
    reviewer.press("m", "a", "e", "r", "a")
    assert reviewer.count == "5 of 5 decided"
    assert reviewer.page.locator("#finish-title").inner_text() == "All images on this page are decided"
    content = reviewer.saved(tmp_path)
    assert verdicts(content) == ["model", "attention", "empty", "reject", "attention"]
    found = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="anna", round=0)
    assert [one.verdict for one in found] == verdicts(content)
    assert all(one.made_at for one in found)


def test_undo_and_arrows(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight", "ArrowDown", "ArrowLeft")
    assert reviewer.rank == "#2"
    reviewer.press("m")
    assert (reviewer.rank, reviewer.count) == ("#3", "1 of 5 decided")
    reviewer.press("u")
    assert (reviewer.rank, reviewer.count) == ("#2", "0 of 5 decided")
    reviewer.press("u")
    assert reviewer.state == "There is nothing to undo."


def test_agreed_labels_are_one_kept_object_and_disputed_ones_are_not_kept(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight")
    texts = [one.inner_text().split("\n") for one in reviewer.page.locator("#objects button").all()]
    assert [text[:2] for text in texts] == [["1", "piano"], ["2", "car"]]
    assert reviewer.kept() == [False, True]
    assert reviewer.page.locator('figure[data-side="model"] .label').count() == 1
    # Holes stay holes.
    path = reviewer.page.locator('figure[data-side="attention"] [data-object="0"] .line')
    assert (path.get_attribute("d") or "").count("M") == 2
    assert path.evaluate("one => getComputedStyle(one).fillRule") == "evenodd"


def test_enter_accepts_the_mix(open_page: Open, tmp_path: Path) -> None:
    reviewer = open_page()
    reviewer.press("Enter", "Enter", "1", "Enter", "1", "Enter", "2", "Enter")
    content = reviewer.saved(tmp_path)
    # Nothing kept; the agreed object, which is all of the model's; one side of a swap, one of two masks; all.
    assert verdicts(content) == ["empty", "model", "attention", "attention", "model"]
    assert {one["method"] for one in content["decisions"][1:]} == {"model-1", "attention-1"}


def test_of_two_labels_of_one_object_only_one_is_kept(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight", "ArrowRight", "1")
    assert reviewer.kept() == [True, False]
    reviewer.click("model", 15, 15)
    assert reviewer.kept() == [False, True]
    assert reviewer.state == "2, car: kept."
    reviewer.click("model", 15, 15)
    assert reviewer.kept() == [False, False]


def test_two_labels_of_one_object_may_be_two_objects(
    open_page: Open, store: RunStore, tmp_path: Path
) -> None:
    reviewer = open_page()
    reviewer.press(*3 * ["ArrowRight"])  # badly located: they overlap by a sixth
    assert reviewer.page.locator("#both").is_disabled()
    reviewer.press("1", "2", "k")
    assert reviewer.kept() == [True, True]
    reviewer.page.locator("#class").select_option("car")
    assert reviewer.kept() == [True, True], "a changed class drops neither"
    reviewer.press("Enter")
    reviewer.saved(tmp_path)
    (found,) = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="a", round=0)
    assert found.verdict == "edited"
    assert made.sure(found.instances).class_names == ("piano", "car")


def test_a_changed_class_comes_back_as_edited(open_page: Open, store: RunStore, tmp_path: Path) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight", "1")
    reviewer.page.locator("#class").select_option("person")
    reviewer.press("Enter")
    reviewer.saved(tmp_path)
    (found,) = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="a", round=0)
    labels = made.sure(found.instances)
    assert (found.verdict, labels.class_names) == ("edited", ("person", "car"))
    assert labels.rles[0] == made.LABELS[1][0].rles[0]


def test_a_stroke_of_the_brush_is_in_the_file_to_the_pixel(
    open_page: Open, store: RunStore, tmp_path: Path
) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight", "1", "+")
    reviewer.page.locator("#size").fill("1")
    reviewer.stroke("attention", (25.5, 2.5), (29.5, 2.5))
    reviewer.press("-")
    reviewer.stroke("attention", (3.5, 4.5), (3.5, 4.5))
    reviewer.press("Enter")
    content = reviewer.saved(tmp_path)
    expected = decode(made.LABELS[1][0].rles[0])
    expected[2, 25:30] = True
    expected[4, 3] = False
    (item,) = content["decisions"]
    assert item["verdict"] == "edited"
    assert np.array_equal(mask_of(item["objects"][0]["mask"]), expected)
    (found,) = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="a", round=0)
    assert np.array_equal(decode(made.sure(found.instances).rles[0]), expected)
    store.add_decisions([found])
    assert next(store.labels("human")).instances.class_names == ("piano", "car")


def test_a_new_object_is_drawn(open_page: Open, store: RunStore, tmp_path: Path) -> None:
    reviewer = open_page()
    reviewer.page.locator("#class").select_option("car")
    reviewer.press("n")
    reviewer.page.locator("#size").fill("4")
    reviewer.stroke("model", (8, 8), (8, 8))
    reviewer.press("]", "[", "Enter")
    reviewer.saved(tmp_path)
    (found,) = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="a", round=0)
    labels = made.sure(found.instances)
    assert labels.class_names == ("car",) and [one.source for one in found.judged if one.kept] == ["human"]
    rows, columns = np.nonzero(decode(labels.rles[0]))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 9, 6, 9)
    assert len(rows) == 12  # a disc of 4 pixels without its corners


def test_an_object_erased_to_nothing_is_dropped(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("1", "-")
    reviewer.page.locator("#size").fill("10")
    reviewer.stroke("model", (20.5, 10.5), (20.5, 10.5))
    assert reviewer.kept() == [False]


def test_an_object_kept_twice_is_refused_on_the_page(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("ArrowRight", "n")
    reviewer.page.locator("#size").fill("10")
    reviewer.stroke("model", (30, 4), (40, 4))
    reviewer.press("Enter")
    assert reviewer.rank == "#2" and "overlap by more than half" in reviewer.state


def test_zoom_and_pan_are_the_same_on_both_sides(open_page: Open) -> None:
    reviewer = open_page()
    boxes = "() => svgs.map((svg) => svg.getAttribute('viewBox'))"
    full = reviewer.page.evaluate(boxes)
    reviewer.page.mouse.move(*reviewer.place("attention", 10, 10))
    reviewer.page.mouse.wheel(0, -800)
    reviewer.until("isZoomed()")
    first, second = reviewer.page.evaluate(boxes)
    assert first == second and [first, second] != full
    assert np.allclose(
        reviewer.page.evaluate("() => [view.width, view.height]"), [40 / np.e**2, 24 / np.e**2]
    )
    reviewer.stroke("model", (10, 10), (9, 10))
    assert reviewer.page.evaluate(boxes)[0] != first and reviewer.kept() == [False]
    reviewer.press("0")
    assert reviewer.page.evaluate(boxes) == full


def test_space_shows_the_bare_image_and_h_the_heat_map(open_page: Open) -> None:
    reviewer = open_page()
    labels = reviewer.page.locator('figure[data-side="model"] .label').first
    heat = reviewer.page.locator('figure[data-side="attention"] .heat')
    assert labels.is_visible() and not heat.is_visible()
    reviewer.press(" ", "h")
    assert heat.is_visible() and not labels.is_visible()
    reviewer.press(" ", "h")
    assert labels.is_visible() and not heat.is_visible()


def test_filter_by_kind(open_page: Open) -> None:
    reviewer = open_page()
    options = [one.inner_text() for one in reviewer.page.locator("#filter option").all()]
    assert options[0] == "all images: 5 of 5 left" and "overlooked: 2 of 2 left" in options
    reviewer.page.locator("#filter").select_option("overlooked")
    assert (reviewer.rank, reviewer.count) == ("#1", "0 of 2 decided")
    reviewer.press("m", "m")
    assert reviewer.page.locator("#finish-title").inner_text() == "All images of this kind are decided"
    assert not reviewer.page.locator("#card").is_visible()


def test_a_verdict_for_the_rest_of_a_kind_and_its_undo(open_page: Open) -> None:
    reviewer = open_page()
    assert reviewer.page.locator("#rest").inner_text() == "Verdict for all 2 like this"
    reviewer.press("Shift+M")
    assert reviewer.count == "2 of 5 decided" and "2 images" in reviewer.state
    reviewer.press("u")
    assert reviewer.count == "0 of 5 decided" and reviewer.rank == "#1"
    reviewer.page.locator("#rest").click()
    reviewer.page.locator('[data-verdict="reject"]').click()
    assert reviewer.count == "2 of 5 decided"
    reviewer.press("r")
    assert reviewer.count == "3 of 5 decided"


def test_a_touched_image_is_open_and_everything_outlives_a_reload(
    open_page: Open, store: RunStore, tmp_path: Path
) -> None:
    reviewer = open_page()
    reviewer.press("m", "1", "ArrowRight")
    reviewer.page.locator("#reviewer").fill("ben")
    reviewer.page.locator("#reviewer").press("Tab")
    reviewer.page.reload()
    assert reviewer.count == "1 of 5 decided" and reviewer.rank == "#2"
    assert reviewer.kept() == [True, True]
    content = reviewer.saved(tmp_path)
    assert verdicts(content) == ["model", "open"]
    found = read_decisions(store, tmp_path / "piano run-decisions.json", reviewer="anna", round=0)
    store.add_decisions(found)
    assert {one.reviewer for one in found} == {"ben"}
    assert [one.verdict for one in store.decisions()] == ["model"], "half decided is not decided"
    reviewer.page.locator("#back").click()
    reviewer.press("u", "u")
    assert reviewer.rank == "#1" and reviewer.count == "0 of 5 decided"
    assert verdicts(reviewer.saved(tmp_path)) == ["open", "open"], (
        "a file took what was said, another takes it back"
    )


def test_a_new_page_continues_where_the_run_says(open_page: Open, store: RunStore) -> None:
    mask = made.box_mask(0, 0, 4, 4)
    objects = (Judged("attention", 0, True, method="attention-1"), Judged("human", 0, True, "person", mask))
    store.add_decisions([Decision(made.image_id(1), "open", None, "reviewer", judged=objects)])
    store.add_decisions([Decision(made.image_id(5), "reject", None, "anna")])
    reviewer = open_page()
    assert (reviewer.rank, reviewer.count) == ("#2", "1 of 5 decided")
    assert reviewer.kept() == [True, True, True]
    assert reviewer.page.locator("#known").inner_text() == "reviewer: half decided"
    assert reviewer.page.evaluate("countsOf(maskOf(objects[2].counts, cards[current].size))")[:3] == [
        0,
        4,
        20,
    ]


def test_masks_survive_the_script(open_page: Open) -> None:
    reviewer = open_page()
    random = np.random.default_rng(0)
    from diffugen.labels.shapes import encode

    for shape in ((24, 40), (7, 3), (1, 1), (300, 200)):
        mask = random.random(shape) < 0.3
        rle = encode(mask)
        counts = reviewer.page.evaluate(
            "([counts, size]) => countsOf(maskOf(counts, size))", [rle["counts"], [shape[1], shape[0]]]
        )
        assert np.array_equal(mask_of({"size": list(shape), "counts": counts}), mask)


def test_the_page_fits_a_desktop_and_shows_a_large_image(open_page: Open) -> None:
    reviewer = open_page()
    assert reviewer.page.evaluate("document.documentElement.scrollHeight") <= DESKTOP["height"]
    width = reviewer.place("model", 40, 0)[0] - reviewer.place("model", 0, 0)[0]
    assert width >= 480
    tops = (
        "[...document.querySelectorAll('#verdicts button, svg')].map((one) => one.getBoundingClientRect().y)"
    )
    before = reviewer.page.evaluate(tops)
    reviewer.press("ArrowRight", "1", "m", "ArrowRight")
    assert reviewer.page.evaluate(tops) == before, "the layout does not jump"


def test_the_page_asks_nobody(open_page: Open) -> None:
    reviewer = open_page()
    reviewer.press("m", "h", " ")
    assert [url.partition(":")[0] for url in reviewer.requests if not url.startswith("data:")] == ["file"]


def test_phone(open_page: Open, tmp_path: Path) -> None:
    reviewer = open_page(phone=True)
    page = reviewer.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for one in page.locator("#verdicts button").all():
        box = made.sure(one.bounding_box())
        assert box["height"] >= 44 and box["width"] >= 44 and box["y"] + box["height"] <= PHONE["height"]
    assert page.locator('figure[data-side="attention"]').is_visible()
    assert not page.locator('figure[data-side="model"]').is_visible()
    page.locator('#sides [data-side="model"]').tap()
    page.touchscreen.tap(*reviewer.place("model", 20.5, 10.5))
    assert reviewer.kept() == [True]
    swipe(reviewer, 300, 80)
    assert reviewer.rank == "#2"
    swipe(reviewer, 80, 300)
    assert reviewer.rank == "#1"
    page.locator('[data-verdict="reject"]').click()
    assert reviewer.count == "1 of 5 decided"
    assert verdicts(reviewer.saved(tmp_path)) == ["reject"]


def test_a_tap_right_after_a_swipe_is_heard_once(open_page: Open) -> None:
    reviewer = open_page(phone=True)
    bare = reviewer.page.locator("#bare")
    box = made.sure(bare.bounding_box())
    tap = [[(box["x"] + 5, box["y"] + 5)]]
    for number in range(6):
        touch(
            reviewer,
            [[(300, 400)], [(190, 400)], [(80, 400)]] if number % 2 == 0 else [[(80, 400)], [(300, 400)]],
        )
        touch(reviewer, tap)
        assert bare.get_attribute("aria-pressed") == ("true" if number % 2 == 0 else "false")
    reviewer.page.touchscreen.tap(*tap[0][0])
    assert bare.get_attribute("aria-pressed") == "true", "a tap after a pause is heard once, too"


def swipe(reviewer: Reviewer, start: int, end: int) -> None:
    touch(reviewer, [[(start, 400)], [((start + end) / 2, 402)], [(end, 404)], [(end, 404)], [(end, 404)]])


def touch(reviewer: Reviewer, moves: list[list[tuple[float, float]]]) -> None:
    session = reviewer.context.new_cdp_session(reviewer.page)
    for number, fingers in enumerate(moves):
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(fingers)]
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_two_fingers_zoom(open_page: Open) -> None:
    reviewer = open_page(phone=True)
    touch(reviewer, [[(180, 400), (220, 400)], [(140, 400), (260, 400)]])
    assert reviewer.page.evaluate("isZoomed()")
    assert reviewer.kept() == [False] and reviewer.rank == "#1"


def test_an_empty_queue_ends_at_once(open_page: Open, tmp_path: Path) -> None:
    with made.make_run(tmp_path / "empty", (4,)) as empty:
        reviewer = open_page(empty)
        folder = empty.folder
    assert reviewer.page.locator("#finish-title").inner_text() == "The queue is empty"
    assert f"diffugen teach --run {folder}" in reviewer.page.locator("#steps").inner_text()
    reviewer.press("a", "Enter", "1", "u")


BAD = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def test_hostile_names_are_text(open_page: Open, tmp_path: Path) -> None:
    config = {"prompts": {"classes": {BAD: ["piano"], "car": ["car"]}}}
    with made.make_run(tmp_path / "<b>bad", (), config=config) as store:
        record = ImageRecord(Prompt(BAD, ()), seed=1, size_wh=made.SIZE_WH, model="miniature")
        store.add_image(record, child.make_rgb(record), HeatMaps(record.id, made.SIZE_WH, (), {}), 1.0)
        attention = made.instances_of((BAD, made.box_mask(2, 3, 20, 20), 0.5))
        model = made.instances_of(("car", made.box_mask(25, 3, 35, 20), 0.5))
        made.put_labels(store, record, attention=attention, model=model)
        store.put_disagreements(0, compare(record.id, attention, model).disagreements)
        store.add_decisions([Decision(record.id, "open", None, BAD)])
        reviewer = open_page(store)
        reviewer.press("1", "+")
        reviewer.stroke("attention", (30, 5), (31, 5))
        assert reviewer.page.locator("#prompt").inner_text() == BAD
        assert BAD in reviewer.page.locator("#objects").inner_text()
        assert BAD in reviewer.page.locator("#known").inner_text()
        assert BAD in reviewer.page.locator("#class").inner_text()
        assert reviewer.page.locator("img, b b").count() == 0
        reviewer.press("Enter")
        reviewer.saved(tmp_path)
        (found,) = read_decisions(store, tmp_path / "_b_bad-decisions.json", reviewer="a", round=0)
    assert made.sure(found.instances).class_names == (BAD,)
