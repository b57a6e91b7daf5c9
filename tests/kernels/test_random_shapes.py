"""Random shapes: every backend against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.kernels import get_backend
from camrt.kernels.backend import CHANNEL_RULES, FUSIONS, ORDERS, PIXEL_RULES
from tests.kernels.arrays import layer, maps

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
SIZES = st.integers(1, 40)


@SETTINGS
@hypothesis.given(
    m=st.integers(1, 3), c=st.integers(1, 20), h=SIZES, w=SIZES, shared=st.booleans(), seed=st.integers(0, 999)
)
def test_layers(m, c, h, w, shared, seed):
    arrays = layer(seed, m, 1 if shared else m, c, h, w)
    reference, native = get_backend("reference"), get_backend("native", 2)
    for rule in CHANNEL_RULES:
        expected = reference.channel_weights(*arrays, rule)
        np.testing.assert_allclose(native.channel_weights(*arrays, rule), expected, rtol=1e-5, atol=1e-5)
    for rule in PIXEL_RULES:
        expected = reference.pixel_weights(*arrays, rule)
        np.testing.assert_array_equal(native.pixel_weights(*arrays, rule), expected)
    for rule in CHANNEL_RULES + PIXEL_RULES:
        np.testing.assert_allclose(native.layer_map(*arrays, rule), reference.layer_map(*arrays, rule), atol=1e-5)


@SETTINGS
@hypothesis.given(
    sizes=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=6),
    output_size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    m=st.integers(1, 3),
    fusion=st.sampled_from(FUSIONS),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 999),
)
def test_fusion(sizes, output_size, m, fusion, order, seed):
    layers = [maps(seed + i, m, *size) for i, size in enumerate(sizes)]
    result, degenerate = get_backend("native", 2).fuse_layers(layers, output_size, fusion, order)
    expected, expected_degenerate = get_backend("reference").fuse_layers(layers, output_size, fusion, order)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(degenerate, expected_degenerate)


@SETTINGS
@hypothesis.given(
    size=st.tuples(SIZES, SIZES),
    output_size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    matrix=st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6),
    axis_aligned=st.booleans(),
)
def test_resampling(size, output_size, matrix, axis_aligned):
    values = maps(1, 2, *size)
    affine = np.float32(matrix).reshape(2, 3)
    if axis_aligned:
        affine[0, 1] = affine[1, 0] = 0
    reference, native = get_backend("reference"), get_backend("native", 2)
    np.testing.assert_array_equal(native.resize(values, output_size), reference.resize(values, output_size))
    expected = reference.warp_affine(values, affine, output_size)
    np.testing.assert_array_equal(native.warp_affine(values, affine, output_size), expected)
