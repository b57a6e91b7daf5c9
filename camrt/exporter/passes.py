"""Passes that bring any classifier into the form that the backward walk reads."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from camrt.errors import InvalidInputError, InvalidModelError, UnsupportedModelError
from camrt.exporter.head import CLASS_INDEX, CLASS_INDEX_OUT, find_image_input
from camrt.exporter.op_builder import PREFIX, add_constant
from camrt.exporter.strided_views import RemoveStridedViewPass

DEFAULT_IMAGE_SIZE = (224, 224)
# A failed shape inference is logged there with its traceback; here it is raised.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())
_RESERVED_PREFIXES = (f"{PREFIX}/", "activations/", "gradients/")


def normalize(model: ir.Model, image_size: tuple[int, int] | None) -> None:
    """Runs every pass of this module on ``model``, in place.

    Raises:
        UnsupportedModelError: the model has no image input, or its batch is fixed in a way that cannot be undone.
        InvalidInputError: image_size contradicts a size that the model fixes.
    """
    for step in (
        InlinePass(),
        FreeNamesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveInitializersFromInputsPass(),
        RemoveDropoutPass(),
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        FixImageSizePass(image_size),
        InferShapesPass(),
        FreeBatchPass(),
        RemoveStridedViewPass(),
        RemoveUnusedNodesPass(),
    ):
        step(model)


class FreeNamesPass(InPlacePass):
    """Frees the names that the bundle gives to its own values.

    1. An input or output of the graph with such a name is refused: its name is the model's interface.
    2. Any other value with such a name is renamed.
    """

    def requires(self, model: ir.Model) -> None:
        """Case 1."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if _is_reserved(value):
                raise UnsupportedModelError(
                    f"The model has an input or output called {value.name!r}, a name that the bundle needs.",
                    "Rename it in the source model.",
                )

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        produced = (output for node in model.graph for output in node.outputs)
        taken = [value for value in (*produced, *model.graph.initializers.values()) if _is_reserved(value)]
        for number, value in enumerate(taken):
            value.name = f"source/{number}/{value.name}"
        return PassResult(model, bool(taken))


def _is_reserved(value: ir.Value) -> bool:
    return value.name in (CLASS_INDEX, CLASS_INDEX_OUT) or (value.name or "").startswith(_RESERVED_PREFIXES)


class RemoveDropoutPass(InPlacePass):
    """Replaces Dropout by its input.

    1. Dropout without a training mode, or with a constant false one, is the identity: it goes.
    2. Dropout in training mode, or with a used mask, stays (and is refused later, if a gradient must pass it).
    3. A graph output made by Dropout stays.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        removable = [node for node in model.graph if node.op_type == "Dropout" and _is_identity(node)]
        for node in removable:
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
        return PassResult(model, bool(removable))


def _is_identity(node: ir.Node) -> bool:
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    trains = mode is not None and (mode.const_value is None or bool(mode.const_value.numpy()))
    mask_used = len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output())
    return not trains and not mask_used and not node.outputs[0].is_graph_output()


class FixImageSizePass(InPlacePass):
    """Gives the image input a fixed H and W.

    1. The model fixes both: they stay; an image_size that differs is refused.
    2. The model leaves them open: image_size, or 224x224.

    Args:
        image_size: (H, W) asked for, or None.
    """

    def __init__(self, image_size: tuple[int, int] | None) -> None:
        super().__init__()
        self._image_size = image_size

    def requires(self, model: ir.Model) -> None:
        """The model has one image input."""
        find_image_input(model.graph)

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        image = find_image_input(model.graph)
        assert image.shape is not None
        dims = list(image.shape)
        wanted = self._image_size or DEFAULT_IMAGE_SIZE
        for axis in (2, 3):
            if not isinstance(dims[axis], int):
                dims[axis] = wanted[axis - 2]
            elif self._image_size is not None and dims[axis] != wanted[axis - 2]:
                raise InvalidInputError(
                    f"The model takes {dims[2]}x{dims[3]} images only, not {wanted[0]}x{wanted[1]}.",
                    "Leave the size out, or export the source model with dynamic height and width.",
                )
        if any(isinstance(dim, int) and dim < 1 for dim in dims):
            raise InvalidModelError(f"The input {image.name!r} has the shape {image.shape}.", "Export the model again.")
        image.shape = ir.Shape(dims)
        return PassResult(model, True)


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


class FreeBatchPass(InPlacePass):
    """Makes the batch axis dynamic where the source fixed it.

    1. A dynamic batch stays.
    2. A fixed one becomes symbolic; a Reshape whose constant target starts with the fixed batch keeps its meaning by
       -1 there, or by 0 (copy) if it has a -1 elsewhere.
    3. Where the batch still comes out fixed at an output, the model is refused.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        image = find_image_input(model.graph)
        assert image.shape is not None
        batch = image.shape[0]
        if not isinstance(batch, int):
            return PassResult(model, False)
        for node in model.graph:
            if node.op_type == "Reshape":
                _free_reshape(model.graph, node, batch)
        image.shape = ir.Shape(["N", *list(image.shape)[1:]])
        InferShapesPass()(model)
        return PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """No output has a fixed batch."""
        for output in model.graph.outputs:
            if output.shape is not None and len(output.shape) == 2 and isinstance(output.shape[0], int):
                raise UnsupportedModelError(
                    f"The batch size of the model is fixed: output {output.name!r} has the shape {output.shape}.",
                    "Export the source model with a dynamic batch axis.",
                )


def _free_reshape(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """Case 2 of FreeBatchPass for one Reshape."""
    source, target = node.inputs
    if source is None or target is None or target.const_value is None or source.shape is None:
        return
    dims = [int(dim) for dim in target.const_value.numpy()]
    if not dims or dims[0] != batch or source.shape[0] != batch:
        return
    dims[0] = 0 if -1 in dims[1:] else -1
    value = add_constant(graph, np.asarray(dims, np.int64), f"{node.outputs[0].name}_shape")
    node.replace_input_with(1, value)
