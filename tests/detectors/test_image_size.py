"""The image size at which a detector runs on images of a given size."""

from __future__ import annotations

import pytest

from diffugen.detectors import suited_image_size


@pytest.mark.parametrize(
    ("trained_at", "longest_side", "expected"),
    [
        (640, 1920, 640),  # large images are scaled down to the size of training
        (640, 512, 640),
        (640, 320, 640),  # twice the images' size is exactly the size of training
        (640, 319, 640),  # 638, rounded up to a multiple of 32
        (640, 300, 608),
        (640, 64, 128),
        (128, 64, 128),
        (64, 1920, 64),
        (128, 20, 64),  # never below the smallest size that YOLO can train on
        (32, 512, 64),
        (None, 1920, 640),
        (None, 64, 128),
    ],
)
def test_suited_image_size(trained_at: int | None, longest_side: int, expected: int) -> None:
    assert suited_image_size(trained_at, longest_side) == expected
