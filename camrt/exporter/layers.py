"""Which layers can be explained, which ones ``auto`` picks, and how a caller's names find them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from camrt.bundle import Layout
from camrt.errors import InvalidInputError, LayerNotFoundError, UnsupportedModelError
from camrt.exporter.axis_rules import find_axes
from camrt.exporter.graph_walk import cut_values, path_nodes, values_between
from camrt.exporter.head import image_layout
from camrt.exporter.layouts import Placement, placement
from camrt.exporter.receptive_field import receptive_fields
from camrt.exporter.scopes import module_outputs
from camrt.exporter.shapes import is_known, nominal_shape
from camrt.exporter.stages import Stages

_REARRANGES = frozenset({"Reshape", "Transpose", "Flatten", "Identity"})


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
        receptive_field: pixels of the image that a position sees, rows and columns; None where it sees the whole image.
            See camrt.exporter.receptive_field.
    """

    name: str
    value: str
    shape: tuple[int, int, int]
    stride: tuple[float, float]
    layout: Layout
    auto: bool
    reason: str
    receptive_field: tuple[int, int] | None = None


class LayerFinder:
    """Finds target layers between the image and the logits of one graph.

    Args:
        graph: a graph with inferred shapes.
        image: its image input, (N, C, H, W) or (N, H, W, C).
        logits: (N, K).
    """

    def __init__(self, graph: ir.Graph, image: ir.Value, logits: ir.Value) -> None:
        shape = nominal_shape(image)
        self._image = image
        self._image_size = shape[2:] if image_layout(image) == "NCHW" else shape[1:3]
        self._nodes = path_nodes(graph, values_between(graph, [image], logits))
        self._order = {output: index for index, node in enumerate(self._nodes) for output in node.outputs}
        self._modules = module_outputs(self._nodes)
        axes = find_axes(image, image_layout(image), self._nodes)
        places = {value: placement(kept) for value, kept in axes.items()}
        self._places = {value: place for value, place in places.items() if place is not None}
        self._stages = Stages(self._nodes, cut_values(graph, image, logits), self._places, self._image_size)
        forms = {value: _module_form(value, self._modules) for value in self._stages.values}
        self._names = _display_names(self._modules, [forms[value] for value in self._stages.picked if value in forms])
        for value, form in forms.items():
            if value not in self._names and form in self._names:
                self._names[value] = self._names[form]

    def candidates(self, inside_blocks: bool = False) -> list[LayerCandidate]:
        """Every value that all paths from the image to the logits pass through and that has positions, in order.

        Args:
            inside_blocks: adds the other values with positions: never picked, but they can be named.
        """
        picked, reasons = self._stages.picked, self._stages.reasons
        listed = {*self._stages.values, *picked}
        others = {value for value in self._order if value in self._places and max(self._size(value)) > 1}
        fields, leaves = receptive_fields(self._nodes, self._image), {v: path for path, v in self._modules.items()}
        found = []
        for value in sorted(listed | others if inside_blocks else listed, key=self._order.__getitem__):
            reason = reasons.get(value, "not the end of its stage" if value in listed else "inside a block")
            candidate = replace(self._candidate(value), auto=value in picked, reason=reason)
            name = candidate.name if value in listed else leaves.get(value, candidate.name)
            found.append(replace(candidate, name=name, receptive_field=fields.get(value)))
        return found

    def select(self, target_layers: str | Sequence[str]) -> dict[str, ir.Value]:
        """Layer name -> value, coarse to fine.

        Args:
            target_layers: "auto", or names, module paths, value names or glob patterns of them.

        Raises:
            InvalidInputError: neither a string nor strings.
            LayerNotFoundError: a name or pattern matches nothing; lists the candidates.
            UnsupportedModelError: "auto" finds no stage, or a named value has no positions or no known layout.
        """
        if isinstance(target_layers, str) and target_layers == "auto":
            if not self._stages.picked:
                raise UnsupportedModelError(
                    "No stage of the network keeps a spatial resolution for a block.",
                    f"Name the target layers; candidates: {self._candidate_names()}.",
                )
            chosen = {self._name(value): value for value in self._stages.picked}
        else:
            chosen = dict(pair for name in self._wanted(target_layers) for pair in self._resolve(name))
        for name, value in chosen.items():
            self._check(name, value)
        return dict(sorted(chosen.items(), key=lambda item: self._coarseness(item[1])))

    def placement(self, value: ir.Value) -> Placement:
        """How the graph keeps ``value``, one of those that ``select`` returned."""
        return self._places[value]

    def _wanted(self, target_layers: str | Sequence[str]) -> list[str]:
        """The names and patterns that a caller gave, one at least."""
        if isinstance(target_layers, str) or not isinstance(target_layers, Iterable):
            target_layers = [target_layers]
        wanted = list(target_layers)
        if not all(isinstance(name, str) for name in wanted):
            raise InvalidInputError(
                f"target_layers is {target_layers!r}.", f"Give names; candidates: {self._candidate_names()}."
            )
        if not wanted:
            raise LayerNotFoundError("target_layers is empty.", f"Candidates: {self._candidate_names()}.")
        return wanted

    def _resolve(self, name: str) -> list[tuple[str, ir.Value]]:
        """The (name, value) pairs that one name or pattern stands for."""
        if name in self._modules:
            return [(name, self._modules[name])]
        by_value = {value.name: value for value in self._order if value.name}
        if name in by_value:
            return [(name, by_value[name])]
        by_node = {node.name: node.outputs[0] for node in self._nodes if node.name}
        if name in by_node:
            return [(name, by_node[name])]
        stage_values = self._stages.values
        known = {self._name(value): value for value in stage_values}
        paths = {path: value for path, value in self._modules.items() if value in stage_values}
        for names in (known, paths):
            matches = [(key, value) for key, value in names.items() if fnmatch.fnmatchcase(key, name)]
            if matches:
                return matches
        close = difflib.get_close_matches(name, list(dict.fromkeys([*known, *self._modules])), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise LayerNotFoundError(f"No layer matches {name!r}.", f"{hint}Candidates: {self._candidate_names()}.")

    def _check(self, name: str, value: ir.Value) -> None:
        """Refuses a value that has no positions or whose layout is unknown."""
        if not is_known(value) or len(nominal_shape(value)) not in (3, 4):
            raise UnsupportedModelError(
                f"Layer {name!r} has the shape {value.shape}; a target layer has four axes, or three with tokens.",
                f"Candidates: {self._candidate_names()}.",
            )
        if value not in self._places:
            raise UnsupportedModelError(
                f"Which axes of layer {name!r} hold the rows, columns and channels cannot be inferred.",
                f"Candidates: {self._candidate_names()}.",
            )

    def _candidate(self, value: ir.Value) -> LayerCandidate:
        place = self._places[value]
        _, height, width = place.shape
        stride = (self._image_size[0] / height, self._image_size[1] / width)
        return LayerCandidate(
            self._name(value), value.name or "", place.shape, stride, place.layout, auto=False, reason=""
        )

    def _size(self, value: ir.Value) -> tuple[int, ...]:
        return self._places[value].shape[1:]

    def _coarseness(self, value: ir.Value) -> tuple[int, int]:
        """Sort key: fewer positions first, and of equal ones the deeper first."""
        height, width = self._size(value)
        return height * width, -self._order[value]

    def _name(self, value: ir.Value) -> str:
        return self._names.get(value) or value.name or ""

    def _candidate_names(self) -> str:
        return ", ".join(self._name(value) for value in self._stages.values) or "none"


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


def _module_form(value: ir.Value, modules: Mapping[str, ir.Value]) -> ir.Value:
    """The module output that ``value`` becomes when its only users put its elements in another order; or itself."""
    ends, form = set(modules.values()), value
    while form not in ends:
        users = {node for node, _ in form.uses()}
        user = users.pop() if len(users) == 1 else None
        if user is None or user.op_type not in _REARRANGES:
            return value
        form = user.outputs[0]
    return form
