"""What the tests of precisions share: the embedded model as it was before its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from camrt.bundle import Bundle
from camrt.explainer import embedded_bundle_path
from camrt.preprocess import random_inputs
from camrt.runtime.pruning import PrunableModel


def embedded_source(folder: Path) -> tuple[Path, dict]:
    """The embedded model's forward part as a file, and the arguments that export it again."""
    bundle = Bundle.open(embedded_bundle_path())
    path = folder / "shapes_cnn.onnx"
    path.write_bytes(PrunableModel(bundle.path).complete((bundle.manifest.logits,)))
    arguments = {
        "target_layers": list(bundle.manifest.layer_names),
        "preprocess": bundle.manifest.preprocessing,
        "class_names": bundle.manifest.class_names,
    }
    return path, arguments


def embedded_inputs(samples: int, seed: int = 1) -> np.ndarray:
    manifest = Bundle.open(embedded_bundle_path()).manifest
    return random_inputs(manifest.input_shape, manifest.preprocessing, samples, np.random.default_rng(seed))
