"""Backward rules, one module a family of operators; importing the package fills the registry."""

from __future__ import annotations

from camrt.exporter.vjp import (
    activation,
    activation_variants,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
    pool,
    quantize,
    reduction,
    resize,
    shape,
)
from camrt.exporter.vjp.registry import MULTI_OUTPUT_RULES, VJP_RULES, has_rule, register_multi_output_vjp, register_vjp

__all__ = [
    "MULTI_OUTPUT_RULES",
    "VJP_RULES",
    "activation",
    "activation_variants",
    "conv",
    "elementwise",
    "has_rule",
    "indexing",
    "linear",
    "norm",
    "pool",
    "quantize",
    "reduction",
    "register_multi_output_vjp",
    "register_vjp",
    "resize",
    "shape",
]
