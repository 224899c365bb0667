"""`diffugen configs`: both spellings of the group, and conversion of the paper's format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffugen.config.load import load_config
from tests.support.command_line import run

PAPER = {
    "dataset_name": "vans",
    "image_size": {"width": 96, "height": 64},
    "steps": 4,
    "dataset_classes": ["van"],
    "label_model": {"type": "YOLOSeg", "weights": "yolov8n-seg.pt"},
    "unsupervised": True,
    "images_per_shard": 10,
    "txt2img": {
        "stable_diffusion_model": "miniature",
        "object_names": ["van"],
        "view_points": ["left", "right"],
        "prompts": ["a {view_point} view of a {object_name} [red] on a road"],
    },
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("vans.json").write_text(json.dumps(PAPER), encoding="utf-8")


@pytest.mark.parametrize("group", ["config", "configs"])
def test_convert_writes_yaml_and_prints_the_notes(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, group, "convert", "vans.json") == 0
    said = capsys.readouterr().out
    assert "- images_per_shard = 10: not needed here, because " in said
    assert said.splitlines()[-1] == "converted to vans.yaml. Use it: diffugen generate vans.yaml"
    assert load_config("vans.yaml") == load_config("vans.json")
    assert "images_per_shard" in Path("vans.yaml").read_text(encoding="utf-8").split("\n\n")[0]


def test_the_converted_file_makes_the_same_prompts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "config", "convert", "vans.json", "my-vans.yaml") == 0
    capsys.readouterr()
    shown = []
    for name in ("vans.json", "my-vans.yaml"):
        assert run(monkeypatch, "prompts", name) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "a left view of a van" in shown[0] and "2 prompts" in shown[0]


def test_convert_never_overwrites(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("vans.yaml").write_text("mine")
    assert run(monkeypatch, "config", "convert", "vans.json") == 2
    errors = capsys.readouterr().err
    assert "vans.yaml exists already" in errors and "diffugen configs convert vans.json OTHER.yaml" in errors
    assert Path("vans.yaml").read_text() == "mine"


MISTAKES = {
    "no such file": (("van.json",), r"van\.json.*did you mean 'vans\.json'"),
    "a shipped configuration": (("cars",), r"cars is not in the paper's format"),
    "already in our format": (
        ("ours.json",),
        r"ours\.json is not in the paper's format.*diffugen generate ours\.json",
    ),
    "invalid JSON": (("broken.json",), r"broken\.json: invalid JSON in line 1"),
    "mistakes": (
        ("wrong.json",),
        r"2 mistakes.*\n.*wrong\.json: steps: expected a value.*\n.*wrong\.json: stepps = 3: unknown key",
    ),
    "no such folder": (("vans.json", "nowhere/vans.yaml"), r"cannot write nowhere/vans\.yaml"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input(
    arguments: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = {"name": "x", "prompts": {"classes": {"van": ["van"]}, "templates": ["a {van}"]}}
    Path("ours.json").write_text(json.dumps(ours))
    Path("broken.json").write_text("{")
    Path("wrong.json").write_text(json.dumps({**PAPER, "stepps": 3}).replace('"steps": 4,', ""))
    assert run(monkeypatch, "config", "convert", *arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and re.search(expected, errors), errors
    assert "Traceback" not in errors and not list(Path().rglob("*.yaml"))


def test_both_spellings_list_show_and_copy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for group in ("config", "configs"):
        for command in (("list",), ("show", "cars"), ("copy", "cars", f"{group}.yaml")):
            assert run(monkeypatch, group, *command) == 0
        said.append(capsys.readouterr().out.replace(f"{group}.yaml", "x.yaml"))
    assert said[0] == said[1]
    assert run(monkeypatch, "--help") == 0
    commands = re.findall(r"^  (config\w*) ", capsys.readouterr().out, re.MULTILINE)
    assert commands == ["configs"], "the help shows only one spelling"
