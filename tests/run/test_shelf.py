"""A mapping whose values are in a temporary file: equal to a dict, small in memory, and gone afterwards."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffugen.errors import StoreError
from diffugen.run.shelf import shelved


def pairs(count: int) -> Iterator[tuple[str, np.ndarray]]:
    return ((f"{number:016x}", np.full(4000, number)) for number in range(count))


def test_it_is_the_mapping_of_the_pairs_in_their_order() -> None:
    with shelved(pairs(5)) as found:
        expected = dict(pairs(5))
        assert list(found) == list(expected) and len(found) == 5
        assert all(np.array_equal(found[id], value) for id, value in expected.items())
        assert [int(value[0]) for value in found.values()] == [0, 1, 2, 3, 4]
        assert "0" * 16 in found and "elsewhere" not in found
        with pytest.raises(KeyError):
            found["elsewhere"]


def test_values_take_no_memory_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracemalloc.start()
    with shelved(pairs(300)) as found:
        used, _ = tracemalloc.get_traced_memory()
        assert len(found) == 300 and not list(tmp_path.iterdir()), "a killed process leaves nothing"
    tracemalloc.stop()
    assert used < 300 * 2000, "a value has 32 KB"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full.open("r+b"))
    with pytest.raises(StoreError, match=r"cannot write temporary files in .* TMPDIR"), shelved(pairs(9)):
        pass


def test_a_missing_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match=r"cannot write temporary files in .*gone"), shelved(pairs(9)):
        pass
