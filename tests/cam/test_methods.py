from __future__ import annotations

import numpy as np
import pytest

from camrt.cam import CAM_METHODS, REFINECAM, cam_method
from camrt.errors import MethodNotFoundError
from camrt.kernels import get_backend
from camrt.types import LayerOutputs


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


def test_every_method_has_a_formula_here() -> None:
    assert FORMULAS.keys() == CAM_METHODS.keys()
    assert REFINECAM not in CAM_METHODS


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("images", [2, 1])
@pytest.mark.parametrize("name", CAM_METHODS)
def test_a_map_is_its_formula(name: str, images: int, backend: str) -> None:
    one, two = layer(images=images), layer("finer", images, size=(7, 6))
    maps = CAM_METHODS[name].layer_maps(get_backend(backend), [one, two])
    for outputs, values in zip((one, two), maps, strict=True):
        exact = FORMULAS[name](outputs.activations.astype(np.float64), outputs.gradients.astype(np.float64))
        np.testing.assert_allclose(values, normalized(exact), rtol=0, atol=1e-5)
        assert values.dtype == np.float32


def test_methods_by_name() -> None:
    assert cam_method("gradcam++").name == "gradcam++"
    with pytest.raises(MethodNotFoundError, match=r"'gradcam\+\+\+'") as caught:
        cam_method("gradcam+++")
    assert all(name in caught.value.next_step for name in CAM_METHODS)
