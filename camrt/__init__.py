"""camrt: class activation maps in production, from the ONNX file that is already deployed."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camrt.bundle import Bundle
    from camrt.client import AsyncExplainerClient, ExplainerClient
    from camrt.errors import CamrtError
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.exporter import export
    from camrt.preprocess import Preprocessing

__all__ = [
    "AsyncExplainerClient",
    "Bundle",
    "CamrtError",
    "Explainer",
    "ExplainerClient",
    "Explanation",
    "Preprocessing",
    "__version__",
    "export",
]
__version__ = version("camrt")

_HOMES = {
    "AsyncExplainerClient": "camrt.client",
    "Bundle": "camrt.bundle",
    "CamrtError": "camrt.errors",
    "Explainer": "camrt.explainer",
    "ExplainerClient": "camrt.client",
    "Explanation": "camrt.explanation",
    "Preprocessing": "camrt.preprocess",
    "export": "camrt.exporter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'camrt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
