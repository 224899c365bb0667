"""Errors that nothing foresaw end as one message with exit code 2, and the run continues afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffugen.cli.failures import TRACEBACK
from diffugen.run.store import RunStore
from tests.cli.test_interrupt import LOOP
from tests.support.command_line import run
from tests.support.terminal import without_terminal

MEGABYTE = 1 << 20
FAILURES = {
    "memory": ("bytearray(1 << 62)", r"out of memory\. MemoryError\. .*diffusion\.batch_size"),
    "memory of torch": (
        "import torch; torch.zeros(1 << 50)",
        r"out of memory\. RuntimeError: .*can't allocate memory.*detector\.batch_size",
    ),
    "a database": (
        "import sqlite3; sqlite3.connect(':memory:').execute('nonsense')",
        r"unexpected error in <string>, line 1\. OperationalError: near \"nonsense\": syntax error\.",
    ),
    "a shape in torch": (
        "import torch; torch.zeros(2, 3) @ torch.zeros(2, 3)",
        r"unexpected error in <string>, line 1\. RuntimeError: .*shapes cannot be multiplied",
    ),
    "a bug": ("{}['x']", rf"unexpected error in <string>, line 1\. KeyError: 'x'\.(.|\n)*{TRACEBACK}=1"),
    "no text": ("raise ValueError", r"unexpected error in <string>, line 1\. ValueError\."),
    "a package": ("import nowhere_to_be_found", r"package is missing.*nowhere_to_be_found.*diffugen doctor"),
    "a file": ("open('nowhere/file')", r"file cannot be read.*nowhere/file"),
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("work", "expected"), FAILURES.values(), ids=FAILURES)
def test_an_error_in_the_work(
    work: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(f"def main(config, run):\n    exec({work!r})\n")
    assert run(monkeypatch, "loops", "run", "mine.py", "miniature") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    assert re.search(expected, said), said
    if "package" not in expected:
        assert "diffugen loops run mine.py miniature" in said, "how to continue"
    with RunStore.open("runs/miniature"):  # the lock is released
        pass


def test_the_traceback_is_shown_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    Path("mine.py").write_text("def main(config, run):\n    1 / 0\n")
    assert run(monkeypatch, "loops", "run", "mine.py") == 2
    assert re.search(
        r'Traceback(.|\n)*mine\.py", line 2(.|\n)*^error: unexpected', capsys.readouterr().err, re.M
    )


@pytest.mark.parametrize("save", ["torch.save(made, 'file')", "save_file(made, 'file')"])
def test_a_full_disk_under_a_library_that_writes_weights(save: str, tmp_path: Path) -> None:
    body = "import torch; from safetensors.torch import save_file; made = {'a': torch.zeros(1 << 20)}; "
    (tmp_path / "mine.py").write_text(f"def main(config, run):\n    {body}{save}\n")
    done = without_terminal(["loops", "run", "mine.py"], tmp_path, largest_file=MEGABYTE)
    assert done.returncode == 2 and done.stderr.startswith("error: no space left"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_inside_training(tmp_path: Path) -> None:
    full = without_terminal(LOOP, tmp_path, largest_file=3 * MEGABYTE)
    assert full.returncode == 2, full.stderr
    assert re.search(r"^error: no space left on the disk.*diffugen bootstrap", full.stderr, re.M), full.stderr
    assert "Traceback" not in full.stderr
    with RunStore.open(tmp_path / "run", readonly=True) as store:
        assert list(store.summary().rounds[0].stages) == ["generate", "teach", "label", "sift", "dataset"]
    done = without_terminal(LOOP, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report" / "index.html").is_file()
