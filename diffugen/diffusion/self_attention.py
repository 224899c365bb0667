"""Average the self-attention of a denoiser: which cells of an image each of its cells attends to.

Kept is the attention between the cells of one grid: of all layers on the finest grid that has at most
`MOST_CELLS` cells. If every layer has more, as in transformers and at large sizes, the attention of those
with the fewest is averaged over squares of cells. Masks are ignored, since they hide text, never cells.

Knows queries, keys and grids. Does not know which calls of a denoiser are self-attention, or at which step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import ModelError

if TYPE_CHECKING:
    import torch

MOST_CELLS = 32 * 32
"""The most cells of a grid whose self-attention is kept: 2 MB per image on disk, 4 MB in memory."""

VALUES_AT_ONCE = 2**25
"""How many probabilities are computed at a time: 128 MB, and as much again for intermediate results."""


class SelfAttention:
    """Running mean of the self-attention of the images of a batch, over heads, layers and steps."""

    def __init__(self) -> None:
        self._layer_hw: tuple[int, int] | None = None
        self._sums: list[torch.Tensor] = []  # one per image
        self._count = 0

    @property
    def found(self) -> bool:
        """Whether any self-attention was seen."""
        return self._layer_hw is not None

    def add(
        self, query: torch.Tensor, key: torch.Tensor, scale: float, layer_hw: tuple[int, int], counted: bool
    ) -> None:
        """Add one call of one layer, unless layers of another grid are kept.

        Args:
            query: (images, heads, cells, channels), of the cells of the images alone.
            key: The same.
            scale: Factor of the products of queries and keys.
            layer_hw: Height and width of the layer's grid in cells.
            counted: Whether the call is part of the mean; if not, it is only noted that the grid exists.
        """
        if self._layer_hw is None or _preference(layer_hw) > _preference(self._layer_hw):
            self._layer_hw, self._sums, self._count = layer_hw, [], 0
        if not counted or layer_hw != self._layer_hw:
            return
        for image, one in enumerate(zip(query.float(), key.float(), strict=True)):
            found = _between_squares(*one, scale, layer_hw)
            if self._count:
                self._sums[image] += found
            else:
                self._sums.append(found)
        self._count += 1

    def mean(self) -> list[NDArray[np.float16]]:
        """Return, for each image, float16 (h, w, h, w): probabilities in [0, 1], which add up to 1 per cell.

        The first two axes are the cell that attends, the last two the cell that is attended to.

        Raises:
            ModelError: No call was counted.
        """
        if not self._count or self._layer_hw is None:
            raise ModelError("no self-attention was traced; call the pipeline once, for all of its steps")
        factor = _factor(self._layer_hw)
        h, w = (-(-side // factor) for side in self._layer_hw)
        return [(one / self._count).half().cpu().numpy().reshape(h, w, h, w) for one in self._sums]


def _preference(layer_hw: tuple[int, int]) -> float:
    cells = math.prod(layer_hw)
    return cells if cells <= MOST_CELLS else 1 / cells


def _factor(layer_hw: tuple[int, int]) -> int:
    """Return the side, in cells, of the squares over which a layer's attention is averaged."""
    return next(
        factor
        for factor in range(1, max(layer_hw) + 1)
        if math.prod(-(-side // factor) for side in layer_hw) <= MOST_CELLS
    )


def _between_squares(
    query: torch.Tensor, key: torch.Tensor, scale: float, layer_hw: tuple[int, int]
) -> torch.Tensor:
    """Return the mean attention of the heads of one image, from squares of cells to squares of cells."""
    import torch
    from torch.nn.functional import avg_pool2d

    heads, cells, _ = query.shape
    factor = _factor(layer_hw)
    keys = []
    for some in query.split(max(1, VALUES_AT_ONCE // (heads * cells)), dim=1):
        rows = ((some * scale) @ key.transpose(-1, -2)).softmax(dim=-1).mean(dim=0).unflatten(1, layer_hw)
        keys.append(avg_pool2d(rows, factor, ceil_mode=True, divisor_override=1).flatten(1))
    queries = torch.cat(keys).T.unflatten(1, layer_hw)
    return avg_pool2d(queries, factor, ceil_mode=True, count_include_pad=False).flatten(1).T
