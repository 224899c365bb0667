"""The stage imports what the page saved into the run's review folder, under either name; or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffugen import stages
from diffugen.config.sections import ReviewSettings
from diffugen.errors import DiffugenError
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.rounds import round_of


def save(store: RunStore, name: str, number: int, verdict: str) -> Path:
    folder = store.folder / "review"
    folder.mkdir(exist_ok=True)
    item = {"image_id": made.image_id(number), "verdict": verdict}
    (folder / name).write_text(json.dumps({"run": "piano run", "decisions": [item]}))
    return folder / name


@pytest.mark.parametrize("names", [["decisions.json"], ["piano run-decisions.json"], None])
def test_a_saved_file_is_imported_and_put_away(store: RunStore, names: list[str] | None) -> None:
    chosen = names or ["decisions.json", "piano run-decisions.json"]
    files = [save(store, name, number, "reject") for number, name in enumerate(chosen, start=1)]
    made_ = stages.review(round_of(store), ReviewSettings(mode="static", wait=True))
    assert made_.decisions == {"reject": len(files)}
    assert {one.image_id for one in store.decisions()} == {made.image_id(n + 1) for n in range(len(files))}
    assert not any(file.exists() for file in files)
    kept = [path.name for path in (store.folder / "review").glob("decisions-round-*.json")]
    assert len(kept) == len(files)


def test_a_mistake_in_one_file_imports_none(store: RunStore) -> None:
    files = [save(store, "decisions.json", 1, "reject"), save(store, "piano run-decisions.json", 2, "wrong")]
    with pytest.raises(DiffugenError, match="nothing was imported"):
        stages.review(round_of(store), ReviewSettings(mode="static"))
    assert list(store.votes()) == [] and all(file.exists() for file in files)
