"""Which layers can be explained, which ones ``auto`` picks, and how a caller's names find them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import onnx_ir as ir

from camrt.errors import LayerNotFoundError, UnsupportedModelError
from camrt.exporter.graph_walk import cut_values, path_nodes, values_between
from camrt.exporter.scopes import module_outputs
from camrt.exporter.shapes import is_known, nominal_shape
from camrt.exporter.vjp.registry import int_attribute

Layout: TypeAlias = Literal["NCHW", "NHWC"]

MAX_AUTO_LAYERS = 4
# What only re-arranges or re-scales an activation belongs to the layer after it.
_NOT_A_LAYER = frozenset(
    {"Transpose", "LayerNormalization", "Reshape", "Flatten", "Identity", "Cast", "Dropout", "Pad"}
)
_KEEPS_LAYOUT_FROM_LAST_AXIS = frozenset({"MatMul", "LayerNormalization", "Gemm"})
_ALWAYS_NCHW = frozenset({"Conv", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})


@dataclass(frozen=True, slots=True)
class LayerCandidate:
    """A value of the graph that can be a target layer.

    Attributes:
        name: module path where the exporter left one, else the value's name.
        value: the value's name in the graph.
        shape: (C, h, w).
        stride: input pixels a position, rows and columns.
        layout: how the graph keeps it.
        auto: whether target_layers="auto" picks it.
        reason: why, or why not.
    """

    name: str
    value: str
    shape: tuple[int, int, int]
    stride: tuple[float, float]
    layout: Layout
    auto: bool
    reason: str


class LayerFinder:
    """Finds target layers between the image and the logits of one graph.

    Args:
        graph: a graph with inferred shapes.
        image: its image input, (N, C, H, W).
        logits: (N, K).
    """

    def __init__(self, graph: ir.Graph, image: ir.Value, logits: ir.Value) -> None:
        self._image_size = nominal_shape(image)[2:]
        self._between = values_between(graph, [image], logits)
        self._nodes = path_nodes(graph, self._between)
        self._order = {output: index for index, node in enumerate(self._nodes) for output in node.outputs}
        self._cuts = cut_values(graph, image, logits)
        self._modules = module_outputs(self._nodes)
        self._layouts = _layouts(image, self._nodes)
        self._names = _display_names(self._modules, self._auto(self._stage_values())[0])

    def candidates(self) -> list[LayerCandidate]:
        """Every value that all paths from the image to the logits pass through and that has positions, in order."""
        values = self._stage_values()
        picked, reasons = self._auto(values)
        found = []
        for value in values:
            candidate = self._candidate(value)
            auto = value in picked
            reason = reasons.get(value, "not the end of its stage")
            found.append(replace(candidate, auto=auto, reason=reason))
        return found

    def select(self, target_layers: str | Sequence[str]) -> dict[str, ir.Value]:
        """Layer name -> value, coarse to fine.

        Args:
            target_layers: "auto", or names, module paths, value names or glob patterns of them.

        Raises:
            LayerNotFoundError: a name or pattern matches nothing; lists the candidates.
            UnsupportedModelError: "auto" finds no stage, or a named value has no positions or no known layout.
        """
        if target_layers == "auto":
            picked, _ = self._auto(self._stage_values())
            if not picked:
                raise UnsupportedModelError(
                    "No stage of the network keeps a spatial resolution for a block.",
                    f"Name the target layers; candidates: {self._candidate_names()}.",
                )
            chosen = {self._name(value): value for value in picked}
        else:
            wanted = [target_layers] if isinstance(target_layers, str) else list(target_layers)
            if not wanted:
                raise LayerNotFoundError("target_layers is empty.", f"Candidates: {self._candidate_names()}.")
            chosen = dict(pair for name in wanted for pair in self._resolve(name))
        for name, value in chosen.items():
            self._check(name, value)
        return dict(sorted(chosen.items(), key=lambda item: self._coarseness(item[1])))

    def layout(self, value: ir.Value) -> Layout:
        """How the graph keeps ``value``."""
        layout = self._layouts[value]
        assert layout is not None
        return layout

    def _auto(self, values: Sequence[ir.Value]) -> tuple[list[ir.Value], dict[ir.Value, str]]:
        """The stage ends: for each resolution kept for a block, its last value, the four coarsest, without the stem."""
        stages: dict[tuple[int, ...], ir.Value] = {}
        reasons: dict[ir.Value, str] = {}
        for size in dict.fromkeys(self._size(value) for value in values):
            end = self._stage_end([value for value in values if self._size(value) == size])
            if end is None:
                continue
            if size == self._image_size:
                reasons[end] = "the stem: still at the image's resolution"
            elif not self._keeps_a_block(size, end):
                reasons[end] = "the stem: no block works at this resolution"
            else:
                stages[size] = end
                reasons[end] = f"last value at {size[0]}x{size[1]}"
        ends = list(stages.values())
        for value in ends[:-MAX_AUTO_LAYERS]:
            reasons[value] = f"finer than the {MAX_AUTO_LAYERS} coarsest stages"
        return ends[-MAX_AUTO_LAYERS:], reasons

    def _stage_values(self) -> list[ir.Value]:
        """Cuts with positions and a known layout, produced by something that makes a layer."""
        return [
            value
            for value in self._cuts
            if is_known(value)
            and len(nominal_shape(value)) == 4
            and self._layouts[value] is not None
            and max(self._size(value)) > 1
            and _producer(value).op_type not in _NOT_A_LAYER
        ]

    def _stage_end(self, values: Sequence[ir.Value]) -> ir.Value | None:
        """The last value of a stage; the expansion in front of a strided depthwise Conv counts to the next stage."""
        last = values[-1]
        drop = next((node for node in self._nodes[self._order[last] + 1 :] if last in node.inputs), None)
        if drop is None or drop.op_type != "Conv" or not _is_depthwise(drop):
            return last
        expansion = self._producing_conv(last)
        if expansion is None:
            return last
        before = [value for value in values if self._order[value] < self._order[expansion.outputs[0]]]
        return before[-1] if before else None

    def _producing_conv(self, value: ir.Value) -> ir.Node | None:
        """The Conv whose activation ``value`` is, found through elementwise nodes."""
        node: ir.Node | None = _producer(value)
        while node is not None and node.op_type != "Conv":
            source = next((item for item in node.inputs if item in self._between), None)
            node = None if source is None else source.producer()
        return node

    def _keeps_a_block(self, size: tuple[int, ...], end: ir.Value) -> bool:
        """Whether a Conv up to ``end`` reads and writes values of this size."""
        convs = (node for node in self._nodes[: self._order[end] + 1] if node.op_type == "Conv")
        return any(
            nominal_shape(value)[2:] == nominal_shape(node.outputs[0])[2:] == size
            for node in convs
            for value in node.inputs[:1]
            if value is not None
        )

    def _resolve(self, name: str) -> list[tuple[str, ir.Value]]:
        """The (name, value) pairs that one name or pattern stands for."""
        if name in self._modules:
            return [(name, self._modules[name])]
        by_value = {value.name: value for value in self._order}
        if name in by_value:
            return [(name, by_value[name])]
        by_node = {node.name: node.outputs[0] for node in self._nodes}
        if name in by_node:
            return [(name, by_node[name])]
        stage_values = self._stage_values()
        known = {self._name(value): value for value in stage_values}
        paths = {path: value for path, value in self._modules.items() if value in stage_values}
        for names in (known, paths):
            matches = [(key, value) for key, value in names.items() if fnmatch.fnmatchcase(key, name)]
            if matches:
                return matches
        close = difflib.get_close_matches(name, [*known, *self._modules], n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise LayerNotFoundError(f"No layer matches {name!r}.", f"{hint}Candidates: {self._candidate_names()}.")

    def _check(self, name: str, value: ir.Value) -> None:
        """Refuses a value that has no positions or whose layout is unknown."""
        if not is_known(value) or len(nominal_shape(value)) != 4:
            raise UnsupportedModelError(
                f"Layer {name!r} has the shape {value.shape}; a target layer has four axes.",
                f"Candidates: {self._candidate_names()}.",
            )
        if self._layouts[value] is None:
            raise UnsupportedModelError(
                f"Which axis of layer {name!r} holds the channels cannot be inferred.",
                f"Candidates: {self._candidate_names()}.",
            )

    def _candidate(self, value: ir.Value) -> LayerCandidate:
        layout, (height, width) = self.layout(value), self._size(value)
        channels = nominal_shape(value)[1 if layout == "NCHW" else 3]
        stride = (self._image_size[0] / height, self._image_size[1] / width)
        return LayerCandidate(
            self._name(value), value.name or "", (channels, height, width), stride, layout, auto=False, reason=""
        )

    def _size(self, value: ir.Value) -> tuple[int, ...]:
        shape = nominal_shape(value)
        return shape[2:] if self._layouts[value] == "NCHW" else shape[1:3]

    def _coarseness(self, value: ir.Value) -> tuple[int, int]:
        """Sort key: fewer positions first, and of equal ones the deeper first."""
        height, width = self._size(value)
        return height * width, -self._order[value]

    def _name(self, value: ir.Value) -> str:
        return self._names.get(value) or value.name or ""

    def _candidate_names(self) -> str:
        return ", ".join(self._name(value) for value in self._stage_values()) or "none"


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _is_depthwise(node: ir.Node) -> bool:
    group = int_attribute(node, "group", 1)
    value = node.inputs[0]
    return group > 1 and value is not None and nominal_shape(value)[1] == group


def _display_names(modules: dict[str, ir.Value], stage_ends: Sequence[ir.Value]) -> dict[ir.Value, str]:
    """Value -> the shortest module path that ends in it, modules of several stages left out."""
    paths_of_ends = [[path for path, value in modules.items() if value is end] for end in stage_ends]

    def stages_inside(path: str) -> int:
        return sum(any(f"{inner}.".startswith(f"{path}.") for inner in paths) for paths in paths_of_ends)

    names: dict[ir.Value, str] = {}
    for path in sorted(modules, key=lambda path: (path.count("."), len(path)), reverse=True):
        if stages_inside(path) < 2:
            names[modules[path]] = path
    return names


def _layouts(image: ir.Value, nodes: Iterable[ir.Node]) -> dict[ir.Value, Layout | None]:
    """The layout of every four-axis value: convolutions make NCHW, Transpose changes it, elementwise nodes keep it."""
    channel_axis: dict[ir.Value, int | None] = {image: 1}
    for node in nodes:
        sources = [value for value in node.inputs if value in channel_axis]
        axis = channel_axis[sources[0]] if sources and sources[0] is not None else None
        if node.op_type in _ALWAYS_NCHW:
            axis = 1
        elif node.op_type == "Transpose" and axis is not None:
            axis = list(node.attributes["perm"].as_ints()).index(axis) if "perm" in node.attributes else None
        elif node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") or (
            node.op_type in _KEEPS_LAYOUT_FROM_LAST_AXIS and axis != 3
        ):
            axis = None
        channel_axis.update(dict.fromkeys(node.outputs, axis))
    layouts: dict[int | None, Layout | None] = {1: "NCHW", 3: "NHWC"}
    return {value: layouts.get(axis) for value, axis in channel_axis.items()}
