"""The methods beyond activations times gradients, against pytorch-grad-cam and torch-cam on real architectures.

Architectures: with ReLUs and a linear head (resnet18), with ReLUs and without one (squeezenet1_1), without any ReLU
(convnext_tiny).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget, FinerWeightedTarget

import camrt
from camrt.errors import MethodUnavailableError
from tests import oracles
from tests.models import export_onnx, fold_batch_norms, make_inputs, make_model
from tests.parity.cases import IMAGES, NUM_CLASSES, SMALL, Case
from tests.parity.conftest import Exported

ARCHITECTURES = (
    "resnet18",
    "squeezenet1_1",
    pytest.param("convnext_tiny", marks=pytest.mark.slow),
)


def exported_with_second_order(architecture: str, num_classes: int, folder: Path) -> Exported:
    case = Case(architecture, "torchscript", SMALL)
    inputs = np.concatenate([make_inputs(1, SMALL, image.seed) for image in IMAGES[case.key]])
    model = make_model(architecture, 0, SMALL, num_classes, inputs)
    source = export_onnx(model, folder / "source.onnx", case.exporter)
    layers = list(model.target_layers)
    bundle = camrt.export(source, folder / "bundle.onnx", layers, image_size=case_size(case), second_order=True)
    return Exported(case, replace(model, module=fold_batch_norms(model.module, inputs)), source, bundle, inputs)


def case_size(case: Case) -> tuple[int, int]:
    return case.size, case.size


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(
    request: pytest.FixtureRequest, torch_threads: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    found = exported_with_second_order(request.param, NUM_CLASSES[SMALL], tmp_path_factory.mktemp(request.param))
    yield found
    found.source.unlink()
    found.bundle.path.unlink()


def assert_near(ours: oracles.Array, exact: oracles.Array, rounded: oracles.Array) -> None:
    assert ours.shape == exact.shape
    for one, theirs, single in zip(ours, exact, rounded, strict=True):
        assert theirs.std() > 0.01
        assert np.abs(one - theirs).max() <= oracles.tolerance(single, theirs)


def ours(network: Exported, method: str, layer: str, classes: Sequence[int], images: int = 2) -> oracles.Array:
    explanations = network.explainer.explain(network.inputs[:images], list(classes), method=method, target_layers=layer)
    assert all(not explanation.degenerate for explanation in explanations)
    return np.stack([explanation.saliency_map for explanation in explanations])


def theirs(
    network: Exported,
    cam: Callable[[torch.nn.Module, list[torch.nn.Module]], BaseCAM],
    layer: str,
    targets: Sequence[object],
) -> tuple[oracles.Array, oracles.Array]:
    """pytorch-grad-cam's maps of the real network, from float64 and from float32."""
    maps = []
    for module in (network.double, network.model.module):
        images = torch.from_numpy(network.inputs[: len(targets)]).to(next(module.parameters()).dtype)
        method = cam(module, [dict(module.named_modules())[layer]])
        maps.append(method(input_tensor=images, targets=list(targets)))
        module.zero_grad(set_to_none=True)
    return maps[0], maps[1]


@pytest.mark.parametrize("place", [0, -1])
def test_shapleycam(network: Exported, place: int) -> None:
    layer, classes = network.model.target_layers[place], network.classes("given")
    targets = [ClassifierOutputReST(k) for k in classes]
    exact, rounded = theirs(network, pytorch_grad_cam.ShapleyCAM, layer, targets)
    assert_near(ours(network, "shapleycam", layer, classes), exact, rounded)
    # The second derivative is not lost in the noise.
    gradients = theirs(network, pytorch_grad_cam.GradCAM, layer, targets)[0]
    assert np.abs(exact - gradients).max() > 1e-3 or place == 0


def test_hessian_vector_products_are_those_of_autograd(network: Exported) -> None:
    module, layers = network.double, network.model.target_layers
    classes = network.classes("given")
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(module.named_modules())
    handles = [
        modules[layer].register_forward_hook(lambda _m, _i, output, layer=layer: outputs.__setitem__(layer, output))
        for layer in layers
    ]
    logits = module(torch.from_numpy(network.inputs).double().requires_grad_())
    for handle in handles:
        handle.remove()
    rows = torch.arange(len(classes))
    value = (logits + torch.log_softmax(logits, dim=1))[rows, classes].sum()
    found = network.session.run(network.inputs, np.array(classes), layers, derivatives=2)
    for layer in found.layers:
        activations = outputs[layer.name]
        (gradient,) = torch.autograd.grad(value, activations, create_graph=True)
        (product,) = torch.autograd.grad(gradient, activations, activations.detach(), retain_graph=True)
        for mine, exact in ((layer.gradients, gradient.detach()), (layer.hessian_vectors, product)):
            scale = float(exact.abs().max())
            assert np.abs(mine - exact.numpy()).max() <= 2e-5 * scale


