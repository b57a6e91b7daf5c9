"""What the axes of values mean, where the batch is in them, and what exporters' shape arithmetic comes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import camrt
from camrt.errors import UnsupportedOpError
from camrt.exporter.axis_rules import find_axes
from camrt.exporter.batch_axis import BatchAxis, find_batch_axes
from camrt.exporter.graph_walk import path_nodes, values_between
from camrt.exporter.layouts import Placement, placement
from camrt.exporter.passes import normalize
from camrt.exporter.shapes import nominal_shape
from camrt.runtime import open_model, open_session


def model_of(nodes: str, shape: str = "N, 6, 8, 12", constants: str = "") -> onnx.ModelProto:
    """``nodes`` from ``x`` to ``y``, in ONNX's text form; constants are declared ahead of them."""
    text = f'<ir_version: 9, opset_import: ["" : 18]> g (float[{shape}] x) => (float[A, B] y) {{ {constants} {nodes} }}'
    return onnx.parser.parse_model(text)


def normalized(nodes: str, shape: str = "N, 6, 8, 12", constants: str = "") -> ir.Model:
    model = ir.from_proto(model_of(nodes, shape, constants))
    normalize(model, None)
    return model


def value_named(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


def ints(name: str, *numbers: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, numbers))}]> ()\n"


WINDOWS = (
    ints("s1", -1, 2, 4, 3, 4, 6) + ints("s2", -1, 16, 6) + ints("s3", -1, 2, 3, 4, 4, 6) + ints("s4", -1, 8, 12, 6)
)
PARTITION = """
    h = Transpose <perm = [0, 2, 3, 1]> (x)
    p = Reshape (h, s1)  q = Transpose <perm = [0, 1, 3, 2, 4, 5]> (p)  w = Reshape (q, s2)
"""
REVERSE = "b = Reshape (w, s3)  c = Transpose <perm = [0, 1, 3, 2, 4, 5]> (b)  v = Reshape (c, s4)"

