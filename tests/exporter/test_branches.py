"""Models with If: which branches are put in place, and what the others keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import IdentityEliminationPass

import camrt
from camrt.bundle import Bundle
from camrt.exporter.branches import InlineIfsPass
from camrt.exporter.graph_walk import consumed_values, inner_graphs
from camrt.exporter.infer_shapes import InferShapesPass
from camrt.exporter.passes import FixImageSizePass, RemoveIdentitiesPass
from camrt.runtime import open_model, open_session
from tests.exporter.graphs import GraphWriter

FLOAT = TensorProto.FLOAT


def branch(*nodes: onnx.NodeProto, output: str, shape: list[int | str] | None = None) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), output, [], [helper.make_tensor_value_info(output, FLOAT, shape)])


def with_if(
    path: Path,
    then: onnx.GraphProto,
    other: onnx.GraphProto,
    *condition: onnx.NodeProto,
    batch: int | str = "N",
    **constants: np.ndarray,
) -> Path:
    """conv "a", then an If over ``condition`` "chosen", then a conv "c", relu "r" and the head."""
    w = GraphWriter()
    w.conv("a", "image", (3, 4))
    w.nodes += condition or (
        helper.make_node("ReduceMax", ["image"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "zero"], ["condition"]),
    )
    for name, array in {"zero": np.float32(0), "two": np.float32(2), **constants}.items():
        w.constant(name, np.asarray(array))
    w.add("If", "chosen", "condition", then_branch=then, else_branch=other)
    w.classify(w.add("Relu", "r", w.conv("c", "chosen", (4, 4))), 4)
    return w.save(path, (batch, 3, 8, 6))


def node(op: str, *values: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(values[:-1]), [values[-1]], **attributes)


def checked(source: Path, layer: str, count: int = 2) -> Bundle:
    """The bundle of one layer, after its logits were compared with the source's."""
    bundle = camrt.export(source, source.with_suffix(".bundle.onnx"), [layer])
    session, original = open_session(bundle.path, threads=1), open_model(source, threads=1)
    for sign in (1, -1):
        inputs = sign * np.abs(np.random.default_rng(0).standard_normal((count, 3, 8, 6))).astype(np.float32)
        np.testing.assert_allclose(session.predict(inputs), original.run({"image": inputs})["logits"], atol=1e-6)
        assert session.run(inputs[:1], np.array([0, 1]), [layer]).layers[0].gradients.shape[0] == 2
    return bundle


