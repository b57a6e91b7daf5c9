"""Bundles of a torchvision network with random weights for ``camrt bench``, one an image size.

    python -m benchmarks.make_bundles build/bench-bundles --model resnet18 --sizes 128 224 320 448

writes FOLDER/MODEL_SIZE.bundle.onnx. They take images, like bundles that are served.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import camrt
from tests.models import export_onnx, make_inputs, make_model


def make_bundle(name: str, size: int, folder: Path) -> Path:
    """Four target layers, images of size x size."""
    model = make_model(name, 0, size, images=make_inputs(1, size, 101))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = export_onnx(model, Path(temporary) / f"{name}.onnx", "torchscript")
        bundle = camrt.export(
            source,
            folder / f"{name}_{size}.bundle.onnx",
            list(model.target_layers),
            image_size=(size, size),
            preprocess="unit",
        )
    return Path(bundle.path)


def main() -> None:
    """Writes the bundles and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    options = parser.parse_args()
    for size in options.sizes:
        print(make_bundle(options.model, size, options.folder))


if __name__ == "__main__":
    main()
