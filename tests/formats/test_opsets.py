"""Every opset from 7 up: operators in the form that each opset gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from camrt.errors import UnsupportedModelError
from tests.exporter.graphs import GraphWriter
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_batch, check_gradients, check_outputs, exported

OPSETS = range(7, 24)


class Dialect:
    """Adds operators whose attributes became inputs, or that were renamed, in the form of the writer's opset."""

    def __init__(self, writer: GraphWriter) -> None:
        self.w = writer

    def numbers(self, name: str, values: list[int]) -> str:
        return self.w.constant(name, np.array(values, np.int64))

    def clip(self, name: str, value: str, low: float, high: float) -> str:
        if self.w.opset < 11:
            return self.w.add("Clip", name, value, min=low, max=high)
        bounds = [
            self.w.constant(f"{name}_{part}", np.float32(bound)) for part, bound in (("low", low), ("high", high))
        ]
        return self.w.add("Clip", name, value, *bounds)

    def pad(self, name: str, value: str, pads: list[int]) -> str:
        if self.w.opset < 11:
            return self.w.add("Pad", name, value, pads=pads)
        return self.w.add("Pad", name, value, self.numbers(f"{name}_pads", pads))

    def channels(self, name: str, value: str, start: int, end: int) -> str:
        if self.w.opset < 10:
            return self.w.add("Slice", name, value, axes=[1], starts=[start], ends=[end])
        parts = [self.numbers(f"{name}_{part}", [number]) for part, number in (("s", start), ("e", end), ("a", 1))]
        return self.w.add("Slice", name, value, *parts)

    def twice(self, name: str, value: str) -> str:
        factors = np.array([1, 1, 2, 2], np.float32)
        if self.w.opset < 9:
            return self.w.add("Upsample", name, value, scales=factors.tolist(), mode="nearest")
        scales = self.w.constant(f"{name}_scales", factors)
        if self.w.opset < 11:
            return self.w.add("Upsample" if self.w.opset < 10 else "Resize", name, value, scales, mode="nearest")
        roi = self.w.constant(f"{name}_roi", np.zeros(0, np.float32))
        asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.w.add("Resize", name, value, roi, scales, mode="nearest", **asymmetric)

    def norm(self, name: str, value: str, channels: int) -> str:
        rng = self.w.rng
        parts = {"s": rng.uniform(0.6, 1.4, channels), "b": 0.1 * rng.standard_normal(channels),
                 "m": 0.1 * rng.standard_normal(channels), "v": rng.uniform(0.7, 1.5, channels)}  # fmt: skip
        names = [self.w.constant(f"{name}_{key}", array.astype(np.float32)) for key, array in parts.items()]
        return self.w.add("BatchNormalization", name, value, *names, epsilon=1e-4)

    def dropout(self, name: str, value: str) -> str:
        if self.w.opset < 12:
            return self.w.add("Dropout", name, value, ratio=0.3)
        return self.w.add("Dropout", name, value, self.w.constant(f"{name}_ratio", np.float32(0.3)))

    def mean(self, name: str, value: str) -> str:
        if self.w.opset < 18:
            return self.w.add("ReduceMean", name, value, axes=[2, 3], keepdims=1)
        return self.w.add("ReduceMean", name, value, self.numbers(f"{name}_axes", [2, 3]), keepdims=1)

    def squeeze(self, name: str, value: str) -> str:
        if self.w.opset < 13:
            return self.w.add("Squeeze", name, value, axes=[2, 3])
        return self.w.add("Squeeze", name, value, self.numbers(f"{name}_axes", [2, 3]))

    def hard_swish(self, name: str, value: str) -> str:
        """As exporters wrote it before it became an operator."""
        three, six = self.w.constant(f"{name}_3", np.float32(3)), self.w.constant(f"{name}_6", np.float32(6))
        gate = self.clip(f"{name}_gate", self.w.add("Add", f"{name}_add", value, three), 0.0, 6.0)
        return self.w.add("Div", name, self.w.add("Mul", f"{name}_mul", value, gate), six)


def classifier(path: Path, opset: int, batch: int | str = "N") -> Path:
    w = GraphWriter(opset=opset)
    d = Dialect(w)
    value = d.clip("r1", d.norm("n1", w.conv("c1", "image", (3, 8), 3, 2), 8), 0.0, 6.0)
    value = w.add("PRelu", "r2", w.conv("c2", value, (8, 8)), w.constant("slope", np.full((8, 1, 1), 0.2, np.float32)))
    padded = d.pad("padded", value, [0, 0, 0, 0, 0, 0, 1, 1])
    pooled = w.add("MaxPool", "pooled", padded, kernel_shape=[3, 3], strides=[2, 2])
    value = d.hard_swish("r3", w.conv("c3", pooled, (8, 8)))
    parts = [d.channels("left", value, 0, 3), d.channels("right", value, 3, 8)]
    value = w.add("Concat", "joined", *parts, axis=1)
    value = w.add("Sum", "mixed", value, w.conv("c4", value, (8, 8)), value)
    wide = d.twice("wide", value)
    flat = d.squeeze("flat", d.mean("mean", w.add("Add", "all", wide, d.dropout("dropped", wide))))
    weight, bias = w.weight("fc", 5, 8), w.weight("fc_bias", 5)
    w.add("Softmax", "probabilities", w.add("Gemm", "logits", flat, weight, bias, transB=1), axis=1)
    return w.save(path, (batch, 3, 32, 32), {"probabilities": [batch, 5]})


