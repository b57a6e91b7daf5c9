"""What bench_explain.py times: camrt and its peers, each a function from images to saliency maps.

Every contender explains the predicted class of the same images with RefineCAM (Grad-CAM++ or another base, product)
over the same layers, and returns (N, H, W) float32 maps; where one does other work its label says so. Peers keep their
objects alive between calls, so hooks are registered once, and get the settings that make them fastest besides the ones
that their documentation shows: no parameter gradients, a graph that starts at the finest layer, channels-last memory.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from captum.attr import LayerGradCam
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
class Case:
    """The same work for all.

    Attributes:
        model: the network in torch.
        source: the same as an ONNX file.
        bundle: the same as a bundle.
        images: (N, 3, H, W).
        base: base method of RefineCAM.
        threads: of everybody.
    """

    model: TestModel
    source: Path
    bundle: Path
    images: FloatArray
    base: str
    threads: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table.

    Attributes:
        key: short name, used in reports.
        label: what it does.
        start: makes the call for a case; what it raises is the reason that the line has no time.
        explains: False for a plain prediction, which returns logits (N, K).
        same_map: whether its map is the same mathematics, and is checked against camrt's.
    """

    key: str
    label: str
    start: Callable[[Case], Run] = field(repr=False)
    explains: bool = True
    same_map: bool = True


def _onnxruntime(case: Case) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(case.source), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: case.images}
    return lambda: session.run(None, feeds)[0]


def _torch(case: Case) -> Run:
    module, tensor = copy.deepcopy(case.model.module), torch.from_numpy(case.images)

    def run() -> AnyArray:
        with torch.inference_mode():
            return module(tensor).numpy()

    return run


def _camrt_prediction(case: Case) -> Run:
    explainer = camrt.Explainer(case.bundle, threads=case.threads)
    return lambda: explainer.predict(case.images)


def _camrt(provider: str) -> Callable[[Case], Run]:
    def start(case: Case) -> Run:
        explainer = camrt.Explainer(case.bundle, provider, case.threads)
        return lambda: np.stack([one.saliency_map for one in explainer.explain(case.images, base_method=case.base)])

    return start


def _pytorch_grad_cam(frozen: bool, cut: bool = False, channels_last: bool = False) -> Callable[[Case], Run]:
    """RefineCAM of pytorch-grad-cam.

    As its README calls it every parameter requires grad. Frozen, the input must require grad for its hooks to fire, or
    the graph is cut off below the finest layer, by a hook that the package does not offer.
    """

    def start(case: Case) -> Run:
        module = _module(case, frozen, channels_last)
        if cut:
            start_graph_at(module.get_submodule(case.model.target_layers[-1]))
        layers = [module.get_submodule(layer) for layer in case.model.target_layers]
        cam = pytorch_grad_cam.RefineCAM(module, layers, base_method=PYTORCH_GRAD_CAM_METHODS[case.base])

        def run() -> AnyArray:
            images = _tensor(case, channels_last)
            maps = cam(input_tensor=images.requires_grad_(True) if frozen and not cut else images, targets=None)
            _release(cam)
            return maps

        return run

    return start


def _torchcam(channels_last: bool) -> Callable[[Case], Run]:
    """RefineCAM of torch-cam in its best configuration: parameter gradients off, no graph below the finest layer.

    Its maps have the size of the finest layer; they are enlarged to the images as the others' are.
    """

    def start(case: Case) -> Run:
        module = _module(case, True, channels_last)
        start_graph_at(module.get_submodule(case.model.target_layers[-1]))
        base = TORCHCAM_BASES[case.base]
        cam = torchcam.methods.RefineCAM(module, list(case.model.target_layers), base_method=base)
        tensor = _tensor(case, channels_last)

        def run() -> AnyArray:
            scores = module(tensor)
            refined = cam(class_idx=scores.argmax(1).tolist(), scores=scores)[0]
            size = case.images.shape[2:]
            return nn.functional.interpolate(refined[:, None], size, mode="bilinear", align_corners=False)[:, 0].numpy()

        return run

    return start


