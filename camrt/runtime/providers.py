"""Execution providers: their names here, their names in ONNX Runtime, and whether they work on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import onnxruntime

from camrt.errors import BackendUnavailableError

_ONNX_RUNTIME_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INSTALL = {"cuda": "Install onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA GPU."}


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
        raise BackendUnavailableError(f"Unknown provider {name!r}.", f"Choose one of {', '.join(_ONNX_RUNTIME_NAMES)}.")
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
    for name in _ONNX_RUNTIME_NAMES:
        try:
            statuses.append(
                ProviderStatus(name, True, f"{onnx_runtime_provider(name)} of ONNX Runtime {onnxruntime.__version__}")
            )
        except BackendUnavailableError as error:
            statuses.append(ProviderStatus(name, False, str(error)))
    return tuple(statuses)
