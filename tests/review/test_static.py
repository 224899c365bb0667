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

import numpy as np
import pytest
from PIL import Image

from diffugen.comparison.disagreement import compare
from diffugen.errors import DiffugenError
from diffugen.records import Decision, HeatMaps, ImageRecord, Prompt
from diffugen.review import static
from diffugen.review.cards import pictures
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
    assert swapped["kinds"] == ["swapped"] and swapped["rivals"] == [[0, 0]] and swapped["agreed"] == []
    assert cards[1]["agreed"] == [[1, 0]] and cards[1]["size"] == [40, 24]
    assert swapped["prompt"] == "a grand piano on a wet road, 2"
    assert swapped["points"] == [
        {"kind": "swapped", "text": "attention piano 0.40, model car 0.40: same place, different classes"}
    ]
    assert swapped["attention"]["method"] == "attention-1"
    assert picture(swapped["image"]).shape == (24, 40, 3)
    assert swapped["attention"]["labels"][0]["counts"] == made.LABELS[2][0].rles[0]["counts"]


def test_pictures_are_small_whatever_they_show(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run", ()) as store:
        record = child.make_record(1, size_wh=(900, 1200))
        store.add_image(record, child.make_rgb(record), child.make_heat_maps(record), 1.0)
        found = pictures(store, record.id)
    assert len(made.sure(found["image"])) + len(made.sure(found["heat"])) < 64_000
    height, width, _ = picture(made.sure(found["image"])).shape
    assert abs(width / height - 0.75) < 0.01 and height >= 240


def test_page_needs_nothing_from_outside(store: RunStore, tmp_path: Path) -> None:
    path = write_static(store, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert Page(path).addresses == []
    assert re.findall(r"https?:[^\"]*", text) == ["http://www.w3.org/2000/svg"]  # a name, never loaded
    assert not re.search(r"@import|url\(", text)
    assert "unsafe" not in text and not re.search(r"<[^>]* (on\w+|style)=", text)
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
    assert command == f"diffugen review '{store.folder}' --decisions 'piano run-decisions.json'"


def test_the_page_of_an_old_run_is_written(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    with RunStore.open(folder, readonly=True) as store:
        page = Page(write_static(store, tmp_path / "page"))
        found = {one.image_id for one in store.disagreements()}
    assert {card["id"] for card in page.content["cards"]} == found and len(found) == 2
    for card in page.content["cards"]:
        assert card["points"][0]["kind"] == "overlooked" and card["points"][0]["text"].startswith("model car")
        assert card["attention"]["method"] == "attention-30b9755d0c8c53e7"
        assert card["model"]["labels"] and picture(card["image"]).size


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
    assert ">Starting detector<" in text and ">Attention<" not in text


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
    assert (cards[-1]["decided"]["verdict"], cards[-1]["decided"]["reviewer"]) == ("reject", "anna")


def test_page_of_an_empty_queue(tmp_path: Path) -> None:
    with made.make_run(tmp_path / "run", (4,)) as store:
        assert Page(write_static(store, tmp_path)).content["cards"] == []


def test_a_side_without_labels_is_said(store: RunStore, tmp_path: Path) -> None:
    page = Page(write_static(store, tmp_path))
    assert page.content["cards"][0]["attention"]["labels"] == []
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
