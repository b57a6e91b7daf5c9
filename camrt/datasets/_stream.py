"""Random numbers that are the same on every machine and with every numpy release.

numpy guarantees the output of ``SeedSequence`` and of the bit generators for good, but lets the methods of
``Generator`` change between releases. Everything here is therefore made from raw PCG64 words with integer and exactly
rounded IEEE arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from camrt.types import ByteArray, FloatArray

_Item = TypeVar("_Item")
_WORD_TO_UNIT = 2.0**-53


class Stream:
    """A stream of random numbers that is a pure function of its key.

    Args:
        key: the parts of the name of the stream; any two different keys give independent streams.
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
        words = [int.from_bytes(digest[k : k + 4], "little") for k in range(0, 32, 4)]
        self._bits = np.random.PCG64(np.random.SeedSequence(words))

    def unit(self) -> float:
        """A multiple of 2^-53 in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * _WORD_TO_UNIT

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, count: int) -> int:
        """An integer in [0, count); the bias of the multiply-shift draw is below count / 2^64."""
        return (int(self._bits.random_raw()) * count) >> 64

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[_Item]) -> _Item:
        """One of the items, all equally likely."""
        return items[self.integer(len(items))]

    def permutation(self, count: int) -> list[int]:
        """The integers 0..count-1 in random order (Fisher-Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.integer(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def octets(self, count: int) -> ByteArray:
        """(count,) uint8, uniform over 0..255."""
        words = self._bits.random_raw(-(-count // 8))
        return np.asarray(words, dtype="<u8").view(np.uint8)[:count]

    def lattice(self, rows: int, columns: int) -> FloatArray:
        """(rows, columns) float32, multiples of 1/256 in [0, 1)."""
        return self.octets(rows * columns).reshape(rows, columns).astype(np.float32) * np.float32(1 / 256)
