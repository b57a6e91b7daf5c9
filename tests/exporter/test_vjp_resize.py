"""The matrices of resizes against ONNX Runtime's own Resize, for every pair of lengths up to 32 and 48."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from camrt.exporter.vjp.resize import Resampling
from tests.exporter.test_vjp import Case, gradient_model

LENGTHS = list(itertools.product(range(1, 33), range(1, 49)))


def session(**attributes: str) -> onnxruntime.InferenceSession:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, None, None]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [4]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "resize", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_the_nearest_element_is_the_one_that_onnx_runtime_takes(coordinates: str, rounding: str) -> None:
    resize = session(mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    refused = 0
    for size, output in LENGTHS:
        matrix = Resampling(size, output, output / size).nearest(coordinates, rounding)
        if matrix is None:
            refused += 1
            continue
        x = np.arange(size, dtype=np.float32)[None, None, None]
        (y,) = resize.run(None, {"x": x, "sizes": np.array([1, 1, 1, output])})
        np.testing.assert_array_equal(matrix @ x[0, 0, 0], y[0, 0, 0], err_msg=f"{size} to {output}")
    assert refused <= (0.06 * len(LENGTHS) if rounding.startswith("round") else 0)


def test_doubling_and_halving_are_never_too_close_to_call() -> None:
    for size, factor in itertools.product(range(1, 65), (2, 4)):
        for coordinates, rounding in itertools.product(("half_pixel", "asymmetric"), ("round_prefer_floor", "floor")):
            assert Resampling(size, size * factor, factor).nearest(coordinates, rounding) is not None
            assert Resampling(size * factor, size, 1 / factor).nearest(coordinates, rounding) is not None


def test_the_gradient_goes_to_the_row_that_was_taken() -> None:
    """14 rows to 2: the second of them is at 14 / 2 in exact numbers, and a little less in float32."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    case = resized((14, 1), {"z": np.array([2, 1])}, ("x", "", "", "z"), axes=[2, 3], **attributes)
    plain, backward = gradient_model(case, TensorProto.FLOAT)
    x, dy = np.arange(14, dtype=np.float32).reshape(1, 1, 14, 1), np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
    y, dx = run(plain, x=x).reshape(-1), run(backward, x=x, dy=dy).reshape(-1)
    expected = np.zeros(14)
    expected[y.astype(int)] = [1, 2]
    np.testing.assert_array_equal(dx, expected)


def test_axes_may_count_from_the_end() -> None:
    given = resized((5, 6), {"s": np.array([1.5, 2], np.float32)}, ("x", "", "s"), mode="linear", axes=[-1, -2])
    all_axes = resized((5, 6), {"s": np.array([1, 1, 2, 1.5], np.float32)}, ("x", "", "s"), mode="linear")
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((1, 1, *size)).astype(np.float32) for name, size in (("x", (5, 6)), ("dy", (10, 9)))
    }
    left, right = (run(gradient_model(case, TensorProto.FLOAT)[1], **feeds) for case in (given, all_axes))
    np.testing.assert_array_equal(left, right)


def resized(
    size: tuple[int, int], constants: dict[str, np.ndarray], inputs: tuple[str, ...], **attributes: Any
) -> Case:
    return Case("Resize", (1, *size), constants, attributes, inputs)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
