"""Array kernels behind one protocol: ``reference`` (NumPy, the specification) and ``native`` (C++)."""

from __future__ import annotations

from camrt.kernels.backend import BackendStatus, KernelBackend, available_backends, get_backend

__all__ = ["BackendStatus", "KernelBackend", "available_backends", "get_backend"]
