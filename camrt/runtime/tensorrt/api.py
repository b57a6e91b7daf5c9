"""Every name of TensorRT's Python package that camrt uses, and the way to the package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from camrt.errors import BackendUnavailableError

CHECKED_AGAINST = "11.4.0.106"
"""The version of the bindings that the names were looked up in."""

NAMES = (
    "__version__",
    "Logger",
    "Logger.WARNING",
    "Builder",
    "Builder.create_network",
    "Builder.create_builder_config",
    "Builder.create_optimization_profile",
    "Builder.build_serialized_network",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser",
    "OnnxParser.parse",
    "OnnxParser.num_errors",
    "OnnxParser.get_error",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.add_optimization_profile",
    "BuilderFlag.TF32",
    "ITimingCache.serialize",
    "IOptimizationProfile.set_shape",
    "Runtime",
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.get_tensor_shape",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
)
LEAST_VERSION = (10, 12)
_INSTALL = "Install TensorRT 10.12 or later for your CUDA version: pip install 'camrt[tensorrt]'."


def load_tensorrt() -> Any:
    """The package ``tensorrt``.

    Raises:
        BackendUnavailableError: it is missing, too old, or its libraries do not load.
    """
    try:
        tensorrt: Any = import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"TensorRT cannot be loaded ({error}).", _INSTALL) from error
    numbers = tuple(int(part) for part in str(tensorrt.__version__).split(".")[:2] if part.isdecimal())
    if numbers < LEAST_VERSION:
        raise BackendUnavailableError(f"TensorRT {tensorrt.__version__} is too old.", _INSTALL)
    return tensorrt
