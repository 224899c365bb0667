"""Shards of the planned images: together exactly the whole, in order; what comes out is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

import diffugen as dg
from diffugen.errors import DiffugenError
from diffugen.run.merge import merge
from diffugen.run.store import RunStore
from diffugen.stages import verbs
from diffugen.stages.shards import WHOLE, Shard
from tests.support.command_line import run

QUICK = ["prompts.count=5", "diffusion.num_inference_steps=1", "diffusion.batch_size=2"]


@given(st.integers(0, 200), st.integers(1, 50))
def test_shards_partition_the_work_in_order_and_evenly(jobs: int, count: int) -> None:
    work = list(range(jobs))
    parts = [work[Shard(number, count).part(len(work))] for number in range(1, count + 1)]
    assert [one for part in parts for one in part] == work
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_read() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert Shard.parse(str(WHOLE)) == WHOLE


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "1/0", "", "1", "-1/4", "1/4/4", "1/4\n", "\u0661/4"])
def test_bad_shards_are_one_message(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "generate", "--run", "run", f"--shard={text}") == 2
    assert "is not a shard" in capsys.readouterr().err
    assert not Path("run").exists()


def test_merged_shards_equal_one_run(tmp_path: Path) -> None:
    config = dg.load_config("miniature", QUICK)
    with dg.open_run(tmp_path / "one", config) as whole:
        dg.generate(whole)
    parts = [tmp_path / f"part-{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        with dg.open_run(part, config) as opened:
            verbs.generate(opened, shard=Shard(number, 2))
            dg.label(opened)
    made = merge(parts, tmp_path / "merged")
    assert (made.images, made.known) == (5, 0)
    with RunStore.open(tmp_path / "one") as one, RunStore.open(tmp_path / "merged") as merged:
        assert list(merged.records()) == list(one.records())
        for image_id in one.image_ids():
            difference = merged.image(image_id).astype(int) - one.image(image_id)
            assert np.abs(difference).max() <= 1
            maps, others = merged.heat_maps(image_id).maps, one.heat_maps(image_id).maps
            assert all(np.allclose(maps[name], others[name], atol=1e-3) for name in others)
        before = {path: path.stat().st_mtime_ns for path in (merged.folder / "images").rglob("*")}
    with dg.open_run(tmp_path / "merged", config) as again:  # as the first stage of diffugen bootstrap does
        assert dg.generate(again).images == 5
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(list(again.store.image_ids())) == 5


def test_a_shard_without_batches_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [word for key in QUICK for word in ("--set", key)]
    assert run(monkeypatch, "generate", *quick, "--run", "run", "--shard", "1/9") == 0
    assert "Nothing to generate" in capsys.readouterr().out
    assert run(monkeypatch, "merge", "run", "--into", "whole") == 0
    assert "0 new images in whole" in capsys.readouterr().out


def test_a_task_that_starts_from_another_is_not_sharded(tmp_path: Path) -> None:
    tasks = "tasks=[{task: txt2img}, {task: img2img, source: txt2img}]"
    with dg.open_run(tmp_path / "run", dg.load_config("miniature", [*QUICK, tasks])) as opened:
        with pytest.raises(DiffugenError, match="starts from the images of task txt2img"):
            verbs.generate(opened, shard=Shard(1, 2))
        assert not list(opened.store.image_ids())
