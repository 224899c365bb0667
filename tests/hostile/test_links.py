"""Links where DiffuGen writes: they are replaced or refused, and what they lead to stays as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffugen.errors import DiffugenError
from diffugen.labels.pictures import contact_sheet
from diffugen.run.files import LOCK_NAME, PID_NAME, holder_of, write_file
from diffugen.run.store import RunStore
from tests.support.command_line import run
from tests.support.hostile import no_hang


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    file = tmp_path / "treasure"
    file.write_text("gold")
    return file


def contact(path: Path) -> None:
    contact_sheet([], path)


def open_run(path: Path) -> None:
    RunStore.create_or_open(path.parent, config={"seed": 1}).close()


WRITERS: list[tuple[str, Callable[[Path], object]]] = [
    ("file", lambda path: write_file(path, b"x")),
    ("contact-sheet.png", contact),
    (PID_NAME, open_run),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_a_link_is_not_written_through(
    tmp_path: Path, treasure: Path, name: str, write: Callable[[Path], object]
) -> None:
    place = tmp_path / "folder" / name
    place.parent.mkdir()
    place.symlink_to(treasure)
    write(place)
    assert treasure.read_text() == "gold"
    assert not place.is_symlink()
    assert [path.name for path in place.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_link_to_nothing_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    write_file(tmp_path / "link", b"x")
    assert not (tmp_path / "absent").exists()
    assert (tmp_path / "link").read_bytes() == b"x"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, treasure: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_NAME).symlink_to(treasure)
    with pytest.raises(DiffugenError, match=r"is a link to .*treasure"):
        RunStore.create_or_open(tmp_path / "run", config=None)
    assert treasure.read_text() == "gold"


def test_links_in_a_run_are_not_written_through(
    tmp_path: Path, treasure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    RunStore.create_or_open(folder, config=None).close()
    (folder / "report").mkdir()
    for name in ("index.html", "report.md"):
        (folder / "report" / name).symlink_to(treasure)
    assert run(monkeypatch, "report", "--run", str(folder)) == 0
    (folder / "review").mkdir()
    (folder / "review" / "review.html").symlink_to(treasure)
    assert run(monkeypatch, "review", "--run", str(folder), "--static") == 0
    assert treasure.read_text() == "gold"
    assert (folder / "review" / "review.html").read_text().startswith("<")


def test_a_new_file_is_not_written_through_a_link(
    tmp_path: Path, treasure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").symlink_to(treasure)
    assert run(monkeypatch, "configs", "copy", "miniature", str(tmp_path / "mine.yaml")) == 2
    (tmp_path / "new.yaml").symlink_to(tmp_path / "absent")
    assert run(monkeypatch, "configs", "copy", "miniature", str(tmp_path / "new.yaml")) == 2
    assert treasure.read_text() == "gold"
    assert not (tmp_path / "absent").exists()


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("x" * 255), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]
    contact_sheet([], tmp_path / ("y" * 251 + ".png"))
    assert np.any(np.frombuffer((tmp_path / ("y" * 251 + ".png")).read_bytes(), np.uint8))


@pytest.mark.parametrize("content", [b"12", b"\xff", b"x" * 10_000, b"\x1b[2J", None])
def test_the_holder_of_a_lock_is_told_whatever_its_file_holds(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "writer.pid"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with no_hang():
        assert holder_of(file) == ("process 12" if content == b"12" else "another process")
