"""What is timed: a bundle, an image for it, and explainers under a fixed number of pinned threads."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from camrt.bench.environment import pinned
from camrt.explainer import Explainer, embedded_bundle_path, sample_image_path
from camrt.preprocess import load_image
from camrt.types import FloatArray

JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Workload:
    """The same work for every line of a benchmark.

    Attributes:
        bundle: what is served; the embedded bundle by default.
        image: a picture; the sample image by default.
        preprocess: a preset for bundles that do not say how images are preprocessed; None: what the bundle says.
    """

    bundle: Path
    image: Path
    preprocess: str | None = None

    @classmethod
    def of(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        image: str | os.PathLike[str] | None = None,
        preprocess: str | None = None,
    ) -> Workload:
        """Defaults filled in."""
        path = embedded_bundle_path() if bundle is None else Path(bundle)
        return cls(path, sample_image_path() if image is None else Path(image), preprocess)

    @contextmanager
    def explainer(self, provider: str, threads: int) -> Iterator[Explainer]:
        """An explainer whose threads, and the caller's, stay on the first ``threads`` cores.

        Raises:
            InvalidInputError: fewer cores.
            BackendUnavailableError: the provider cannot be used here.
        """
        with pinned(threads):
            yield Explainer(self.bundle, provider, threads, preprocess=self.preprocess)

    def inputs(self, explainer: Explainer, batch: int) -> FloatArray:
        """(batch, C, H, W): the image, or noise where the bundle takes tensors only."""
        if explainer.preprocessing is None:
            shape = (1, *explainer.manifest.input_shape)
            one = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        else:
            one = explainer.preprocess_images([self.image])
        return np.repeat(one, batch, axis=0)

    def jpeg(self) -> bytes:
        """The image as a JPEG file."""
        stream = io.BytesIO()
        picture: Image.Image = load_image(self.image)
        picture.save(stream, "JPEG", quality=JPEG_QUALITY)
        return stream.getvalue()
