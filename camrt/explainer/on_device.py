"""Explanations whose arrays stay on the GPU from the session to the final map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np

from camrt.cam import Plan
from camrt.cam.method import MapRequest, run_once
from camrt.explainer.assembly import MadeMaps
from camrt.explainer.clock import Clock
from camrt.kernels import KernelBackend, as_numpy
from camrt.kernels.cuda.backend import CudaBackend
from camrt.runtime.session import Session
from camrt.types import FloatArray, IntArray, LayerOutputs, SessionOutputs


class DeviceSession(Protocol):
    """A session that can leave its outputs on the GPU.

    Attributes:
        stream: the CUDA stream of its runs, a cudaStream_t as an integer.
    """

    stream: int

    def run_on_device(self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]) -> Any:
        """logits, class_indices, and layers: name -> (activations, gradients); all with DLPack."""
        ...


def leaves_arrays_on_device(session: Session | DeviceSession, plan: Plan) -> TypeGuard[DeviceSession]:
    """Whether a session does that for this plan: one run with gradients."""
    return hasattr(session, "run_on_device") and plan.base.collect is run_once


def made_on_device(
    session: DeviceSession, backend: CudaBackend, plan: Plan, request: MapRequest, size: tuple[int, int], clock: Clock
) -> MadeMaps:
    """One run and the kernels after it, on the session's stream. Nothing is copied to the host before the final map."""
    with clock.stage("inference"):
        found = session.run_on_device(request.inputs, request.class_indices, request.layers)
        layers = tuple(LayerOutputs(name, *found.layers[name]) for name in request.layers)
    with clock.stage("kernels"), backend.on_stream(session.stream):
        layer_maps = plan.base.layer_maps(backend, layers)
        fused = backend.fuse_layers(layer_maps, size, plan.fusion, plan.order)
        saliency, degenerate, *layer_maps = map(as_numpy, (*fused, *layer_maps))
    logits = np.asarray(found.logits.numpy(), np.float32)
    outputs = SessionOutputs(logits, np.asarray(found.class_indices.numpy()), layers)
    return MadeMaps(outputs, layer_maps, saliency, degenerate, size == request.inputs.shape[2:])


def runs_on_device(backend: KernelBackend) -> TypeGuard[CudaBackend]:
    """Whether the kernels take arrays that lie on the GPU."""
    return isinstance(backend, CudaBackend)
