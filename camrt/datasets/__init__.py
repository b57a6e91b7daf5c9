"""Data sets with ground truth for the evaluation of saliency maps."""

from __future__ import annotations

from camrt.datasets.synthetic_shapes import SyntheticItem, SyntheticShapes

__all__ = ["SyntheticItem", "SyntheticShapes"]
