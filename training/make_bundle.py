"""Makes the embedded bundle, camrt/data/shapes.onnx, from the trained classifier beside this file."""

from __future__ import annotations

from pathlib import Path

import camrt
from camrt.datasets.synthetic_shapes import SyntheticShapes

HERE = Path(__file__).parent
SOURCE = HERE / "shapes_cnn.onnx"
BUNDLE = HERE.parent / "camrt" / "data" / "shapes.onnx"


def main() -> None:
    """Writes the bundle and prints its target layers."""
    bundle = camrt.export(SOURCE, BUNDLE, preprocess="symmetric", class_names=SyntheticShapes.class_names)
    print(f"{bundle.path}: {', '.join(bundle.manifest.layer_names)}")


if __name__ == "__main__":
    main()
