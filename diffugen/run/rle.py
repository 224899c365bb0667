"""Check run-length encodings of masks before C code reads them, which trusts whatever it is given.

Knows COCO's two forms of run lengths; does not know files, classes or images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 1 << 28
"""The largest image whose masks are read."""

_BITS = 5
_LONGEST = 7
"""A run length has at most this many characters; each holds 5 bits."""


def check_rle(size_hw: Any, counts: Any, size_wh: tuple[int, int]) -> None:
    """Check that run lengths, compressed or not, cover an image exactly.

    Args:
        size_hw: What stands under ``size``.
        counts: What stands under ``counts``.
        size_wh: Width and height of the image in pixels.

    Raises:
        ValueError: They do not, or are not run lengths.
    """
    width, height = size_wh
    if list(size_hw) != [height, width]:
        raise ValueError(f"a mask of size (h, w) = {list(size_hw)} in an image of {[height, width]}")
    if isinstance(counts, str):
        check_counts([counts], size_wh)
    elif isinstance(counts, list) and all(type(run) is int and abs(run) < 1 << 40 for run in counts):
        _check_runs(np.array(counts, dtype=np.int64), size_wh)
    else:
        raise ValueError("'counts' is neither a text nor a list of whole numbers")


def check_counts(masks: Sequence[str], size_wh: tuple[int, int]) -> None:
    """Check that the compressed run lengths of each of several masks cover an image exactly.

    In COCO's text form each character holds 5 bits and a continuation bit; from the fourth run on, a value is
    the difference to the run two places before.

    Args:
        masks: The ``counts`` of each mask.
        size_wh: Width and height of the image in pixels.

    Raises:
        ValueError: They do not, or are not run lengths.
    """
    if not all(masks):
        _check_runs(np.zeros(0, dtype=np.int64), size_wh)
    codes = np.frombuffer("".join(masks).encode("ascii", "replace"), dtype=np.uint8) - np.uint8(48)
    if not len(codes):
        return
    if codes.max() >= 64:
        wrong = "".join(masks)[int(np.argmax(codes >= 64))]
        raise ValueError(f"invalid character {wrong!r} in 'counts'")
    if any(counts[-1] >= "P" for counts in masks):  # a character that another one must follow
        raise ValueError("'counts' is truncated")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise ValueError(f"a run length in 'counts' has more than {_LONGEST} characters")
    runs = (codes[starts] & 31).astype(np.int64)
    for place in range(1, int(lengths.max())):
        long = np.flatnonzero(lengths > place)
        runs[long] += (codes[starts[long] + place] & 31).astype(np.int64) << _BITS * place
    runs -= np.where(codes[ends] & 16, 1 << (_BITS * lengths), 0)
    borders = np.searchsorted(ends, np.cumsum([len(counts) for counts in masks])).tolist()
    for first, end in pairwise([0, *borders]):
        own = runs[first:end]
        own[1::2].cumsum(out=own[1::2])
        own[2::2].cumsum(out=own[2::2])
        _check_runs(own, size_wh)


def _check_runs(runs: NDArray[np.int64], size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    least, most = int(runs.min(initial=0)), int(runs.max(initial=0))
    if least < 0:
        raise ValueError(f"a run length is {least}; expected 0 or more")
    covered = most if most > MOST_PIXELS else int(runs.sum())
    if covered != height * width or covered > MOST_PIXELS:
        raise ValueError(f"run lengths cover {covered} of {height * width} px")


def check_size(size_wh: Any) -> tuple[int, int]:
    """Return a width and a height that others wrote.

    Raises:
        ValueError: They are not two whole numbers, or are those of no image.
    """
    if (
        not isinstance(size_wh, Collection)
        or len(size_wh) != 2
        or any(type(one) is not int for one in size_wh)
    ):
        raise ValueError(f"the size {size_wh!r} is not a width and a height")
    width, height = size_wh
    if not (width > 0 and height > 0 and width * height <= MOST_PIXELS):
        raise ValueError(f"an image of {width} x {height} px; expected 1 to {MOST_PIXELS:,} px")
    return width, height
