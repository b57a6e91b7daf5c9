"""What must hold for the bundle of any file, and a double-precision evaluation of the source to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt.bundle import Bundle
from camrt.runtime import open_model, open_session
from camrt.types import SessionOutputs
from tests.exporter.reference_ops import LRN, BatchNormalization, Conv, ConvTranspose, MaxPool
from tests.exporter.test_vjp import Erf, Gelu

Edit = Callable[[onnx.ModelProto], None]


FAST_OPS = [BatchNormalization, Conv, ConvTranspose, MaxPool, LRN, Erf, Gelu]


STEPS = (1e-8, 1e-9, 1e-10)  # a kink of the network within one step is not within a smaller one


def in_double(proto: onnx.ModelProto, start: str, end: str) -> onnx.reference.ReferenceEvaluator:
    """The part of a network from one value to another, every float a float64."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    inferred.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (start, end) if name not in known
    )
    part = onnx.utils.Extractor(inferred).extract_model([start], [end])
    for tensor in part.graph.initializer:
        _widen(tensor)
    for node in part.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.i in (TensorProto.FLOAT, TensorProto.FLOAT16):
                attribute.i = TensorProto.DOUBLE
    return onnx.reference.ReferenceEvaluator(part, new_ops=FAST_OPS)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def edited(proto: onnx.ModelProto, path: Path, edit: Edit | None = None) -> Path:
    """A copy of ``proto``, edited, in a file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if edit is not None:
        edit(copy)
    onnx.save(copy, path)
    return path


def images(bundle: Bundle, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *bundle.manifest.input_shape)).astype(np.float32)


def run(bundle: Bundle, inputs: np.ndarray, classes: Sequence[int]) -> SessionOutputs:
    return open_session(bundle.path, threads=1).run(inputs, np.asarray(classes, np.int64), bundle.manifest.layer_names)


def exported(source: Path, layers: str | Sequence[str] = "auto", **options: Any) -> Bundle:
    return camrt.export(source, source.with_suffix(".bundle.onnx"), layers, **options)


def check_outputs(source: Path, bundle: Bundle, batch: int = 1, tolerance: float = 1e-6) -> None:
    """The bundle's original outputs are the source's."""
    manifest = bundle.manifest
    inputs = images(bundle, batch)
    if manifest.input_layout == "NHWC":
        inputs = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1))
    expected = open_model(source, threads=1).run({manifest.input_name: inputs})
    feeds = {manifest.input_name: inputs, manifest.class_index_input: np.full(batch, -1, np.int64)}
    actual = open_model(bundle.path, threads=1).run(feeds)
    assert set(expected) == set(manifest.outputs)
    for name, values in expected.items():
        scale = np.abs(values.astype(np.float64)).max()
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=tolerance * scale)


def check_batch(bundle: Bundle, tolerance: float = 1e-5, count: int = 3) -> None:
    """``count`` images in one run, and as many classes of one image, equal single runs."""
    inputs, classes = images(bundle, count, seed=5), [1, 0, 2][:count]
    whole, of_one = run(bundle, inputs, classes), run(bundle, inputs[:1], classes)
    for m, chosen in enumerate(classes):
        for together, alone in (
            (whole, run(bundle, inputs[m : m + 1], [chosen])),
            (of_one, run(bundle, inputs[:1], [chosen])),
        ):
            for layer, single in zip(together.layers, alone.layers, strict=True):
                scale = np.abs(single.gradients).max()
                np.testing.assert_allclose(layer.gradients[m], single.gradients[0], rtol=0, atol=tolerance * scale)


def check_gradients(
    source: Path, bundle: Bundle, end: str | None = None, tolerance: float = 1e-5, seed: int = 0, classes: int = 0
) -> None:
    """The gradient of every layer against central differences of the source in float64, along three directions."""
    manifest, proto = bundle.manifest, onnx.load(source)
    outputs = run(bundle, images(bundle, seed=seed), [classes])
    rng = np.random.default_rng(1)
    for layer, described in zip(outputs.layers, manifest.target_layers, strict=True):
        assert np.abs(layer.gradients).max() > 0
        network = in_double(proto, described.value, end or manifest.logits)
        values = layer.activations.astype(np.float64)
        for _ in range(3):
            direction = np.abs(values).max() * rng.standard_normal(values.shape)
            expected = float((direction * layer.gradients).sum())
            scale = float(np.abs(direction * layer.gradients).sum())
            errors = []
            for step in STEPS:
                ends = [values + sign * step * direction for sign in (1, -1)]
                if described.layout == "NHWC":
                    ends = [item.transpose(0, 2, 3, 1) for item in ends]
                high, low = (network.run(None, {described.value: item})[0].reshape(-1)[classes] for item in ends)
                errors.append(abs((high - low) / (2 * step) - expected) / scale)
                if errors[-1] <= tolerance:
                    break
            assert min(errors) <= tolerance, (described.name, errors)
