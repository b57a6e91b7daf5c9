"""The contenders of bench_explain.py: camrt and its peers, each a function from one image to one saliency map.

Every contender explains the predicted class of the same image with RefineCAM (Grad-CAM++ or another base, product) over
the same four layers, and returns an (H, W) float32 map. Peers keep their objects alive between calls, so hooks are
registered once, and get the settings that make them fastest besides the ones that their documentation shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

import camrt
from camrt.types import AnyArray, FloatArray
from tests.models import TestModel
from tests.oracles import PYTORCH_GRAD_CAM_METHODS, pytorch_grad_cam, torchcam

Run = Callable[[], AnyArray]

TORCHCAM_BASES: dict[str, type] = {
    "gradcam": torchcam.methods.GradCAM,
    "gradcam++": torchcam.methods.GradCAMpp,
    "xgradcam": torchcam.methods.XGradCAM,
    "layercam": torchcam.methods.LayerCAM,
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table.

    Attributes:
        key: short name, used in the JSON file.
        label: what it does.
        run: one call; returns logits (N, K) or a map (H, W).
        explains: False for a plain prediction.
    """

    key: str
    label: str
    run: Run
    explains: bool = True


def onnxruntime_prediction(path: str, image: FloatArray, threads: int) -> Contender:
    """The source model in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: image}
    return Contender("onnxruntime", "plain prediction, ONNX Runtime", lambda: session.run(None, feeds)[0], False)


def torch_prediction(model: TestModel, image: FloatArray) -> Contender:
    """The source model in torch, under inference_mode."""
    module, tensor = copy.deepcopy(model.module), torch.from_numpy(image)

    def run() -> AnyArray:
        with torch.inference_mode():
            return module(tensor).numpy()

    return Contender("torch", "plain prediction, torch", run, False)


def camrt_prediction(explainer: camrt.Explainer, image: FloatArray) -> Contender:
    """Logits through the bundle."""
    return Contender("camrt_predict", "plain prediction, camrt bundle", lambda: explainer.predict(image), False)


def camrt_refinecam(explainer: camrt.Explainer, image: FloatArray, base: str) -> Contender:
    """RefineCAM by camrt."""
    return Contender("camrt", "camrt RefineCAM", lambda: explainer.explain(image, base_method=base)[0].saliency_map)


def pytorch_grad_cam_refinecam(model: TestModel, image: FloatArray, base: str) -> Contender:
    """RefineCAM by pytorch-grad-cam as its README calls it: every parameter requires grad, as constructed."""
    module = copy.deepcopy(model.module).requires_grad_(True)
    cam = _pytorch_grad_cam(module, model, base)
    return Contender(
        "pytorch_grad_cam",
        "pytorch-grad-cam RefineCAM, as in its README",
        lambda: cam(input_tensor=torch.from_numpy(image), targets=None)[0],
    )


def pytorch_grad_cam_refinecam_frozen(model: TestModel, image: FloatArray, base: str) -> Contender:
    """The same without parameter gradients; then the input must require grad for its hooks to fire."""
    module = copy.deepcopy(model.module).requires_grad_(False)
    cam = _pytorch_grad_cam(module, model, base)
    return Contender(
        "pytorch_grad_cam_frozen",
        "pytorch-grad-cam RefineCAM, parameter gradients off",
        lambda: cam(input_tensor=torch.from_numpy(image).requires_grad_(True), targets=None)[0],
    )


def pytorch_grad_cam_refinecam_cut(model: TestModel, image: FloatArray, base: str) -> Contender:
    """The same with the backward pass cut off below the finest layer, which takes a hook of the caller's own."""
    module = copy.deepcopy(model.module).requires_grad_(False)
    start_graph_at(module.get_submodule(model.target_layers[-1]))
    cam = _pytorch_grad_cam(module, model, base)
    return Contender(
        "pytorch_grad_cam_cut",
        "pytorch-grad-cam RefineCAM, off and cut below the finest layer",
        lambda: cam(input_tensor=torch.from_numpy(image), targets=None)[0],
    )


def torchcam_refinecam(model: TestModel, image: FloatArray, base: str) -> Contender:
    """RefineCAM by torch-cam in its best configuration: parameter gradients off, no graph below the finest layer.

    Its map has the size of the finest layer; it is enlarged to the image as the others' maps are.
    """
    module = copy.deepcopy(model.module).requires_grad_(False)
    start_graph_at(module.get_submodule(model.target_layers[-1]))
    cam = torchcam.methods.RefineCAM(module, list(model.target_layers), base_method=TORCHCAM_BASES[base])
    tensor = torch.from_numpy(image)

    def run() -> AnyArray:
        scores = module(tensor)
        refined = cam(class_idx=int(scores[0].argmax()), scores=scores)[0]
        enlarged = nn.functional.interpolate(refined[None], image.shape[2:], mode="bilinear", align_corners=False)
        return enlarged[0, 0].numpy()

    return Contender("torchcam", "torch-cam RefineCAM, parameter gradients off", run)


def _pytorch_grad_cam(module: nn.Module, model: TestModel, base: str) -> pytorch_grad_cam.RefineCAM:
    layers = [module.get_submodule(layer) for layer in model.target_layers]
    return pytorch_grad_cam.RefineCAM(module, layers, base_method=PYTORCH_GRAD_CAM_METHODS[base])


def start_graph_at(layer: nn.Module) -> None:
    """Makes the output of ``layer`` the leaf of the autograd graph of a module whose parameters need no gradient."""
    layer.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))


def contenders(
    model: TestModel, source: str, explainer: camrt.Explainer, image: FloatArray, base: str, threads: int
) -> list[Contender]:
    """All of them for one model and one image (1, 3, H, W)."""
    found = [
        onnxruntime_prediction(source, image, threads),
        torch_prediction(model, image),
        camrt_prediction(explainer, image),
        camrt_refinecam(explainer, image, base),
        pytorch_grad_cam_refinecam(model, image, base),
        pytorch_grad_cam_refinecam_frozen(model, image, base),
        pytorch_grad_cam_refinecam_cut(model, image, base),
    ]
    return [*found, torchcam_refinecam(model, image, base)] if base in TORCHCAM_BASES else found


def largest_difference(one: AnyArray, other: AnyArray) -> float:
    """Largest absolute difference of two arrays."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
