"""Data sets for the evaluation of saliency maps: folders of images, and synthetic shapes with ground truth."""

from __future__ import annotations

from camrt.datasets.folder import FolderDataset, FolderItem
from camrt.datasets.protocol import Dataset, DatasetError, DatasetItem, Problem, Sample, mask_in_view, to_input
from camrt.datasets.synthetic_shapes import SyntheticItem, SyntheticShapes
from camrt.datasets.synthetic_source import ShapesDataset

__all__ = [
    "Dataset",
    "DatasetError",
    "DatasetItem",
    "FolderDataset",
    "FolderItem",
    "Problem",
    "Sample",
    "ShapesDataset",
    "SyntheticItem",
    "SyntheticShapes",
    "mask_in_view",
    "to_input",
]
