"""Pixels of every mode and depth are read as OpenCV reads them, or refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffugen.dataset.files import read_image
from diffugen.errors import DiffugenError

HEIGHT, WIDTH = 24, 40


def gradient(channels: int, bits: int) -> NDArray[np.generic]:
    """Values from 0 to the highest of 8 or 16 bits, different in each channel."""
    ramp = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH * channels).reshape(HEIGHT, WIDTH, channels)
    return np.asarray(ramp.astype(np.uint8 if bits == 8 else np.uint16).squeeze())


DEEP, LOSSY = (".png", ".tiff", ".pnm"), (".jpg", ".webp", ".bmp")
FILES = [
    *((suffix, bits, channels) for suffix in DEEP for bits in (8, 16) for channels in (1, 3)),
    *((suffix, bits, 4) for suffix in (".png", ".tiff") for bits in (8, 16)),
    *((suffix, 8, channels) for suffix in LOSSY for channels in (1, 3)),
]


@pytest.mark.parametrize(("suffix", "bits", "channels"), FILES)
def test_every_depth_is_read_as_opencv_reads_it(
    tmp_path: Path, suffix: str, bits: int, channels: int
) -> None:
    path = tmp_path / f"one{suffix}"
    assert cv2.imwrite(str(path), gradient(channels, bits))
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert expected is not None
    found = read_image(path)
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    # 1: rounding; 4: decoders of lossy formats differ.
    assert np.abs(found.astype(int) - expected[..., ::-1]).max() <= (4 if suffix in LOSSY else 1)
    assert found.min() < 8 and found.max() > 247


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_every_mode_keeps_its_brightness(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("one.tiff" if mode in ("CMYK", "YCbCr", "RGBX") else "one.png")
    Image.fromarray(gradient(1, 8)).convert("RGB").convert(mode).save(path)
    found = read_image(path).astype(int)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert abs(found.mean() - 127) < 3
    assert np.abs(np.diff(found, axis=2)).max() <= 51, "grey stays grey, up to the palette"


@pytest.mark.parametrize(("dtype", "words"), [(np.int32, "32-bit"), (np.float32, "floating-point")])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: type[np.generic], words: str) -> None:
    path = tmp_path / "one.tiff"
    Image.fromarray(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)).save(path)
    with pytest.raises(DiffugenError, match=rf"one\.tiff.*{words}.*8 or 16 bits"):
        read_image(path)


def test_a_16_bit_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(gradient(1, 16)).save(path, exif=exif)
    assert read_image(path).shape == (WIDTH, HEIGHT, 3)
