"""Commands that DiffuGen prints can be pasted into a shell, whatever is in their paths."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import diffugen
from diffugen.cli.app import app
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


def leaves(command: Any, name: str = "diffugen") -> Iterator[tuple[str, Any]]:
    """Yield every command below a group, with all its words."""
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            if not inner.hidden:
                yield from leaves(inner, f"{name} {part}")
    else:
        yield name, command


def parsed(line: str) -> None:
    """Parse a command line without running it: every option must exist and take the value."""
    words, redirection = shlex.split(line.partition(" > ")[0]), line.partition(" > ")[2]
    assert words[0] == "diffugen" and " " not in redirection
    parse(get_command(app), words[1:])


def parse(command: Any, words: list[str]) -> None:
    if hasattr(command, "commands"):
        parse(command.commands[words[0]], words[1:])
    else:
        with suppress(typer.Exit):  # --help
            command.make_context("", list(words))


def test_every_example_of_every_help_is_a_command_line_that_parses() -> None:
    shown = 0
    for name, command in leaves(get_command(app)):
        for line in (command.epilog or "").splitlines():
            if line.strip().startswith("diffugen "):
                assert line.strip().startswith(name), f"{name} shows {line.strip()!r}"
                parsed(line.strip())
                shown += 1
    assert shown >= 30
    with pytest.raises(Exception, match="No such option"):
        parsed("diffugen bootstrap --round 3")


DOCUMENTED = re.compile(r"(?:^|`)(?:\.venv/bin/)?(diffugen [^#\n`]+)", re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/generation.md", "docs/miniature.md"])
def test_every_documented_command_line_parses(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    lines = DOCUMENTED.findall(text.replace("\\\n", ""))
    assert len(lines) >= 3
    for line in lines:
        parsed(line)
