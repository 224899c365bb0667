"""The report of a whole run says what the ledger says, in two forms, and loads and runs nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

from diffugen.comparison.metrics import label_quality, reliability
from diffugen.report.blocks import as_rate
from diffugen.run.store import RunStore
from tests.report.samples import CONFIG, SECTIONS, PageReader, markdown_tables, row

Report = tuple[str, PageReader, str]


def test_page_is_whole_and_loads_nothing(report: Report) -> None:
    text, page, _ = report
    assert [attrs["id"] for attrs in page.of("section")] == SECTIONS
    assert not page.of("script") and not page.of("link") and not page.of("iframe")
    assert all(str(attrs["src"]).startswith("data:image/jpeg;base64,") for attrs in page.of("img"))
    assert {str(attrs["href"])[0] for attrs in page.of("a")} == {"#"}
    assert {str(attrs["href"])[1:] for attrs in page.of("a")} == set(SECTIONS)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text
    assert "{{" not in text and "{%" not in text and "{#" not in text


def test_policy_forbids_scripts_and_addresses(report: Report) -> None:
    _, page, _ = report
    [policy] = [
        attrs["content"] for attrs in page.of("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_and_chart_has_words(report: Report) -> None:
    _, page, _ = report
    assert page.of("img") and all(attrs["alt"] for attrs in page.of("img"))
    charts = [attrs for attrs in page.of("svg") if attrs.get("role") == "img"]
    assert len(charts) >= 6
    assert all(len(str(attrs["aria-label"])) > 40 for attrs in charts)
    labels = [str(attrs["aria-label"]) for attrs in charts]
    [ap] = [label for label in labels if label.startswith("Mask AP50 on")]
    assert "0.125 at initial" in ap and "0.438 at round 1" in ap and "exact labels: 0.875" in ap


def test_numbers_are_those_of_the_ledger(finished: Path, report: Report) -> None:
    _, page, _ = report
    with RunStore.open(finished, readonly=True) as store:
        for round in (0, 1):
            kept = store.results(round)
            assert kept.dataset and kept.promote and kept.evaluate
            shown = row(page.tables["Results of each round"], str(round))
            assert shown["new images"] == "8"
            assert shown["train images"] == str(kept.dataset.train)
            assert shown["val images"] == str(kept.dataset.val)
            assert shown["agreed"] == "17" and shown["left out until decided"] == "6"
            assert shown["truth: AP50"] == f"{kept.evaluate.mask.ap50:.3f}"
            assert shown["truth: AP50-95"] == f"{kept.evaluate.mask.ap50_95:.3f}"
            assert shown["truth: box AP50"] == f"{kept.evaluate.box.ap50:.3f}"
            assert (
                shown["decides: candidate"] == "0.710 / 0.410" and shown["decides: incumbent"] == "0.310 / -"
            )
            assert shown["promoted"] == ("yes" if kept.promote.promoted else "no")
    current = row(page.tables["Detectors on piano-on-road"], "current")
    assert current["mask AP50"] == "0.438"
    assert current["AP50, relative to exact"] == "50%" and current["AP50-95, relative to exact"] == "44%"
    kinds = row(page.tables["Disagreements by kind and round"], "0")
    assert (kinds["overlooked"], kinds["badly located"], kinds["all"]) == ("2", "1", "3")
    assert kinds["disagreements per 100 images"] == "37.5"
    verdicts = row(page.tables["Decisions by verdict (one for each image)"], "1")
    assert (verdicts["edited"], verdicts["rejected"], verdicts["all"]) == ("1", "1", "2")
    trained = row(page.tables["Images in each round's dataset, by origin of their labels"], "1")
    assert (trained["human"], trained["model"], trained["left out: disagreement"]) == ("3", "0", "6")
    assert trained["left out: noisy"] == "2"
    assert (
        "trained on the other images: 2 of 9 in round 0 (car 1 and piano 2) and 2 of 9 in round 1"
        in page.text
    )


def test_tuning_is_shown_with_what_it_changed(report: Report) -> None:
    _, page, _ = report
    tuning = row(page.tables["Tuning (adopted only if better on held-out images)"], "1")
    assert (tuning["worth of labels before"], tuning["worth of labels after"]) == ("0.512", "0.612")
    assert (tuning["error of scores before"], tuning["error of scores after"]) == ("0.125", "0.062")
    [weights] = [rows for title, rows in page.tables.items() if title.startswith("Score weights before")]
    contrast = row(weights, "contrast")
    assert (contrast["weight before"], contrast["weight after"]) == ("1.000", "3.000")
    assert (contrast["share before"], contrast["share after"]) == ("20%", "43%")
    [settings] = [rows for title, rows in page.tables.items() if title.startswith("Label settings changed")]
    assert settings[1:] == [["labels.threshold", "otsu", "0.375"]]


def test_quality_is_what_metrics_say(finished: Path, report: Report) -> None:
    _, page, _ = report
    with RunStore.open(finished, readonly=True) as store:
        latest = {
            source: {one.image_id: one.instances for one in store.latest_labels(source)}
            for source in ("attention", "model", "human")
        }
        decided = {one.image_id for one in store.decisions()}
    compared = page.tables["Attention labels compared with the evidence"]
    scores = page.tables["Score compared with IoU"]
    for evidence in ("human", "model"):
        ids = [one for one in latest[evidence] if evidence == "human" or one not in decided]
        pairs = [(latest[evidence][one], latest["attention"][one]) for one in ids]
        quality, trust = label_quality(pairs), reliability(pairs)
        [shown] = [one for one in compared if one[0] == f"{evidence} labels"]
        assert shown[2:4] == [str(len(ids)), "piano"]
        assert shown[-3:] == [
            f"{value:.3f}" for value in (quality.pixel_iou, quality.label_iou, quality.object_iou)
        ]
        [scored] = [one for one in scores if one[0] == f"{evidence} labels"]
        assert scored[2:4] == [str(trust.count), as_rate(trust.spearman)]
    assert len(decided) == 4 and "agreement, not accuracy" in page.text


def test_both_forms_have_the_same_tables(finished: Path, report: Report) -> None:
    _, page, text = report
    tables = markdown_tables(text)
    assert tables.keys() == page.tables.keys()
    for title, rows in page.tables.items():
        assert tables[title] == rows, title
    shown = re.findall(r"!\[.*\]\((.+)\)", text)
    assert shown and set(shown) == {path.name for path in (finished / "report").glob("*.png")}


def test_severities_are_held_against_what_turned_out(report: Report) -> None:
    _, page, text = report
    assert "Severity, and how often the label was wrong" in page.text
    assert "in ranges of severity: 3 of 10 and 4 of 4 were wrong" in page.text
    assert "in ranges of severity: 3 of 10 and 4 of 4 were wrong" in text


def test_headline_says_what_happened(report: Report) -> None:
    _, page, text = report
    for said in (page.text, text.replace("\\", "")):
        assert "mask AP50 rose from 0.125 to 0.438 (+0.312), 50% of the AP50 with exact labels." in said
        assert "A new detector was promoted in round 0 but not in round 1." in said
        assert "The loop ended after 2 rounds, as configured." in said
        assert "It did not use the truth set." in said
        assert "labels on which attention and the detector agree" in said
        assert "training/round-0/best" in said


def test_queue_leaves_out_what_is_decided(report: Report) -> None:
    _, page, _ = report
    queue = page.tables["Review these next: head of the queue, worst disagreement of each image"]
    assert [one[2] for one in queue[1:]] == ["overlooked", "overlooked", "spurious", "spurious"]
    assert [one[0] for one in queue[1:]] == ["3", "4", "5", "6"], "places in the whole queue"
    assert queue[1][4] == "model: piano 0.600" and queue[3][4] == "attention: piano 0.650"
    said = "The review queue has 6 images: 6 with a disagreement (6 disagreements in all) and 0 audits"
    assert said in page.text and "2 of them are decided, 4 wait for a decision." in page.text


def test_config_is_shown_whole(report: Report) -> None:
    _, page, text = report
    [shown] = re.findall(r"^```json\n(.*)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    assert json.loads(shown) == CONFIG
    versions = page.tables["Seeds, and versions installed where this report was written"]
    assert row(versions, "seed of the run")["value"] == json.dumps(CONFIG["seed"])
    about = page.tables["This run"]
    assert row(about, "configuration")["value"] == "pianos"
    assert row(about, "classes")["value"] == "piano"
