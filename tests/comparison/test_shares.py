"""Intervals of shares are those of the textbook."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from diffugen.comparison.shares import Share


@pytest.mark.parametrize(("hits", "of"), [(0, 1), (0, 10), (3, 4), (7, 7), (50, 100), (1, 2000)])
def test_wilson(hits: int, of: int) -> None:
    expected = binomtest(hits, of).proportion_ci(method="wilson")
    share = Share(hits, of)
    assert share.frac == hits / of
    assert share.interval == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_nothing_has_no_share() -> None:
    assert (Share().frac, Share().interval) == (None, None)
    assert Share().plus(True).plus(False) == Share(1, 2)
