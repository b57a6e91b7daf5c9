"""PyTorch module paths, read from what the two torch.onnx exporters leave in a graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_CALL_NUMBER = re.compile(r"_\d+$")


def module_outputs(nodes: Iterable[ir.Node]) -> dict[str, ir.Value]:
    """Module path -> the last value that the module produced, over ``nodes`` in topological order.

    A module that is called several times (one ReLU used twice) stands for its last call, as a forward hook would see.
    """
    outputs: dict[str, ir.Value] = {}
    for node in nodes:
        for path in _module_paths(node):
            outputs[path] = node.outputs[0]
            outputs[_CALL_NUMBER.sub("", path)] = node.outputs[0]
    return outputs


def _module_paths(node: ir.Node) -> list[str]:
    """The modules a node belongs to, outermost first."""
    scopes = node.metadata_props.get(_NAME_SCOPES)
    if scopes is not None:
        return _paths_of_list(scopes)
    if node.name and node.name.startswith("/"):
        return _paths_of_name(node.name)
    return []


def _paths_of_list(text: str) -> list[str]:
    """``['', 'layer4', 'layer4.1', 'relu_1']`` without the root and the node's own name; anything else has no paths."""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    if not isinstance(scopes, list):
        return []
    return [path for path in scopes[1:-1] if isinstance(path, str) and path]


def _paths_of_name(name: str) -> list[str]:
    """``/layer4/layer4.1/relu_1/Relu`` to layer4, layer4.1, layer4.1.relu_1.

    A child of a Sequential repeats its parent (layer4, layer4.1); any other child is named relative to its parent.
    """
    paths: list[str] = []
    previous = ""
    for part in name.split("/")[1:-1]:
        if not paths:
            paths.append(part)
        elif part.startswith(previous + "."):
            paths.append(paths[-1] + part.removeprefix(previous))
        else:
            paths.append(f"{paths[-1]}.{part}")
        previous = part
    return paths
