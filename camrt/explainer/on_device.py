"""Explanations whose arrays stay on the GPU from the session to the final map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
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
    """A session that can leave its outputs on the GPU."""

    @property
    def most_on_device(self) -> int | None:
        """The most images or classes of such a run; None = any number."""
        ...

    def outputs_on_device(
        self, inputs: FloatArray, class_indices: IntArray, layers: Sequence[str]
    ) -> AbstractContextManager[Any]:
        """One run; camrt.runtime.device_outputs.DeviceOutputs, which hold until the context ends."""
        ...


def leaves_arrays_on_device(
    session: Session | DeviceSession, plan: Plan, request: MapRequest
) -> TypeGuard[DeviceSession]:
    """Whether a session does that for this request: one run with gradients."""
    if not hasattr(session, "outputs_on_device") or plan.base.collect is not run_once:
        return False
    most: int | None = getattr(session, "most_on_device", None)
    return most is None or max(len(request.inputs), len(request.class_indices)) <= most


def made_on_device(
    session: DeviceSession, backend: CudaBackend, plan: Plan, request: MapRequest, size: tuple[int, int], clock: Clock
) -> MadeMaps:
    """One run and the kernels after it, on the session's stream. Nothing is copied to the host before the final map."""
    with ExitStack() as held:
        with clock.stage("inference"):  # TensorRT's ends with the kernels: nothing waits in between
            run = session.outputs_on_device(request.inputs, request.class_indices, request.layers)
            found = held.enter_context(run)
            layers = tuple(LayerOutputs(name, *found.layers[name]) for name in request.layers)

        def work() -> list[Any]:
            layer_maps = plan.base.layer_maps(backend, layers)
            return [*backend.fuse_layers(layer_maps, size, plan.fusion, plan.order), *layer_maps]

        with clock.stage("kernels"), backend.on_stream(found.stream):
            if found.memory is None:
                arrays = work()
            else:
                what = plan.base.name, plan.fusion, plan.order, tuple(request.layers), size
                arrays = backend.replayed((found.memory, what), work)
            saliency, degenerate, *layer_maps = map(as_numpy, arrays)
        logits = np.asarray(found.logits.numpy(), np.float32)
        outputs = SessionOutputs(logits, np.asarray(found.class_indices.numpy()), ())  # the layers' arrays end here
    return MadeMaps(outputs, layer_maps, saliency, degenerate, size == request.inputs.shape[2:])


def runs_on_device(backend: KernelBackend) -> TypeGuard[CudaBackend]:
    """Whether the kernels take arrays that lie on the GPU."""
    return isinstance(backend, CudaBackend)
