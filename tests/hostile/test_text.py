"""YAML, JSON and TOML of others: an attack ends soon, in values or in one line that says what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from diffugen.config.files import read_settings
from diffugen.config.foreign import as_path, parse_json, parse_toml, parse_yaml, read_text
from diffugen.config.load import load_config
from diffugen.config.yaml_text import dump_yaml
from diffugen.errors import MOST_LINES, ConfigError, DiffugenError
from tests.support.command_line import run
from tests.support.hostile import FUZZ, damaged, no_hang

NEEDS_TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)

ATTACKS = [
    (parse_yaml, BOMB, "aliases repeat"),
    (parse_yaml, BOMB.replace("[*", "{<<: [*").replace("]\n", "]}\n"), "in line"),
    (parse_yaml, "&a [*a]", "contains itself"),
    (parse_yaml, "a: &a {b: *a}", "contains itself"),
    (parse_yaml, "".join(f"a{n}: &a{n} [*a{n - 1}]\n" if n else "a0: &a0 [x]\n" for n in range(99)), "deep"),
    (parse_yaml, "[" * 100_000, "deep"),
    (parse_yaml, "- " * 100_000, "deep"),
    (parse_yaml, "? " * 100_000, "deep"),
    (parse_yaml, "{a: " * 100_000, "deep"),
    (parse_yaml, "!!timestamp x", "not supported"),
    (parse_yaml, "!!python/object/apply:os.system [ls]", "not supported"),
    (parse_yaml, "!!set {a, b}", "not supported"),
    (parse_yaml, "!!int x", "'x' is not a value of int"),
    (parse_yaml, "!!bool x", "'x' is not a value of bool"),
    (parse_yaml, "9" * 5000, "is not a value of int"),
    (parse_yaml, "9" * 200, "digits"),
    (parse_yaml, r'"\ud800"', ""),
    (parse_yaml, r'"\UFFFFFFFF"', ""),
    (parse_yaml, "a\udcff", ""),
    (parse_yaml, "a\0b", ""),
    (parse_yaml, "{[a]: b}", "unhashable"),
    (parse_yaml, "a: b\n---\nc: d", "document"),
    (parse_json, "[" * 100_000, "deep"),
    (parse_json, '{"a":' * 100_000, "deep"),
    (parse_json, json.dumps([[]]).replace("[]", "[" * 60 + "]" * 60), "deep"),
    (parse_json, "9" * 5000, "invalid JSON"),
    (parse_json, "9" * 200, "digits"),
    (parse_json, r'["\ud800"]', "half of a character"),
    (parse_json, r'{"\udfff": 1}', "half of a character"),
    (parse_json, "", "invalid JSON in line 1"),
    pytest.param(parse_toml, "a = " + "[" * 100_000, "deep", marks=NEEDS_TOML),
    pytest.param(parse_toml, "a = " + "{a = " * 100_000, "deep", marks=NEEDS_TOML),
    pytest.param(parse_toml, ".".join(["a"] * 500_000) + " = 1", "deep", marks=NEEDS_TOML),
    pytest.param(parse_toml, ".".join(['"a"'] * 500_000) + " = 1", "deep", marks=NEEDS_TOML),
    pytest.param(parse_toml, "a" * 1_000_000, "invalid TOML", marks=NEEDS_TOML),
    pytest.param(parse_toml, "a = 0x" + "f" * 1000, "digits", marks=NEEDS_TOML),
]


@pytest.mark.parametrize(("parse", "text", "cause"), ATTACKS, ids=lambda value: str(value)[:20])
def test_an_attack_is_refused_in_one_line(parse: Any, text: str, cause: str) -> None:
    with no_hang(), pytest.raises(ValueError, match=r"^.+$") as caught:
        parse(text)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_long_list_counts_as_a_repeated_alias_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugen.config.yaml_text.MOST_VALUES", 100)
    assert len(parse_yaml("- a\n" * 99)) == 99
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_yaml("- a\n" * 100)


def test_what_is_within_the_limits_is_read() -> None:
    assert parse_yaml("a: &a [1, no]\nb: *a\nc: {<<: {d: ~}}") == {
        "a": [1, "no"],
        "b": [1, "no"],
        "c": {"d": None},
    }
    assert parse_yaml("[" * 50 + "]" * 50) == parse_json("[" * 50 + "]" * 50)
    assert parse_json(r'["\ud83d\ude00", 1e400]') == ["😀", float("inf")]
    assert parse_yaml("[no, on, 1:30, 0x1F, ~, 1, true, '']", texts_only=True) == [
        "no", "on", "1:30", "0x1F", "~", "1", "true", "",
    ]  # fmt: skip


@FUZZ
@given(
    st.recursive(
        st.text() | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_yaml_that_is_written_is_read_back(value: Any) -> None:
    written = {"key": value}
    assert parse_yaml(dump_yaml(written)) == written


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_bytes(b"x" * 101), "larger than"),
        (lambda path: path.write_bytes(b"a\nb\xff"), "line 2"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to(path), "Too many levels"),
    ],
)
def test_an_odd_file_is_refused(tmp_path: Path, make: Any, cause: str) -> None:
    make(tmp_path / "f.yaml")
    with no_hang(), pytest.raises((OSError, ValueError), match=cause):
        read_text(tmp_path / "f.yaml", 100)


@pytest.mark.parametrize(
    "text", ["x" * 256, "a/" + "ü" * 128 + "/b", "a/" * 3000, "a\0b", "\ud800", 3, ["a"], None]
)
def test_a_path_that_no_file_can_have_is_refused(text: Any) -> None:
    with pytest.raises(DiffugenError, match="here: "):
        as_path(text, "here")


def test_a_path_that_is_not_utf_8_is_a_path() -> None:
    assert as_path("a\udcff/" + "x" * 255, "here") == Path("a\udcff") / ("x" * 255)


CONFIG = b"""name: test
prompts:
  attributes: {colour: [red, blue], size: {big: 1, small: 2}}
  classes: {car: [car, lorry]}
  templates: ["a {colour} {size} car", "a {car}"]
