"""The Open Inference Protocol, as Triton and KServe speak it, over the same engine and models."""

from __future__ import annotations

from camrt.server.open_inference.servicer import SERVICE_NAME, OpenInferenceServicer, add_to_server

__all__ = ["SERVICE_NAME", "OpenInferenceServicer", "add_to_server"]
