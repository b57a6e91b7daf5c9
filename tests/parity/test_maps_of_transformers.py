"""The methods beyond activations times gradients on small transformers, whose layers are tokens or channels last."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget
from torch.nn.attention import SDPBackend, sdpa_kernel

import camrt
from camrt.errors import MethodUnavailableError
from tests import oracles
from tests.models import import_torchvision, make_inputs
from tests.parity.test_maps_of_other_methods import assert_near

SIZE = 64
CLASSES = [1, 3]


@dataclass(frozen=True)
class Network:
    """A transformer, its bundle, and the layer that is explained.

    Attributes:
        name: vit or swin.
        module: the torch module.
        layer: its path.
        upright: the layer's output as (N, C, h, w).
        explainer: of the bundle.
        inputs: (2, 3, H, W).
    """

    name: str
    module: torch.nn.Module
    layer: str
    upright: Callable[[torch.Tensor], torch.Tensor]
    explainer: camrt.Explainer
    inputs: np.ndarray

    def ours(self, method: str) -> oracles.Array:
        explanations = self.explainer.explain(self.inputs, CLASSES, method=method, target_layers=self.layer)
        assert all(not explanation.degenerate for explanation in explanations)
        return np.stack([explanation.saliency_map for explanation in explanations])

    def theirs(self, cam: type[BaseCAM], targets: Sequence[object]) -> tuple[oracles.Array, oracles.Array]:
        """pytorch-grad-cam's maps, from float64 and from float32."""
        maps = []
        for module in (oracles.in_double(self.module), copy.deepcopy(self.module)):
            method = cam(module, [dict(module.named_modules())[self.layer]], reshape_transform=self.upright)
            images = torch.from_numpy(self.inputs).to(next(module.parameters()).dtype)
            maps.append(method(input_tensor=images, targets=list(targets)))
        return maps[0], maps[1]


def tokens_upright(tokens: torch.Tensor) -> torch.Tensor:
    """(N, 1 + h w, C) with a class token in front."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


def channels_first(values: torch.Tensor) -> torch.Tensor:
    return values.permute(0, 3, 1, 2)


def vit() -> torch.nn.Module:
    model = import_torchvision().models.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=8
    )
    torch.nn.init.normal_(model.heads.head.weight, std=0.3)
    return model


def swin() -> torch.nn.Module:
    return import_torchvision().models.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4], num_classes=8
    )


@pytest.fixture(scope="module", params=["vit", "swin"])
def network(request: pytest.FixtureRequest, torch_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = (vit if request.param == "vit" else swin)().eval()
    inputs, folder = make_inputs(2, SIZE, 3), tmp_path_factory.mktemp(request.param)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: deprecations, and what it traces as constants
        torch.onnx.export(
            module,
            (torch.from_numpy(inputs),),
            str(folder / "source.onnx"),
            dynamo=False,
            opset_version=17,
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            **names,
        )
    bundle = camrt.export(folder / "source.onnx", folder / "bundle.onnx", image_size=(SIZE, SIZE), second_order=True)
    layer = bundle.manifest.layer_names[0]
    upright = tokens_upright if request.param == "vit" else channels_first
    assert bundle.manifest.layer(layer).layout == ("NLC" if request.param == "vit" else "NHWC")
    return Network(request.param, module, layer, upright, camrt.Explainer(bundle.path, threads=1), inputs)


def test_shapleycam(network: Network) -> None:
    """Against torch.autograd: pytorch-grad-cam's ShapleyCAM forgets reshape_transform for the activations."""
    found = network.explainer.explain(network.inputs, CLASSES, method="shapleycam", target_layers=network.layer)
    module, box = oracles.in_double(network.module), []
    layer = dict(module.named_modules())[network.layer]
    handle = layer.register_forward_hook(lambda _module, _inputs, output: box.append(output))
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        logits = module(torch.from_numpy(network.inputs).double().requires_grad_())
        handle.remove()
        value = sum(ClassifierOutputReST(k)(logits[n]) for n, k in enumerate(CLASSES))
        (gradient,) = torch.autograd.grad(value, box[0], create_graph=True)
        (product,) = torch.autograd.grad(gradient, box[0], box[0].detach())
    weights = network.upright(gradient - 0.5 * product).mean((2, 3), keepdim=True)
    raw = (weights * network.upright(box[0])).sum(1).clamp(min=0).detach().numpy()
    for n, explanation in enumerate(found):
        expected = (raw[n] - raw[n].min()) / (raw[n].max() - raw[n].min() + 1e-7)
        assert expected.std() > 0.01
        assert np.abs(explanation.layer_maps[network.layer] - expected).max() <= oracles.TOLERANCE_FLOOR


