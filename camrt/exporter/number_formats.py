"""In what kind of numbers a model computes; kinds that cannot be differentiated are refused, with the way out."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from camrt.bundle import Precision
from camrt.errors import UnsupportedModelError

_INTEGER_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
)
_RUNTIME_DOMAINS = frozenset({"com.microsoft", "com.microsoft.nchwc", "ai.onnx.contrib", "com.ms.internal.nhwc"})


class RefuseNumberFormatsPass(InPlacePass):
    """Changes nothing; refuses three kinds of files.

    1. Integer arithmetic (QLinearConv, ConvInteger, DynamicQuantizeLinear and their like): no gradient passes integers.
    2. Operators that an engine's optimiser made (com.microsoft FusedConv and their like).
    3. bfloat16: ONNX Runtime has no convolutions of it on the CPU.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        for node in model.graph:
            name = node.name or node.outputs[0].name
            if node.op_type in _INTEGER_OPERATORS or node.op_type.startswith(("QLinear", "QGemm", "QAttention")):
                raise UnsupportedModelError(
                    f"The model computes with integers: {node.op_type} (node {name!r}). No gradient passes them.",
                    "Quantise the float model statically in QDQ format (onnxruntime.quantization.quantize_static with "
                    "quant_format=QuantFormat.QDQ), or export the float model.",
                )
            if node.domain in _RUNTIME_DOMAINS:
                raise UnsupportedModelError(
                    f"{node.op_type} (node {name!r}) of the domain {node.domain} was made by an engine's optimiser.",
                    "Export the model as it was before that optimiser.",
                )
        brain = next((name for name, kind in _element_types(model.graph) if kind == ir.DataType.BFLOAT16), None)
        if brain is not None:
            raise UnsupportedModelError(
                f"The model computes in bfloat16 ({brain!r}); ONNX Runtime cannot run it on the CPU.",
                "Export it in float32 or float16.",
            )
        return PassResult(model, False)


def source_precision(graph: ir.Graph) -> Precision:
    """In what the model computes: int8 where it holds quantised values, fp16 where it holds half-precision ones."""
    if any(node.op_type == "QuantizeLinear" for node in graph):
        return "int8"
    return "fp16" if any(kind == ir.DataType.FLOAT16 for _, kind in _element_types(graph)) else "fp32"


def _element_types(graph: ir.Graph) -> Iterator[tuple[str, ir.DataType | None]]:
    """What the graph takes, returns, holds, and casts to."""
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        yield value.name or "", value.dtype
    for node in graph:
        if node.op_type == "Cast" and "to" in node.attributes:
            yield node.outputs[0].name or "", ir.DataType(node.attributes["to"].as_int())
