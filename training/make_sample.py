"""Writes the sample picture: part of one test item, rendered larger than the model's input and not square.

Run from the repository root: ``python training/make_sample.py --out camrt/data/sample.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from camrt.datasets.synthetic_shapes import SyntheticShapes

ITEM = 60
SIDE = 320
HEIGHT = 240


def main() -> None:
    """Renders the item, cuts a strip of full width around its shape and saves it as PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--item", type=int, default=ITEM, help="item of the test split")
    options = parser.parse_args()
    item = SyntheticShapes("test", options.item + 1, SIDE).item(options.item)
    top = min(max(0, round(item.center[1] - HEIGHT / 2)), SIDE - HEIGHT)
    Image.fromarray(item.image[top : top + HEIGHT]).save(options.out, optimize=True)
    print(f"item {options.item}: {item.class_name}, {item.object_size_px:.0f} px, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