@pytest.mark.parametrize("opset", OPSETS)
def test_a_network_of_every_opset(opset: int, tmp_path: Path) -> None:
    source = classifier(tmp_path / "source.onnx", opset)
    bundle = exported(source, ["mixed", "r2"])
    proto = onnx.load(bundle.path)
    assert proto.opset_import[0].version == min(max(opset, 17), 21)
    assert (bundle.manifest.head, bundle.manifest.num_classes) == ("softmax", 5)
    assert forbidden_operators(bundle.path) == []
    onnx.checker.check_model(proto, full_check=True)
    check_outputs(source, bundle, 2)
    check_batch(bundle)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18])
def test_gradients_of_old_opsets(opset: int, tmp_path: Path) -> None:
    source = classifier(tmp_path / "source.onnx", opset)
    modern = classifier(tmp_path / "modern.onnx", 18)
    bundle = exported(source, ["mixed", "r2"])
    check_gradients(modern, bundle, end="logits", classes=2)


@pytest.mark.parametrize("opset", [7, 12])
def test_a_fixed_batch_in_an_old_file(opset: int, tmp_path: Path) -> None:
    check_batch(exported(classifier(tmp_path / "source.onnx", opset, 1), ["mixed"]))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("ir_version", [3, 4, 6, 8])
def test_old_ir_versions_with_and_without_their_weights_among_the_inputs(
    ir_version: int, listed: bool, tmp_path: Path
) -> None:
    """Up to IR version 3 weights had to be listed as inputs; some tools left them out all the same."""
    source = classifier(tmp_path / "source.onnx", 8)
    expected = exported(source, ["mixed"])
    proto = onnx.load(source)
    proto.ir_version = ir_version
    if listed:
        proto.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in proto.graph.initializer
        )
    onnx.save(proto, tmp_path / "old.onnx")
    bundle = exported(tmp_path / "old.onnx", ["mixed"])
    assert [value.name for value in onnx.load(bundle.path).graph.input] == ["image", "class_index"]
    assert bundle.manifest.target_layers == expected.manifest.target_layers
    check_outputs(source, bundle)


def resizing(path: Path, opset: int, factors: tuple[float, float], mode: str) -> Path:
    w = GraphWriter(opset=opset)
    value, scales = w.conv("c1", "image", (3, 4), 3, 2), np.array([1, 1, *factors], np.float32)
    if opset == 7:
        value = w.add("Upsample", "resized", value, scales=scales.tolist(), mode=mode)
    elif opset <= 10:
        operator = "Resize" if opset == 10 else "Upsample"
        value = w.add(operator, "resized", value, w.constant("scales", scales), mode=mode)
    else:
        rounding = {"nearest_mode": "ceil" if min(factors) < 1 else "floor"}
        modes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", **rounding}
        value = w.add("Resize", "resized", value, "", w.constant("scales", scales), **modes)
    flat = w.add("Flatten", "flat", w.add("GlobalMaxPool", "largest", w.conv("c2", value, (4, 4))))
    w.add("Gemm", "logits", flat, w.weight("fc", 5, 4), w.weight("fc_bias", 5), transB=1)
    return w.save(path, ("N", 3, 20, 20), {"logits": ["N", 5]})


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(
    ("opset", "factors"),
    [(7, (2, 3)), (7, (1.5, 2.5)), (9, (2, 3)), (9, (1.5, 2.5)), (10, (1.5, 3)), (10, (0.5, 0.6))],
)
def test_old_resizing_keeps_its_coordinates(
    opset: int, factors: tuple[float, float], mode: str, tmp_path: Path
) -> None:
    source = resizing(tmp_path / "source.onnx", opset, factors, mode)
    bundle = exported(source, ["c1"])
    check_outputs(source, bundle, 2)
    check_gradients(resizing(tmp_path / "modern.onnx", 18, factors, mode), bundle)


def test_old_resizing_that_rounds_both_ways_is_refused(tmp_path: Path) -> None:
    source = resizing(tmp_path / "source.onnx", 10, (2, 0.5), "nearest")
    with pytest.raises(UnsupportedModelError, match="shrinks along another"):
        exported(source, ["c1"])
