"""Passes that bring any classifier into the form that the backward walk reads."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)

from camrt.errors import InvalidInputError, InvalidModelError, UnsupportedModelError
from camrt.exporter.batch_reshapes import KeepBatchInReshapePass
from camrt.exporter.branches import InlineIfsPass
from camrt.exporter.free_batch import FreeBatchPass
from camrt.exporter.graph_walk import inner_graphs
from camrt.exporter.head import CLASS_INDEX, CLASS_INDEX_OUT, convolved_channels, find_image_input, image_layout
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.number_formats import RefuseNumberFormatsPass
from camrt.exporter.op_builder import PREFIX
from camrt.exporter.shape_folding import FoldShapesPass
from camrt.exporter.shapes import BATCH_NAME, is_known
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
    declared = {value.name: value.shape for value in model.graph.outputs}
    for step in (
        InlinePass(),
        RefuseNumberFormatsPass(),
        FreeNamesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveInitializersFromInputsPass(),
        RemoveDropoutPass(),
        RemoveIdentitiesPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        FixImageSizePass(image_size),
        InferShapesPass(),
        InlineIfsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveDropoutPass(),
        RemoveIdentitiesPass(),
        RemoveUnusedNodesPass(),
        RemoveStridedViewPass(),
        FreeBatchPass(),
        FoldShapesPass(),
        RemoveStridedViewPass(),
        KeepBatchInReshapePass(),
        RemoveUnusedNodesPass(),
        DeclaredShapesPass(declared),
    ):
        step(model)


class FreeNamesPass(InPlacePass):
    """Frees the names that the bundle gives to its own values and nodes.

    1. An input or output of the graph with such a name is refused: its name is the model's interface.
    2. Any other value or node with such a name is renamed, also inside branches and loop bodies.
    """

    def requires(self, model: ir.Model) -> None:
        """Case 1."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if _is_reserved(value.name):
                raise UnsupportedModelError(
                    f"The model has an input or output called {value.name!r}, a name that the bundle needs.",
                    "Rename it in the source model.",
                )

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        inner = [graph for node in model.graph for graph in inner_graphs(node)]
        nodes = [node for graph in (model.graph, *inner) for node in graph]
        named: list[ir.Value | ir.Node] = [output for node in nodes for output in node.outputs]
        named += [value for graph in (model.graph, *inner) for value in graph.initializers.values()]
        named += [value for graph in inner for value in graph.inputs]
        taken = [item for item in (*named, *nodes) if _is_reserved(item.name)]
        for number, item in enumerate(taken):
            item.name = f"source/{number}/{item.name}"
        return PassResult(model, bool(taken))


def _is_reserved(name: str | None) -> bool:
    return name in (CLASS_INDEX, CLASS_INDEX_OUT) or (name or "").startswith(_RESERVED_PREFIXES)


class RemoveIdentitiesPass(InPlacePass):
    """Removes the Identity nodes of the graph.

    1. Uses of what an Identity makes become uses of its input.
    2. An output of the graph gives its name to the input, if a node makes that and it is no output itself.
    3. Otherwise an output of the graph stays.
    4. Branches and loop bodies keep theirs: they must not return a value from outside without one.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        removed = [node for node in model.graph if node.op_type == "Identity" and _bypassed(node)]
        for node in removed:
            model.graph.remove(node, safe=True)
        return PassResult(model, bool(removed))


def _bypassed(identity: ir.Node) -> bool:
    """Takes an Identity's output out of use, or says that it has to stay."""
    source, output = identity.inputs[0], identity.outputs[0]
    if source is None:
        return False
    is_output = output.is_graph_output()
    if is_output and (source.producer() is None or source.is_graph_output()):
        return False
    if source.type is None:
        source.type = output.type
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    if is_output:
        name, output.name = output.name, None
        source.name = name
    return True


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
    """Gives the image input a fixed H and W, and an open batch the name N.

    1. The model fixes both: they stay; an image_size that differs is refused.
    2. The model leaves them open: image_size, or 224x224.
    3. Open channels are those that the first Conv reads.
    4. Names that the file gives to open sizes go: ONNX Runtime takes equal names for equal sizes, and the bundle has
       names of its own. A batch of -1 or 0 is an open one.

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
        dims: list[int | ir.SymbolicDim | str] = list(image.shape)
        if self._image_size is not None or not all(isinstance(dim, int) for dim in dims[1:]):
            self._fix(image, dims)
        if not isinstance(dims[0], int) or dims[0] in (-1, 0):
            dims[0] = BATCH_NAME
        if any(isinstance(dim, int) and dim < 1 for dim in dims):
            raise InvalidModelError(f"The input {image.name!r} has the shape {image.shape}.", "Export the model again.")
        image.shape = ir.Shape(dims)
        return PassResult(model, True)

    def _fix(self, image: ir.Value, dims: list[int | ir.SymbolicDim | str]) -> None:
        """Cases 1 to 3."""
        wanted = self._image_size or DEFAULT_IMAGE_SIZE
        rows, columns, channels = (2, 3, 1) if image_layout(image) == "NCHW" else (1, 2, 3)
        for axis, side in ((rows, wanted[0]), (columns, wanted[1])):
            if not isinstance(dims[axis], int):
                dims[axis] = side
            elif self._image_size is not None and dims[axis] != side:
                raise InvalidInputError(
                    f"The model takes {dims[rows]}x{dims[columns]} images only, not {wanted[0]}x{wanted[1]}.",
                    "Leave the size out, or export the source model with dynamic height and width.",
                )
        if not isinstance(dims[channels], int):
            dims[channels] = convolved_channels(image)


class DeclaredShapesPass(InPlacePass):
    """Gives an output of the graph the shape that the file declares where inference could not find one.

    1. The declared shape has an open first axis and is known otherwise: it is taken.
    2. Any other output stays as it is.

    Args:
        declared: by the name of the output, from the file.
    """

    def __init__(self, declared: Mapping[str | None, ir.Shape | None]) -> None:
        super().__init__()
        self._declared = declared

    def call(self, model: ir.Model) -> PassResult:
        """Runs the pass."""
        unknown = [value for value in model.graph.outputs if not is_known(value)]
        for value in unknown:
            dims = list(self._declared.get(value.name) or ())
            if dims and not isinstance(dims[0], int) and all(isinstance(dim, int) for dim in dims[1:]):
                value.shape = ir.Shape([BATCH_NAME, *dims[1:]])
        return PassResult(model, bool(unknown))
