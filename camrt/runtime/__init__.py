"""Runs bundles: one session protocol, one module an engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from camrt.runtime.providers import ProviderStatus, available_providers
from camrt.runtime.session import PlainModel, Session

__all__ = [
    "PlainModel",
    "ProviderStatus",
    "Session",
    "available_providers",
    "multiply_adds",
    "open_model",
    "open_session",
]


def open_session(path: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> Session:
    """Opens a bundle.

    Args:
        path: the bundle.
        provider: "cpu", or "cuda" where available_providers() says so.
        threads: threads inside an operator; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider cannot be used here.
    """
    from camrt.runtime.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, provider, threads)


def open_model(path: str | os.PathLike[str], threads: int = 0) -> PlainModel:
    """Opens any ONNX model on the CPU, for comparison with its bundle."""
    from camrt.runtime.onnxruntime import OnnxRuntimeModel

    return OnnxRuntimeModel(path, threads)


def multiply_adds(path: str | os.PathLike[str], layers: Sequence[str]) -> int:
    """Multiply-adds of one image through a bundle, see camrt.runtime.arithmetic."""
    from camrt.runtime.arithmetic import multiply_adds as count

    return count(path, layers)
