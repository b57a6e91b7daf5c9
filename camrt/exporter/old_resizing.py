"""Upsample and Resize of opset 10 and before: which coordinates they mean once the opset is converted.

They took position x of the output from x / scale of the input ("asymmetric"), and nearest rounds down where it enlarges
and up where it shrinks. The converter leaves the later default, half_pixel, which is another function.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from camrt.types import AnyArray

LAST_OPSET = 10


def keep_coordinates(graph: onnx.GraphProto) -> None:
    """Gives the Resize nodes of a graph that was converted from ``LAST_OPSET`` or before the coordinates that they had.

    Raises:
        ValueError: one by nearest whose scales are no constants, or enlarge along one axis and shrink along another.
    """
    constants = dict(_constants(graph))
    for node in graph.node:
        if node.op_type != "Resize":
            continue
        mode = next((item.s for item in node.attribute if item.name == "mode"), b"nearest")
        kept = [item for item in node.attribute if item.name == "mode"]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        if mode == b"nearest":
            node.attribute.append(helper.make_attribute("nearest_mode", _rounding(node, constants)))


def _rounding(node: onnx.NodeProto, constants: dict[str, AnyArray]) -> str:
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None:
        raise ValueError(f"the scales of {node.op_type} {node.name!r} are no constants")
    if np.all(scales >= 1):
        return "floor"
    if np.all(scales <= 1):
        return "ceil"
    raise ValueError(f"{node.op_type} {node.name!r} enlarges along one axis and shrinks along another")


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, AnyArray]]:
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            for item in node.attribute:
                if item.name == "value":
                    yield node.output[0], numpy_helper.to_array(item.t)
