from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from camrt.cam import CAM_METHODS, GRADIENT_METHODS, REFINECAM, available_methods, cam_method
from camrt.errors import MethodNotFoundError, MethodUnavailableError
from camrt.kernels import get_backend
from camrt.types import LayerOutputs
from tests.cam.test_plan import manifest


def layer(name: str = "layer", images: int = 2, classes: int = 2, size: tuple[int, int] = (4, 5)) -> LayerOutputs:
    rng = np.random.default_rng(0)
    activations = rng.random((images, 3, *size), dtype=np.float32)
    return LayerOutputs(name, activations, rng.standard_normal((classes, 3, *size)).astype(np.float32))


def normalized(maps: np.ndarray) -> np.ndarray:
    maps = np.maximum(maps, 0)
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / (high - low + 1e-7)


FORMULAS = {
    "gradcam": lambda a, g: (g.mean(axis=(2, 3), keepdims=True) * a).sum(axis=1),
    "xgradcam": lambda a, g: (
        ((g * a).sum(axis=(2, 3), keepdims=True) / (a.sum(axis=(2, 3), keepdims=True) + 1e-7)) * a
    ).sum(axis=1),
    "hirescam": lambda a, g: (g * a).sum(axis=1),
    "gradcam_elementwise": lambda a, g: np.maximum(g * a, 0).sum(axis=1),
    "layercam": lambda a, g: (np.maximum(g, 0) * a).sum(axis=1),
    "gradcam++": lambda a, g: (
        (np.maximum(g, 0) * (g**2 / (2 * g**2 + a.sum(axis=(2, 3), keepdims=True) * g**3 + 1e-6))).sum(
            axis=(2, 3), keepdims=True
        )
        * a
    ).sum(axis=1),
}


def test_every_gradient_method_has_a_formula_here() -> None:
    assert FORMULAS.keys() == set(GRADIENT_METHODS)
    assert set(GRADIENT_METHODS) < CAM_METHODS.keys()
    assert REFINECAM not in CAM_METHODS


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("images", [2, 1])
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_a_map_is_its_formula(name: str, images: int, backend: str) -> None:
    one, two = layer(images=images), layer("finer", images, size=(7, 6))
    maps = CAM_METHODS[name].layer_maps(get_backend(backend), [one, two])
    for outputs, values in zip((one, two), maps, strict=True):
        exact = FORMULAS[name](outputs.activations.astype(np.float64), outputs.gradients.astype(np.float64))
        np.testing.assert_allclose(values, normalized(exact), rtol=0, atol=1e-5)
        assert values.dtype == np.float32


def test_shapleycam_is_gradcam_of_the_gradient_less_half_the_product() -> None:
    one, vectors = layer(), np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)
    both = LayerOutputs("layer", one.activations, one.gradients, vectors)
    (maps,) = CAM_METHODS["shapleycam"].layer_maps(get_backend("reference"), [both])
    expected = normalized(FORMULAS["gradcam"](one.activations, one.gradients.astype(np.float64) - 0.5 * vectors))
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5)


def test_what_ablationcam_cannot_start_at() -> None:
    known = manifest("a")
    for layout in ("NCHW", "NHWC", "NLC", "NCL"):
        other = replace(known, target_layers=(replace(known.layer("a"), layout=layout),))
        assert ("ablationcam" in available_methods(other, ["a"])) == (layout in ("NCHW", "NHWC"))
    with pytest.raises(MethodUnavailableError, match="'a' is kept as NCL, as tokens"):
        CAM_METHODS["ablationcam"].require(other, ["a"])


def test_the_expensive_ones() -> None:
    assert [name for name, method in CAM_METHODS.items() if method.expensive] == ["scorecam", "ablationcam"]


def test_methods_by_name() -> None:
    assert cam_method("gradcam++").name == "gradcam++"
    with pytest.raises(MethodNotFoundError, match=r"'gradcam\+\+\+'") as caught:
        cam_method("gradcam+++")
    assert all(name in caught.value.next_step for name in CAM_METHODS)
