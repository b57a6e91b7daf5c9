"""Execution providers: their names here, their names in ONNX Runtime, and whether they work on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import onnxruntime

from camrt.errors import BackendUnavailableError
from camrt.runtime.cuda_driver import cuda_driver
from camrt.runtime.openvino import OPENVINO_PROVIDERS, openvino_detail
from camrt.runtime.tensorrt import TENSORRT, TENSORRT_ORT
from camrt.runtime.tensorrt.api import load_tensorrt

_ONNX_RUNTIME_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    TENSORRT_ORT: "TensorrtExecutionProvider",
}
PROVIDERS = (*_ONNX_RUNTIME_NAMES, TENSORRT, *OPENVINO_PROVIDERS)
_GPU_PACKAGE = "Install onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA GPU"
_INSTALL = {"cuda": f"{_GPU_PACKAGE}.", TENSORRT_ORT: f"{_GPU_PACKAGE}, and TensorRT: pip install 'camrt[tensorrt]'."}


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """Whether a provider works here, and if not why and what to install."""

    name: str
    available: bool
    detail: str


def onnx_runtime_provider(name: str) -> str:
    """ONNX Runtime's name of a provider.

    Raises:
        BackendUnavailableError: unknown, or not part of the installed ONNX Runtime.
    """
    if name not in _ONNX_RUNTIME_NAMES:
        raise BackendUnavailableError(f"Unknown provider {name!r}.", f"Choose one of {', '.join(PROVIDERS)}.")
    known = _ONNX_RUNTIME_NAMES[name]
    if known not in onnxruntime.get_available_providers():
        raise BackendUnavailableError(
            f"Provider {name!r} is not part of the installed ONNX Runtime {onnxruntime.__version__}.",
            _INSTALL.get(name, ""),
        )
    return known


def available_providers() -> tuple[ProviderStatus, ...]:
    """One status a provider, for ``camrt doctor``."""
    statuses = []
    for name in PROVIDERS:
        try:
            statuses.append(ProviderStatus(name, True, _detail(name)))
        except BackendUnavailableError as error:
            statuses.append(ProviderStatus(name, False, str(error)))
    return tuple(statuses)


def _detail(name: str) -> str:
    """What runs a provider here; BackendUnavailableError where nothing does."""
    if name in OPENVINO_PROVIDERS:
        return openvino_detail(name)
    if name == TENSORRT:
        return f"TensorRT {load_tensorrt().__version__} on {cuda_driver().info}"
    return f"{onnx_runtime_provider(name)} of ONNX Runtime {onnxruntime.__version__}"
