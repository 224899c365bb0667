"""The mean self-attention of layers, checked against whole softmaxes in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffugen.diffusion import self_attention
from diffugen.diffusion.self_attention import SelfAttention
from diffugen.errors import ModelError


def layer(cells: int, seed: int, images: int = 2, heads: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, images, heads, cells, 4, generator=random)
    return query, key


def softmax(query: torch.Tensor, key: torch.Tensor) -> Any:
    return torch.softmax(0.5 * query.double() @ key.double().transpose(-1, -2), -1).mean(1).numpy()


@pytest.mark.parametrize("at_once", [1, 3 * 35 * 10, 2**25])
def test_the_mean_over_layers_and_steps(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(self_attention, "VALUES_AT_ONCE", at_once)
    kept = SelfAttention()
    assert not kept.found
    calls = [layer(35, seed) for seed in range(3)]
    kept.add(*layer(35, 9), 0.5, (5, 7), counted=False)
    assert kept.found
    with pytest.raises(ModelError, match="no self-attention was traced"):
        kept.mean()
    for call in calls:
        kept.add(*call, 0.5, (5, 7), counted=True)
    expected = np.mean([softmax(*call) for call in calls], axis=0).reshape(2, 5, 7, 5, 7)
    np.testing.assert_allclose(kept.mean(), expected, atol=1e-4)


def test_the_finest_grid_that_is_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a coarser one comes first, and layers of others between."""
    monkeypatch.setattr(self_attention, "MOST_CELLS", 40)
    kept = SelfAttention()
    for shape, seed in (((20, 28), 0), ((3, 4), 1), ((5, 7), 2), ((3, 4), 3), ((10, 14), 4), ((5, 7), 5)):
        kept.add(*layer(shape[0] * shape[1], seed), 0.5, shape, counted=True)
    expected = (softmax(*layer(35, 2)) + softmax(*layer(35, 5))) / 2
    np.testing.assert_allclose(kept.mean(), expected.reshape(2, 5, 7, 5, 7), atol=1e-4)


def test_grids_that_are_too_large_are_averaged_over_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """5x7 cells become 3x4: the squares at the lower and right edge are cut off."""
    monkeypatch.setattr(self_attention, "MOST_CELLS", 12)
    kept = SelfAttention()
    query, key = layer(35, 0)
    kept.add(query, key, 0.5, (5, 7), counted=True)
    whole = softmax(query, key).reshape(2, 5, 7, 5, 7)
    rows, columns = np.arange(5) // 2, np.arange(7) // 2
    for found, expected in zip(kept.mean(), whole, strict=True):
        assert found.shape == (3, 4, 3, 4)
        np.testing.assert_allclose(found.sum(axis=(2, 3), dtype=float), 1, atol=1e-3)
        for y, x, v, u in np.ndindex(found.shape):
            square = expected[rows == y][:, columns == x][:, :, rows == v][:, :, :, columns == u]
            assert found[y, x, v, u] == pytest.approx(square.sum(axis=(2, 3)).mean(), abs=1e-3)