diffusion: {size_wh: [96, 64], num_inference_steps: 5}
tasks: [{task: txt2img, count: 3}]
"""


@FUZZ
@given(damaged(CONFIG), st.sampled_from([".yaml", ".json", ".toml"]))
def test_a_damaged_configuration_is_read_or_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    file = tmp_path / f"f{suffix}"
    file.write_bytes(data)
    with no_hang():
        try:
            load_config(file)
        except DiffugenError as error:
            assert str(file) in str(error)


@FUZZ
@given(
    damaged(b'{"name": "test", "prompts": {"classes": {"car": ["car"]}, "templates": ["a car"]}, "seed": 1}')
)
def test_a_damaged_json_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(data)
    with no_hang():
        try:
            load_config(file)
        except DiffugenError as error:
            assert str(file) in str(error)


@FUZZ
@given(damaged(b"prompts.count=[1, {a: b}]").map(lambda data: data.decode(errors="surrogateescape")))
def test_a_damaged_override_is_read_or_refused(text: str) -> None:
    with no_hang():
        try:
            load_config("miniature", [text])
        except DiffugenError as error:
            str(error).encode()


@pytest.mark.parametrize(
    "text",
    ["a." * 3000 + "b=1", "a\udcff=1", "name=a\\0", "name=" + "x" * 300, 'name="a\\n"', "seed=" + "9" * 9999],
)
def test_an_override_that_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config("miniature", [text])


def test_of_very_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps({f"key{number}": number for number in range(30_000)}))
    with no_hang(), pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(caught.value.mistakes) <= MOST_LINES + 1
    assert "key0" in str(caught.value)
    twice: list[str] = []
    file.write_text("{" + '"a": 1, "b": 2, ' * 30_000 + '"c": 3}')
    with no_hang():
        assert read_settings(file, twice) == {"a": 1, "b": 2, "c": 3}
    assert len(twice) == 2


@pytest.mark.parametrize("words", [("prompts",), ("bootstrap",), ("configs", "convert")])
def test_a_command_ends_with_exit_code_2(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "bomb.yaml": BOMB,
        "deep.json": "[" * 99_999,
        "half.json": r'{"name": "\ud800"}',
    }.items():
        Path(name).write_text(text)
        with no_hang():
            assert run(monkeypatch, *words, name) == 2
        assert capsys.readouterr().err.startswith("error: ")
    for name in ("x" * 300 + ".yaml", "x" * 300, "\udcff.yaml"):
        assert run(monkeypatch, *words, name) == 2
    assert run(monkeypatch, "status", "x" * 300) == 2
