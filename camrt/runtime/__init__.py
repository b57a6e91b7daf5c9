"""Runs bundles: one session protocol, one module an engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from camrt.runtime.providers import ProviderStatus, available_providers
from camrt.runtime.session import Optimization, PlainModel, Session
from camrt.runtime.tensorrt import TENSORRT_PROVIDERS

__all__ = [
    "Optimization",
    "PlainModel",
    "ProviderStatus",
    "Session",
    "available_providers",
    "multiply_adds",
    "open_model",
    "open_session",
]

GPU_PROVIDERS = ("cuda", *TENSORRT_PROVIDERS)


def open_session(path: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> Session:
    """Opens a bundle.

    Args:
        path: the bundle.
        provider: one that available_providers() calls available: "cpu", "cuda", "tensorrt", "tensorrt-ort",
            "openvino", or "openvino-bf16" (the backward part in bfloat16). All but "cpu" are compared with "cpu" first,
            on every layer of two images, see camrt.runtime.parity. What runs on a GPU takes its options from the
            environment, see camrt.runtime.engine_options.
        threads: threads inside an operator; 0 = one a core.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        UnsupportedModelError: the provider cannot run the bundle.
        BackendUnavailableError: the provider cannot be used here; as ParityError: it computes something else than the
            CPU does.
    """
    from camrt.runtime.openvino import OPENVINO_PROVIDERS, OpenVinoSession

    if provider in OPENVINO_PROVIDERS:
        from camrt.runtime.compared import compared_with_cpu

        return compared_with_cpu(OpenVinoSession(path, provider, threads), path, provider, threads)
    if provider in GPU_PROVIDERS:
        from camrt.runtime.gpu import open_gpu_session

        return open_gpu_session(path, provider, threads)
    from camrt.runtime.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, provider, threads)


def open_model(path: str | os.PathLike[str], threads: int = 0, optimization: Optimization = "all") -> PlainModel:
    """Opens any ONNX model on the CPU, for comparison with its bundle."""
    from camrt.runtime.onnxruntime import OnnxRuntimeModel

    return OnnxRuntimeModel(path, threads, optimization)


def multiply_adds(path: str | os.PathLike[str], layers: Sequence[str], derivatives: int = 1) -> int:
    """Multiply-adds of one image through a bundle, see camrt.runtime.arithmetic."""
    from camrt.runtime.arithmetic import multiply_adds as count

    return count(path, layers, derivatives)
