"""Segment Anything Models: what counts as a checkpoint, and masks that are those of Ultralytics itself."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffugen.detectors.sam import SamSegmenter
from diffugen.errors import DiffugenError, ModelError
from tests.support.sam_models import KINDS, TINY_SIDE, random_sam, shrink
from tests.support.yolo_models import detect_model

BOXES = np.array([[10.0, 5.0, 50.0, 40.0], [60.0, 20.0, 90.0, 60.0]])
POINTS = np.array([[20.5, 20.5], [70.5, 30.5]])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each kind."""
    made = tmp_path_factory.mktemp("sam")
    with pytest.MonkeyPatch.context() as patched:
        shrink(patched)
        for kind in KINDS:
            random_sam(made, kind)
    return made


def image(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_wh", [(96, 64), (90, 200)])
def test_masks_are_those_of_ultralytics(folder: Path, kind: str, size_wh: tuple[int, int]) -> None:
    from ultralytics.models.sam import SAM

    rgb = image(*size_wh)
    masks = SamSegmenter(folder / kind, device="cpu").masks(rgb, BOXES, POINTS)
    assert masks.dtype == np.bool_ and masks.shape == (2, *rgb.shape[:2])
    [theirs] = SAM(str(folder / kind)).predict(
        np.ascontiguousarray(rgb[..., ::-1]),
        bboxes=BOXES,
        points=POINTS,
        labels=[1, 1],
        imgsz=TINY_SIDE,
        conf=0.0,
        device="cpu",
        verbose=False,
    )
    np.testing.assert_array_equal(masks, theirs.masks.data.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_each_mask_follows_from_the_image_and_its_own_prompts(folder: Path, kind: str) -> None:
    segmenter = SamSegmenter(folder / kind, device="cpu")
    both = segmenter.masks(image(), BOXES, POINTS)
    assert (both[0] != both[1]).any()
    np.testing.assert_array_equal(segmenter.masks(image(), BOXES[::-1], POINTS[::-1]), both[::-1])
    np.testing.assert_array_equal(segmenter.masks(image(), BOXES[:1], POINTS[:1]), both[:1])
    assert (segmenter.masks(255 - image(), BOXES, POINTS) != both).any(), "no image is remembered"
    moved = segmenter.masks(image(), BOXES, POINTS + 10)
    assert (moved != both).any()


def test_the_image_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.models.sam import SAM2Predictor

    seen, encode = [], SAM2Predictor.get_im_features

    def counted(self: SAM2Predictor, pixels: torch.Tensor) -> Any:
        seen.append(tuple(pixels.shape))
        return encode(self, pixels)

    monkeypatch.setattr(SAM2Predictor, "get_im_features", counted)
    segmenter = SamSegmenter(folder / "sam2.1_t.pt", device="cpu")
    segmenter.masks(image(), BOXES, POINTS)
    assert seen == [(1, 3, TINY_SIDE, TINY_SIDE)]
    assert segmenter.masks(image(), BOXES[:0], POINTS[:0]).shape == (0, 64, 96)
    assert len(seen) == 1, "nothing is encoded for nothing"


def test_it_is_silent_and_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SamSegmenter(folder / "sam_b.pt", device="cpu").masks(image(), BOXES, POINTS)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_file_may_have_more_in_its_name_and_lie_anywhere(folder: Path, tmp_path: Path) -> None:
    """Regression of Ultralytics: it reads 2.1 out of the folder, and leaves quotation marks out."""
    place = tmp_path / "it's sam2.1" / "roads-sam2_t.pt"
    place.parent.mkdir()
    shutil.copy(folder / "sam2_t.pt", place)
    given, moved = (
        SamSegmenter(path, device="cpu").masks(image(), BOXES, POINTS)
        for path in (folder / "sam2_t.pt", place)
    )
    np.testing.assert_array_equal(given, moved)


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 4)])
def test_only_images_of_three_colours_are_taken(folder: Path, shape: tuple[int, ...]) -> None:
    segmenter = SamSegmenter(folder / "sam_b.pt", device="cpu")
    with pytest.raises(DiffugenError, match=r"expected uint8 \(H, W, 3\), RGB"):
        segmenter.masks(np.zeros(shape, np.uint8), BOXES, POINTS)


# ---------------------------------------------------------------- what is no checkpoint


@pytest.mark.parametrize(
    "name", ["yolo11n-seg.pt", "FastSAM-s.pt", "sam3.pt", "sam2.1_t.safetensors", "miniature"]
)
def test_names_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(
        ModelError, match=rf"{name} is not the name of a segmenter, .* sam_b.pt, .*sam2.1_t.pt"
    ):
        SamSegmenter(name, device="cpu")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no segmenter at {tmp_path}/sam_b.pt; give a .pt file"):
        SamSegmenter(tmp_path / "sam_b.pt", device="cpu")
    with pytest.raises(ModelError, match=r"no segmenter at my-sam2_t\.pt"):
        SamSegmenter("my-sam2_t.pt", device="cpu")


@pytest.mark.parametrize("content", ["text", "yolo", "another size", "other tensors"])
def test_a_file_of_another_kind_is_told(folder: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "sam_b.pt"
    if content == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif content == "yolo":
        detect_model(tmp_path).rename(path)
    elif content == "another size":
        shutil.copy(folder / "mobile_sam.pt", path)
    else:
        torch.save([torch.zeros(3)], path)
    with pytest.raises(ModelError, match=rf"^{path} does not hold the weights of the model") as failure:
        SamSegmenter(path, device="cpu")
    assert len(str(failure.value).splitlines()) == 1


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "sam_b.pt"
    torch.save({"model": Harmful(mark)}, path)
    with pytest.raises(ModelError, match="does not hold the weights"):
        SamSegmenter(path, device="cpu")
    path.write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    with pytest.raises(ModelError, match="does not hold the weights"):
        SamSegmenter(path, device="cpu")
    assert not mark.exists()


def test_a_device_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(ModelError, match="device 'cuda:99' is not available"):
        SamSegmenter(folder / "sam_b.pt", device="cuda:99")


def test_a_published_checkpoint_comes_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path / "hub/checkpoints/sam2.1_t.pt"
    with pytest.raises(ModelError, match=f"HF_HUB_OFFLINE is set; copy it to {place}"):
        SamSegmenter("sam2.1_t.pt", device="cpu")
    place.parent.mkdir(parents=True)
    shutil.copy(folder / "sam2.1_t.pt", place)
    assert SamSegmenter("sam2.1_t.pt", device="cpu").masks(image(), BOXES, POINTS).any()
