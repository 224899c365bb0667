"""Text of a user is printed as it is, whatever it means to the library that prints it."""

from __future__ import annotations

import pytest

from diffugen.cli.output import console, say, table
from diffugen.cli.progress import progress
from tests.support.command_line import run

HOSTILE = ("exp[/b]", "[red]car", ":car: 50%", "{task.fields[rate]} {", "a\\[b]", "%s %d", "$HOME `ls`")


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_cells_and_titles_show_text_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    shown = table("name", text)
    shown.add_row(text, "one")
    console().print(shown)
    with progress(text, "image") as on_progress:
        on_progress(1, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == text
    assert [text in line for line in lines[1:4]] == [True, True, True], lines


@pytest.mark.parametrize("text", HOSTILE)
def test_prompts_are_shown_as_they_are(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value = text.replace("'", "''")
    settings = ["prompts.templates=['a {weather} {piano}']", "prompts.classes={piano: [piano]}"]
    settings += [f"prompts.attributes={{weather: ['{value}']}}", "prompts.count=1", "labels.source=attention"]
    assert run(monkeypatch, "prompts", *(part for one in settings for part in ("--set", one))) == 0
    out = capsys.readouterr().out
    assert f"a {text} piano  [piano -> piano]" in out and f"{text} 1" in out