def test_hessian_vector_products_of_several_classes_of_one_image(network: Network) -> None:
    """With N = 1 and M = 3, where the windows and heads of attention are folded into the batch."""
    session = network.explainer._session
    together = session.run(network.inputs[:1], np.array([1, 3, 5]), [network.layer], derivatives=2).layers[0]
    for m, k in enumerate((1, 3, 5)):
        alone = session.run(network.inputs[:1], np.array([k]), [network.layer], derivatives=2).layers[0]
        for several, one in (
            (together.gradients, alone.gradients),
            (together.hessian_vectors, alone.hessian_vectors),
        ):
            assert np.abs(several[m] - one[0]).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.parametrize(
    ("method", "oracle"), [("eigencam", pytorch_grad_cam.EigenCAM), ("eigengradcam", pytorch_grad_cam.EigenGradCAM)]
)
def test_principal_components_but_for_the_sign(network: Network, method: str, oracle: type[BaseCAM]) -> None:
    class Flipped(oracle):  # type: ignore[misc, valid-type]
        def get_cam_image(self, *args: object, **kwargs: object) -> oracles.Array:
            return -super().get_cam_image(*args, **kwargs)

    targets = [ClassifierOutputTarget(k) for k in CLASSES]
    signs = [network.theirs(cam, targets) for cam in (oracle, Flipped)]
    for n, ours in enumerate(network.ours(method)):
        exact = min((pair[0][n] for pair in signs), key=lambda other: np.abs(ours - other).max())
        single = min((pair[1][n] for pair in signs), key=lambda other: np.abs(exact - other).max())
        assert exact.std() > 0.01
        assert np.abs(ours - exact).max() <= oracles.tolerance(single, exact)


def test_finercam(network: Network) -> None:
    logits = network.explainer.predict(network.inputs)

    def difference(n: int, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        near = np.argsort(np.abs(logits[n] - logits[n, k]))[1:4].tolist()
        return lambda output: output[k] - output[near].mean()

    exact, rounded = network.theirs(pytorch_grad_cam.GradCAM, [difference(n, k) for n, k in enumerate(CLASSES)])
    assert_near(network.ours("finercam"), exact, rounded)


def test_scorecam(network: Network) -> None:
    exact, rounded = network.theirs(pytorch_grad_cam.ScoreCAM, [ClassifierOutputTarget(k) for k in CLASSES])
    assert_near(network.ours("scorecam"), exact, rounded)


def test_ablationcam(network: Network) -> None:
    """Against the model with a hook that sets a channel to zero: pytorch-grad-cam sets negative ones to -1e7."""
    if network.name == "vit":
        with pytest.raises(MethodUnavailableError, match="tokens"):
            network.ours("ablationcam")
        return
    found = network.explainer.explain(network.inputs, CLASSES, method="ablationcam", target_layers=network.layer)
    module = oracles.in_double(network.module)
    for n, k in enumerate(CLASSES):
        box: dict[str, torch.Tensor] = {}

        def without_a_channel(
            _module: object, _inputs: object, output: torch.Tensor, box: dict[str, torch.Tensor] = box
        ) -> torch.Tensor:
            box["activations"] = output[0].clone()
            channels = torch.arange(len(output) - 1)
            output = output.clone()
            output[1 + channels, :, :, channels] = 0
            return output

        handle = dict(module.named_modules())[network.layer].register_forward_hook(without_a_channel)
        count = network.explainer.manifest.layer(network.layer).shape[0]
        with torch.no_grad():
            y = module(torch.from_numpy(network.inputs[n]).double().expand(count + 1, -1, -1, -1))[:, k]
        handle.remove()
        weights = (y[0] - y[1:]) / y[0]
        raw = (box["activations"] @ weights).clamp(min=0).numpy()
        expected = (raw - raw.min()) / (raw.max() - raw.min() + 1e-7)
        assert expected.std() > 0.01
        assert np.abs(found[n].layer_maps[network.layer] - expected).max() <= oracles.TOLERANCE_FLOOR
