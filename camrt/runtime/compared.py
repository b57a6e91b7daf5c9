"""Sessions that pass only where they compute what the CPU provider does."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from camrt.runtime.bundle_session import BundleSession
from camrt.runtime.onnxruntime import OnnxRuntimeSession
from camrt.runtime.parity import check_parity

SessionT = TypeVar("SessionT", bound=BundleSession[Any])


def compared_with_cpu(session: SessionT, path: str | os.PathLike[str], provider: str, threads: int = 0) -> SessionT:
    """The session, its ``parity`` set: the one comparison that a bundle has on its way to a caller or a server.

    The CPU provider's session is closed after it.

    Args:
        session: the bundle on any other provider.
        path: the bundle.
        provider: the session's.
        threads: of the CPU provider.

    Raises:
        InvalidModelError, BundleError, UnsupportedModelError: one of the two cannot run the bundle.
        ParityError: the maps or logits are not those of the CPU provider.
    """
    reference = OnnxRuntimeSession(path, "cpu", threads)
    session.parity = check_parity(session, reference, provider, session.least_correlation)
    return session
