"""What an Explainer refuses, so that no size costs more than its pixels and no answer means nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import camrt
from camrt.errors import InvalidInputError
from camrt.explainer.arguments import MAX_OUTPUT_SIDE
from camrt.explainer.assembly import check_logits


@pytest.fixture(scope="module")
def explainer() -> camrt.Explainer:
    return camrt.Explainer(threads=1)


def inputs(explainer: camrt.Explainer, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *explainer.manifest.input_shape)).astype(np.float32)


@pytest.mark.parametrize("size", [(1, MAX_OUTPUT_SIDE + 1), (MAX_OUTPUT_SIDE + 1, 1), (1, 30_000_000)])
def test_narrow_maps_are_refused(explainer: camrt.Explainer, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="At most 16384 pixels a side"):
        explainer.explain(inputs(explainer), output_size=size)
    with pytest.raises(InvalidInputError, match="At most 16384 pixels a side"):
        explainer.explain_images(Image.new("RGB", (20, 20)), output_size=size)


@pytest.mark.parametrize("size", [(1, MAX_OUTPUT_SIDE), (MAX_OUTPUT_SIDE, 1)])
def test_the_longest_side_is_made(explainer: camrt.Explainer, size: tuple[int, int]) -> None:
    (explanation,) = explainer.explain(inputs(explainer), output_size=size)
    assert explanation.saliency_map.shape == size


def test_an_image_too_long_to_be_warped_to_is_refused_with_a_typed_error(explainer: camrt.Explainer) -> None:
    stream = io.BytesIO()
    Image.new("L", ((1 << 24) + 2, 2)).save(stream, "PNG", compress_level=1)
    with pytest.raises(InvalidInputError, match="at most 16777216"):
        explainer.explain_images(stream.getvalue())


@pytest.mark.parametrize("method", ["refinecam", "gradcam", "layercam"])
def test_values_that_overflow_inside_the_model(explainer: camrt.Explainer, method: str) -> None:
    values = inputs(explainer, 2)
    values[1] = 3e38
    with pytest.raises(InvalidInputError, match="logits of image 1 are not finite") as caught:
        explainer.explain(values, method=method)
    assert "preprocessing" in caught.value.next_step


def test_logits_that_mean_something() -> None:
    inf, nan = np.inf, np.nan
    check_logits(np.array([[0.0, 3e38], [-inf, 1.0]], np.float32))
    for row in ([nan, 1.0], [inf, 1.0], [-inf, -inf], [nan, nan], [-inf, nan]):
        with pytest.raises(InvalidInputError, match="image 1 are not finite"):
            check_logits(np.array([[0.0, 1.0], row], np.float32))