POOL = "v = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> ({})"
ROLL = ints("b", 3) + ints("e", 99) + ints("a", 2) + ints("z", 0)
PAD_AND_CROP = ints("p", 0, 0, 2, 0, 0, 0, 0, 0) + ints("b", 2) + ints("e", 99) + ints("a", 2)
LAYOUTS = {
    "transpose": ("", "v = Transpose <perm = [0, 2, 3, 1]> (x)", Placement("NHWC", (6, 8, 12))),
    "tokens": (ints("s", 0, 6, -1), "r = Reshape (x, s) v = Transpose <perm = [0, 2, 1]> (r)",
               Placement("NLC", (6, 8, 12))),
    "flat positions": (ints("s", 0, 6, -1), "v = Reshape (x, s)", Placement("NCL", (6, 8, 12))),
    "and back": (ints("s", 0, 6, -1) + ints("t", -1, 6, 8, 12), "r = Reshape (x, s) v = Reshape (r, t)",
                 Placement("NCHW", (6, 8, 12))),
    "channel shuffle": (ints("s", 0, 2, 3, 8, 12) + ints("t", 0, 6, 8, 12),
                        "r = Reshape (x, s) m = Transpose <perm = [0, 2, 1, 3, 4]> (r) v = Reshape (m, t)",
                        Placement("NCHW", (6, 8, 12))),
    "windows": (WINDOWS, PARTITION + "v = Identity (w)", None),
    "windows and back": (WINDOWS, PARTITION + REVERSE, Placement("NHWC", (6, 8, 12))),
    "patch merging": (ints("s", 0, 4, 2, 6, 2, 6) + ints("t", 0, 4, 6, 24),
                      "h = Transpose <perm = [0, 2, 3, 1]> (x) r = Reshape (h, s) "
                      "m = Transpose <perm = [0, 1, 3, 4, 2, 5]> (r) v = Reshape (m, t)",
                      Placement("NHWC", (24, 4, 6))),
    "every second": (ints("b", 1) + ints("e", 99) + ints("a", 2) + ints("t", 2), "v = Slice (x, b, e, a, t)",
                     Placement("NCHW", (6, 4, 12))),
    "cropped in front": (ints("b", 1) + ints("e", 99) + ints("a", 2) + ints("t", 1), "v = Slice (x, b, e, a, t)", None),
    "padded behind": (ints("p", 0, 0, 0, 0, 0, 0, 1, 2), "v = Pad (x, p)", Placement("NCHW", (6, 9, 14))),
    "padded in front": (ints("p", 0, 0, 1, 0, 0, 0, 0, 0), "v = Pad (x, p)", None),
    "rows and columns exchanged": ("", "v = Transpose <perm = [0, 1, 3, 2]> (x)", None),
    "turned, then pooled": ("", f"t = Transpose <perm = [0, 1, 3, 2]> (x) {POOL.format('t')}", None),
    "flipped, then pooled": (ints("b", -1) + ints("e", -99) + ints("a", 3) + ints("s", -1),
                             f"t = Slice (x, b, e, a, s) {POOL.format('t')}", None),
    "rolled, then pooled": (ROLL, f"p = Slice (x, b, e, a) q = Slice (x, z, b, a) t = Concat <axis = 2> (p, q) "
                                  f"{POOL.format('t')}", None),
    "pooled": ("", POOL.format("x"), Placement("NCHW", (6, 4, 6))),
    "padded in front, then pooled": (ints("p", 0, 0, 1, 1, 0, 0, 1, 1), f"t = Pad (x, p) {POOL.format('t')}",
                                     Placement("NCHW", (6, 5, 7))),
    "padded far in front, then pooled": (ints("p", 0, 0, 4, 0, 0, 0, 0, 0), f"t = Pad (x, p) {POOL.format('t')}", None),
    "padded in front and cropped again": (PAD_AND_CROP, "t = Pad (x, p) v = Slice (t, b, e, a)",
                                          Placement("NCHW", (6, 8, 12))),
    "rows in another order": (ints("i", 1, 0, 2, 3, 4, 5, 6, 7), "v = Gather <axis = 2> (x, i)", None),
    "rows in their order": (ints("i", *range(8)), "v = Gather <axis = 2> (x, i)", Placement("NCHW", (6, 8, 12))),
    "channels in another order": (ints("i", 5, 4, 3, 2, 1, 0), "v = Gather <axis = 1> (x, i)",
                                  Placement("NCHW", (6, 8, 12))),
    "channels mixed into rows": (ints("s", -1, 8, 6, 12), "v = Reshape (x, s)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    constants, nodes, expected = LAYOUTS[name]
    model = normalized(f"{nodes} n = Neg (v) f = Flatten <axis = 1> (n) y = Identity (f)", constants=constants)
    (image,), (end,) = model.graph.inputs, model.graph.outputs
    nodes_on_the_way = path_nodes(model.graph, values_between(model.graph, [image], end))
    axes = find_axes(image, "NCHW", nodes_on_the_way)
    value = value_named(model, "n")
    assert (placement(axes[value]) if value in axes else None) == expected


def test_a_class_token_is_a_prefix() -> None:
    nodes = """
        r = Reshape (x, s) t = Transpose <perm = [0, 2, 1]> (r)
        d = Shape <start = 0, end = 1> (x) e = Concat <axis = 0> (d, one, six) k = Expand (token, e)
        c = Concat <axis = 1> (k, t) n = Neg (c) m = Slice (n, one, big, one) l = Neg (m)
        front = Slice (n, zero, one, one) again = Concat <axis = 1> (front, l) b = Neg (again)
        y = Flatten <axis = 1> (b)
    """
    constants = ints("s", 0, 6, -1) + ints("one", 1) + ints("six", 6) + ints("big", 999) + ints("zero", 0)
    model = normalized(nodes, constants=constants + "token = Constant <value = float[1,1,6] {1,2,3,4,5,6}> ()")
    (image,), (end,) = model.graph.inputs, model.graph.outputs
    axes = find_axes(image, "NCHW", path_nodes(model.graph, values_between(model.graph, [image], end)))
    assert placement(axes[value_named(model, "n")]) == Placement("NLC", (6, 8, 12), prefix=1)
    assert placement(axes[value_named(model, "l")]) == Placement("NLC", (6, 8, 12))
    assert placement(axes[value_named(model, "b")]) == Placement("NLC", (6, 8, 12), prefix=1)


@pytest.mark.parametrize(
    ("constants", "nodes", "expected"),
    [
        ("", "v = Transpose <perm = [1, 0, 2, 3]> (x)", BatchAxis(1)),
        (WINDOWS, PARTITION + "v = Identity (w)", BatchAxis(0, 1, 6)),
        (WINDOWS, PARTITION + REVERSE, BatchAxis(0)),
        (ints("s", -1, 96), "t = Transpose <perm = [1, 0, 2, 3]> (x) v = Reshape (t, s)", BatchAxis(0, 6, 1)),
        (ints("s", 3, -1, 96), "t = Transpose <perm = [1, 0, 2, 3]> (x) v = Reshape (t, s)", BatchAxis(1, 2, 1)),
    ],
    ids=["moved", "windows", "windows and back", "behind channels", "partly behind channels"],
)
def test_batch_axes(constants: str, nodes: str, expected: BatchAxis) -> None:
    model = normalized(f"{nodes} n = Neg (v) y = Reshape (n, flat)", constants=constants + ints("flat", -1, 576))
    assert find_batch_axes(model.graph)[value_named(model, "n")] == expected


# Self-attention of four positions in windows; each window is an element of the batch axis.
WINDOW_ATTENTION = (
    WINDOWS,
    f"""
    z = Tanh (x) i = Conv <kernel_shape = [1, 1]> (z, weight)
    {PARTITION.replace("(x)", "(i)")}
    k = Transpose <perm = [0, 2, 1]> (w) g = MatMul (w, k) f = Softmax <axis = -1> (g) o = MatMul (f, w)
    {REVERSE.replace("(w,", "(o,")}
    j = Add (h, v) r = Mul (j, j) m = ReduceMean <keepdims = 0> (r, middle) y = MatMul (m, head)
    """,
)


@pytest.fixture
def window_attention(tmp_path: Path) -> Path:
    constants, nodes = WINDOW_ATTENTION
    model = model_of(nodes, constants=constants + ints("middle", 1, 2))
    rng = np.random.default_rng(0)
    for name, array in (("weight", rng.standard_normal((6, 6, 1, 1))), ("head", rng.standard_normal((6, 5)))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def test_several_classes_of_one_image_pass_windows(window_attention: Path) -> None:
    bundle = camrt.export(window_attention, window_attention.with_suffix(".bundle"), ["i"])
    session = open_session(bundle.path, threads=1)
    images = np.random.default_rng(1).standard_normal((3, 6, 8, 12)).astype(np.float32)
    classes = np.array([4, 0, -1])
    together = session.run(images[:1], classes, ["i"]).layers[0]
    apart = [session.run(images[:1], classes[m : m + 1], ["i"]).layers[0].gradients for m in range(3)]
    assert together.gradients.shape == (3, 6, 8, 12)
    np.testing.assert_allclose(together.gradients, np.concatenate(apart), rtol=0, atol=1e-6 * np.abs(apart).max())
    three = session.run(images, np.array([1, 2, 3]), ["i"]).layers[0]
    one = [session.run(images[n : n + 1], np.array([n + 1]), ["i"]).layers[0].gradients for n in range(3)]
    np.testing.assert_allclose(three.gradients, np.concatenate(one), rtol=0, atol=1e-6 * np.abs(one).max())


def test_the_gradient_through_windows_is_that_of_differences(window_attention: Path) -> None:
    bundle = camrt.export(window_attention, window_attention.with_suffix(".bundle"), ["i"])
    session = open_session(bundle.path, threads=1)
    rng = np.random.default_rng(2)
    outputs = session.run(rng.standard_normal((1, 6, 8, 12)).astype(np.float32), np.array([2]), ["i"]).layers[0]
    direction = np.sign(outputs.gradients)
    step = 1e-2
    high, low = (session.run_from_layer("i", outputs.activations + s * direction)[0, 2] for s in (step, -step))
    slope = float((outputs.gradients * direction).sum())
    assert slope == pytest.approx((high - low) / (2 * step), rel=5e-3)


def test_a_reshape_that_divides_the_batch_is_refused(tmp_path: Path) -> None:
    nodes = """
        i = Conv <kernel_shape = [1, 1]> (x, weight) t = Transpose <perm = [0, 2, 3, 1]> (i)
        r = Reshape (t, s) n = Tanh (r) b = Reshape (n, u) m = ReduceMean <keepdims = 0> (b, middle) y = MatMul (m, head)
    """
    model = model_of(nodes, constants=ints("s", 4, -1, 6) + ints("u", -1, 8, 12, 6) + ints("middle", 1, 2))
    for name, shape in (("weight", (6, 6, 1, 1)), ("head", (6, 5))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "source.onnx")
    with pytest.raises(UnsupportedOpError, match="batch"):
        camrt.export(tmp_path / "source.onnx", tmp_path / "bundle.onnx", ["i"])


SHAPE_ARITHMETIC = """
    i = Relu (x) shape = Shape (i) n = Gather <axis = 0> (shape, zero) c = Gather <axis = 0> (shape, one)
    half = Div (c, two) nu = Unsqueeze (n, first) hu = Unsqueeze (half, first)
    to = Concat <axis = 0> (nu, pair, hu, tail) r = Reshape (i, to) t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
    back = Concat <axis = 0> (nu, minus, tail) v = Reshape (t, back)
    y = ReduceMean <keepdims = 0> (v, tailaxes)
"""
SCALARS = "".join(f"{name} = Constant <value_int = {n}> ()\n" for name, n in (("zero", 0), ("one", 1), ("two", 2)))


def test_shape_arithmetic_becomes_constants(tmp_path: Path) -> None:
    constants = SCALARS + ints("first", 0) + ints("pair", 2) + ints("tail", 8, 12) + ints("minus", -1)
    proto = model_of(SHAPE_ARITHMETIC, constants=constants + ints("tailaxes", 2, 3))
    model = ir.from_proto(proto)
    normalize(model, None)
    assert [node.op_type for node in model.graph] == ["Relu", "Reshape", "Transpose", "Reshape", "ReduceMean"]
    assert nominal_shape(value_named(model, "v")) == (-1, 6, 8, 12)
    onnx.save(proto, tmp_path / "source.onnx")
    onnx.save(ir.to_proto(model), tmp_path / "folded.onnx")
    images = np.random.default_rng(3).standard_normal((3, 6, 8, 12)).astype(np.float32)
    before, after = (open_model(tmp_path / f"{name}.onnx", 1).run({"x": images})["y"] for name in ("source", "folded"))
    np.testing.assert_array_equal(before, after)
