"""Passes that bring any classifier into the form that the backward walk reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)

from camrt.errors import InvalidInputError, InvalidModelError, UnsupportedModelError
from camrt.exporter.batch_reshapes import KeepBatchInReshapePass
from camrt.exporter.free_batch import FreeBatchPass
from camrt.exporter.head import CLASS_INDEX, CLASS_INDEX_OUT, find_image_input, image_layout
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.number_formats import RefuseNumberFormatsPass
from camrt.exporter.op_builder import PREFIX
from camrt.exporter.shape_folding import FoldShapesPass
from camrt.exporter.strided_views import RemoveStridedViewPass

DEFAULT_IMAGE_SIZE = (224, 224)
_RESERVED_PREFIXES = (
    f"{PREFIX}/",
    "activations/",
    "gradients/",
    "target_gradients/",
    "hessian_vectors/",
    "saliency_map",
)


def normalize(model: ir.Model, image_size: tuple[int, int] | None) -> None:
    """Runs every pass of this module on ``model``, in place.

    Raises:
        UnsupportedModelError: the model has no image input, or its batch is fixed in a way that cannot be undone.
        InvalidInputError: image_size contradicts a size that the model fixes.
    """
    for step in (
        InlinePass(),
        RefuseNumberFormatsPass(),
        FreeNamesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveInitializersFromInputsPass(),
        RemoveDropoutPass(),
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        FixImageSizePass(image_size),
        InferShapesPass(),
        RemoveStridedViewPass(),
        FreeBatchPass(),
        FoldShapesPass(),
        RemoveStridedViewPass(),
        KeepBatchInReshapePass(),
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
        rows, columns = (2, 3) if image_layout(image) == "NCHW" else (1, 2)
        for axis, side in ((rows, wanted[0]), (columns, wanted[1])):
            if not isinstance(dims[axis], int):
                dims[axis] = side
            elif self._image_size is not None and dims[axis] != side:
                raise InvalidInputError(
                    f"The model takes {dims[rows]}x{dims[columns]} images only, not {wanted[0]}x{wanted[1]}.",
                    "Leave the size out, or export the source model with dynamic height and width.",
                )
        if any(isinstance(dim, int) and dim < 1 for dim in dims):
            raise InvalidModelError(f"The input {image.name!r} has the shape {image.shape}.", "Export the model again.")
        image.shape = ir.Shape(dims)
        return PassResult(model, True)
