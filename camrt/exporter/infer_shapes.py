"""Shape inference that trusts nothing in the file but the shapes of the inputs."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from camrt.errors import InvalidModelError

# A failed shape inference is logged there with its traceback; here it is raised.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


class InferShapesPass(InPlacePass):
    """Infers every shape anew; shapes stored in the file are dropped, they may hold for another batch or size."""

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        for node in model.graph:
            for output in node.outputs:
                output.shape = None
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        if all(output.shape is None for node in model.graph for output in node.outputs):
            raise InvalidModelError(
                "ONNX cannot infer the shapes of the model's values.", "Check the model with onnx.checker."
            )
        return PassResult(model, True)
