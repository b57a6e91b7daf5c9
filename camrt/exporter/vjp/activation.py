"""Vjp rules of elementwise functions of one input.

Boundaries are PyTorch's: ReLU'(0) = 0; Clip passes the gradient strictly inside its range (as hardtanh and ReLU6 do).
A mask reads the forward output where it can, so that the input of a fused Conv + activation stays internal.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from camrt.exporter.op_builder import OpBuilder
from camrt.exporter.vjp.registry import (
    Gradients,
    constant_scalar,
    float_attribute,
    int_attribute,
    operand,
    refuse_batch,
    register_vjp,
    text_attribute,
    unsupported,
)


def keep_where(op: OpBuilder, condition: ir.Value, cotangent: ir.Value) -> ir.Value:
    """The cotangent where ``condition`` holds, else 0.

    A product with the mask: ONNX Runtime's Where takes several times as long (benchmarks/bench_lowering.py). But of an
    infinity it would make NaN, so a cotangent that may hold some is masked by Where: see camrt.exporter.vjp.infinities.
    """
    if not op.lowering:
        return op("Where", condition, cotangent, op.scalar(0.0))
    return op("Mul", cotangent, op.cast(condition))


def between(op: OpBuilder, value: ir.Value, low: float | None, high: float | None) -> ir.Value:
    """low < value < high; a bound that is None is left out, but not both."""
    above = None if low is None else op("Greater", value, op.scalar(low))
    below = None if high is None else op("Less", value, op.scalar(high))
    if above is not None and below is not None:
        return op("And", above, below)
    condition = above if above is not None else below
    assert condition is not None
    return condition


@register_vjp("Relu")
def relu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = max(x, 0); dx = dy where y > 0."""
    return [keep_where(op, op("Greater", node.outputs[0], op.scalar(0.0)), cotangent)]


@register_vjp("LeakyRelu")
def leaky_relu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x where x > 0, else alpha x."""
    alpha = float_attribute(node, "alpha", 0.01)
    positive = op.cast(op("Greater", operand(node), op.scalar(0.0)))
    slope = op("Add", op("Mul", positive, op.scalar(1 - alpha)), op.scalar(alpha))
    return [op("Mul", cotangent, slope)]


@register_vjp("Clip")
def clip(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = min(max(x, low), high); dx = dy where low < y < high."""
    low, high = constant_scalar(node, 1), constant_scalar(node, 2)
    if low is None and high is None:
        return [cotangent]
    return [keep_where(op, between(op, node.outputs[0], low, high), cotangent)]


