"""Makes a bundle from a classifier that train_shapes.py wrote; without arguments the embedded one."""

from __future__ import annotations

import argparse
from pathlib import Path

import camrt
from camrt.datasets.synthetic_shapes import SyntheticShapes

HERE = Path(__file__).parent
SOURCE = HERE / "shapes_cnn.onnx"
BUNDLE = HERE.parent / "camrt" / "data" / "shapes.onnx"


def main() -> None:
    """Writes the bundle and prints its target layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--out", type=Path, default=BUNDLE)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    bundle = camrt.export(options.source, options.out, preprocess="symmetric", class_names=SyntheticShapes.class_names)
    print(f"{bundle.path}: {', '.join(bundle.manifest.layer_names)}")


if __name__ == "__main__":
    main()
