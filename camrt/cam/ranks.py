"""Classes that are named by the rank of their logit, on the host: what a bundle's TopK does in the graph."""

from __future__ import annotations

import numpy as np

from camrt.types import FloatArray, IntArray


def resolve_ranks(logits: FloatArray, class_indices: IntArray) -> IntArray:
    """Class indices (N, M) with every rank -r replaced by the class with the r-th highest logit of (N, K).

    Of equal logits the lower class comes first, as in the bundle.
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(order, np.maximum(-class_indices - 1, 0), axis=1)
    return np.where(class_indices < 0, ranked, class_indices).astype(np.int64)
