"""Stages on the workers of a real Ray make what they make locally, whatever is killed in between.

Pixels may differ by `LEAST_STEP` and heat maps by `HEAT`, where a worker has another number of threads. An
image's batch is the same, so usually nothing differs. Labels that are made from the same files are equal.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

from diffugen.config import Config, ExecutorSettings, load_config
from diffugen.miniature.sets import scene_set
from diffugen.run import OnProgress, Progress, RunStore
from diffugen.run.ray_executor import RayExecutor
from diffugen.stages import verbs
from diffugen.stages.verbs import open_run
from tests.support.children import WAIT_SECONDS, restore_signals
from tests.support.label_world import World
from tests.support.works import wait_for

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")

LEAST_STEP = 1
"""Largest difference between pixels, of 255."""

HEAT = 1e-3
"""Largest difference between heat maps, of 1."""

IMAGES = 6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Yield the address of a Ray with 2 CPUs."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return settings for 4 images of prompts and 2 made from photos."""
    folder = tmp_path_factory.mktemp("photos")
    for number, drawn in enumerate(scene_set("known", 2, (101, 67))):
        Image.fromarray(drawn.rgb).save(folder / f"street-{number}.png")
    pianos = {
        "task": "inpaint",
        "source": str(folder),
        "templates": ["a {piano} on a road, {weather}"],
        "region": {"part": "lower half", "spare": False},
    }
    return [
        "prompts.count=4",
        "diffusion.num_inference_steps=3",
        "diffusion.batch_size=2",
        f"tasks={json.dumps([{'task': 'txt2img'}, pianos])}",
    ]


@pytest.fixture(scope="module")
def local(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose images were made in this process; it has no labels."""
    folder = tmp_path_factory.mktemp("local") / "run"
    with open_run(folder, configured(settings)) as run:
        verbs.generate(run)
    return folder


def configured(settings: list[str], *overrides: str) -> Config:
    return load_config("miniature", [*settings, *overrides])


def on_ray(settings: list[str], address: str) -> Config:
    return configured(settings, "executor.kind=ray", f"executor.address={address}", "executor.workers=2")


def assert_same_images(first: RunStore, second: RunStore) -> None:
    ids = list(first.image_ids())
    assert ids == list(second.image_ids()) and len(ids) == IMAGES
    for image_id in ids:
        assert first.record(image_id) == second.record(image_id)
        differing = np.abs(first.image(image_id).astype(int) - second.image(image_id))
        assert differing.max() <= LEAST_STEP
        ours, theirs = first.heat_maps(image_id), second.heat_maps(image_id)
        assert (ours.phrases, ours.region, ours.size_wh) == (theirs.phrases, theirs.region, theirs.size_wh)
        assert ours.maps.keys() == theirs.maps.keys()
        for group, heat in ours.maps.items():
            assert np.abs(heat.astype(float) - theirs.maps[group]).max() <= HEAT


def killing_all(seen: list[float]) -> Progress:
    """Return a progress that kills the workers when the first image is there, and before the last batch."""

    @contextmanager
    def progress(title: str, unit: str) -> Iterator[OnProgress]:
        def report(done: float, total: int, note: str = "") -> None:
            if done >= 1 > max(seen, default=0):
                for one in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):  # a helper of Ray's that was ending anyway
                        if one.name().startswith("ray::_Worker"):
                            one.kill()
            seen.append(done)

        yield report

    return progress


def test_images_are_those_of_one_process_although_workers_are_killed(
    address: str, settings: list[str], local: Path, tmp_path: Path
) -> None:
    seen: list[float] = []
    said: list[str] = []
    config = on_ray(settings, address)
    with open_run(tmp_path / "run", config, progress=killing_all(seen)) as run:
        run.run.notify = said.append
        assert verbs.generate(run).images == IMAGES
        with RunStore.open(local, readonly=True) as alone:
            assert_same_images(alone, run.store)
    assert seen[-1] == IMAGES and seen == sorted(seen)
    assert 1 <= len([one for one in said if one.startswith("lost worker")]) <= 2, said


def test_labels_are_those_of_one_process(
    address: str, settings: list[str], local: Path, tmp_path: Path
) -> None:
    def labelled(config: Config) -> list[Any]:
        folder = tmp_path / config.executor.kind
        shutil.copytree(local, folder)
        with open_run(folder, config) as run:
            verbs.label(run)
            verbs.relabel(run)
            return [plain(one) for one in run.store.labels()]

    def plain(one: Any) -> tuple[Any, ...]:
        found = one.instances
        return one.image_id, one.source, one.method, found.class_names, found.rles, found.scores.tolist()

    expected = labelled(configured(settings))
    assert {source for _, source, *_ in expected} == {"attention", "witness", "model", "candidate", "carried"}
    assert labelled(on_ray(settings, address)) == expected


def test_a_search_takes_the_course_that_it_takes_in_one_process(address: str, tmp_path: Path) -> None:
    world, executor = World(), RayExecutor(ExecutorSettings(kind="ray", address=address, workers=2))
    alone = world.tune(world.correct(), tmp_path / "alone.sqlite", trials=8)
    try:
        spread = world.tune(world.correct(), tmp_path / "spread.sqlite", trials=8, executor=executor)
    finally:
        executor.close()
    assert spread == alone and spread.trials == 16
    first, second = (studies(tmp_path / name) for name in ("alone.sqlite", "spread.sqlite"))
    assert first == second and len(first) == 16


def studies(storage: Path) -> list[Any]:
    """Return the parameters of all trials in a file, and what came out of each."""
    url = f"sqlite:///{storage}"
    found = [optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)]
    return [(trial.params, trial.user_attrs) for study in found for trial in study.trials]


def test_a_killed_command_leaves_nothing_running_and_continues(
    settings: list[str], local: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "diffugen.cli", "generate", "miniature", "--run", str(folder)]
    for setting in (*settings, "executor.kind=ray", "executor.workers=1"):
        command += ["--set", setting]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=restore_signals
    ) as child:
        wait_for(lambda: any(folder.glob("images/??/*.png")) or child.poll() is not None)
        below = psutil.Process(child.pid).children(recursive=True)
        assert any("raylet" in one.name() for one in below)
        agents = [one for one in below if one.cmdline()[0].endswith("Agent")]
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=WAIT_SECONDS)
    # Two small agents of Ray look for it for a minute longer; they keep no memory or device from others.
    working = [one for one in below if one not in agents]
    assert not psutil.wait_procs(working, timeout=WAIT_SECONDS)[1], "Ray ends with the command"
    again = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert again.returncode == 0, again.stderr
    with RunStore.open(folder, readonly=True) as store, RunStore.open(local, readonly=True) as alone:
        assert_same_images(alone, store)
