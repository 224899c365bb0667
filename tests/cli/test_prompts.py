"""`diffugen prompts`: the list, the counts, the JSON document; no model is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffugen.cli import main
from tests.support.children import WAIT_SECONDS

TASKS = (
    "tasks=[{task: txt2img, count: 12}, "
    "{task: txt2img, name: near, templates: ['a {piano} near {thing}'], "
    "attributes: {thing: [a car, a wall]}}, "
    "{task: img2img, source: txt2img, attributes: {weather: {snowy: 3, foggy: 1}}}, "
    "{task: inpaint, name: sky, source: near, templates: ['a {piano} [far] off'], "
    "region: {part: upper half}}]"
)


def prompts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command in this process and return what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["diffugen", "prompts", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return capsys.readouterr().out


def document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    return dict(json.loads(prompts(monkeypatch, capsys, "--json", *arguments)))


def test_lists_some_prompts_and_says_how_to_see_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = prompts(monkeypatch, capsys)
    assert shown.count("  [") == 20 and shown.count("-> piano") == 14
    assert "... and 60 more; --limit 0 or --json shows all" in shown
    assert "80 prompts" in shown
    few = prompts(monkeypatch, capsys, "--limit", "3")
    assert few.count("  [") == 3 and "and 77 more" in few
    every = prompts(monkeypatch, capsys, "--limit", "0")
    assert every.count("  [") == 80 and every.count("-> piano") == 40 and "more;" not in every


def test_counts_values_with_their_weights_and_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = "prompts.attributes.time={night: 1, day: 3, sunset: 0}"
    shown = prompts(monkeypatch, capsys, "--set", weights, "--set", "prompts.count=100")
    day, night = (int(found) for found in re.findall(r"(?:day|night) (\d+) \(weight", shown)[::-1])
    assert abs(day - 3 * night) <= 3, "the values keep the order of the configuration: night first"
    assert re.search(r"time +night \d+ \(weight 1\), day \d+ \(weight 3\), sunset 0 \(weight 0\)", shown)
    assert re.search(r"time x weather +10 of 10 +\d+ +\d+", shown)


def test_the_json_document_contains_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = document(
        monkeypatch, capsys, "--set", "prompts.negative=blurry", "--set", "prompts.classes.piano=[Flügel]"
    )
    assert made["count"] == len(made["prompts"]) == 80
    first = next(one for one in made["prompts"] if "{piano}" in one["template"])
    assert set(first) == {"task", "id", "text", "negative", "phrases", "attributes", "template"}
    assert first["negative"] == "blurry" and "Flügel" in first["text"]
    assert first["phrases"][0] == {"text": "Flügel", "class_name": "piano"}
    assert first["template"].format(**first["attributes"]) == first["text"]
    assert sum(made["coverage"]["weather"].values()) + sum(made["coverage"]["fall"].values()) == 80
    [pair] = [one for one in made["pair_coverage"] if one["attributes"] == ["time", "weather"]]
    assert pair == {"attributes": ["time", "weather"], "possible": 15, "used": 15, "least": 5, "most": 6}
    assert [(task["name"], task["prompts"]) for task in made["tasks"]] == [("txt2img", 80)]


def test_tasks_have_their_own_prompts_or_those_of_their_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = prompts(monkeypatch, capsys, "--set", TASKS, "--limit", "2")
    assert "12 prompts" in shown and "piano near a " in shown
    assert "img2img from the images of txt2img: the prompts depend on them" in shown
    assert "template: each image's own" in shown
    assert "weather changes to another of: snowy (weight 3), foggy (weight 1)" in shown
    assert "inpaint from the images of near" in shown
    assert "template: a {piano} [far] off" in shown
    made = document(monkeypatch, capsys, "--set", TASKS)
    assert [task["prompts"] for task in made["tasks"]] == [12, 80, None, None]
    assert {prompt["task"] for prompt in made["prompts"]} == {"txt2img", "near"}
    assert made["tasks"][2]["attributes"] == {"weather": {"snowy": 3.0, "foggy": 1.0}}
    assert made["tasks"][3]["source"] == "near" and made["tasks"][3]["templates"] == ["a {piano} [far] off"]


def test_a_configuration_with_only_photos_has_no_prompts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "tasks=[{task: inpaint, source: photos, templates: ['a {piano}'], region: {part: lower half}}]"
    assert "inpaint from the images of photos" in prompts(monkeypatch, capsys, "--set", task)
    made = document(monkeypatch, capsys, "--set", task)
    assert made["count"] == 0 and made["prompts"] == [] and made["pair_coverage"] == []


def test_loads_no_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "diffugen.cli", "prompts", "--json", "--set", TASKS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in loaded
    assert not loaded & {
        "torch",
        "diffusers",
        "transformers",
        "ultralytics",
        "fiftyone",
        "optuna",
        "cv2",
        "scipy",
    }
    assert json.loads(done.stdout)["count"] == 92
