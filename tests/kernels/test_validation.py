"""Every backend refuses the same inputs, with a typed error that names the array and its shape."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.errors import InvalidInputError, MethodNotFoundError
from camrt.kernels import KernelBackend
from tests.kernels.arrays import layer, maps

A, G = layer(1, 2, 2, 3, 4, 5)
MAPS = maps(2, 2, 4, 5)
TALL = maps(1, 1, 1019, 2)
MATRIX = np.float32([[1, 0, 0], [0, 1, 0]])
NAN_MATRIX = MATRIX * np.float32(np.nan)

REFUSED = {
    "float64": (lambda b: b.layer_map(A.astype(np.float64), G, "gradcam"), "activations .*float64.*float32"),
    "float16": (lambda b: b.layer_map(A, G.astype(np.float16), "gradcam"), "gradients .*float16"),
    "byte order": (lambda b: b.normalize(MAPS.astype(">f4")), "maps .*>f4"),
    "list": (lambda b: b.normalize(MAPS.tolist()), "maps is a list"),
    "rank": (lambda b: b.channel_weights(A[0], G, "gradcam"), r"activations has shape \(3, 4, 5\)"),
    "no channels": (lambda b: b.layer_map(A[:, :0], G[:, :0], "layercam"), r"\(2, 0, 4, 5\) with an empty axis"),
    "no classes": (lambda b: b.pixel_weights(A[:1], G[:0], "layercam"), r"gradients has shape \(0, 3, 4, 5\)"),
    "no pixels": (lambda b: b.resize(MAPS[:, :, :0], (4, 4)), r"maps has shape \(2, 4, 0\)"),
    "channels differ": (lambda b: b.layer_map(A[:, :2], G, "gradcam"), r"\(2, 2, 4, 5\) do not fit .*\(2, 3, 4, 5\)"),
    "sizes differ": (lambda b: b.layer_map(A[..., :4], G, "gradcam"), "do not fit gradients"),
    "N is neither 1 nor M": (lambda b: b.layer_map(A, G[:1], "gradcam"), "N = M or N = 1"),
    "weights of other channels": (lambda b: b.weighted_sum(A, G[:, :2, 0, 0]), "do not fit weights"),
    "weights of rank 3": (lambda b: b.weighted_sum(A, G[:, :, 0]), r"weights has shape \(2, 3, 5\)"),
    "weights of other classes": (lambda b: b.weighted_sum(A, G[:1]), "do not fit weights"),
    "lists differ": (lambda b: b.layer_maps([A], [], "gradcam"), "1 layers and gradients of 0;"),
    "no layers": (lambda b: b.layer_maps([], [], "gradcam"), "at least one"),
    "no layer maps": (lambda b: b.fuse_layers([], (4, 4)), "layer_maps is empty"),
    "numbers of maps differ": (lambda b: b.fuse_layers([MAPS, MAPS[:1]], (4, 4)), r"layer_maps\[1\] .*same M"),
    "layer map of rank 2": (lambda b: b.fuse_layers([MAPS, MAPS[0]], (4, 4)), r"layer_maps\[1\] has shape \(4, 5\)"),
    "output size 0": (lambda b: b.fuse_layers([MAPS], (4, 0)), r"output_size is \(4, 0\)"),
    "output size negative": (lambda b: b.resize(MAPS, (-1, 4)), r"output_size is \(-1, 4\)"),
    "output size too long": (lambda b: b.fuse_layers([MAPS], (1 << 24 | 1, 1)), "at most 16777216"),
    "output size too long to resize": (lambda b: b.resize(MAPS, (1, 1 << 24 | 1)), "at most 16777216"),
    "output size too long to warp": (lambda b: b.warp_affine(MAPS, MATRIX, (1, 1 << 24 | 1)), "at most 16777216"),
    "output size too wide": (lambda b: b.fuse_layers([TALL, MAPS[:1]], (1, 1 << 20)), "at most 262400 columns"),
    "matrix shape": (lambda b: b.warp_affine(MAPS, MATRIX.T.copy(), (4, 4)), r"matrix of shape \(3, 2\)"),
    "matrix dtype": (lambda b: b.warp_affine(MAPS, MATRIX.astype(np.float64), (4, 4)), "matrix .*float64"),
    "matrix not finite": (lambda b: b.warp_affine(MAPS, NAN_MATRIX, (4, 4)), "all finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_inputs(any_backend: KernelBackend, name):
    call, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        call(any_backend)


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.channel_weights(A, G, "layercam"),
        lambda b: b.pixel_weights(A, G, "gradcam"),
        lambda b: b.layer_map(A, G, "gradcam+"),
        lambda b: b.fuse_layers([MAPS], (4, 4), fusion="sum"),
        lambda b: b.fuse_layers([MAPS], (4, 4), order="never"),
    ],
)
def test_unknown_names(any_backend: KernelBackend, call):
    with pytest.raises(MethodNotFoundError, match=r"Unknown .* Choose one of"):
        call(any_backend)
