"""Array kernels behind one protocol: ``reference`` (NumPy, the specification), ``native`` (C++) and ``cuda``."""

from __future__ import annotations

from camrt.kernels.backend import BackendStatus, KernelBackend, as_numpy, available_backends, get_backend

__all__ = ["BackendStatus", "KernelBackend", "as_numpy", "available_backends", "get_backend"]
