"""Makes docs/images/demo.png: the embedded sample, Grad-CAM++ of its coarsest layer, and RefineCAM."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import camrt
from camrt.explainer import sample_image_path
from camrt.preprocess import load_image

TARGET = Path(__file__).parent / "images" / "demo.png"
GAP = 8


def main() -> None:
    """Writes the picture."""
    sample = load_image(sample_image_path())
    explainer = camrt.Explainer()
    maps = [explainer.explain_images(sample, method=method)[0] for method in ("gradcam++", "refinecam")]
    panels = [sample, *(explanation.overlay(sample) for explanation in maps)]
    width, height = sample.size
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height), "white")
    for column, panel in enumerate(panels):
        sheet.paste(panel, (column * (width + GAP), 0))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