@pytest.mark.parametrize(
    ("method", "oracle"), [("eigencam", pytorch_grad_cam.EigenCAM), ("eigengradcam", pytorch_grad_cam.EigenGradCAM)]
)
def test_principal_components_but_for_the_sign(network: Exported, method: str, oracle: type[BaseCAM]) -> None:
    class Flipped(oracle):  # type: ignore[misc, valid-type]
        def get_cam_image(self, *args: object, **kwargs: object) -> oracles.Array:
            return -super().get_cam_image(*args, **kwargs)

    classes = network.classes("given")
    images = torch.zeros(len(classes), 3, SMALL, SMALL)
    targets = [ClassifierOutputTarget(0)] * len(classes)
    replays = [oracles.Replay(network.backward("given", double=double)) for double in (True, False)]
    for number, layer in enumerate(network.model.target_layers):
        maps = ours(network, method, layer, classes)
        signs = [
            [cam(replay, [replay.layers[number]])(input_tensor=images, targets=targets) for replay in replays]
            for cam in (oracle, Flipped)
        ]
        for n in range(len(classes)):
            # The sign of each decomposition is free: the nearest of the four is the pair.
            exact = min((pair[0][n] for pair in signs), key=lambda other: np.abs(maps[n] - other).max())
            single = min((pair[1][n] for pair in signs), key=lambda other: np.abs(exact - other).max())
            assert exact.std() > 0.01
            assert np.abs(maps[n] - exact).max() <= oracles.tolerance(single, exact)


def test_finercam_is_gradcam_of_the_difference(network: Exported) -> None:
    classes, layer = network.classes("given"), network.model.target_layers[0]
    logits = network.backward("given", double=True).logits

    def difference(n: int, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        near = np.argsort(np.abs(logits[n] - logits[n, k]))[1:4].tolist()
        return lambda output: output[k] - output[near].mean()

    targets = [difference(n, k) for n, k in enumerate(classes)]
    exact, rounded = theirs(network, pytorch_grad_cam.GradCAM, layer, targets)
    assert_near(ours(network, "finercam", layer, classes), exact, rounded)


def test_finercam_of_two_classes_is_finercam(torch_threads: None, tmp_path: Path) -> None:
    """With one class to compare with, the weights of pytorch-grad-cam's target cancel."""
    network = exported_with_second_order("resnet18", 2, tmp_path)
    classes, layer = [0, 1], network.model.target_layers[0]
    targets = [FinerWeightedTarget(k, [1 - k], 1.0) for k in classes]
    exact, rounded = theirs(network, pytorch_grad_cam.FinerCAM, layer, targets)
    assert_near(ours(network, "finercam", layer, classes), exact, rounded)


def test_cam_is_torchcams(network: Exported) -> None:
    layer, classes = network.model.target_layers[0], network.classes("given")
    if network.case.architecture != "resnet18":
        with pytest.raises(MethodUnavailableError, match="none of this bundle"):
            network.explainer.explain(network.inputs, method="cam")
        return
    maps = []
    for module in (network.double, network.model.module):
        images = torch.from_numpy(network.inputs).to(next(module.parameters()).dtype)
        with torchcam.methods.CAM(module, layer, fc_layer="fc") as cam:
            module(images)
            raw = cam(classes, normalized=False)[0]
        raw = raw.clamp(min=0).detach().numpy().astype(np.float32)
        maps.append(network.explainer._backend.fuse_layers([raw], network.size)[0])
    assert_near(ours(network, "cam", layer, classes), maps[0], maps[1])


# Layers of few channels: the oracle runs the whole network once a channel, in both precisions.
@pytest.mark.parametrize(
    ("method", "oracle", "layers"),
    [
        ("scorecam", pytorch_grad_cam.ScoreCAM, {"resnet18": "layer1", "convnext_tiny": "features.1.1"}),
        ("ablationcam", pytorch_grad_cam.AblationCAM, {"resnet18": "layer1", "squeezenet1_1": "features.4"}),
    ],
)
def test_perturbation(network: Exported, method: str, oracle: type[BaseCAM], layers: dict[str, str]) -> None:
    """AblationCAM is compared where the smallest activation is 0: elsewhere the oracle sets channels to -1e7, not 0."""
    if network.case.architecture not in layers:
        return
    layer, k = layers[network.case.architecture], network.classes("given")[0]
    exact, rounded = theirs(network, oracle, layer, [ClassifierOutputTarget(k)])
    assert_near(ours(network, method, layer, [k], images=1), exact, rounded)
