"""``VJP_RULES``: ONNX operator -> rule that builds the gradient of its inputs.

A rule is ``(op, node, cotangent) -> one gradient value or None an input``; trailing inputs may be left out. The
cotangent is the gradient of the node's output, (M, ...) where the output is (N, ...): N is M, or 1, so a rule must
only combine them by operators that broadcast. A rule builds graph, never numbers, and never the gradient of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from camrt.errors import UnsupportedOpError
from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.shapes import BATCH, nominal_shape
from camrt.types import AnyArray

Gradients: TypeAlias = Sequence["ir.Value | None"]
VjpRule: TypeAlias = Callable[[OpBuilder, ir.Node, ir.Value], Gradients]
MultiOutputRule: TypeAlias = Callable[[OpBuilder, ir.Node, Sequence["ir.Value | None"]], Gradients]
_Rule = TypeVar("_Rule", VjpRule, MultiOutputRule)

VJP_RULES: dict[str, VjpRule] = {}
MULTI_OUTPUT_RULES: dict[str, MultiOutputRule] = {}


def register_vjp(*op_types: str) -> Callable[[VjpRule], VjpRule]:
    """Registers the rule of operators with one (used) output."""

    def register(rule: VjpRule) -> VjpRule:
        VJP_RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return register


def register_multi_output_vjp(*op_types: str) -> Callable[[MultiOutputRule], MultiOutputRule]:
    """Registers the rule of operators with several outputs; it gets one cotangent (or None) an output."""

    def register(rule: MultiOutputRule) -> MultiOutputRule:
        MULTI_OUTPUT_RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return register


def has_rule(node: ir.Node) -> bool:
    """Whether the operator of ``node`` can be differentiated."""
    return node.domain in ("", "ai.onnx") and (node.op_type in VJP_RULES or node.op_type in MULTI_OUTPUT_RULES)


def unsupported(node: ir.Node, reason: str) -> UnsupportedOpError:
    """The error a rule raises for a form of its operator that it does not cover."""
    return UnsupportedOpError(node.op_type, node.name or "", reason=reason)


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An INTS attribute, or ``default`` where the node leaves it out."""
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(attribute.as_ints())


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute, or ``default`` where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A FLOAT attribute, or ``default`` where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def text_attribute(node: ir.Node, name: str, default: str) -> str:
    """A STRING attribute, or ``default`` where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def constant_ints(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The integers of a constant input, or None where the input is left out; refuses one computed at run time."""
    array = _constant(node, index)
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


def constant_scalar(node: ir.Node, index: int) -> float | None:
    """The one number of a constant input, or None where it is left out; refuses several, and values of run time."""
    array = _constant(node, index)
    if array is not None and array.size != 1:
        raise unsupported(node, f"input {index} holds {array.size} numbers")
    return None if array is None else float(array.reshape(-1)[0])


def _constant(node: ir.Node, index: int) -> AnyArray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is None:
        raise unsupported(node, f"input {index} is not a constant")
    return value.const_value.numpy()


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """A required input."""
    value = node.inputs[index]
    if value is None:
        raise unsupported(node, f"input {index} is missing")
    return value


def refuse_batch(node: ir.Node, value: ir.Value, axes: Iterable[int]) -> None:
    """Refuses ``node`` if one of the ``axes`` of ``value`` along which it works, counted from either end, is the batch.

    Raises:
        UnsupportedOpError: it mixes the images of a batch.
    """
    shape = nominal_shape(value)
    if any(shape[axis] == BATCH for axis in axes):
        raise unsupported(node, "it works along the batch axis")


def zeros_like(op: OpBuilder, value: ir.Value) -> ir.Value:
    """Zeros of the shape of ``value``; a product with 0 would keep its infinities as NaN."""
    return op("Where", op.constant(np.asarray(False)), value, op.scalar(0.0))


def unbroadcast(op: OpBuilder, gradient: ir.Value, source: ir.Value, broadcast: ir.Value) -> ir.Value:
    """Sums ``gradient``, of the shape of ``broadcast``, over the axes that ``source`` was broadcast along."""
    shape, full = nominal_shape(source), nominal_shape(broadcast)
    extra = len(full) - len(shape)
    if extra:
        gradient = op.reduce_sum(gradient, range(extra), keepdims=0)
        full = full[extra:]
    axes = [
        axis
        for axis, (dim, target) in enumerate(zip(shape, full, strict=True))
        if dim == 1 and target not in (1, BATCH)
    ]
    return op.reduce_sum(gradient, axes) if axes else gradient
