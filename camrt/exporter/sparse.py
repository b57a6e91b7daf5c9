"""Makes sparse weights dense: engines and rewriting take them as ordinary ones."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

_MAX_ELEMENTS = 1 << 29  # what fits a protobuf file as float32


def densify(graph: onnx.GraphProto) -> None:
    """Turns sparse initialisers into initialisers, and the sparse values of Constant nodes into dense ones, in place.

    Raises:
        ValueError: indices outside the tensor, numbers of values and indices that differ, or an absurd size.
    """
    graph.initializer.extend(_dense(tensor) for tensor in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                dense = _dense(attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, shape = tensor.values.name, tuple(tensor.dims)
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    if not 0 < math.prod(shape) <= _MAX_ELEMENTS or min(shape) < 1:
        raise ValueError(f"the sparse weight {name!r} has the shape {shape}")
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        indices = np.ravel_multi_index(tuple(indices.T), shape)
    if indices.shape != values.shape or (indices.size and not 0 <= indices.min() <= indices.max() < math.prod(shape)):
        raise ValueError(f"the indices of the sparse weight {name!r} do not fit its shape {shape}")
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[indices] = values
    return numpy_helper.from_array(dense.reshape(shape), name)
