"""The contract that every detector must meet, tested on real models of the smallest size.

The test module of an implementation subclasses `DetectorContract` and provides these fixtures, each of scope
module:

- ``start``: an untrained detector, without classes.
- ``detector``: a detector of the classes car and truck whose predictions, however bad, depend on every pixel;
  on the CPU, one thread.
- ``load``: a function that loads a detector from the path of a checkpoint, on the CPU.
- ``other_task``: the path of a checkpoint of the same library for a task other than instance segmentation.

``dataset``, ``fitted`` and ``one_thread`` come from conftest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffugen.dataset.files import Item
from diffugen.dataset.yolo import write_yolo
from diffugen.detectors import Detector
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels import shapes
from diffugen.records import Instances

CLASSES = ("car", "truck")
SIZE_WH = (96, 48)
SEED = 3
FIT_SIZE = 64
ANYTHING: Mapping[str, Any] = {"image_size": 96, "confidence": 0.001}
"""Arguments of `Detector.predict` with which even an untrained model detects something."""

Load = Callable[[Path], Detector]


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
        checkpoint: The best checkpoint.
        epochs: Number and metrics of each epoch, as reported.
        steps: Epochs done after each step, as reported.
        strays: Files outside the fit's own folder that were created, changed or deleted.
    """

    checkpoint: Path
    epochs: list[tuple[int, dict[str, float]]]
    steps: list[float]
    strays: list[str]


def scene(seed: int, class_name: str = "car", *, tall: bool = False) -> Item:
    """Return a strong red frame with a hole on dark noise; 96 x 48 px, or 48 x 96 if tall."""
    random = np.random.default_rng(seed)
    width, height = SIZE_WH
    image = random.integers(0, 40, (height, width, 3), dtype=np.uint8)
    x, y = int(random.integers(2, 50)), int(random.integers(2, 16))
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + 28, x : x + 40] = True
    mask[y + 8 : y + 16, x + 10 : x + 30] = False
    image[mask] = (230, 60, 20)
    if tall:
        image, mask = np.ascontiguousarray(image.transpose(1, 0, 2)), np.ascontiguousarray(mask.T)
    size_wh = (mask.shape[1], mask.shape[0])
    return f"scene-{seed}", image, Instances(size_wh, (class_name,), (shapes.encode(mask),), np.ones(1))


def background(seed: int) -> Item:
    """Return dark noise without an object."""
    image = np.random.default_rng(seed).integers(0, 40, (*SIZE_WH[::-1], 3), dtype=np.uint8)
    return f"background-{seed}", image, Instances(SIZE_WH, (), (), np.zeros(0))


def assert_same(found: list[Instances], expected: list[Instances], tolerance: float = 0.0) -> None:
    """Require equal instances, and at least one; with a tolerance of the scores, masks are not compared."""
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.class_names == theirs.class_names
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=tolerance)
        if not tolerance:
            assert ours.rles == theirs.rles


