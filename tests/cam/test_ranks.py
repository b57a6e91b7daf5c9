"""Ranks of classes, resolved on the host."""

from __future__ import annotations

import numpy as np

from camrt.cam import resolve_ranks


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    logits = np.array([[1, 3, 3, 0]], np.float32)
    assert resolve_ranks(logits, np.array([[-1, -2, -3, 3]])).tolist() == [[1, 2, 0, 3]]
