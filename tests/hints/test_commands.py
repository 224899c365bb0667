"""Commands that DiffuGen prints can be pasted into a shell, whatever is in their paths."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import diffugen
from diffugen.errors import shell_command
from tests.support.command_line import run

ODD = ("two words", "it's", "#1", "a;b", "$HOME", "[b]", "*", "-x y", "ü", "`ls`", "a\\b", '"')
UNQUOTED = re.compile(r"diffugen( [a-z-]+)+( --[a-z-]+)? $")


@pytest.mark.parametrize("word", ODD)
def test_every_word_arrives_as_it_was(word: str) -> None:
    assert shlex.split(shell_command("export", Path(word), "--out", word)) == [
        "diffugen",
        "export",
        word,
        "--out",
        word,
    ]


@pytest.mark.parametrize("name", ["two words.yaml", "it's.yaml", "#1.yaml", "[b].yaml"])
def test_a_printed_command_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / name
    assert run(monkeypatch, "configs", "copy", "miniature", str(target)) == 0
    printed = capsys.readouterr().out.strip()
    assert shlex.split(printed.partition("Use it: ")[2]) == ["diffugen", "generate", str(target)]
    assert run(monkeypatch, "configs", "copy", "miniature", str(target)) == 2
    assert "diffugen configs copy miniature OTHER.yaml" in capsys.readouterr().err


def test_no_message_puts_a_value_into_a_command_unquoted() -> None:
    """Values get into printed commands through `shell_command` alone."""
    found = []
    for path in sorted(Path(diffugen.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            before = ""
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    if UNQUOTED.search(before):
                        found.append(f"{path.name}:{node.lineno}")
                    before = ""
                elif isinstance(part, ast.Constant):
                    before = str(part.value)
    assert not found, found