def _captum(case: Case) -> Run:
    """captum's Grad-CAM of the coarsest layer alone, enlarged; it has no RefineCAM."""
    module = _module(case, True, False)
    layer = module.get_submodule(case.model.target_layers[0])
    start_graph_at(layer)
    cam = LayerGradCam(module, layer)
    tensor = torch.from_numpy(case.images)

    def run() -> AnyArray:
        with torch.inference_mode():
            classes = module(tensor).argmax(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about hooks of the module, which are removed again
            attribution = cam.attribute(tensor, classes, relu_attributions=True)
        size = case.images.shape[2:]
        return nn.functional.interpolate(attribution, size, mode="bilinear", align_corners=False)[:, 0].detach().numpy()

    return run


def _openvino_xai(_case: Case) -> Run:
    """OpenVINO XAI 1.1.0 pins openvino-dev 2024.4 and numpy 1, so it cannot be installed beside the others."""
    raise ImportError(
        "openvino_xai 1.1.0 needs openvino-dev 2024.4 and numpy 1: it cannot be installed beside the others"
    )


PEERS: tuple[Peer, ...] = (
    Peer("onnxruntime", "plain prediction, ONNX Runtime", _onnxruntime, explains=False),
    Peer("torch", "plain prediction, torch", _torch, explains=False),
    Peer("camrt_predict", "plain prediction, camrt bundle", _camrt_prediction, explains=False),
    Peer("camrt", "camrt RefineCAM", _camrt("cpu")),
    Peer("camrt_openvino", "camrt RefineCAM, OpenVINO", _camrt("openvino")),
    Peer(
        "camrt_openvino_bf16",
        "camrt RefineCAM, OpenVINO, backward in bfloat16",
        _camrt("openvino-bf16"),
        same_map=False,
    ),
    Peer("pytorch_grad_cam", "pytorch-grad-cam RefineCAM, as in its README", _pytorch_grad_cam(frozen=False)),
    Peer("pytorch_grad_cam_frozen", "pytorch-grad-cam, parameter gradients off", _pytorch_grad_cam(frozen=True)),
    Peer(
        "pytorch_grad_cam_cut",
        "pytorch-grad-cam, off and cut below the finest layer",
        _pytorch_grad_cam(True, cut=True),
    ),
    Peer("pytorch_grad_cam_best", "the same, channels last", _pytorch_grad_cam(True, cut=True, channels_last=True)),
    Peer("torchcam", "torch-cam RefineCAM, parameter gradients off, cut", _torchcam(False), same_map=False),
    Peer("torchcam_best", "the same, channels last", _torchcam(True), same_map=False),
    Peer("captum", "captum Grad-CAM, the coarsest layer alone", _captum, same_map=False),
    Peer("openvino_xai", "OpenVINO XAI, white box, one 7x7 map without gradients", _openvino_xai, same_map=False),
)


def _module(case: Case, frozen: bool, channels_last: bool) -> nn.Module:
    module = copy.deepcopy(case.model.module).requires_grad_(not frozen)
    return module.to(memory_format=torch.channels_last) if channels_last else module


def _tensor(case: Case, channels_last: bool) -> torch.Tensor:
    tensor = torch.from_numpy(case.images)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


def _release(cam: Any) -> None:
    """Lets go of the graphs that it keeps, one a layer, until its next call: gigabytes a peer at batch 16."""
    for base in cam.base_cam_per_layer:
        base.outputs = None
        base.activations_and_grads.activations, base.activations_and_grads.gradients = [], []


def start_graph_at(layer: nn.Module) -> None:
    """Makes the output of ``layer`` the leaf of the autograd graph of a module whose parameters need no gradient."""
    layer.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))


def largest_difference(one: AnyArray, other: AnyArray) -> float:
    """Largest absolute difference of two arrays."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
