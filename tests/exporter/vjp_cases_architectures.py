"""Rows of the numeric check in test_vjp.py for operators that transformers and other newer designs bring."""

from __future__ import annotations

from typing import Any

import numpy as np

RNG = np.random.default_rng(11)


def row(op: str, name: str, shape: tuple[int, ...], inputs: tuple[str, ...] = ("x",), **fields: Any) -> dict[str, Any]:
    """The fields of one test_vjp.Case."""
    return {"op": op, "name": name, "shape": shape, "inputs": inputs, **fields}


def slice_row(name: str, shape: tuple[int, ...], start: int, end: int, axis: int, step: int) -> dict[str, Any]:
    constants = {key: np.array([value]) for key, value in (("s", start), ("e", end), ("a", axis), ("t", step))}
    return row("Slice", name, shape, ("x", "s", "e", "a", "t"), constants=constants)


def gather_row(name: str, indices: Any, axis: int) -> dict[str, Any]:
    return row("Gather", name, (4, 5, 3), ("x", "i"), constants={"i": np.array(indices)}, attributes={"axis": axis})


def pad_row(name: str, pads: list[int], mode: str = "constant") -> dict[str, Any]:
    return row("Pad", name, (3, 5, 4), ("x", "p"), constants={"p": np.array(pads)}, attributes={"mode": mode})


def einsum_row(name: str, shape: tuple[int, ...], equation: str, **constants: Any) -> dict[str, Any]:
    inputs = ("x", *constants) if constants else ("x", "x")
    return row("Einsum", name, shape, inputs, constants=constants, attributes={"equation": equation})


ROWS: list[dict[str, Any]] = [
    row("MatMul", "left-weight", (5, 6), ("w", "x"), constants={"w": RNG.standard_normal((4, 5))}),
    row("MatMul", "self", (3, 5, 5), ("x", "x")),
    row("MatMul", "broadcast", (1, 5, 6), ("x", "w"), constants={"w": RNG.standard_normal((3, 6, 4))}),
    einsum_row("attention", (3, 4, 5), "nhij,jk->nhik", w=RNG.standard_normal((5, 2))),
    einsum_row("outer", (3, 4), "nij,nkj->nik"),
    einsum_row("transposed", (3, 4), "ab,nbc->nca", w=RNG.standard_normal((2, 3)))
    | {"inputs": ("w", "x")},
    row("Einsum", "permuted", (3, 4), attributes={"equation": "nij -> nji"}),
    row("InstanceNormalization", "image", (3, 5, 4), ("x", "s", "b"),
        constants={"s": RNG.uniform(0.5, 2, 3), "b": RNG.standard_normal(3)}),
    row("InstanceNormalization", "groups", (2, 30), ("x", "s", "b"),
        constants={"s": RNG.uniform(0.5, 2, 2), "b": np.zeros(2)}, attributes={"epsilon": 1e-3}),
    row("GroupNormalization", "channels", (6, 5, 4), ("x", "s", "b"), opset=21,
        constants={"s": RNG.uniform(0.5, 2, 6), "b": RNG.standard_normal(6)}, attributes={"num_groups": 3}),
    row("GroupNormalization", "opset18", (6, 5, 4), ("x", "s", "b"), opset=18,
        constants={"s": RNG.uniform(0.5, 2, 3), "b": RNG.standard_normal(3)}, attributes={"num_groups": 3}),
    row("LpNormalization", "l2", (3, 5, 4), attributes={"axis": 1, "p": 2}),
    row("LpNormalization", "l1", (3, 5, 4), attributes={"axis": -1, "p": 1}, low=0.5),  # the evaluator forgets the |x|
    slice_row("every-second", (3, 5, 4), 1, 5, 2, 2),
    slice_row("reversed", (3, 5, 4), -1, -(2**62), 2, -1),
    slice_row("reversed-part", (3, 5, 4), 3, 0, 2, -2),
    slice_row("whole-batch", (3, 5, 4), 0, 2**62, 0, 1),
    gather_row("one", 2, 2),
    gather_row("last", -1, -1),
    gather_row("run", [1, 2, 3], 1),
    gather_row("permutation", [3, 0, 2, 1], 1),
    gather_row("some", [4, 0, 2], 2),
    gather_row("repeated", [0, 0, 3, 2, 3], 2),
    gather_row("matrix", [[0, 3], [1, 2]], 1),
    pad_row("reflect", [0, 0, 2, 1, 0, 0, 1, 2], "reflect"),
    pad_row("edge", [0, 0, 2, 0, 0, 0, 0, 3], "edge"),
    row("Split", "two-of-three", (6, 5, 4), ("x", "n"), constants={"n": np.array([1, 2, 3])},
        attributes={"axis": 1}, outputs=("y", "y1", "y2")),
    row("Tile", "rows", (3, 5, 4), ("x", "r"), constants={"r": np.array([1, 2, 1, 3])}),
    row("Tile", "once", (3, 5, 4), ("x", "r"), constants={"r": np.array([1, 1, 1, 1])}),
    row("DepthToSpace", "dcr", (8, 3, 2), attributes={"blocksize": 2}),
    row("DepthToSpace", "crd", (8, 3, 2), attributes={"blocksize": 2, "mode": "CRD"}),
    row("SpaceToDepth", "blocks", (2, 4, 6), attributes={"blocksize": 2}),
    row("CumSum", "along", (3, 5, 4), ("x", "a"), constants={"a": np.array(2)}),
    row("CumSum", "backwards", (3, 5, 4), ("x", "a"), constants={"a": np.array(-1)},
        attributes={"exclusive": 1, "reverse": 1}),
]  # fmt: skip
