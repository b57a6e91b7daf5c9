"""The classifiers inside the onnx package: opset 9, written by Caffe2, weights made by ConstantOfShape.

The files hold shapes in place of weights, and ConstantOfShape makes every weight a constant. A network of constants
says nothing, so the tests put random weights in, scaled so that activations neither vanish nor explode.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import camrt
from camrt.exporter import list_layers
from tests.exporter.tensorrt_operators import forbidden_operators
from tests.formats.checks import check_batch, check_gradients, check_outputs, exported

NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
QUICK = ("squeezenet",)
_NORM_PARAMETERS = {1: (0.6, 1.4), 2: (-0.3, 0.3), 3: (-0.2, 0.2), 4: (0.7, 1.5)}


def package_model(name: str) -> onnx.ModelProto:
    package = importlib.util.find_spec("onnx")
    assert package is not None
    assert package.origin is not None
    return onnx.load(Path(package.origin).parent / f"backend/test/data/light/light_{name}.onnx")


def with_random_weights(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Replaces every ConstantOfShape by an initialiser of random, well-scaled numbers."""
    rng = np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    made = {
        node.output[0]: tuple(shapes[node.input[0]]) for node in proto.graph.node if node.op_type == "ConstantOfShape"
    }
    nodes = [node for node in proto.graph.node if node.op_type != "ConstantOfShape"]
    arrays: dict[str, np.ndarray] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in made:
                arrays[name] = _weight(node.op_type, index, made[name], rng).astype(np.float32)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend([*kept, *(numpy_helper.from_array(value, key) for key, value in arrays.items())])
    inputs = [value for value in proto.graph.input if value.name.endswith("data_0")]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto


def _weight(op: str, index: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if op == "BatchNormalization":
        return rng.uniform(*_NORM_PARAMETERS[index], shape)
    if op in ("Conv", "Gemm") and index == 1:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return rng.uniform(0.6, 1.4, shape) if op == "Mul" else 0.1 * rng.standard_normal(shape)


def before_ties(proto: onnx.ModelProto, value: str) -> str | None:
    """Where differences can start, since zeros that ReLU made are ties in the windows of a MaxPool.

    The value in front of the ReLU; for several ReLUs side by side the MaxPool's result; None where a MaxPool reads that.
    """
    producers = {node.output[0]: node for node in proto.graph.node}
    node = producers[value]
    while node.op_type in ("Relu", "LRN", "MaxPool") and producers[node.input[0]].op_type != "Concat":
        node = producers[node.input[0]]
    pools = [item for item in proto.graph.node if item.op_type == "MaxPool"]
    if node.op_type == "Concat":
        node = next((item for item in pools if node.output[0] in item.input), node)
    return None if any(node.output[0] in item.input for item in pools) else node.output[0]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.timeout(900)
def test_whole_networks(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    proto = with_random_weights(package_model(name))
    onnx.save(proto, source)
    bundle = exported(source)
    assert len(bundle.manifest.target_layers) >= 1
    assert bundle.manifest.input_shape == (3, 224, 224)
    assert bundle.path.stat().st_size <= 1.1 * source.stat().st_size
    assert forbidden_operators(bundle.path) == []
    check_outputs(source, bundle)
    starts = [start for layer in bundle.manifest.target_layers if (start := before_ties(proto, layer.value))]
    softmax = next((node for node in proto.graph.node if node.op_type == "Softmax"), None)
    logits = proto.graph.output[0].name if softmax is None else softmax.input[0]
    cuts = {candidate.value for candidate in list_layers(source)}
    starts = [start for start in starts if start in cuts]
    # Finer layers lie before MaxPools with windows that are equal up to rounding: float32 itself cannot tell there.
    coarse = exported(source, starts[: 2 if name in QUICK else 1])
    check_gradients(source, coarse, end=logits)
    check_batch(coarse, count=2)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith(("dense", "incep")) else n for n in NAMES]
)
def test_the_files_themselves_are_rewritten(name: str, tmp_path: Path) -> None:
    """Weights that nodes make stay made by nodes: the bundle is no larger than the source and its new nodes."""
    source = tmp_path / "source.onnx"
    onnx.save(package_model(name), source)
    bundle = camrt.export(source, tmp_path / "bundle.onnx")
    assert bundle.manifest.num_classes == 1000
    assert bundle.path.stat().st_size <= source.stat().st_size + 300_000
