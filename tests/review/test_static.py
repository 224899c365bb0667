"""The page holds the queue, needs no network, and its decisions come back; a bad file changes nothing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffugen.comparison.disagreement import compare
from diffugen.errors import DiffugenError
from diffugen.records import Decision, HeatMaps, ImageRecord, LabelSet, Prompt
from diffugen.review import static
from diffugen.review.decisions import read_decisions
from diffugen.review.queue import read_queue
from diffugen.review.static import write_static
from diffugen.run.store import RunStore
from tests.support import run_for_review as made, store_child as child
from tests.support.children import WAIT_SECONDS

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-schema-3"


class Page(HTMLParser):
    """Tags in order, the text of the data script, and addresses that would be loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._in_data = False
        self.feed(path.read_text(encoding="utf-8"))
        self.content = json.loads(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        self._in_data = values.get("id") == "content"

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        self.text += data if self._in_data else ""


def picture(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_page_has_a_card_an_image_in_the_order_of_the_queue(store: RunStore, tmp_path: Path) -> None:
    page = Page(write_static(store, tmp_path / "new" / "folder"))
    cards = page.content["cards"]
    assert page.content["run"] == "piano run"
    assert [card["id"] for card in cards] == list(read_queue(store).disagreements)
    assert [card["rank"] for card in cards] == [1, 2, 3, 4, 5]
    swapped = cards[2]
    assert swapped["prompt"] == "a grand piano on a wet road, 2"
    assert swapped["points"] == [
        {"kind": "swapped", "text": "attention piano 0.40, model car 0.40: same place, different classes"}
    ]
    assert swapped["attention"]["method"] == "attention-1"
    # Non-square, at the height of the page; the labels are drawn on a copy.
    plain, drawn = picture(swapped["image"]), picture(swapped["attention"]["picture"])
    assert plain.shape == drawn.shape == (240, 400, 3)
    assert (plain != drawn).mean() > 0.1


def test_page_needs_nothing_from_outside(store: RunStore, tmp_path: Path) -> None:
    path = write_static(store, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert Page(path).addresses == []
    assert not re.search(r"https?:|@import|url\((?!data)", text)
    assert "{{" not in text
    assert "prefers-color-scheme: dark" in text


def test_page_escapes_what_a_prompt_says(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run", ()) as store:
        bad = Prompt("</script><script>alert(1)</script>", ())
        record = ImageRecord(bad, seed=1, size_wh=made.SIZE_WH, model="miniature")
        store.add_image(record, child.make_rgb(record), HeatMaps(record.id, made.SIZE_WH, (), {}), 1.0)
        attention, model = made.LABELS[1]
        made.put_labels(store, record, attention=attention, model=model)
        store.put_disagreements(0, compare(record.id, attention, model).disagreements)
        page = Page(write_static(store, tmp_path))
    assert page.tags.count("script") == 2
    assert page.content["cards"][0]["prompt"] == bad.text


def test_page_escapes_the_name_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<b>&amp;"
    with made.make_run(folder) as store:
        path = write_static(store, tmp_path)
    page = Page(path)
    assert page.tags.count("script") == 2 and "b" not in page.tags
    assert page.content["run"] == folder.name
    assert path.read_text(encoding="utf-8").count("&lt;script&gt;alert(1)&lt;b&gt;&amp;amp;") == 2


def test_page_says_how_to_import_its_decisions(store: RunStore, tmp_path: Path) -> None:
    command = Page(write_static(store, tmp_path)).content["command"]
    assert command == f"diffugen review --run '{store.folder}' --decisions decisions.json"


def test_the_page_of_an_old_run_is_written(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    with RunStore.open(folder, readonly=True) as store:
        page = Page(write_static(store, tmp_path / "page"))
        found = {one.image_id for one in store.disagreements()}
    assert {card["id"] for card in page.content["cards"]} == found and len(found) == 2
    for card in page.content["cards"]:
        assert card["points"][0]["kind"] == "overlooked" and card["points"][0]["text"].startswith("model car")
        assert card["attention"]["method"] == "attention-30b9755d0c8c53e7"
        assert picture(card["model"]["picture"]).shape == picture(card["image"]).shape


def test_an_audit_says_what_it_is(tmp_path: Path) -> None:
    config = {**made.CONFIG, "review": {"audits": 0.1}}
    with made.make_run(tmp_path / "run", config=config) as store:
        cards = Page(write_static(store, tmp_path)).content["cards"]
    audit = next(card for card in cards if card["id"] == made.image_id(4))
    assert len(cards) == 6 and audit["severity"] is None
    assert audit["points"] == [{"kind": "audit", "text": "attention and model agree; are both right?"}]


def test_a_detectors_labels_are_not_called_attention(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run") as store:
        labels = next(store.labels("attention", image_id=made.image_id(1)))
        store.put_labels([replace(labels, method="detector-1")])
        path = write_static(store, tmp_path)
    assert Page(path).content["names"]["attention"] == "starting detector"
    text = path.read_text(encoding="utf-8")
    assert "starting detector labels are right" in text and "Attention is right" not in text


def test_decided_images_come_last_and_the_limit_holds(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_decisions([Decision(made.image_id(5), "reject", None, "anna")])
    assert [card["rank"] for card in Page(write_static(store, tmp_path)).content["cards"]] == [2, 3, 4, 5, 1]
    monkeypatch.setattr(static, "MOST_IMAGES", 2)
    page = Page(write_static(store, tmp_path))
    assert [card["rank"] for card in page.content["cards"]] == [2, 3]
    assert page.content["queue"] == 5
    monkeypatch.setattr(static, "MOST_IMAGES", 5)
    cards = Page(write_static(store, tmp_path)).content["cards"]
    assert cards[-1]["decided"] == {"verdict": "reject", "reviewer": "anna"}


def test_page_of_an_empty_queue(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run", (4,)) as store:
        assert Page(write_static(store, tmp_path)).content["cards"] == []


def test_a_side_without_labels_is_said(store: RunStore, tmp_path: Path) -> None:
    page = Page(write_static(store, tmp_path))
    assert page.content["cards"][0]["attention"]["labels"] == 0
    with RunStore.open(store.folder, readonly=True) as reader:
        assert Page(write_static(reader, tmp_path)).content == page.content


def test_page_cannot_be_written(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffugenError, match=r"cannot write the review page .*review\.html"):
        write_static(store, tmp_path / "file")


def test_page_does_not_load_fiftyone(store: RunStore, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffugen.run.store import RunStore\n"
        "from diffugen.review.static import write_static\n"
        "from diffugen.review.decisions import read_decisions\n"
        "write_static(RunStore.open(sys.argv[1], readonly=True), Path(sys.argv[2]))\n"
        "print(*(name for name in ('fiftyone', 'pymongo', 'psutil') if name in sys.modules))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(store.folder), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS)
    assert done.stdout.strip() == ""


# -------------------------------------------------------------------- decisions


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def saved_by_page(page: Page, verdicts: dict[int, str], reviewer: str = "") -> dict[str, Any]:
    """What the page's script saves for verdicts by rank."""
    decisions = []
    for card in page.content["cards"]:
        verdict = verdicts.get(card["rank"])
        if verdict:
            method = {"method": card[verdict]["method"]} if card.get(verdict) else {}
            decisions.append(
                {
                    "image_id": card["id"],
                    "verdict": verdict,
                    **method,
                    **({"reviewer": reviewer} if reviewer else {}),
                }
            )
    return {"run": page.content["run"], "decisions": decisions}


def test_decisions_of_the_page_come_back(store: RunStore, tmp_path: Path) -> None:
    page = Page(write_static(store, tmp_path))
    file = write(
        tmp_path / "decisions.json",
        saved_by_page(page, {1: "model", 2: "attention", 3: "empty", 4: "reject"}, "ben"),
    )
    found = read_decisions(store, file, reviewer="anna", round=2)
    ids = [made.image_id(number) for number in (5, 1, 2, 3)]
    assert [(one.image_id, one.verdict) for one in found] == list(
        zip(ids, ["model", "attention", "empty", "reject"], strict=True)
    )
    assert {(one.reviewer, one.round) for one in found} == {("ben", 2)}
    assert made.sure(found[0].instances).rles == made.LABELS[5][1].rles
    assert made.sure(found[1].instances).terms == made.LABELS[1][0].terms
    assert len(made.sure(found[2].instances)) == 0
    store.add_decisions(found)
    assert read_decisions(store, file, reviewer="anna", round=3) == []
    assert [labels.image_id for labels in store.labels("human")] == ids[:3]


def test_a_decision_means_the_labels_that_were_on_the_page(store: RunStore, tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", saved_by_page(Page(write_static(store, tmp_path)), {1: "model"}))
    newer = made.instances_of(("car", made.box_mask(1, 2, 3, 4), 0.5))
    store.put_labels([LabelSet(made.image_id(5), "model", newer, "model-2")])
    (found,) = read_decisions(store, file, reviewer="anna", round=0)
    assert made.sure(found.instances).class_names == ("person",)
    by_hand = {"run": "piano run", "decisions": [{"image_id": made.image_id(5), "verdict": "model"}]}
    (found,) = read_decisions(store, write(file, by_hand), reviewer="anna", round=0)
    assert (made.sure(found.instances).class_names, found.reviewer) == (("car",), "anna")


def decisions(*items: Any, **changes: Any) -> dict[str, Any]:
    return {"run": "piano run", "decisions": list(items), **changes}


GOOD = {"image_id": "IMAGE-1", "verdict": "empty"}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("{", ["invalid JSON in line 1"]),
        ("", ["invalid JSON in line 1"]),
        ([], ["expected {"]),
        ({"run": "piano run"}, ["expected {"]),
        (decisions(run="other"), ["it belongs to run 'other'; this run is 'piano run'"]),
        ({"decisions": []}, ["does not name its run"]),
        (decisions(extra=1), ["unknown key 'extra'"]),
        (decisions(3), ["decision 1: expected an object with image_id and verdict, not 3"]),
        (decisions({"image_id": "nothing", "verdict": "empty"}), ["the run has no image 'nothing'"]),
        (decisions({"image_id": "IMAGE-1"}), ["verdict is None"]),
        (decisions({"image_id": 7, "verdict": "empty"}), ["image_id is 7"]),
        (decisions({"image_id": "IMAGE-1", "verdict": "atention"}), ["did you mean 'attention'"]),
        (decisions({"image_id": "IMAGE-1", "verdict": "edited"}), ["'edited' needs objects"]),
        (decisions({**GOOD, "reviewer": ""}), ["reviewer is ''"]),
        (decisions({**GOOD, "note": "x"}), ["unknown key 'note'"]),
        (decisions({"image_id": "IMAGE-BARE", "verdict": "model"}), ["has no model labels to accept"]),
        (
            decisions({**GOOD, "verdict": "model", "method": "gone"}),
            ["no longer has the model labels 'gone'", "write the page again"],
        ),
        (decisions(GOOD, GOOD), ["is decided 2 times"]),
        (
            decisions(
                GOOD, {"image_id": "nothing", "verdict": "empty"}, {**GOOD, "verdict": "x"}, run="other"
            ),
            [
                "3 mistakes",
                "to run 'other'",
                "decision 2: the run has no image",
                "decision 3: unknown verdict 'x'",
            ],
        ),
    ],
)
def test_every_mistake_is_named_and_nothing_is_imported(
    store: RunStore, tmp_path: Path, content: Any, messages: list[str]
) -> None:
    bare = child.make_record(77, round=0)
    store.add_image(bare, child.make_rgb(bare), child.make_heat_maps(bare), 1.0)
    text = content if isinstance(content, str) else json.dumps(content)
    file = write(
        tmp_path / "d.json", text.replace("IMAGE-1", made.image_id(1)).replace("IMAGE-BARE", bare.id)
    )
    with pytest.raises(DiffugenError) as caught:
        read_decisions(store, file, reviewer="anna", round=0)
    for message in [*messages, "nothing was imported", str(file)]:
        assert message in str(caught.value)
    assert list(store.decisions()) == []


def test_a_missing_file_is_named(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match=r"cannot read the decisions file .*none\.json: No such file"):
        read_decisions(store, tmp_path / "none.json", reviewer="anna", round=0)