def fit(detector: Detector, dataset: Path, out_folder: Path, *, seed: int = SEED, epochs: int = 2) -> Fitted:
    """Fit at the smallest size and record which files change."""
    epochs_seen: list[tuple[int, dict[str, float]]] = []
    steps_seen: list[float] = []
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out_folder.parent)
        before = _files(dataset) | _files(Path.cwd())
        checkpoint = detector.fit(
            dataset,
            out_folder,
            epochs=epochs,
            image_size=FIT_SIZE,
            seed=seed,
            batch_size=2,
            on_epoch=lambda epoch, values: epochs_seen.append((epoch, dict(values))),
            on_step=steps_seen.append,
        )
        after = _files(dataset) | {
            path: content for path, content in _files(Path.cwd()).items() if out_folder not in path.parents
        }
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return Fitted(checkpoint, epochs_seen, steps_seen, sorted(path.name for path in changed))


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class DetectorContract:
    """The tests; subclass in the test module of an implementation."""

    def test_fit_writes_a_checkpoint_and_reports_each_epoch(self, fitted: Fitted, load: Load) -> None:
        assert fitted.checkpoint.exists()
        assert [epoch for epoch, _ in fitted.epochs] == [1, 2]
        assert all(len(values) > 0 for _, values in fitted.epochs)
        assert load(fitted.checkpoint).class_names == CLASSES

    def test_fit_reports_each_step_as_a_part_of_its_epoch(self, fitted: Fitted) -> None:
        in_epochs = [sorted(step for step in fitted.steps if int(step) == epoch) for epoch in (0, 1)]
        assert fitted.steps == in_epochs[0] + in_epochs[1]
        assert len(in_epochs[0]) == len(in_epochs[1]) > 1
        assert all(0 < step % 1 < 1 for step in fitted.steps), "an epoch ends with its validation"

    def test_a_fitted_detector_knows_its_image_size(
        self, start: Detector, fitted: Fitted, load: Load
    ) -> None:
        assert start.image_size is None
        assert load(fitted.checkpoint).image_size == FIT_SIZE

    def test_fit_leaves_no_files_outside_its_folder(self, fitted: Fitted) -> None:
        assert not fitted.strays

    def test_a_fitted_detector_predicts(self, fitted: Fitted, load: Load) -> None:
        found = load(fitted.checkpoint).predict([scene(7)[1], scene(8, tall=True)[1]], **ANYTHING)
        assert [instances.size_wh for instances in found] == [(96, 48), (48, 96)]
        assert {name for instances in found for name in instances.class_names} <= set(CLASSES)

    def test_the_seed_determines_the_fit(
        self, start: Detector, dataset: Path, fitted: Fitted, load: Load, tmp_path: Path, one_thread: None
    ) -> None:
        again, other = (fit(start, dataset, tmp_path / str(seed), seed=seed) for seed in (SEED, SEED + 1))
        assert again.epochs == fitted.epochs
        assert other.epochs != fitted.epochs
        images = [scene(7)[1], scene(8, tall=True)[1]]
        first, second = (load(one.checkpoint).predict(images, **ANYTHING) for one in (fitted, again))
        for ours, theirs in zip(first, second, strict=True):
            assert (ours.class_names, ours.rles) == (theirs.class_names, theirs.rles)
            assert ours.scores.tolist() == theirs.scores.tolist()

    def test_fit_learns_the_classes_of_the_dataset_and_leaves_the_detector_unchanged(
        self, detector: Detector, load: Load, tmp_path: Path
    ) -> None:
        items = [scene(10, "piano"), scene(11), scene(12, "truck", tall=True), scene(13, "piano")]
        write_yolo(tmp_path / "three", {"train": items}, ["piano", "truck", "car"])
        image = scene(7)[1]
        before = detector.predict([image], **ANYTHING)
        made = fit(detector, tmp_path / "three", tmp_path / "fits/three", epochs=1)
        assert load(made.checkpoint).class_names == ("piano", "truck", "car")
        assert detector.class_names == CLASSES
        assert_same(detector.predict([image], **ANYTHING), before)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: folder / "nowhere", "no dataset at"),
            (
                lambda folder: write_yolo(folder / "set", {"train": [background(0)]}, ["car"]),
                "nothing to train on",
            ),
        ],
    )
    def test_fit_rejects_an_absent_or_empty_dataset(
        self, start: Detector, tmp_path: Path, make: Callable[[Path], Path], message: str
    ) -> None:
        with pytest.raises(DiffugenError, match=message):
            start.fit(make(tmp_path), tmp_path / "fit", epochs=1, image_size=64, seed=0)
        assert not (tmp_path / "fit").exists()

    def test_loading_rejects_an_absent_checkpoint_and_one_of_another_task(
        self, load: Load, other_task: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match="task"):
            load(other_task)
        with pytest.raises(ModelError, match=r"absent\.pt"):
            load(tmp_path / "absent.pt")

    def test_predicted_masks_have_the_size_of_their_image(self, detector: Detector) -> None:
        images = [scene(7)[1], scene(8, tall=True)[1], scene(9)[1][:40, :70], scene(7)[1]]
        copies = [image.copy() for image in images]
        found = detector.predict(images, **ANYTHING)
        assert [instances.size_wh for instances in found] == [(96, 48), (48, 96), (70, 40), (96, 48)]
        for instances in found:
            assert len(instances) > 0
            assert set(instances.class_names) <= set(CLASSES)
            assert (np.diff(instances.scores) <= 0).all()
            assert instances.scores.min() >= ANYTHING["confidence"]
        assert_same([found[3]], [found[0]], tolerance=1e-6)
        assert found[3].rles == found[0].rles
        assert all(np.array_equal(image, copy) for image, copy in zip(images, copies, strict=True))

    def test_predictions_do_not_depend_on_the_other_images(self, detector: Detector) -> None:
        images = [scene(7)[1], scene(8, tall=True)[1], scene(9)[1], scene(10)[1][:40, :70]]
        together = detector.predict(images, **ANYTHING)
        alone = [instances for image in images for instances in detector.predict([image], **ANYTHING)]
        reverse = detector.predict(images[::-1], **ANYTHING)[::-1]
        assert_same(alone, together, tolerance=1e-3)
        assert_same(reverse, together, tolerance=1e-3)

    def test_confidence_is_the_minimum_score(self, detector: Detector) -> None:
        images = [scene(7)[1], scene(8, tall=True)[1]]
        found = detector.predict(images, **ANYTHING)
        between = float(np.median(np.concatenate([instances.scores for instances in found])))
        surer = detector.predict(images, image_size=96, confidence=between)
        assert 0 < sum(map(len, surer)) < sum(map(len, found))
        assert min(instances.scores.min(initial=1) for instances in surer) >= between
        assert [len(none) for none in detector.predict(images, image_size=96, confidence=1.0)] == [0, 0]

    def test_colours_are_rgb(self, detector: Detector) -> None:
        image = scene(4)[1]
        found, swapped = detector.predict([image, np.ascontiguousarray(image[..., ::-1])], **ANYTHING)
        assert len(swapped) != len(found) or np.abs(swapped.scores - found.scores).max() > 1e-3

    def test_images_need_not_be_contiguous(self, detector: Detector) -> None:
        image = scene(8, tall=True)[1]
        view = np.ascontiguousarray(image.transpose(1, 0, 2)).transpose(1, 0, 2)
        assert_same(detector.predict([view], **ANYTHING), detector.predict([image], **ANYTHING))

    def test_no_images_give_no_results(self, detector: Detector) -> None:
        assert detector.predict([], image_size=64) == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda image: image / 255.0, r"image 1 is float64 \(48, 96, 3\)"),
            (lambda image: image[..., 0], r"image 1 is uint8 \(48, 96\)"),
            (lambda image: np.dstack([image, image[..., :1]]), r"image 1 is uint8 \(48, 96, 4\)"),
        ],
    )
    def test_predict_rejects_images_of_another_dtype_or_shape(
        self, detector: Detector, change: Callable[[Any], Any], message: str
    ) -> None:
        with pytest.raises(DiffugenError, match=message):
            detector.predict([scene(0)[1], change(scene(0)[1])], image_size=64)