BRANCHES = {
    "elementwise": (branch(node("Mul", "a", "two", "q"), output="q"), branch(node("Neg", "a", "e"), output="e")),
    "identity": (branch(node("Identity", "a", "q"), output="q"), branch(node("Neg", "a", "e"), output="e")),
    "constant of the bundle": (
        branch(node("Mul", "a", "two", "camrt/constant_0"), output="camrt/constant_0"),
        branch(node("Neg", "a", "e"), output="e"),
    ),
    "input of the bundle": (
        branch(node("Neg", "a", "class_index"), node("Neg", "class_index", "q"), output="q"),
        branch(node("Neg", "a", "class_index_out"), output="class_index_out"),
    ),
    "batch called M": (
        branch(node("Mul", "a", "two", "q"), output="q", shape=["M", 4, 8, 6]),
        branch(node("Neg", "a", "e"), output="e", shape=["M", 4, 8, 6]),
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_layers_behind_an_if_that_reads_the_image(name: str, tmp_path: Path) -> None:
    bundle = checked(with_if(tmp_path / "source.onnx", *BRANCHES[name]), "c")
    assert bundle.manifest.target_layers[0].shape == (4, 8, 6)


def test_an_identity_in_a_branch_stays(tmp_path: Path) -> None:
    model = ir.load(with_if(tmp_path / "source.onnx", *BRANCHES["identity"]))
    RemoveIdentitiesPass()(model)
    (chosen,) = (item for item in model.graph if item.op_type == "If")
    assert {item.op_type for graph in inner_graphs(chosen) for item in graph} == {"Identity", "Neg"}


def test_branches_that_turn_the_image_are_not_taken_for_upright(tmp_path: Path) -> None:
    turned = branch(node("Transpose", "a", "q", perm=[0, 1, 3, 2]), output="q")
    w = GraphWriter()
    w.conv("a", "image", (3, 4))
    w.add("ReduceMax", "brightest", "image", keepdims=0)
    w.add("Greater", "condition", "brightest", w.constant("zero", np.float32(0)))
    w.add("If", "chosen", "condition", then_branch=turned, else_branch=branch(node("Neg", "a", "e"), output="e"))
    w.classify(w.add("Relu", "r", w.conv("c", "chosen", (4, 4))), 4)
    source = w.save(tmp_path / "source.onnx", ("N", 3, 8, 8))
    with pytest.raises(camrt.CamrtError, match="rows, columns and channels"):
        camrt.export(source, tmp_path / "bundle.onnx", ["c"])


def test_what_a_branch_returns_from_outside_is_consumed(tmp_path: Path) -> None:
    then, other = BRANCHES["identity"][0], branch(node("Neg", "image", "e"), output="e")
    model = ir.load(with_if(tmp_path / "source.onnx", then, other))
    IdentityEliminationPass()(model)
    convolution = next(item for item in model.graph if item.name == "a")
    chosen = next(item for item in model.graph if item.op_type == "If")
    assert convolution.outputs[0] in consumed_values(chosen)


# InlineIfsPass

SQUEEZE = (
    node("Shape", "a", "shape"),
    node("Gather", "shape", "axis", "length"),
    node("Equal", "length", "wanted", "condition"),
)


def inlined(source: Path) -> ir.Model:
    model = ir.load(source)
    for step in (FixImageSizePass(None), InferShapesPass(), InlineIfsPass()):
        step(model)
    return model


@pytest.mark.parametrize(
    ("axis", "batch", "wanted", "kept"),
    [(1, "N", 4, "Mul"), (1, "N", 5, "Neg"), (0, "N", 1, "If"), (0, "N", 7, "Neg"), (0, 1, 1, "Mul"), (0, 2, 1, "Neg")],
)
def test_an_if_over_a_length_that_is_known_is_put_in_place(
    axis: int, batch: int | str, wanted: int, kept: str, tmp_path: Path
) -> None:
    numbers = {"axis": np.array(axis), "wanted": np.array(wanted)}
    source = with_if(tmp_path / "source.onnx", *BRANCHES["elementwise"], *SQUEEZE, batch=batch, **numbers)
    model = inlined(source)
    assert {"If", "Mul", "Neg"}.intersection(item.op_type for item in model.graph) == {kept}
    if kept != "If" and batch == "N":
        assert checked(source, "a").manifest.target_layers[0].shape == (4, 8, 6)  # the gradient passes


def test_ifs_in_a_row_whose_branches_share_names(tmp_path: Path) -> None:
    w = GraphWriter()
    w.conv("a", "image", (3, 4))
    w.constant("yes", np.array(True))
    w.constant("two", np.float32(2))
    inner = helper.make_node(
        "If", ["yes"], ["q"], "if",
        then_branch=branch(node("Mul", "t", "two", "u"), output="u"),
        else_branch=branch(node("Neg", "t", "u"), output="u"),
    )  # fmt: skip
    for name, source in (("first", "a"), ("second", "first")):
        then = branch(helper.make_node("Tanh", [source], ["t"], "same"), inner, output="q")
        w.add("If", name, "yes", then_branch=then, else_branch=branch(node("Neg", source, "q"), output="q"))
    w.classify(w.add("Relu", "r", "second"), 4)
    source = w.save(tmp_path / "source.onnx", ("N", 3, 8, 6))
    checked(source, "a")
    model = inlined(source)
    names = [output.name for item in model.graph for output in item.outputs]
    assert "If" not in {item.op_type for item in model.graph}
    assert len(names) == len(set(names))


def test_an_if_that_makes_the_output(tmp_path: Path) -> None:
    w = GraphWriter()
    value = w.conv("a", "image", (3, 4))
    flat = w.add("Flatten", "flat", w.add("GlobalAveragePool", "average", value))
    w.add("MatMul", "product", flat, w.weight("fc", 4, 5))
    w.add(
        "If", "logits", w.constant("no", np.array(False)),
        then_branch=branch(node("Neg", "product", "q"), output="q"),
        else_branch=branch(node("Identity", "product", "q"), output="q"),
    )  # fmt: skip
    bundle = checked(w.save(tmp_path / "source.onnx", ("N", 3, 8, 6)), "a")
    assert bundle.manifest.outputs == ("logits",)
