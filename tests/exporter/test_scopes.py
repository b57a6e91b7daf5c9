from __future__ import annotations

import onnx_ir as ir
import pytest

from camrt.exporter.scopes import module_outputs


def chain(names: list[str], scopes: list[str | None] | None = None) -> list[ir.Node]:
    """Relu after Relu, with the names, and the scopes as the newer exporter records them."""
    value = ir.Value(name="image")
    nodes = []
    for index, name in enumerate(names):
        node = ir.node("Relu", [value], name=name)
        node.outputs[0].name = f"v{index}"
        if scopes is not None and scopes[index] is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes[index]
        value = node.outputs[0]
        nodes.append(node)
    return nodes


def paths(nodes: list[ir.Node]) -> dict[str, str | None]:
    return {path: value.name for path, value in module_outputs(nodes).items()}


def test_paths_of_node_names() -> None:
    nodes = chain(["/conv1/Conv", "/layer4/layer4.1/conv2/Conv", "/layer4/layer4.1/Add", "/fc/Gemm"])
    assert paths(nodes) == {
        "conv1": "v0",
        "layer4": "v2",
        "layer4.1": "v2",
        "layer4.1.conv2": "v1",
        "fc": "v3",
    }


def test_a_module_called_twice_stands_for_its_last_call() -> None:
    nodes = chain(["/block/relu/Relu", "/block/relu_1/Relu"])
    assert paths(nodes) == {"block": "v1", "block.relu": "v1", "block.relu_1": "v1"}


def test_nested_sequentials() -> None:
    nodes = chain(["/features/features.3/block/block.1/block.1.0/Conv"])
    assert list(paths(nodes)) == [
        "features",
        "features.3",
        "features.3.block",
        "features.3.block.1",
        "features.3.block.1.0",
    ]


@pytest.mark.parametrize("name", ["Conv_12", "", "/Conv", "conv1/Conv", "/"])
def test_names_without_scopes_have_no_paths(name: str) -> None:
    assert paths(chain([name])) == {}


def test_recorded_scopes_come_before_the_name() -> None:
    nodes = chain(["/other/Relu"], ["['', 'layer1', 'layer1.0', 'relu']"])
    assert paths(nodes) == {"layer1": "v0", "layer1.0": "v0"}


@pytest.mark.parametrize(
    "scopes",
    [
        "",
        "no list",
        "['', 'open",
        "7",
        "None",
        "{'a': 1}",
        "['', 3, None, 'x']",
        "[" * 5000,
        "__import__('os')",
        "'text'",
    ],
)
def test_damaged_scopes_count_as_none(scopes: str) -> None:
    assert paths(chain(["/layer1/Relu"], [scopes])) == {}
