"""What the precisions below float32 need to know of a model's numbers: measured by running it on inputs.

The only module of the exporter that runs a model; ONNX Runtime does it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import ShapeInferencePass

from camrt.bundle import Manifest, Precision
from camrt.errors import InvalidInputError, InvalidModelError
from camrt.preprocess import folder_inputs, random_inputs
from camrt.types import AnyArray, FloatArray

Calibration: TypeAlias = "str | os.PathLike[str] | FloatArray | None"

_MOST_IMAGES = {"fp16": 8, "int8": 128}
_RANDOM_IMAGES = 4
_CLASSES = 4  # explained in each image while ranges are measured
_QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul"]
_ENGINE_ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError)


def calibration_inputs(
    calibration: Calibration,
    precision: Precision,
    input_shape: tuple[int, int, int],
    preprocessing: Mapping[str, Any] | None,
) -> FloatArray:
    """Inputs (N, C, H, W) float32 to measure with.

    Args:
        calibration: a folder of pictures, an array (N, C, H, W), or None: random images, which fp16 can do with.
        precision: int8 takes up to 128 pictures, fp16 up to 8.
        input_shape: the bundle's, (C, H, W).
        preprocessing: the bundle's.

    Raises:
        InvalidInputError: none given for int8, of another shape, or not of finite numbers.
        ImageError: a picture cannot be read.
    """
    if calibration is None:
        if precision == "int8":
            raise InvalidInputError(
                "int8 needs pictures like those of the deployment, to measure ranges with.",
                "Give calibration=FOLDER (camrt export --calibration FOLDER), a hundred pictures or so.",
            )
        return random_inputs(input_shape, preprocessing, _RANDOM_IMAGES, np.random.default_rng(0))
    if isinstance(calibration, str | os.PathLike):
        return folder_inputs(calibration, preprocessing, _MOST_IMAGES[precision])
    try:
        images = np.asarray(calibration, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The calibration inputs are no array of numbers: {error}.",
            f"Give an array (N, {', '.join(map(str, input_shape))}).",
        ) from error
    if not np.isfinite(images).all():
        raise InvalidInputError(
            "The calibration inputs hold values that are not finite.", "Give inputs like those of the deployment."
        )
    if images.ndim != 4 or images.shape[1:] != input_shape or not len(images):
        raise InvalidInputError(
            f"The calibration inputs have the shape {images.shape}.",
            f"Give an array (N, {', '.join(map(str, input_shape))}).",
        )
    return images[: _MOST_IMAGES[precision]]


def largest_values(model: ir.Model, manifest: Manifest, images: FloatArray) -> dict[str, float]:
    """The largest absolute value of every float value of a bundle's graph, over images and their likeliest classes.

    Also gives the values of ``model`` their element types.
    """
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    proto = ir.to_proto(model)
    names = [
        output.name or ""
        for node in model.graph
        for output in node.outputs
        if output.dtype == ir.DataType.FLOAT and output.name
    ]
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    ranks = -np.arange(1, min(_CLASSES, manifest.num_classes) + 1, dtype=np.int64)
    largest = dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.onnx"
        onnx.save(proto, path)
        session = _session(path)
        for image in images:
            feeds = {manifest.input_name: as_fed(image[None], manifest.input_layout), manifest.class_index_input: ranks}
            for name, array in zip(names, session.run(names, feeds), strict=True):
                largest[name] = max(largest[name], _peak(array))
    return largest


def as_fed(images: FloatArray, layout: str) -> FloatArray:
    """Images (N, C, H, W) in the layout of the model's input."""
    return images if layout == "NCHW" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))


@contextmanager
def quantized_file(source: Path, input_name: str, images: FloatArray) -> Iterator[Path]:
    """The source model with Q/DQ pairs at its convolutions and products with constant weights; gone after the block.

    Symmetric int8 (zero point 0, as TensorRT takes it), one scale a channel of weights, one a tensor of activations,
    whose range is the largest that the images show. The nodes behind which only the class output comes stay float32.

    Args:
        source: a float32 model.
        input_name: its image input.
        images: as the model takes them.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / source.name
        try:
            with _quiet_root_logger():
                _quantize(source, made, input_name, images)
        except _ENGINE_ERRORS as error:
            raise InvalidModelError(
                f"ONNX Runtime cannot quantise {source} ({type(error).__name__}: {error}).", "Export in fp32 or fp16."
            ) from error
        yield made


def _quantize(source: Path, made: Path, input_name: str, images: FloatArray) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out one image after the other."""

        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, AnyArray] | None:
            image = next(self._images, None)
            return None if image is None else {input_name: image[None]}

    quantize_static(
        source,
        made,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_QUANTIZED_OPERATORS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_left_alone(onnx.load(source, load_external_data=False).graph),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # As TensorRT reads them: weights stay float32 behind a pair, and no bias is a 32-bit integer.
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
        },
    )


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantiser logs advice to the root logger, and sets that up where nobody did."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _left_alone(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay float32: the last with weights, and products of two computed matrices."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    weighted = [node for node in graph.node if node.op_type in _QUANTIZED_OPERATORS]
    names = [node.name for node in weighted if not any(name in constants for name in node.input[1:])]
    return [*names, *(node.name for node in weighted[-1:])]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except _ENGINE_ERRORS as error:
        raise InvalidModelError(
            f"ONNX Runtime cannot run the bundle to measure it: {error}.", "Export in fp32."
        ) from error


def _peak(array: AnyArray) -> float:
    """The largest absolute finite value; infinite where there is a NaN."""
    if np.isnan(array).any():
        return float("inf")
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