@register_vjp("Sigmoid")
def sigmoid(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy y (1 - y)."""
    y = node.outputs[0]
    return [op("Mul", cotangent, op("Mul", y, op("Sub", op.scalar(1.0), y)))]


@register_vjp("HardSigmoid")
def hard_sigmoid(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = clip(alpha x + beta, 0, 1); dx = alpha dy where 0 < y < 1."""
    alpha = op.scalar(float_attribute(node, "alpha", 0.2))
    return [keep_where(op, between(op, node.outputs[0], 0.0, 1.0), op("Mul", cotangent, alpha))]


@register_vjp("HardSwish")
def hard_swish(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x h, h = clip(x / 6 + 1/2, 0, 1); the slope is h + x / 6 where |x| < 3, h elsewhere, so 0 below -3."""
    x = operand(node)
    gate = op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    inside = op.cast(op("Less", op("Abs", x), op.scalar(3.0)))
    rise = op("Mul", op("Mul", x, op.scalar(1 / 6)), inside)
    gradient = op("Mul", cotangent, op("Add", gate, rise))
    return [gradient if op.lowering else keep_where(op, op("Greater", x, op.scalar(-3.0)), gradient)]


@register_vjp("Tanh")
def tanh(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy (1 - y^2)."""
    y = node.outputs[0]
    return [op("Mul", cotangent, op("Sub", op.scalar(1.0), op("Mul", y, y)))]


@register_vjp("Erf")
def erf(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy 2 / sqrt(pi) exp(-x^2)."""
    x = operand(node)
    bell = op("Exp", op("Neg", op("Mul", x, x)))
    return [op("Mul", cotangent, op("Mul", bell, op.scalar(2 / math.sqrt(math.pi))))]


@register_vjp("Gelu")
def gelu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x Phi(x); dx = dy (Phi(x) + x phi(x)). With approximate="tanh", the derivative of the tanh formula."""
    x = operand(node)
    if text_attribute(node, "approximate", "none") == "tanh":
        return [op("Mul", cotangent, _gelu_tanh_slope(op, x))]
    return [gelu_gradient(op, x, cotangent)]


def gelu_gradient(op: OpBuilder, x: ir.Value, cotangent: ir.Value) -> ir.Value:
    """dy (Phi(x) + x phi(x)), computed from x alone.

    The Erf is taken of -x / sqrt(2): one of x / sqrt(2) would be merged with the forward pass's, and break its fusion.
    """
    tail = op("Erf", op("Mul", x, op.scalar(-math.sqrt(0.5))))
    cumulative = op("Sub", op.scalar(0.5), op("Mul", tail, op.scalar(0.5)))
    bell = op("Exp", op("Mul", op("Mul", x, x), op.scalar(-0.5)))
    density = op("Mul", bell, op.scalar(1 / math.sqrt(2 * math.pi)))
    return op("Mul", cotangent, op("Add", cumulative, op("Mul", x, density)))


def _gelu_tanh_slope(op: OpBuilder, x: ir.Value) -> ir.Value:
    """Slope of x/2 (1 + tanh(u)), u = c (x + 0.044715 x^3), c = sqrt(2 / pi)."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    square = op("Mul", x, x)
    u = op("Mul", x, op("Add", op("Mul", square, op.scalar(c * k)), op.scalar(c)))
    t = op("Tanh", u)
    du = op("Add", op("Mul", square, op.scalar(3 * c * k)), op.scalar(c))
    rise = op("Mul", op("Mul", x, op("Sub", op.scalar(1.0), op("Mul", t, t))), du)
    return op("Mul", op("Add", op("Add", t, op.scalar(1.0)), rise), op.scalar(0.5))


def silu_gradient(op: OpBuilder, s: ir.Value, y: ir.Value, cotangent: ir.Value) -> ir.Value:
    """dy (s + y (1 - s)), s = sigmoid(x), y = x s."""
    rise = op("Mul", y, op("Sub", op.scalar(1.0), s))
    return op("Mul", cotangent, op("Add", s, rise))


@register_vjp("Softplus")
def softplus(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy sigmoid(x)."""
    return [op("Mul", cotangent, op("Sigmoid", operand(node)))]


@register_vjp("Elu")
def elu(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """y = x where x > 0, else alpha (exp(x) - 1)."""
    y, alpha = node.outputs[0], op.scalar(float_attribute(node, "alpha", 1.0))
    slope = op("Where", op("Greater", y, op.scalar(0.0)), op.scalar(1.0), op("Add", y, alpha))
    return [op("Mul", cotangent, slope)]


@register_vjp("Exp")
def exp(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy y."""
    return [op("Mul", cotangent, node.outputs[0])]


@register_vjp("Log")
def log(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy / x."""
    return [op("Div", cotangent, operand(node))]


@register_vjp("Sqrt")
def sqrt(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy / (2 y)."""
    return [op("Div", op("Mul", cotangent, op.scalar(0.5)), node.outputs[0])]


@register_vjp("Reciprocal")
def reciprocal(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = -dy y^2."""
    y = node.outputs[0]
    return [op("Neg", op("Mul", cotangent, op("Mul", y, y)))]


@register_vjp("Neg")
def neg(op: OpBuilder, _node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = -dy."""
    return [op("Neg", cotangent)]


@register_vjp("Abs")
def absolute(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy sign(x)."""
    return [op("Mul", cotangent, op("Sign", operand(node)))]


@register_vjp("Softmax")
def softmax(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = y (dy - sum(dy y)) along the axis."""
    y, axis = node.outputs[0], int_attribute(node, "axis", -1)
    refuse_batch(node, y, [axis])
    mean = op.reduce_sum(op("Mul", cotangent, y), [axis])
    return [op("Mul", y, op("Sub", cotangent, mean))]


@register_vjp("LogSoftmax")
def log_softmax(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy - softmax(x) sum(dy) along the axis."""
    axis = int_attribute(node, "axis", -1)
    refuse_batch(node, node.outputs[0], [axis])
    total = op.reduce_sum(cotangent, [axis])
    return [op("Sub", cotangent, op("Mul", op("Exp", node.outputs[0]), total))]


@register_vjp("Identity", "Dropout")
def identity(_op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """dx = dy; Dropout is the identity at inference."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = node.inputs[2].const_value
        if mode is None or bool(mode.numpy()):
            raise unsupported(node, "it is in training mode")
    return [cotangent]


@register_vjp("Cast")
def cast(op: OpBuilder, node: ir.Node, cotangent: ir.Value) -> Gradients:
    """Between float types: the cotangent cast back."""
    x = operand(node)
    if x.dtype is None or not x.dtype.is_floating_point():
        raise unsupported(node, f"the gradient ends at a cast from {x.dtype}")
    return [op("Cast", cotangent, to=int(x.dtype))]
