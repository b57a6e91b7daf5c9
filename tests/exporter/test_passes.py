"""Each pass alone: what it changes, what it leaves, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import InvariantError, PassResult

from camrt.errors import InvalidInputError, InvalidModelError, UnsupportedModelError
from camrt.exporter.batch_reshapes import KeepBatchInReshapePass
from camrt.exporter.free_batch import FreeBatchPass
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.passes import FixImageSizePass, FreeNamesPass, RemoveDropoutPass, RemoveIdentitiesPass, normalize
from camrt.exporter.strided_views import RemoveStridedViewPass
from tests.exporter.graphs import GraphWriter, initializers, model_proto, small_classifier


def relu_chain(shape: list[int | str], *nodes: onnx.NodeProto, output: str, **constants: np.ndarray) -> ir.Model:
    proto = model_proto(list(nodes), {"image": shape}, {output: []}, constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


def model_of(path: Path, edit: Callable[[onnx.ModelProto], None] | None = None) -> ir.Model:
    proto = onnx.load(path)
    if edit is not None:
        edit(proto)
    return ir.from_proto(proto)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# RemoveDropoutPass


def dropout(*inputs: str, outputs: tuple[str, ...] = ("dropped",)) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Dropout", ["image", *inputs], list(outputs), "drop"),
        helper.make_node("Relu", ["dropped"], ["y"], "relu"),
    ]


@pytest.mark.parametrize(
    ("nodes", "removed"),
    [
        (dropout(), True),
        (dropout("ratio"), True),
        (dropout("ratio", "no"), True),
        (dropout("", "no"), True),
        (dropout("ratio", "yes"), False),
        (dropout("ratio", "no", outputs=("dropped", "mask")), True),
    ],
)
def test_dropout_goes_unless_it_trains(nodes: list[onnx.NodeProto], removed: bool) -> None:
    constants = {"ratio": np.float32(0.5), "yes": np.array(True), "no": np.array(False)}
    model = relu_chain(["N", 3, 8, 8], *nodes, output="y", **constants)
    result = RemoveDropoutPass()(model)
    assert result.modified == removed
    assert op_types(model) == (["Relu"] if removed else ["Dropout", "Relu"])


def test_dropout_stays_where_its_mask_is_used_or_it_makes_the_output() -> None:
    mask = helper.make_node("Not", ["mask"], ["z"], "not")
    used = relu_chain(["N", 3, 8, 8], *dropout(outputs=("dropped", "mask")), mask, output="z")
    last = relu_chain(["N", 3, 8, 8], dropout()[0], output="dropped")
    for model in (used, last):
        assert not RemoveDropoutPass()(model).modified


# RemoveIdentitiesPass


def test_identities_go_and_outputs_keep_their_names() -> None:
    nodes = [
        helper.make_node("Identity", ["image"], ["first"]),
        helper.make_node("Relu", ["first"], ["r"]),
        helper.make_node("Identity", ["r"], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Identity", ["image"], ["kept"]),
    ]
    proto = model_proto(nodes, {"image": ["N", 3, 8, 8]}, {"y": [], "z": [], "kept": []}, {})
    model = ir.from_proto(proto)
    assert RemoveIdentitiesPass()(model).modified
    assert op_types(model) == ["Relu", "Identity", "Identity"]
    assert [value.name for value in model.graph.outputs] == ["y", "z", "kept"]
    relu = model.graph.node(0)
    assert relu.inputs[0] is model.graph.inputs[0]
    assert relu.outputs[0] is model.graph.outputs[0]
    assert not RemoveIdentitiesPass()(model).modified


# FixImageSizePass


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [
        (["N", 3, "H", "W"], None, (224, 224)),
        (["N", 3, "H", "W"], (10, 20), (10, 20)),
        (["N", 3, 16, "W"], (16, 20), (16, 20)),
        (["N", 3, 16, 24], None, (16, 24)),
        (["N", 3, 16, 24], (16, 24), (16, 24)),
    ],
)
def test_the_image_size_is_fixed(shape: list, wanted: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    model = relu_chain(shape, helper.make_node("Relu", ["image"], ["y"]), output="y")
    FixImageSizePass(wanted)(model)
    assert tuple(model.graph.inputs[0].shape or ())[2:] == expected


@pytest.mark.parametrize("wanted", [(16, 25), (24, 16)])
def test_another_size_than_the_model_fixes_is_refused(wanted: tuple[int, int]) -> None:
    model = relu_chain(["N", 3, 16, 24], helper.make_node("Relu", ["image"], ["y"]), output="y")
    with pytest.raises(InvalidInputError, match=f"not {wanted[0]}x{wanted[1]}"):
        FixImageSizePass(wanted)(model)


@pytest.mark.parametrize("shape", [["N", 3, -1, 8], ["N", 3, 8, 0], ["N", 0, 8, 8], [-2, 3, 8, 8]])
def test_sizes_that_cannot_be_are_refused(shape: list) -> None:
    model = relu_chain(shape, helper.make_node("Relu", ["image"], ["y"]), output="y")
    with pytest.raises(InvalidModelError, match="image"):
        FixImageSizePass(None)(model)


def test_a_model_without_image_is_refused() -> None:
    model = relu_chain(["N", 3], helper.make_node("Relu", ["image"], ["y"]), output="y")
    with pytest.raises(InvariantError) as caught:
        FixImageSizePass(None)(model)
    assert isinstance(caught.value.__cause__, UnsupportedModelError)


# InferShapesPass


def test_shapes_are_inferred_anew(tmp_path: Path) -> None:
    def stale(proto: onnx.ModelProto) -> None:
        proto.graph.value_info.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, [7, 4, 99, 99]))

    model = model_of(small_classifier(tmp_path / "source.onnx"), stale)
    InferShapesPass()(model)
    shapes = {output.name: list(output.shape or ()) for node in model.graph for output in node.outputs}
    assert shapes["r2"][1:] == [4, 8, 8]
    assert shapes["r4"][1:] == [6, 4, 4]
    assert shapes["logits"][1:] == [5]


def test_a_graph_without_shapes_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def no_inputs(proto: onnx.ModelProto) -> None:
        del proto.graph.node[1].input[:]

    with pytest.raises(InvalidModelError, match="shapes"):
        InferShapesPass()(model_of(small_classifier(tmp_path / "source.onnx"), no_inputs))
    assert capfd.readouterr().err == ""


# FreeBatchPass


def batch_of(model: ir.Model) -> object:
    shape = model.graph.outputs[0].shape
    assert shape is not None
    return shape[0]


def freed(target: list[int], shape: list[int | str], **more: object) -> PassResult:
    reshape = helper.make_node("Reshape", ["image", "to"], ["y"], "reshape", **more)
    model = relu_chain(shape, reshape, output="y", to=np.array(target))
    InferShapesPass()(model)
    return FreeBatchPass()(model)


@pytest.mark.parametrize(
    ("target", "batch"), [([1, 48], 1), ([1, -1], 1), ([4, 48], 4), ([4, -1], 4), ([0, 48], 4), ([-1, 48], 4)]
)
def test_a_fixed_batch_becomes_free(target: list[int], batch: int) -> None:
    result = freed(target, [batch, 3, 4, 4])
    assert result.modified
    assert not isinstance(batch_of(result.model), int)
    assert list(result.model.graph.outputs[0].shape or ())[1:] == [48]


def test_a_free_batch_stays() -> None:
    assert not freed([-1, 48], ["N", 3, 4, 4]).modified


def test_a_batch_that_stays_fixed_is_refused() -> None:
    with pytest.raises(InvariantError) as caught:
        freed([1, 48], ["N", 3, 4, 4])
    assert isinstance(caught.value.__cause__, UnsupportedModelError)
    for target in ([2, 24], [2, 3, 8]):
        with pytest.raises(UnsupportedModelError, match=r"batch size .*fixed.*Reshape \(node 'reshape'\)"):
            freed(target, [1, 3, 4, 4])


# FreeNamesPass


def test_names_of_the_bundle_are_freed() -> None:
    nodes = [
        helper.make_node("Add", ["image", "camrt/constant_0"], ["activations/x"], "add"),
        helper.make_node("Relu", ["activations/x"], ["class_index"], "relu"),
        helper.make_node("Relu", ["class_index"], ["y"], "relu2"),
    ]
    model = relu_chain(["N", 3, 8, 8], *nodes, output="y", **{"camrt/constant_0": np.float32(1)})
    assert FreeNamesPass()(model).modified
    names = {output.name for node in model.graph for output in node.outputs} | set(model.graph.initializers)
    assert names == {"source/0/activations/x", "source/1/class_index", "y", "source/2/camrt/constant_0"}
    assert not FreeNamesPass()(model).modified


@pytest.mark.parametrize("name", ["class_index_out", "gradients/layer4", "hessian_vectors/layer4", "camrt/x"])
def test_an_output_of_such_a_name_is_refused(name: str) -> None:
    model = relu_chain(["N", 3, 8, 8], helper.make_node("Relu", ["image"], [name]), output=name)
    with pytest.raises(InvariantError) as caught:
        FreeNamesPass()(model)
    assert isinstance(caught.value.__cause__, UnsupportedModelError)


# RemoveStridedViewPass


def gathered(index: np.ndarray, shape: tuple[int, ...] = (2, 2)) -> ir.Model:
    """Gather over the flattened image, with an index of (N, 3, h, w) computed from the batch size."""
    w = GraphWriter()
    batch = w.add("Shape", "batch", "image", start=0, end=1)
    flat = w.add("Reshape", "flat", "image", w.constant("all", np.array([-1])))
    zero, one = w.constant("zero", np.array(0)), w.constant("one", np.array(1))
    count = w.add("Range", "count", zero, w.add("Squeeze", "scalar", batch), one)
    per_image = w.add("Mul", "offset", count, w.constant("step", np.array(3 * shape[0] * shape[1])))
    column = w.add("Reshape", "column", per_image, w.constant("four", np.array([-1, 1, 1, 1])))
    w.add("Relu", "y", w.add("Gather", "view", flat, w.add("Add", "index", column, w.constant("base", index))))
    proto = model_proto(w.nodes, {"image": ["N", 3, *shape]}, {"y": ["N", 3, *shape]}, w.constants)
    model = ir.from_proto(proto)
    InferShapesPass()(model)
    view = next(node for node in model.graph if node.op_type == "Gather").outputs[0]
    view.shape = ir.Shape(["N", 3, *shape])
    next(node for node in model.graph if node.name == "flat").outputs[0].shape = ir.Shape(["E"])
    return model


def test_a_gather_that_takes_everything_in_order_goes() -> None:
    model = gathered(np.arange(12).reshape(1, 3, 2, 2))
    assert RemoveStridedViewPass()(model).modified
    assert "Gather" not in op_types(model)
    (relu,) = (node for node in model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is model.graph.inputs[0]


def test_a_view_of_a_fixed_batch_goes() -> None:
    w = GraphWriter()
    flat = w.add("Reshape", "flat", "image", w.constant("all", np.array([-1])))
    w.add("Relu", "y", w.add("Gather", "view", flat, w.constant("index", np.arange(24).reshape(2, 3, 2, 2))))
    model = ir.from_proto(model_proto(w.nodes, {"image": [2, 3, 2, 2]}, {"y": [2, 3, 2, 2]}, w.constants))
    InferShapesPass()(model)
    assert RemoveStridedViewPass()(model).modified
    assert "Gather" not in op_types(model)


@pytest.mark.parametrize(
    "index", [np.arange(12)[::-1].copy(), np.zeros(12, np.int64), np.r_[0:6, 6:12][[1, 0, *range(2, 12)]]]
)
def test_any_other_gather_stays(index: np.ndarray) -> None:
    model = gathered(index.reshape(1, 3, 2, 2))
    assert not RemoveStridedViewPass()(model).modified
    assert "Gather" in op_types(model)


# KeepBatchInReshapePass


def reshaped(shape: list[int | str], target: list[int], **attributes: int) -> ir.Model:
    nodes = [
        helper.make_node("Reshape", ["image", "target"], ["grouped"], "reshape", **attributes),
        helper.make_node("Relu", ["grouped"], ["y"], "relu"),
    ]
    model = relu_chain(shape, *nodes, output="y", target=np.asarray(target, np.int64))
    InferShapesPass()(model)
    return model


@pytest.mark.parametrize("attributes", [{}, {"allowzero": 1}])
def test_a_reshape_that_keeps_the_batch_says_so(attributes: dict[str, int]) -> None:
    model = reshaped(["N", 6, 2, 4], [-1, 2, 3, 8], **attributes)
    grouped = model.graph.node(0).outputs[0]
    assert grouped.shape is not None
    assert str(grouped.shape[0]) != "N"
    assert KeepBatchInReshapePass()(model).modified
    target = model.graph.node(0).inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [0, 2, 3, 8]
    assert "allowzero" not in model.graph.node(0).attributes
    InferShapesPass()(model)
    assert [str(dim) for dim in grouped.shape] == ["N", "2", "3", "8"]


@pytest.mark.parametrize(
    ("shape", "target"),
    [(["N", 6, 2, 4], [-1, 3, 8]), (["N", 6, 2, 4], [2, -1, 24]), ([3, "N", 4], [-1, 12]), (["N", 6], [-1])],
)
def test_a_reshape_that_moves_the_batch_stays(shape: list[int | str], target: list[int]) -> None:
    assert not KeepBatchInReshapePass()(reshaped(shape, target)).modified


# normalize


def test_constants_become_initializers_and_dead_nodes_go(tmp_path: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in proto.graph.initializer]
        del proto.graph.initializer[:]
        nodes += [*proto.graph.node, helper.make_node("Neg", ["r2"], ["dead"], "dead_node")]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes[::-1])
        proto.graph.initializer.extend(initializers({"unused": np.zeros(5, np.float32)}))

    model = model_of(small_classifier(tmp_path / "source.onnx"), edit)
    normalize(model, None)
    plain = model_of(small_classifier(tmp_path / "plain.onnx"))
    normalize(plain, None)
    assert op_types(model) == op_types(plain)
    assert {"Constant", "Neg"}.isdisjoint(op_types(model))
    assert "unused" not in model.graph.initializers
