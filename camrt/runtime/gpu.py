"""Opens what runs on a GPU, and lets it pass only where it computes what the CPU does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from camrt.runtime.compared import compared_with_cpu
from camrt.runtime.cuda import CudaSession
from camrt.runtime.engine_options import EngineOptions
from camrt.runtime.tensorrt import TENSORRT
from camrt.runtime.tensorrt.session import TensorRtSession


def open_gpu_session(
    path: str | os.PathLike[str], provider: str, threads: int = 0, options: EngineOptions | None = None
) -> CudaSession | TensorRtSession:
    """A session on "cuda", "tensorrt" or "tensorrt-ort", its ``parity`` set where the options ask for the check.

    Raises:
        InvalidModelError, BundleError: the file cannot be used.
        BackendUnavailableError: the provider is missing, or its maps are not those of the CPU provider.
    """
    options = EngineOptions.from_environment() if options is None else options
    session: CudaSession | TensorRtSession
    if provider == TENSORRT:
        session = TensorRtSession(path, threads, options)
    else:
        session = CudaSession(path, provider, threads, options)
    return compared_with_cpu(session, path, provider, threads) if options.check else session


def build_gpu_engines(
    path: str | os.PathLike[str], provider: str, options: EngineOptions, layers: Sequence[str] | None = None
) -> CudaSession | TensorRtSession:
    """Builds what a server needs of a bundle: predictions, and explanations by all layers or by ``layers``.

    Raises:
        See open_gpu_session; LayerNotFoundError for a layer that the bundle does not have.
    """
    session = open_gpu_session(path, provider, options=replace(options, check=True))
    session.prepare([])
    session.prepare(session.manifest.layer_names if layers is None else layers)
    return session
