from __future__ import annotations

import pytest

from diffugen.diffusion.layout import cells_hw, thirds_of
from diffugen.errors import ModelError


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [[0, 1, 2]]),
        (2, [[0, 1], [1, 2]]),
        (3, [[0], [1], [2]]),
        (4, [[0], [0], [1], [2]]),
        (6, [[0], [0], [1], [1], [2], [2]]),
    ],
)
def test_every_third_gets_steps(steps: int, expected: list[list[int]]) -> None:
    assert [list(thirds_of(step, steps)) for step in range(steps)] == expected


@pytest.mark.parametrize(
    ("count", "grid_hw", "expected"),
    [
        (384, (16, 24), (16, 24)),
        (96, (16, 24), (8, 12)),
        (96, (24, 16), (12, 8)),
        (3 * 4, (9, 14), (3, 4)),  # odd sides halve upwards: 9x14, 5x7, 3x4
        (6, (16, 24), (2, 3)),
    ],
)
def test_cells_keep_the_orientation(count: int, grid_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert cells_hw(count, grid_hw) == expected


def test_cells_that_fit_nothing() -> None:
    with pytest.raises(ModelError, match=r"97 image queries.*16x24"):
        cells_hw(97, (16, 24))
