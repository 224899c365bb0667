"""Label Studio's run-length encoding of brush masks.

It packs bits: the number of values (32 bits), the bits of a value less one (5), four lengths of counts less
one (4 each), then blocks: one bit for a run or single values, two bits that choose the length of the count,
the count less one, and the value or values. The values are those of an RGBA picture, row by row; its alpha is
the mask. (The format of thi.ng's rle-pack, which Label Studio uses.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_VALUE_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
_OPAQUE = 128
"""A pixel belongs to a mask from this alpha on: a brush is soft at its edge."""


def brush_from_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Return a bool (h, w) mask in Label Studio's encoding, as a list of bytes."""
    flat = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat.view(np.int8))) + 1, [flat.size]])
    words = [f"{4 * flat.size:032b}", f"{_VALUE_BITS - 1:05b}", *(f"{bits - 1:04b}" for bits in _COUNT_BITS)]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        words += _run(4 * (end - start), 255 if flat[start] else 0)
    text = "".join(words)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def mask_from_brush(rle: Sequence[int], size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the bool (height, width) mask of bytes in Label Studio's encoding.

    Raises:
        ValueError: They are damaged, or not those of an image of this size.
    """
    try:
        data = bytes(list(rle))  # a number alone would make as many zeros
    except (TypeError, ValueError) as error:
        raise ValueError("its rle is not a list of bytes") from error
    width, height = size_wh
    bits = _Bits(data)
    total = bits.read(32)
    if total != 4 * width * height:
        raise ValueError(f"its rle has {total} values; an image of {width} x {height} px has 4 a pixel")
    value_bits = bits.read(5) + 1
    count_bits = [bits.read(4) + 1 for _ in range(4)]
    values, counts, made = list[int](), list[int](), 0
    while made < total:
        is_run = bits.read(1)
        count = bits.read(count_bits[bits.read(2)]) + 1
        made += count
        if made > total:
            raise ValueError("its rle has more values than the image")
        values += [bits.read(value_bits)] if is_run else [bits.read(value_bits) for _ in range(count)]
        counts += [count] if is_run else [1] * count
    rgba = np.repeat(np.array(values, dtype=np.int64), counts).reshape(height, width, 4)
    return np.ascontiguousarray(rgba[:, :, 3] >= _OPAQUE)


def _run(length: int, value: int) -> list[str]:
    words = []
    while length > 0:
        part = min(length, 1 << _COUNT_BITS[-1])
        choice = next(place for place, bits in enumerate(_COUNT_BITS) if part <= 1 << bits)
        words += ["1", f"{choice:02b}", f"{part - 1:0{_COUNT_BITS[choice]}b}", f"{value:0{_VALUE_BITS}b}"]
        length -= part
    return words


class _Bits:
    """Reads numbers of some bits each."""

    def __init__(self, data: bytes) -> None:
        self._text = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
        self._place = 0

    def read(self, count: int) -> int:
        """Return the next number.

        Raises:
            ValueError: The data ends before it.
        """
        end = self._place + count
        if end > len(self._text):
            raise ValueError("its rle ends too early")
        value = int(self._text[self._place : end], 2)
        self._place = end
        return value
